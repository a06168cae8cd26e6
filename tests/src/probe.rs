//! Real sockets in other places: what a test asks the `probe` program to do, and its answers.
//!
//! Socket hooks look at the cgroup and the network namespace of the process that owns a socket, so a test cannot dial
//! by itself: [`Client`] dials for it, [`Server`] answers with its name, [`Load`] counts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::Netns;
use crate::node::Place;
use crate::process::{Lines, probe_binary};

/// How a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Tcp,
    Mptcp,
    Udp,
}

/// One request to a `probe obey` process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Open, bind, connect, ask who is there, close.
    Dial {
        kind: Kind,
        to: SocketAddr,
        from: Option<SocketAddr>,
    },
    /// Open, connect, send so many bytes, take them back, close.
    Exchange {
        to: SocketAddr,
        bytes: u64,
    },
    Open {
        kind: Kind,
        v6: bool,
    },
    Bind {
        socket: u32,
        address: SocketAddr,
    },
    Connect {
        socket: u32,
        address: SocketAddr,
    },
    /// `connect` with `AF_UNSPEC`.
    Disconnect {
        socket: u32,
    },
    /// Sends one question, to the connected peer without an address.
    Send {
        socket: u32,
        to: Option<SocketAddr>,
    },
    /// Connects and sends with the first packet (TCP Fast Open).
    FastOpen {
        socket: u32,
        to: SocketAddr,
    },
    /// Sends a question of so many bytes, whose answer is to be padded to so many.
    SendLarge {
        socket: u32,
        to: Option<SocketAddr>,
        bytes: u16,
        answer: u16,
    },
    /// From now on what it sends leaves it whole, and is cut into datagrams of so many bytes where a device cannot do that
    /// (`UDP_SEGMENT`).
    CutInto {
        socket: u32,
        bytes: u16,
    },
    Receive {
        socket: u32,
    },
    /// How many hops its packets live.
    Hops {
        socket: u32,
        hops: u8,
    },
    /// Its packets are not to be fragmented, and ICMP errors about them are kept.
    WatchErrors {
        socket: u32,
    },
    /// Waits for the next error that is kept.
    IcmpError {
        socket: u32,
    },
    /// How long a call of the socket waits from now on.
    Patience {
        socket: u32,
        milliseconds: u32,
    },
    PeerName {
        socket: u32,
    },
    LocalName {
        socket: u32,
    },
    Duplicate {
        socket: u32,
    },
    /// A child process receives the answer through the descriptor that it inherits.
    ReceiveInChild {
        socket: u32,
    },
    Close {
        socket: u32,
    },
    /// The process moves to the network namespace of the test; its sockets stay where they are.
    LeaveNamespace,
}

/// The reply to one [`Ask`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Tell {
    Done,
    Opened(u32),
    Answered(Answer),
    Address(SocketAddr),
    IcmpError(IcmpError),
    /// The name of the error, for example `ECONNREFUSED`.
    Failed(String),
}

/// What the kernel tells a socket of an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
    /// The next hop's MTU, where that was the trouble.
    pub mtu: u32,
    /// Where the packet was sent to.
    pub about: SocketAddr,
    /// Who says so.
    pub by: IpAddr,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server's name.
    pub by: String,
    /// The client's address as the server sees it.
    pub seen_as: SocketAddr,
    /// Who answered according to the client's socket: `getpeername` of a stream, the source of a datagram.
    pub from: Option<SocketAddr>,
}

/// A reply, or the name of the error.
pub type Outcome<T = Answer> = Result<T, String>;

/// Keep dialling, count outcomes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub answered: u64,
    pub failed: u64,
    /// Answers by server name.
    pub by: BTreeMap<String, u64>,
    /// Failures by error name.
    pub errors: BTreeMap<String, u64>,
}

/// A process somewhere that dials for the test.
#[derive(Debug)]
pub struct Client(RefCell<Lines>);

impl Client {
    pub fn start(place: &Place) -> Result<Self> {
        let mut command = place.command(probe_binary()?)?;
        command.arg("obey");
        Ok(Self(RefCell::new(Lines::start(command)?)))
    }

    /// Asks whoever serves `to` for its name over a socket of its own.
    pub fn dial(&self, kind: Kind, to: SocketAddr) -> Outcome {
        self.answer(&Ask::Dial { kind, to, from: None })
    }

    /// Like [`Self::dial`], from a bound address.
    pub fn dial_from(&self, kind: Kind, from: SocketAddr, to: SocketAddr) -> Outcome {
        self.answer(&Ask::Dial { kind, to, from: Some(from) })
    }

    /// Sends so many bytes to whoever serves `to`, and takes the same bytes back meanwhile.
    pub fn exchange(&self, to: SocketAddr, bytes: u64) -> Outcome<()> {
        self.done(&Ask::Exchange { to, bytes })
    }

