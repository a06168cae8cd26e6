//! Plain sockets, made wherever this thread is.

use std::io::{Error, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{Linger, RcvBuf, SndBuf, TcpNoDelay};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, recv, send, sendto, setsockopt, socket,
};

/// How long one machine's own network may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes; the kernel doubles it for its own needs.
const BUFFER: usize = 128 << 10;

/// Who is dialled in the end: a TCP listener and a UDP socket on one port.
pub struct Server {
    listener: TcpListener,
    receiver: UdpSocket,
}

impl Server {
    pub fn bind(port: u16) -> Result<Self> {
        let any = (Ipv4Addr::UNSPECIFIED, port);
        let listener = TcpListener::bind(any).with_context(|| format!("listen at port {port}"))?;
        let receiver = UdpSocket::bind(any).with_context(|| format!("bind port {port}"))?;
        receiver.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, receiver })
    }

    /// The connection that has just been made.
    pub fn accept(&self) -> Result<OwnedFd> {
        let accepted = patiently(|| self.listener.accept()).context("accept")?;
        Ok(accepted.0.into())
    }

    /// Takes the datagrams that have arrived: all that were sent.
    pub fn drain(&self, expected: usize) -> Result<()> {
        let mut buffer = [0; 8];
        for number in 0..expected {
            patiently(|| self.receiver.recv(&mut buffer))
                .with_context(|| format!("datagram {} of {expected}", number + 1))?;
        }
        Ok(())
    }
}

/// Packets between namespaces arrive before the call that sent them returns; the last ones on a busy machine do not.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(got) => return Ok(got),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                ensure!(start.elapsed() < PATIENCE, "nothing arrived in {PATIENCE:?}");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub fn tcp() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

pub fn udp() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

pub fn address(to: SocketAddrV4) -> SockaddrIn {
    to.into()
}

/// Connects, and says how long the system call took.
pub fn timed_connect(socket: &OwnedFd, to: &SockaddrIn) -> Result<Duration> {
    let start = Instant::now();
    let connected = connect(socket.as_raw_fd(), to);
    let took = start.elapsed();
    connected.with_context(|| format!("connect to {to}"))?;
    Ok(took)
}

pub fn send_one(socket: &OwnedFd, to: &SockaddrIn) -> Result<()> {
    sendto(socket.as_raw_fd(), b"x", to, MsgFlags::empty()).with_context(|| format!("send to {to}")).map(drop)
}

/// Closing then resets: no port is kept waiting.
pub fn reset_at_close(socket: &OwnedFd) -> Result<()> {
    Ok(setsockopt(socket, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?)
}

/// Both ends of a connection.
pub struct Session {
    client: OwnedFd,
    server: OwnedFd,
}

impl Session {
    /// Buffers that hold a whole stream and never grow: how far the kernel would let them grow is chance.
    pub fn open(to: &SockaddrIn, server: &Server) -> Result<Self> {
        let client = tcp()?;
        setsockopt(&client, SndBuf, &BUFFER)?;
        timed_connect(&client, to)?;
        let session = Self { client, server: server.accept()? };
        setsockopt(&session.server, RcvBuf, &BUFFER)?;
        for end in [&session.client, &session.server] {
            setsockopt(end, TcpNoDelay, &true)?;
            reset_at_close(end)?;
        }
        Ok(session)
    }

    /// One byte there, one byte back.
    pub fn ask(&self) -> Result<()> {
        pass(&self.client, &self.server)?;
        pass(&self.server, &self.client)
    }

    /// Sends as many bytes as `buffer` holds, as fast as they can be taken.
    pub fn stream(&self, buffer: &mut [u8]) -> Result<()> {
        let (mut sent, mut received) = (0, 0);
        while received < buffer.len() {
            if sent < buffer.len() {
                sent += or_nothing(send(self.client.as_raw_fd(), &buffer[sent..], MsgFlags::MSG_DONTWAIT))?;
            }
            received += or_nothing(recv(self.server.as_raw_fd(), &mut buffer[received..], MsgFlags::MSG_DONTWAIT))?;
        }
        Ok(())
    }
}

fn pass(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    send(from.as_fd().as_raw_fd(), b"x", MsgFlags::empty())?;
    let mut byte = [0];
    ensure!(recv(to.as_raw_fd(), &mut byte, MsgFlags::empty())? == 1, "the connection ended");
    Ok(())
}

fn or_nothing(moved: nix::Result<usize>) -> Result<usize> {
    match moved {
        Err(Errno::EAGAIN) => Ok(0),
        moved => Ok(moved?),
    }
}
