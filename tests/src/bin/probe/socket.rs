//! One socket, its calls one by one, errors by name.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use proxy_tests::probe::{Answer, Kind, Outcome};

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
