//! `sluice reap`: connected UDP sockets leave a backend that stopped serving (specification C1).
//!
//! ```text
//! SOCKETS: connected UDP flows whose backend no longer serves
//!     -> diag     their sockets, by cookie, in every network namespace
//!     -> owners   who has them open
//!     -> a copy of the descriptor dials the frontend again: the hook picks another backend, in place
//!        else     SOCK_DESTROY: the application gets an error and opens a new socket
//! ```
//!
//! A process of its own, because only this needs the right to reach into other processes. Sockets without a record in
//! SOCKETS, such as those that dialled a pod, are never touched; nor is TCP. Limit: the rare flow that overflowed into
//! `SOCKETS_MORE` (its slot was taken) is not looked at and stays where it is.

mod diag;
mod owners;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use proxy_common::abi::{Backend, SocketFlow};
use proxy_common::addr::{Addr, Be16};
use proxy_common::socket::{KEEPS_FLOWS, UDP};
use proxy_common::tables::{ABI_VERSION, name};
use tracing::{debug, info, warn};

use crate::attach::pins::Folder;
use crate::bell::Bell;
use crate::cli::PinDir;
use crate::lock::{Lock, Role};
use crate::maps::pinned::{Pinned, read};
use crate::sys::net::{in_namespace, socket_cookie};
use diag::Found;
use owners::{Namespaces, Owners, may_look_into_processes};

/// Move connected UDP sockets away from backends that stopped serving.
#[derive(Clone, Debug, clap::Args)]
pub struct ReapArgs {
    #[command(flatten)]
    pub pins: PinDir,
}

/// How long a change may go unnoticed when the bell was missed.
const PATROL: Duration = Duration::from_secs(1);

pub fn run(args: &ReapArgs) -> anyhow::Result<ExitCode> {
    let pin_dir = &args.pins.pin_dir;
    // Nobody else logs in this process; a second start would be a programming error without consequence.
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    let _lock = Lock::take(Role::Reap, pin_dir)?;
    let bell = Bell::hang(pin_dir).context("listen for changes")?;
    let folder = Folder::at(pin_dir).current();
    let mut reaper = Reaper::default();
    if !may_look_into_processes() {
        warn!("without CAP_SYS_PTRACE sockets are closed, not moved, and only in this namespace and those in /run/netns");
    }
    info!(pin_dir = %pin_dir.display(), "ready");
    loop {
        // Opened anew each time: an agent may have rebuilt the tables.
        match Pinned::open(&folder) {
            Ok(maps) => reaper.patrol(&maps),
            Err(error) => debug!(%error, "no tables yet"),
        }
        bell.wait(PATROL).context("listen for changes")?;
    }
}

/// Remembers what could not be moved, so that it is not tried every second.
#[derive(Debug, Default)]
struct Reaper {
    settled: HashSet<SettledKey>,
}

/// A flow that was dealt with: its socket, backend and generation.
type SettledKey = (u64, u32, u32);

fn settled_key(flow: &SocketFlow) -> SettledKey {
    (flow.cookie, flow.backend, flow.generation)
}

impl Reaper {
    fn patrol(&mut self, maps: &Pinned) {
        let stale = match stale_flows(maps) {
            Ok(stale) => stale,
            Err(error) => return warn!(%error, "cannot look for stale flows"),
        };
        let still: HashSet<SettledKey> = stale.iter().map(settled_key).collect();
        self.settled.retain(|key| still.contains(key));
        let new = stale.into_iter().filter(|flow| !self.settled.contains(&settled_key(flow)));
        let wanted: HashMap<u64, SocketFlow> = new.map(|flow| (flow.cookie, flow)).collect();
        if !wanted.is_empty() {
            resteer(&wanted);
            self.settled.extend(wanted.values().map(settled_key));
        }
    }
}

/// Connected UDP flows whose backend no longer serves.
fn stale_flows(maps: &Pinned) -> anyhow::Result<Vec<SocketFlow>> {
    let flows = read(name::SOCKETS, &maps.sockets)?;
    let connected = flows.into_iter().map(|(_, flow)| flow).filter(is_connected_udp);
    let mut backends = HashMap::new();
    let mut stale = Vec::new();
    for flow in connected {
        let backend = match backends.entry(flow.backend) {
            std::collections::hash_map::Entry::Occupied(known) => *known.get(),
            std::collections::hash_map::Entry::Vacant(free) => *free.insert(maps.backends.get(&flow.backend)?),
        };
        if !serves(backend.as_ref(), &flow) {
            stale.push(flow);
        }
    }
    Ok(stale)
}

fn is_connected_udp(flow: &SocketFlow) -> bool {
    let connected = flow.flags & SocketFlow::CONNECTED != 0;
    flow.cookie != 0 && flow.proto == UDP && flow.abi == ABI_VERSION && connected
}

