//! One way to reach a server, and the batches of operations that are timed on it.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::SockaddrIn;

use proxy_tests::bench::sockets::{Server, Session, address, reset_at_close, send_one, tcp, timed_connect, udp};
use proxy_tests::bench::{Inside, Kind};
use proxy_tests::netns::Netns;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// The system call `connect()`.
    Connect,
    /// Socket, connect, accept, close of both ends.
    Cycle,
    /// One byte there and one back, over an open connection.
    Request,
    /// 64 KiB over an open connection.
    Stream,
    /// The system call `connect()` of UDP, which sends nothing.
    UdpConnect,
    /// Socket, connect, close.
    UdpSocket,
    /// The first datagram of a socket.
    UdpFirst,
    /// The others.
    UdpNext,
}

impl Metric {
    pub(crate) const ALL: [Self; 8] = [
        Self::Connect,
        Self::Cycle,
        Self::Request,
        Self::Stream,
        Self::UdpConnect,
        Self::UdpSocket,
        Self::UdpFirst,
        Self::UdpNext,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Connect => "TCP connect()",
            Self::Cycle => "TCP cycle: socket, connect, accept, close",
            Self::Request => "TCP request and reply of one byte",
            Self::Stream => "TCP stream, 64 KiB",
            Self::UdpConnect => "UDP connect()",
            Self::UdpSocket => "UDP socket, connect, close",
            Self::UdpFirst => "UDP sendto(), first of a socket",
            Self::UdpNext => "UDP sendto(), the next ones",
        }
    }

    const fn batch(self) -> u32 {
        match self {
            Self::Connect | Self::Cycle | Self::Stream | Self::UdpFirst => 20,
            Self::Request | Self::UdpConnect | Self::UdpSocket | Self::UdpNext => 50,
        }
    }

    pub(crate) fn batch_text(self) -> String {
        format!("{} of {}", self.batch(), self.title())
    }
}

/// Operations at the begin of a batch that are not counted: who was there before has filled the caches.
const WARM_UP: u32 = 3;
/// Bytes.
pub(crate) const STREAMED: usize = 64 << 10;
/// Steps from one of many targets to the next: a prime, so that all have their turn.
const STRIDE: usize = 7919;

/// Where somebody stands: what a cgroup and a network namespace see.
#[derive(Clone)]
pub(crate) struct Standpoint {
    pub(crate) cgroup: PathBuf,
    pub(crate) netns: Netns,
}

impl Standpoint {
    /// Moves this thread there: what it opens from now on belongs there.
    pub(crate) fn enter(&self) -> Result<()> {
        enter_cgroup(&self.cgroup)?;
        self.netns.enter()
    }
}

pub(crate) fn enter_cgroup(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("move to {}", cgroup.display()))
}

/// One way to reach a server.
pub(crate) struct Lane {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    procs: File,
    client: Standpoint,
    server: Rc<Server>,
    /// More than one: another one for every connection.
    targets: Vec<SockaddrIn>,
    next: usize,
    /// The only one with UDP.
    hot: SockaddrIn,
    sender: OwnedFd,
    /// The program of its connect hook, if it has one.
    hook: Option<Inside>,
}

