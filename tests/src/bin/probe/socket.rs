//! One socket, its calls one by one, errors by name.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use proxy_tests::probe::{Answer, IcmpError, Kind, Outcome};

const QUESTION: &[u8] = b"who\n";
/// Long enough for a busy machine; a dial that gets this far has failed anyway.
const PATIENCE_MILLISECONDS: i64 = 3_000;

pub(crate) struct Socket {
    fd: OwnedFd,
    kind: Kind,
}

impl Socket {
    pub(crate) fn open(kind: Kind, v6: bool) -> Outcome<Self> {
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let make = |style| socket::socket(family, style, SockFlag::SOCK_CLOEXEC, None).map_err(name);
        let fd = match kind {
            Kind::Tcp => make(SockType::Stream)?,
            Kind::Udp => make(SockType::Datagram)?,
            Kind::Mptcp => proxy_tests::mptcp_socket(family as i32).map_err(|error| io_name(&error))?,
        };
        let socket = Self { fd, kind };
        socket.set_patience(PATIENCE_MILLISECONDS)?;
        Ok(socket)
    }

    pub(crate) fn set_patience(&self, milliseconds: i64) -> Outcome<()> {
        let timeout = TimeVal::milliseconds(milliseconds);
        setsockopt(&self.fd, sockopt::ReceiveTimeout, &timeout).map_err(name)?;
        setsockopt(&self.fd, sockopt::SendTimeout, &timeout).map_err(name)
    }

