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
//! As in kube-proxy nothing is done for a frontend that no Service has any more. A frontend that another Service took over
//! goes to that one.
//!
//! A process of its own, because only this needs the right to reach into other processes. Sockets without a record in
//! SOCKETS, such as those that dialled a pod, are never touched; nor is TCP. Limit: the rare flow that overflowed into
//! `SOCKETS_MORE` (its slot was taken) is not looked at and stays where it is.

mod diag;
mod owners;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use proxy_common::abi::{Backend, FrontendKey, SocketFlow, address};
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
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).try_init();
    let _lock = Lock::take(Role::Reap, pin_dir)?;
    let bell = Bell::hang(pin_dir).context("listen for changes")?;
    let folder = Folder::at(pin_dir).current();
    let mut reaper = Reaper::default();
    if !may_look_into_processes() {
        warn!(
            "without CAP_SYS_PTRACE sockets are closed, not moved, and only in this namespace and those in /run/netns"
        );
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
            resteer(maps, &wanted);
            self.settled.extend(wanted.values().map(settled_key));
        }
    }
}

/// Connected UDP flows whose frontend is still served, but not by their backend.
fn stale_flows(maps: &Pinned) -> anyhow::Result<Vec<SocketFlow>> {
    let flows = read(name::SOCKETS, &maps.sockets)?;
    let (mut backends, mut services) = (HashMap::new(), HashMap::new());
    let mut stale = Vec::new();
    for flow in flows.into_iter().map(|(_, flow)| flow).filter(is_connected_udp) {
        let service = match services.entry((flow.frontend_addr, flow.frontend_port)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => *free.insert(service_of(maps, &flow)?),
        };
        let backend = match backends.entry(flow.backend) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => *free.insert(maps.backends.get(&flow.backend)?),
        };
        if service.is_some_and(|service| !serves(backend.as_ref(), service, &flow)) {
            stale.push(flow);
        }
    }
    Ok(stale)
}

/// The service port that has the frontend of `flow` now; `None` also while that is just changing.
fn service_of(maps: &Pinned, flow: &SocketFlow) -> io::Result<Option<u32>> {
    let dialled = FrontendKey { addr: flow.frontend_addr, port: flow.frontend_port, proto: flow.proto, pad: 0 };
    let node_port = FrontendKey { addr: Addr::unspecified(dialled.addr.family()), ..dialled };
    for key in [dialled, node_port] {
        if let Some(id) = maps.frontends.get(&key)? {
            let frontend = maps.frontend.get(&id)?;
            return Ok(frontend.filter(|frontend| frontend.key == key).map(|frontend| frontend.service));
        }
        if maps.addrs.get(&dialled.addr)?.is_none_or(|flags| flags & address::NODE_PORT == 0) {
            break;
        }
    }
    Ok(None)
}

fn is_connected_udp(flow: &SocketFlow) -> bool {
    let connected = flow.flags & SocketFlow::CONNECTED != 0;
    flow.cookie != 0 && flow.proto == UDP && flow.abi == ABI_VERSION && connected
}

/// Whether the backend of `flow` is one of `service` and may keep what it has.
fn serves(backend: Option<&Backend>, service: u32, flow: &SocketFlow) -> bool {
    backend.is_some_and(|backend| {
        let same = (backend.service, backend.generation) == (service, flow.generation);
        same && backend.flags & KEEPS_FLOWS != 0
    })
}

/// Deals with the sockets in `wanted`, namespace by namespace.
fn resteer(maps: &Pinned, wanted: &HashMap<u64, SocketFlow>) {
    for (namespace, pids) in Namespaces::find() {
        if let Err(error) = resteer_in(maps, &namespace, &pids, wanted) {
            warn!(%error, "cannot look into a network namespace");
        }
    }
}

fn resteer_in(maps: &Pinned, namespace: &File, pids: &[u32], wanted: &HashMap<u64, SocketFlow>) -> anyhow::Result<()> {
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
    let mut dialled = HashMap::new();
    for (found, flow) in stale {
        match dial_again(found, flow, &owners) {
            Ok(socket) => drop(dialled.insert(found.cookie, (flow, socket))),
            // Deleted just now: nobody is to be disturbed.
            Err(_) if service_of(maps, flow)?.is_none() => {}
            Err(reason) => {
                let closed = in_namespace(namespace, || diag::destroy(found));
                info!(cookie = found.cookie, from = %flow.backend_addr, %reason, ?closed, "closed a socket");
            }
        }
    }
    let now = in_namespace(namespace, diag::connected_udp).context("enter it")?.context("list its sockets")?;
    put_back(&now, &mut dialled);
    for (cookie, (flow, _)) in dialled {
        info!(cookie, from = %flow.backend_addr, "moved a socket");
    }
    Ok(())
}

