//! Does what the lines on standard input ask for, one reply per line.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::Result;
use proxy_tests::probe::{Ask, Kind, Outcome, Tell};

use crate::exchange::exchange;
use crate::socket::{Socket, dial};

pub(crate) fn run() -> Result<()> {
    let mut sockets = Sockets::default();
    for line in io::stdin().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let tell = sockets.obey(&ask).unwrap_or_else(Tell::Failed);
        println!("{}", serde_json::to_string(&tell)?);
    }
    Ok(())
}

/// The work of the child of [`Ask::ReceiveInChild`]: its standard input is the socket.
pub(crate) fn receive_on_stdin() -> Result<()> {
    let fd = io::stdin().as_fd().try_clone_to_owned()?;
    let tell = Socket::from_fd(fd, Kind::Udp).receive().map_or_else(Tell::Failed, Tell::Answered);
    println!("{}", serde_json::to_string(&tell)?);
    Ok(())
}

#[derive(Default)]
struct Sockets {
    open: BTreeMap<u32, Socket>,
    next: u32,
}

impl Sockets {
    fn obey(&mut self, ask: &Ask) -> Outcome<Tell> {
        match *ask {
            Ask::Dial { kind, to, from } => dial(kind, to, from).map(Tell::Answered),
            Ask::Exchange { to, bytes } => exchange(to, bytes).map(done),
            Ask::Open { kind, v6 } => Ok(self.keep(Socket::open(kind, v6)?)),
            Ask::Bind { socket, address } => self.get(socket)?.bind(address).map(done),
            Ask::Connect { socket, address } => self.get(socket)?.connect(address).map(done),
            Ask::Disconnect { socket } => self.get(socket)?.disconnect().map(done),
            Ask::Send { socket, to } => self.get(socket)?.send(to).map(done),
            Ask::FastOpen { socket, to } => self.get(socket)?.fast_open(to).map(done),
            Ask::SendLarge { socket, to, bytes, answer } => {
                self.get(socket)?.send_large(to, bytes.into(), answer).map(done)
            }
            Ask::CutInto { socket, bytes } => self.get(socket)?.cut_into(bytes).map(done),
            Ask::Hops { socket, hops } => self.get(socket)?.set_hops(hops).map(done),
            Ask::WatchErrors { socket } => self.get(socket)?.watch_errors().map(done),
            Ask::IcmpError { socket } => self.get(socket)?.icmp_error().map(Tell::IcmpError),
            Ask::Receive { socket } => self.get(socket)?.receive().map(Tell::Answered),
            Ask::Patience { socket, milliseconds } => self.get(socket)?.set_patience(milliseconds.into()).map(done),
            Ask::PeerName { socket } => self.get(socket)?.peer_name().map(Tell::Address),
            Ask::LocalName { socket } => self.get(socket)?.local_name().map(Tell::Address),
            Ask::Duplicate { socket } => self.get(socket)?.duplicate().map(|copy| self.keep(copy)),
            Ask::ReceiveInChild { socket } => receive_in_child(self.get(socket)?),
            Ask::Close { socket } => self.open.remove(&socket).map(done).ok_or_else(|| unknown(socket)),
            Ask::LeaveNamespace => leave_namespace().map(done),
        }
    }

    fn keep(&mut self, socket: Socket) -> Tell {
        self.next += 1;
        self.open.insert(self.next, socket);
        Tell::Opened(self.next)
    }

    fn get(&self, socket: u32) -> Outcome<&Socket> {
        self.open.get(&socket).ok_or_else(|| unknown(socket))
    }
}

fn leave_namespace() -> Outcome<()> {
    let say = |error: &dyn std::fmt::Display| error.to_string();
    let parent = format!("/proc/{}/ns/net", nix::unistd::getppid());
    let namespace = File::open(parent).map_err(|error| say(&error))?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| say(&error))
}

fn done<T>(_: T) -> Tell {
    Tell::Done
}

fn unknown(socket: u32) -> String {
    format!("no socket {socket}")
}

fn receive_in_child(socket: &Socket) -> Outcome<Tell> {
    debug_assert_eq!(socket.kind(), Kind::Udp, "the child takes it for a datagram socket");
    let say = |error: &dyn std::fmt::Display| error.to_string();
    let me = env::current_exe().map_err(|error| say(&error))?;
    let mut child = Command::new(me);
    child.arg("receive").stdin(Stdio::from(socket.duplicate()?.into_fd()));
    let output = child.output().map_err(|error| say(&error))?;
    serde_json::from_slice(&output.stdout).map_err(|error| say(&error))
}