    /// How often each server answered `count` dials.
    pub fn spread(&self, kind: Kind, to: SocketAddr, count: u32) -> Outcome<BTreeMap<String, u32>> {
        let mut spread = BTreeMap::new();
        for _ in 0..count {
            *spread.entry(self.dial(kind, to)?.by).or_default() += 1;
        }
        Ok(spread)
    }

    /// A socket of the family of `like`.
    pub fn open(&self, kind: Kind, like: SocketAddr) -> Socket<'_> {
        match self.ask(&Ask::Open { kind, v6: like.is_ipv6() }) {
            Tell::Opened(id) => Socket { client: self, id },
            other => panic!("open {kind:?}: {other:?}"),
        }
    }

    /// Leaves its network namespace to the sockets that it has there.
    pub fn leave_namespace(&self) -> Outcome<()> {
        self.done(&Ask::LeaveNamespace)
    }

    fn ask(&self, ask: &Ask) -> Tell {
        let mut lines = self.0.borrow_mut();
        let question = serde_json::to_string(ask).expect("plain data");
        let reply = lines.write(&question).and_then(|()| lines.read()).expect("the probe answers");
        serde_json::from_str(&reply).expect("the probe speaks JSON")
    }

    fn answer(&self, ask: &Ask) -> Outcome {
        match self.ask(ask) {
            Tell::Answered(answer) => Ok(answer),
            Tell::Failed(error) => Err(error),
            other => panic!("{ask:?}: {other:?}"),
        }
    }

    fn address(&self, ask: &Ask) -> Outcome<SocketAddr> {
        match self.ask(ask) {
            Tell::Address(address) => Ok(address),
            Tell::Failed(error) => Err(error),
            other => panic!("{ask:?}: {other:?}"),
        }
    }

    fn done(&self, ask: &Ask) -> Outcome<()> {
        match self.ask(ask) {
            Tell::Done => Ok(()),
            Tell::Failed(error) => Err(error),
            other => panic!("{ask:?}: {other:?}"),
        }
    }
}

/// A socket of a [`Client`], closed with the handle.
#[derive(Debug)]
pub struct Socket<'a> {
    client: &'a Client,
    id: u32,
}

impl Socket<'_> {
    pub fn bind(&self, address: SocketAddr) -> Outcome<()> {
        self.client.done(&Ask::Bind { socket: self.id, address })
    }

    pub fn connect(&self, address: SocketAddr) -> Outcome<()> {
        self.client.done(&Ask::Connect { socket: self.id, address })
    }

    pub fn disconnect(&self) -> Outcome<()> {
        self.client.done(&Ask::Disconnect { socket: self.id })
    }

    pub fn send(&self) -> Outcome<()> {
        self.client.done(&Ask::Send { socket: self.id, to: None })
    }

    pub fn send_to(&self, to: SocketAddr) -> Outcome<()> {
        self.client.done(&Ask::Send { socket: self.id, to: Some(to) })
    }

    pub fn fast_open(&self, to: SocketAddr) -> Outcome<()> {
        self.client.done(&Ask::FastOpen { socket: self.id, to })
    }

    /// How long a call waits from now on; a lost datagram costs no more than this.
    pub fn set_patience(&self, milliseconds: u32) -> Outcome<()> {
        self.client.done(&Ask::Patience { socket: self.id, milliseconds })
    }

    pub fn receive(&self) -> Outcome {
        self.client.answer(&Ask::Receive { socket: self.id })
    }

    /// Sends a question of so many bytes to `to` and takes its answer, which is padded to so many.
    pub fn ask_large(&self, to: Option<SocketAddr>, bytes: u16, answer: u16) -> Outcome {
        self.send_large(to, bytes, answer).and_then(|()| self.receive())
    }

    pub fn send_large(&self, to: Option<SocketAddr>, bytes: u16, answer: u16) -> Outcome<()> {
        self.client.done(&Ask::SendLarge { socket: self.id, to, bytes, answer })
    }

    /// From now on what it sends travels in one piece, to be cut into datagrams of so many bytes as late as may be.
    pub fn cut_into(&self, bytes: u16) -> Outcome<()> {
        self.client.done(&Ask::CutInto { socket: self.id, bytes })
    }

    /// How many hops its packets live from now on.
    pub fn set_hops(&self, hops: u8) -> Outcome<()> {
        self.client.done(&Ask::Hops { socket: self.id, hops })
    }

    /// From now on its packets are not fragmented, and ICMP errors about them can be asked for.
    pub fn watch_errors(&self) -> Outcome<()> {
        self.client.done(&Ask::WatchErrors { socket: self.id })
    }

    /// The next ICMP error about what it sent.
    pub fn icmp_error(&self) -> Outcome<IcmpError> {
        let ask = Ask::IcmpError { socket: self.id };
        match self.client.ask(&ask) {
            Tell::IcmpError(error) => Ok(error),
            Tell::Failed(error) => Err(error),
            other => panic!("{ask:?}: {other:?}"),
        }
    }

    pub fn receive_in_child(&self) -> Outcome {
        self.client.answer(&Ask::ReceiveInChild { socket: self.id })
    }

    /// Sends one question and takes one answer.
    pub fn ask(&self) -> Outcome {
        self.send().and_then(|()| self.receive())
    }

    /// Sends one question to `to` and takes one answer.
    pub fn ask_at(&self, to: SocketAddr) -> Outcome {
        self.send_to(to).and_then(|()| self.receive())
    }

    pub fn peer_name(&self) -> Outcome<SocketAddr> {
        self.client.address(&Ask::PeerName { socket: self.id })
    }

    pub fn local_name(&self) -> Outcome<SocketAddr> {
        self.client.address(&Ask::LocalName { socket: self.id })
    }

    #[must_use]
    pub fn duplicate(&self) -> Self {
        match self.client.ask(&Ask::Duplicate { socket: self.id }) {
            Tell::Opened(id) => Socket { client: self.client, id },
            other => panic!("duplicate: {other:?}"),
        }
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // Not when the probe is gone already: a panic in here would hide the first one.
        if !thread::panicking() {
            self.client.ask(&Ask::Close { socket: self.id });
        }
    }
}