fn serves(backend: Option<&Backend>, flow: &SocketFlow) -> bool {
    backend.is_some_and(|backend| backend.generation == flow.generation && backend.flags & KEEPS_FLOWS != 0)
}

/// Deals with the sockets in `wanted`, namespace by namespace.
fn resteer(wanted: &HashMap<u64, SocketFlow>) {
    for (namespace, pids) in Namespaces::find() {
        if let Err(error) = resteer_in(&namespace, &pids, wanted) {
            warn!(%error, "cannot look into a network namespace");
        }
    }
}

fn resteer_in(namespace: &File, pids: &[u32], wanted: &HashMap<u64, SocketFlow>) -> anyhow::Result<()> {
    let found = in_namespace(namespace, diag::connected_udp).context("enter it")?.context("list its sockets")?;
    let stale: Vec<(&Found, &SocketFlow)> = found
        .iter()
        .filter_map(|found| wanted.get(&found.cookie).map(|flow| (found, flow)))
        .filter(|(found, flow)| goes_to_backend(found, flow))
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    let owners = Owners::find(pids, stale.iter().map(|(found, _)| found.inode).collect());
    for (found, flow) in stale {
        match move_in_place(found, flow, &owners) {
            Ok(()) => info!(cookie = found.cookie, from = %flow.backend_addr, "moved a socket"),
            Err(reason) => {
                let closed = in_namespace(namespace, || diag::destroy(found));
                info!(cookie = found.cookie, from = %flow.backend_addr, %reason, ?closed, "closed a socket");
            }
        }
    }
    Ok(())
}

/// The kernel's own peer of the socket is the backend of the flow. It differs when the application disconnected, which no
/// hook sees, and perhaps dialled something else.
fn goes_to_backend(found: &Found, flow: &SocketFlow) -> bool {
    let peer = (Addr::from(found.id.destination_address), Be16::new(found.id.destination_port));
    peer == (flow.backend_addr, flow.backend_port)
}

/// Lets a copy of the descriptor dial the frontend again; the socket keeps its port and its options.
fn move_in_place(found: &Found, flow: &SocketFlow, owners: &Owners) -> anyhow::Result<()> {
    let socket = UdpSocket::from(owners.borrow(found.inode)?);
    // The descriptor may have been closed and its number given to another socket.
    anyhow::ensure!(socket_cookie(socket.as_fd())? == found.cookie, "its owner has just closed it");
    let v6 = socket.local_addr()?.is_ipv6();
    Ok(socket.connect(frontend(flow, v6))?)
}

/// What the application dialled, in the family of its socket.
fn frontend(flow: &SocketFlow, v6: bool) -> SocketAddr {
    let ip = if v6 { Ipv6Addr::from(flow.frontend_addr.octets()).into() } else { IpAddr::from(flow.frontend_addr) };
    SocketAddr::new(ip, flow.frontend_port.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> SocketFlow {
        SocketFlow {
            cookie: 7,
            used: 0,
            frontend_addr: Addr::v4([10, 96, 0, 10]),
            backend_addr: Addr::v4([10, 244, 1, 5]),
            frontend_port: Be16::new(53),
            backend_port: Be16::new(5353),
            proto: UDP,
            flags: SocketFlow::CONNECTED,
            abi: ABI_VERSION,
            backend: 3,
            generation: 2,
        }
    }

    fn backend(flags: u16, generation: u32) -> Backend {
        Backend { addr: flow().backend_addr, port: flow().backend_port, flags, service: 1, generation, zone: 0 }
    }

    #[test]
    fn only_connected_udp_flows_of_this_abi_are_looked_at() {
        assert!(is_connected_udp(&flow()));
        for other in [
            SocketFlow { cookie: 0, ..flow() },
            SocketFlow { proto: 6, ..flow() },
            SocketFlow { flags: 0, ..flow() },
            SocketFlow { abi: ABI_VERSION + 1, ..flow() },
        ] {
            assert!(!is_connected_udp(&other), "{other:?}");
        }
    }

    #[test]
    fn a_backend_keeps_its_sockets_while_it_serves_or_is_chosen() {
        assert!(serves(Some(&backend(Backend::SERVING | Backend::TERMINATING, 2)), &flow()));
        assert!(serves(Some(&backend(Backend::IN_LOCAL_SET, 2)), &flow()));
        assert!(!serves(Some(&backend(Backend::ON_THIS_NODE, 2)), &flow()));
        assert!(!serves(Some(&backend(Backend::SERVING, 3)), &flow()), "the id was given to another endpoint");
        assert!(!serves(None, &flow()));
    }

    #[test]
    fn a_frontend_is_dialled_in_the_family_of_the_socket() {
        assert_eq!(frontend(&flow(), false).to_string(), "10.96.0.10:53");
        assert_eq!(frontend(&flow(), true).to_string(), "[::ffff:10.96.0.10]:53");
    }
}
