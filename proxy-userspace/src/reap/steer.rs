//! Lets sockets leave their backends: in place by a copy of the descriptor where we may, else by closing them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::Context;
use proxy_common::abi::SocketFlow;
use proxy_common::addr::{Addr, Be16};
use tracing::{info, warn};

use super::diag::{self, Found};
use super::owners::{Namespace, Namespaces, Owners};
use super::stale::service_of;
use crate::maps::pinned::Pinned;
use crate::sys::net::in_namespace;

/// Deals with the sockets in `wanted`, namespace by namespace.
pub(super) fn resteer(maps: &Pinned, wanted: &HashMap<u64, SocketFlow>) {
    for namespace in Namespaces::find().iter() {
        if let Err(error) = resteer_in(maps, namespace, wanted) {
            warn!(%error, "cannot look into a network namespace");
        }
    }
}

pub(super) fn resteer_in(
    maps: &Pinned,
    namespace: &Namespace,
    wanted: &HashMap<u64, SocketFlow>,
) -> anyhow::Result<()> {
    let found = in_namespace(&namespace.file, diag::connected_udp).context("enter it")?.context("list its sockets")?;
    let stale: Vec<(&Found, &SocketFlow)> = found
        .iter()
        .filter_map(|found| wanted.get(&found.cookie).map(|flow| (found, flow)))
        .filter(|(found, flow)| goes_to_backend(found, flow))
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    let owners = Owners::find(&namespace.pids, stale.iter().map(|(found, _)| found.inode).collect());
    let mut dialled = HashMap::new();
    for (found, flow) in stale {
        match dial_again(found, flow, &owners) {
            Ok(socket) => drop(dialled.insert(found.cookie, (flow, socket))),
            // Deleted just now: nobody is to be disturbed.
            Err(_) if service_of(maps, flow)?.is_none() => {}
            Err(reason) => {
                let closed = in_namespace(&namespace.file, || diag::destroy(found));
                info!(cookie = found.cookie, from = %flow.backend_addr, %reason, ?closed, "closed a socket");
            }
        }
    }
    let now = in_namespace(&namespace.file, diag::connected_udp).context("enter it")?.context("list its sockets")?;
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
    let socket = UdpSocket::from(owners.borrow(found)?);
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
    use std::os::fd::AsFd;

    use super::super::stale::tests::flow;
    use super::*;
    use crate::sys::net::socket_cookie;

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
