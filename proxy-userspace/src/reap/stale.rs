//! Which flows a socket should leave: connected UDP flows whose frontend is still served, but not by their backend.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::mem::offset_of;

use anyhow::Context;
use proxy_common::abi::{Backend, FrontendKey, SocketFlow, address};
use proxy_common::addr::Addr;
use proxy_common::socket::{KEEPS_FLOWS, UDP};
use proxy_common::tables::ABI_VERSION;

use crate::maps::pinned::Pinned;
use crate::sys::mapped::Mapped;

/// The stale flows in SOCKETS.
pub(super) fn stale_flows(maps: &Pinned) -> anyhow::Result<Vec<SocketFlow>> {
    let sockets = Mapped::new(&maps.sockets).context("map SOCKETS")?;
    let flows = sockets.used(offset_of!(SocketFlow, cookie)).map(|(_, flow)| flow);
    Ok(stale_of(maps, flows.filter(is_connected_udp))?)
}

/// Those of `flows` that are stale.
pub(super) fn stale_of(maps: &Pinned, flows: impl Iterator<Item = SocketFlow>) -> io::Result<Vec<SocketFlow>> {
    let (mut backends, mut services) = (HashMap::new(), HashMap::new());
    let mut stale = Vec::new();
    for flow in flows {
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
pub(super) fn service_of(maps: &Pinned, flow: &SocketFlow) -> io::Result<Option<u32>> {
    let dialled = FrontendKey { addr: flow.frontend_addr, port: flow.frontend_port, proto: flow.proto, pad: 0 };
    let node_port = FrontendKey { addr: Addr::unspecified(dialled.addr.family()), ..dialled };
    for key in [dialled, node_port] {
        if let Some(frontend) = maps.frontend_of(&key)? {
            return Ok(Some(frontend.service));
        }
        let address = maps.frontend_of(&FrontendKey::of_address(dialled.addr))?;
        if address.is_none_or(|address| address.service & address::NODE_PORT == 0) {
            break;
        }
    }
    Ok(None)
}

pub(super) fn is_connected_udp(flow: &SocketFlow) -> bool {
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

#[cfg(test)]
pub(super) mod tests {
    use proxy_common::addr::Be16;

    use super::*;

    pub(in crate::reap) fn flow() -> SocketFlow {
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
}