impl Lane {
    /// `hot` serves UDP too; `targets` are dialled in turn, only `hot` if there are none.
    pub(crate) fn open(
        name: String,
        kind: Kind,
        client: Standpoint,
        server: &Rc<Server>,
        hot: SocketAddrV4,
        targets: &[SocketAddrV4],
    ) -> Result<Self> {
        client.enter()?;
        let procs = client.cgroup.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).with_context(|| procs.display().to_string())?;
        let hot = address(hot);
        let mut targets: Vec<SockaddrIn> = targets.iter().copied().map(address).collect();
        if targets.is_empty() {
            targets.push(hot);
        }
        let (server, sender) = (Rc::clone(server), udp()?);
        Ok(Self { name, kind, procs, client, server, targets, next: 0, hot, sender, hook: None })
    }

    #[must_use]
    pub(crate) fn through(self, hook: Inside) -> Self {
        Self { hook: Some(hook), ..self }
    }

    /// One batch of each metric: nanoseconds per operation. What is streamed comes out of `buffer` and goes back into it.
    pub(crate) fn batch(&mut self, buffer: &mut [u8]) -> Result<[(Metric, f64); Metric::ALL.len()]> {
        self.enter()?;
        self.all(buffer).with_context(|| self.name.clone())
    }

    fn enter(&mut self) -> Result<()> {
        self.procs.write_all(b"0").with_context(|| format!("move to the cgroup of {}", self.name))?;
        self.client.netns.enter()
    }

    /// Nanoseconds that the hook of one TCP connect took inside of its program, if there is a hook.
    pub(crate) fn inside(&mut self) -> Result<Option<f64>> {
        self.enter()?;
        self.cycles(WARM_UP)?;
        let Some(hook) = &self.hook else { return Ok(None) };
        let before = hook.so_far()?;
        self.cycles(Metric::Connect.batch())?;
        let now = self.hook.as_ref().map(Inside::so_far).transpose()?;
        Ok(now.map(|now| now.per_run_since(before)))
    }

    fn all(&mut self, buffer: &mut [u8]) -> Result<[(Metric, f64); Metric::ALL.len()]> {
        self.cycles(WARM_UP)?;
        let (connect, cycle) = self.cycles(Metric::Cycle.batch())?;
        // A new one each time: buffers and windows of a connection grow by chance.
        let session = Session::open(&self.hot, &self.server)?;
        timed(WARM_UP, || session.ask())?;
        let request = timed(Metric::Request.batch(), || session.ask())?;
        timed(WARM_UP, || session.stream(buffer))?;
        let stream = timed(Metric::Stream.batch(), || session.stream(buffer))?;
        self.udp_sockets(WARM_UP)?;
        let (udp_connect, udp_socket) = self.udp_sockets(Metric::UdpSocket.batch())?;
        self.first_datagrams(WARM_UP)?;
        let first = self.first_datagrams(Metric::UdpFirst.batch())?;
        self.next_datagrams(WARM_UP)?;
        let next = self.next_datagrams(Metric::UdpNext.batch())?;
        let each = [connect, cycle, request, stream, udp_connect, udp_socket, first, next];
        Ok(std::array::from_fn(|at| {
            let metric = Metric::ALL[at];
            (metric, each[at].as_secs_f64() * 1e9 / f64::from(metric.batch()))
        }))
    }

    /// The time of `connect()` alone, and of everything.
    fn cycles(&mut self, count: u32) -> Result<(Duration, Duration)> {
        let (mut connects, start) = (Duration::ZERO, Instant::now());
        for _ in 0..count {
            self.next = (self.next + STRIDE) % self.targets.len();
            let to = self.targets[self.next];
            let client = tcp()?;
            connects += timed_connect(&client, &to)?;
            let accepted = self.server.accept()?;
            reset_at_close(&client)?;
            drop(client);
            drop(accepted);
        }
        Ok((connects, start.elapsed()))
    }

    /// The time of `connect()` alone, and of everything.
    fn udp_sockets(&self, count: u32) -> Result<(Duration, Duration)> {
        let (mut connects, start) = (Duration::ZERO, Instant::now());
        for _ in 0..count {
            connects += timed_connect(&udp()?, &self.hot)?;
        }
        Ok((connects, start.elapsed()))
    }

    fn first_datagrams(&self, count: u32) -> Result<Duration> {
        let mut sends = Duration::ZERO;
        for _ in 0..count {
            let socket = udp()?;
            let start = Instant::now();
            send_one(&socket, &self.hot)?;
            sends += start.elapsed();
            self.server.drain(1)?;
        }
        Ok(sends)
    }

    fn next_datagrams(&self, count: u32) -> Result<Duration> {
        let took = timed(count, || send_one(&self.sender, &self.hot))?;
        self.server.drain(count as usize)?;
        Ok(took)
    }
}

fn timed(count: u32, mut operation: impl FnMut() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..count {
        operation()?;
    }
    Ok(start.elapsed())
}