/// Whether the kernel's own peer of the socket is this address; the application may be told another one.
fn goes_to(found: &Found, addr: Addr, port: Be16) -> bool {
    (Addr::from(found.id.destination_address), found.id.destination_port) == (addr, port.get())
}

/// Not so when the application disconnected, which no hook sees, and perhaps dialled something else.
fn goes_to_backend(found: &Found, flow: &SocketFlow) -> bool {
    goes_to(found, flow.backend_addr, flow.backend_port)
}

/// Lets a copy of the descriptor dial the frontend again; the socket keeps its port and its options.
fn dial_again(found: &Found, flow: &SocketFlow, owners: &Owners) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::from(owners.borrow(found.inode)?);
    // The descriptor may have been closed and its number given to another socket.
    anyhow::ensure!(socket_cookie(socket.as_fd())? == found.cookie, "its owner has just closed it");
    socket.connect(in_family_of(&socket, flow.frontend_addr, flow.frontend_port)?)?;
    Ok(socket)
}

/// Takes those out of `dialled` that no hook sent on, because the frontend went in that moment, and lets them go where
/// they went before: nobody listens on a bare frontend.
fn put_back(now: &[Found], dialled: &mut HashMap<u64, (&SocketFlow, UdpSocket)>) {
    for found in now {
        let bare = |(flow, _): &(&SocketFlow, UdpSocket)| goes_to(found, flow.frontend_addr, flow.frontend_port);
        if dialled.get(&found.cookie).is_some_and(bare)
            && let Some((flow, socket)) = dialled.remove(&found.cookie)
        {
            let back = in_family_of(&socket, flow.backend_addr, flow.backend_port);
            let result = back.and_then(|back| socket.connect(back));
            info!(cookie = found.cookie, to = %flow.backend_addr, ?result, "put a socket back: its frontend is gone");
        }
    }
}

/// An address as sockets of this one's family write it.
fn in_family_of(socket: &UdpSocket, addr: Addr, port: Be16) -> io::Result<SocketAddr> {
    Ok(as_dialled(addr, port, socket.local_addr()?.is_ipv6()))
}

fn as_dialled(addr: Addr, port: Be16, v6: bool) -> SocketAddr {
    let ip = if v6 { Ipv6Addr::from(addr.octets()).into() } else { IpAddr::from(addr) };
    SocketAddr::new(ip, port.get())
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
        assert!(serves(Some(&backend(Backend::SERVING | Backend::TERMINATING, 2)), 1, &flow()));
        assert!(serves(Some(&backend(Backend::IN_LOCAL_SET, 2)), 1, &flow()));
        assert!(!serves(Some(&backend(Backend::ON_THIS_NODE, 2)), 1, &flow()));
        assert!(!serves(Some(&backend(Backend::SERVING, 3)), 1, &flow()), "the id was given to another endpoint");
        assert!(!serves(Some(&backend(Backend::SERVING, 2)), 9, &flow()), "another Service has the frontend now");
        assert!(!serves(None, 1, &flow()));
    }

    #[test]
    fn a_frontend_is_dialled_in_the_family_of_the_socket() {
        let dialled = |v6| as_dialled(flow().frontend_addr, flow().frontend_port, v6).to_string();
        assert_eq!(dialled(false), "10.96.0.10:53");
        assert_eq!(dialled(true), "[::ffff:10.96.0.10]:53");
    }

    #[test]
    fn a_socket_that_no_hook_sent_on_goes_back_to_its_backend() {
        let [frontend, backend] = [(); 2].map(|()| UdpSocket::bind(("127.0.0.1", 0)).unwrap());
        let port = |socket: &UdpSocket| Be16::new(socket.local_addr().unwrap().port());
        let loopback = Addr::v4([127, 0, 0, 1]);
        let (frontend_port, backend_port) = (port(&frontend), port(&backend));
        let flow =
            SocketFlow { frontend_addr: loopback, backend_addr: loopback, frontend_port, backend_port, ..flow() };
        let open = |peer: &UdpSocket| {
            let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            socket.connect(peer.local_addr().unwrap()).unwrap();
            (socket_cookie(socket.as_fd()).unwrap(), socket)
        };
        let ((bare, bare_socket), (sent_on, sent_on_socket)) = (open(&frontend), open(&backend));
        let mut dialled =
            HashMap::from([(bare, (&flow, bare_socket.try_clone().unwrap())), (sent_on, (&flow, sent_on_socket))]);
        put_back(&diag::connected_udp().unwrap(), &mut dialled);
        assert_eq!(bare_socket.peer_addr().unwrap(), backend.local_addr().unwrap());
        assert_eq!(dialled.into_keys().collect::<Vec<_>>(), [sent_on]);
    }
}