/// A process that answers with its name over TCP and UDP.
#[derive(Debug)]
pub struct Server(Lines);

impl Server {
    pub fn start(place: &Place, name: &str, addresses: &[SocketAddr]) -> Result<Self> {
        let mut command = place.command(probe_binary()?)?;
        command.arg("serve").arg(name).args(addresses.iter().map(ToString::to_string));
        let mut lines = Lines::start(command)?;
        let ready = lines.read().with_context(|| format!("server {name} on {addresses:?}"))?;
        ensure!(ready == "ready", "server {name} said: {ready}");
        Ok(Self(lines))
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        self.0.pid()
    }
}

/// Two devices without link headers (`tun`), one in each of two network namespaces: what goes out by one comes in by the
/// other. They are gone with the handle.
#[derive(Debug)]
pub struct Tunnel(#[expect(dead_code, reason = "held open")] Lines);

impl Tunnel {
    /// From `place`, whose cgroup the process that carries packets is in, to `far`. Each end is its namespace's `name`.
    pub fn start(place: &Place, far: &Netns, name: &str) -> Result<Self> {
        let mut command = place.command(probe_binary()?)?;
        command.args(["tunnel", name, &far.path()]);
        let mut lines = Lines::start(command)?;
        let ready = lines.read().with_context(|| format!("tunnel {name}"))?;
        ensure!(ready == "ready", "tunnel {name} said: {ready}");
        Ok(Self(lines))
    }
}

/// What a [`Load`] does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A TCP connection per question.
    Tcp,
    /// One TCP connection.
    Stream,
    /// A connected UDP socket per question.
    Udp,
    /// Datagrams of one socket that is never connected.
    Datagrams,
}

/// A process that dials until it is told to stop, and counts.
#[derive(Debug)]
pub struct Load(Lines);

/// How long a condition may take before a test gives up on it. Nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_mins(1);

impl Load {
    pub fn start(place: &Place, traffic: Traffic, to: SocketAddr) -> Result<Self> {
        Self::started(place.command(probe_binary()?)?, traffic, to, &[])
    }

    /// As many questions as the machine has time for when everybody else has had theirs.
    pub fn without_pauses(place: &Place, traffic: Traffic, to: SocketAddr) -> Result<Self> {
        let mut command = place.command("nice")?;
        command.arg("--adjustment=10").arg(probe_binary()?);
        Self::started(command, traffic, to, &["without-pauses"])
    }

    fn started(mut command: Command, traffic: Traffic, to: SocketAddr, more: &[&str]) -> Result<Self> {
        let traffic = format!("{traffic:?}").to_lowercase();
        command.args(["load", &traffic, &to.to_string()]).args(more);
        Ok(Self(Lines::start(command)?))
    }

    /// The counts so far.
    pub fn report(&mut self) -> Result<Report> {
        self.0.write("report")?;
        Ok(serde_json::from_str(&self.0.read()?)?)
    }

    /// Waits until `count` more questions have been answered.
    pub fn after(&mut self, count: u64) -> Result<Report> {
        let goal = self.report()?.answered + count;
        self.until(|report| report.answered >= goal)
    }

    /// Waits until the counts are as wanted.
    pub fn until(&mut self, wanted: impl Fn(&Report) -> bool) -> Result<Report> {
        let start = Instant::now();
        loop {
            let report = self.report()?;
            if wanted(&report) {
                return Ok(report);
            }
            if start.elapsed() > PATIENCE {
                bail!("the load never got there: {report:?}");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the load; the last question is still counted.
    pub fn stop(mut self) -> Result<Report> {
        self.0.close_input();
        let report = serde_json::from_str(&self.0.read()?)?;
        self.0.wait()?;
        Ok(report)
    }
}