    pub(crate) fn bind(&self, address: SocketAddr) -> Outcome<()> {
        setsockopt(&self.fd, sockopt::ReuseAddr, &true).map_err(name)?;
        socket::bind(self.fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(name)
    }

    pub(crate) fn connect(&self, address: SocketAddr) -> Outcome<()> {
        socket::connect(self.fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(name)
    }

    pub(crate) fn disconnect(&self) -> Outcome<()> {
        proxy_tests::disconnect(self.fd.as_fd()).map_err(|error| io_name(&error))
    }

    pub(crate) fn send(&self, to: Option<SocketAddr>) -> Outcome<()> {
        match to {
            Some(to) => self.send_with(to, MsgFlags::empty()),
            None => socket::send(self.fd.as_raw_fd(), QUESTION, MsgFlags::empty()).map(drop).map_err(name),
        }
    }

    pub(crate) fn send_large(&self, to: Option<SocketAddr>, bytes: usize, answer: u16) -> Outcome<()> {
        let mut question = format!("who {answer}\n").into_bytes();
        question.resize(bytes.max(question.len()), b' ');
        let sent = match to {
            Some(to) => socket::sendto(self.fd.as_raw_fd(), &question, &SockaddrStorage::from(to), MsgFlags::empty()),
            None => socket::send(self.fd.as_raw_fd(), &question, MsgFlags::empty()),
        };
        sent.map(drop).map_err(name)
    }

    pub(crate) fn cut_into(&self, bytes: u16) -> Outcome<()> {
        let segment = (libc::SOL_UDP, libc::UDP_SEGMENT, bytes.into());
        proxy_tests::set_option(self.fd.as_fd(), segment).map_err(|error| io_name(&error))
    }

    pub(crate) fn set_hops(&self, hops: u8) -> Outcome<()> {
        let hops = i32::from(hops);
        let set = if self.is_v6()? { self.set(sockopt::Ipv6Ttl, &hops) } else { self.set(sockopt::Ipv4Ttl, &hops) };
        set.map_err(name)
    }

    pub(crate) fn watch_errors(&self) -> Outcome<()> {
        let discover = if self.is_v6()? {
            self.set(sockopt::Ipv6RecvErr, &true).map_err(name)?;
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
        } else {
            self.set(sockopt::Ipv4RecvErr, &true).map_err(name)?;
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
        };
        proxy_tests::set_option(self.fd.as_fd(), discover).map_err(|error| io_name(&error))
    }

    /// Errors are there as soon as the socket is told of them; a packet may take its time until then.
    pub(crate) fn icmp_error(&self) -> Outcome<IcmpError> {
        let mut wait = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        if poll(&mut wait, PollTimeout::from(PATIENCE_MILLISECONDS as u16)).map_err(name)? == 0 {
            return Err("no error came".to_owned());
        }
        let (mut text, mut control) = ([0; 64], nix::cmsg_space!([u8; 128]));
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_ERRQUEUE;
        let message = socket::recvmsg::<SockaddrStorage>(self.fd.as_raw_fd(), &mut parts, Some(&mut control), flags)
            .map_err(name)?;
        let about = message.address.as_ref().and_then(address).ok_or("no address of what it is about")?;
        let read = |error: &libc::sock_extended_err, by: Option<IpAddr>| {
            let by = by.ok_or("nobody says so")?;
            Ok(IcmpError { kind: error.ee_type, code: error.ee_code, mtu: error.ee_info, about, by })
        };
        let mut controls = message.cmsgs().map_err(name)?;
        let found = controls.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, by) => {
                Some(read(&error, by.map(|by| Ipv4Addr::from(u32::from_be(by.sin_addr.s_addr)).into())))
            }
            ControlMessageOwned::Ipv6RecvErr(error, by) => {
                Some(read(&error, by.map(|by| Ipv6Addr::from(by.sin6_addr.s6_addr).into())))
            }
            _ => None,
        });
        found.unwrap_or(Err("no error is with it")).map_err(str::to_owned)
    }

    fn set<O: socket::SetSockOpt>(&self, option: O, value: &O::Val) -> nix::Result<()> {
        setsockopt(&self.fd, option, value)
    }

    fn is_v6(&self) -> Outcome<bool> {
        self.local_name().map(|local| local.is_ipv6())
    }

    pub(crate) fn fast_open(&self, to: SocketAddr) -> Outcome<()> {
        self.send_with(to, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))
    }

    fn send_with(&self, to: SocketAddr, flags: MsgFlags) -> Outcome<()> {
        let to = SockaddrStorage::from(to);
        socket::sendto(self.fd.as_raw_fd(), QUESTION, &to, flags).map(drop).map_err(name)
    }

    pub(crate) fn receive(&self) -> Outcome {
        let mut text = [0; 256];
        let (length, source) = socket::recvfrom::<SockaddrStorage>(self.fd.as_raw_fd(), &mut text).map_err(name)?;
        if length == 0 {
            return Err("closed".to_owned());
        }
        let from = match self.kind {
            Kind::Udp => source.as_ref().and_then(address),
            Kind::Tcp | Kind::Mptcp => Some(self.peer_name()?),
        };
        parse(&text[..length], from).ok_or_else(|| "the answer is cut short".to_owned())
    }

    pub(crate) fn peer_name(&self) -> Outcome<SocketAddr> {
        socket::getpeername::<SockaddrStorage>(self.fd.as_raw_fd()).map_err(name).map(|found| known(&found))
    }

    pub(crate) fn local_name(&self) -> Outcome<SocketAddr> {
        socket::getsockname::<SockaddrStorage>(self.fd.as_raw_fd()).map_err(name).map(|found| known(&found))
    }

    pub(crate) fn duplicate(&self) -> Outcome<Self> {
        let fd = self.fd.try_clone().map_err(|error| io_name(&error))?;
        Ok(Self { fd, kind: self.kind })
    }

    /// Lets the connection end with a reset, so that no port stays behind in `TIME_WAIT`.
    pub(crate) fn reset_on_close(&self) -> Outcome<()> {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.fd, sockopt::Linger, &linger).map_err(name)
    }

    pub(crate) fn from_fd(fd: OwnedFd, kind: Kind) -> Self {
        Self { fd, kind }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Opens, connects, asks who is there.
pub(crate) fn dial(kind: Kind, to: SocketAddr, from: Option<SocketAddr>) -> Outcome {
    let socket = Socket::open(kind, to.is_ipv6())?;
    if let Some(from) = from {
        socket.bind(from)?;
    }
    socket.connect(to)?;
    match kind {
        Kind::Udp => socket.send(None)?,
        Kind::Tcp | Kind::Mptcp => socket.reset_on_close()?,
    }
    socket.receive()
}

fn parse(text: &[u8], from: Option<SocketAddr>) -> Option<Answer> {
    let line = str::from_utf8(text).ok()?.lines().next()?;
    let (by, seen_as) = line.split_once(' ')?;
    Some(Answer { by: by.to_owned(), seen_as: seen_as.parse().ok()?, from })
}

fn known(found: &SockaddrStorage) -> SocketAddr {
    address(found).expect("an internet socket has an internet address")
}

fn address(found: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = found.as_sockaddr_in().map(|found| SocketAddr::V4((*found).into()));
    v4.or_else(|| found.as_sockaddr_in6().map(|found| SocketAddr::V6((*found).into())))
}

fn name(error: Errno) -> String {
    format!("{error:?}")
}

fn io_name(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| name(Errno::from_raw(code)))
}
