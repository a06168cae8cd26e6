//! Stale flows of sockets without a slot: another socket had it, so the record is in `SOCKETS_MORE`. User space finds such
//! a record only by a descriptor of its socket, so as few sockets as possible are asked:
//!
//! ```text
//! BACKENDS: what stopped serving since the last look
//!     -> diag      connected UDP sockets that go there
//!     -> SOCKETS   those that have no record there
//!     -> owners    a copy of the descriptor
//!     -> SOCKETS_MORE: the flow, or none: who dialled the pod itself
//! ```
//!
//! Where we may not copy descriptors these sockets cannot be told from those that dialled the pod, and stay.

use std::collections::HashSet;
use std::os::fd::AsRawFd;

use anyhow::Context;
use proxy_common::abi::{Backend, SocketFlow};
use proxy_common::addr::{Addr, Be16};
use proxy_common::socket::KEEPS_FLOWS;
use proxy_common::tables::name;
use tracing::{debug, warn};

use super::diag::{self, Found};
use super::owners::{Namespace, Namespaces, Owners};
use super::stale::{is_connected_udp, stale_of};
use super::steer;
use crate::maps::pinned::{Pinned, read};
use crate::sys::net::in_namespace;

type Destination = (Addr, Be16);

/// Remembers which backends served, by id.
#[derive(Debug, Default)]
pub(super) struct Displaced {
    served: Option<Vec<(u32, Backend)>>,
}

impl Displaced {
    /// Deals with the flows that became stale since the last call; with the first one, whenever they did.
    pub(super) fn resteer(&mut self, maps: &Pinned) -> anyhow::Result<()> {
        let serving = serving(read(name::BACKENDS, &maps.backends)?);
        let left = Left::since(self.served.as_deref(), &serving);
        if !left.is_empty() {
            for namespace in Namespaces::find().iter() {
                if let Err(error) = resteer_in(maps, namespace, &left) {
                    warn!(error = format!("{error:#}"), "cannot look into a network namespace");
                }
            }
        }
        self.served = Some(serving);
        Ok(())
    }
}

fn resteer_in(maps: &Pinned, namespace: &Namespace, left: &Left) -> anyhow::Result<()> {
    let stale = stale_of(maps, flows_in(maps, namespace, left)?.into_iter())?;
    if stale.is_empty() {
        return Ok(());
    }
    steer::resteer_in(maps, namespace, &stale.into_iter().map(|flow| (flow.cookie, flow)).collect())
}

/// Those that may keep what they have, in the order of their ids.
fn serving(mut backends: Vec<(u32, Backend)>) -> Vec<(u32, Backend)> {
    backends.retain(|(_, backend)| backend.flags & KEEPS_FLOWS != 0);
    backends.shrink_to_fit();
    backends
}

/// Where a socket may have to leave.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Only(HashSet<Destination>),
    /// Nobody knows what served before.
    AllBut(HashSet<Destination>),
}

impl Left {
    fn since(before: Option<&[(u32, Backend)]>, now: &[(u32, Backend)]) -> Self {
        let destination = |(_, backend): &(u32, Backend)| (backend.addr, backend.port);
        let Some(before) = before else { return Self::AllBut(now.iter().map(destination).collect()) };
        let serves = |(id, backend): &(u32, Backend)| {
            let found = now.binary_search_by_key(id, |(id, _)| *id);
            found.is_ok_and(|index| now[index].1.generation == backend.generation)
        };
        Self::Only(before.iter().filter(|backend| !serves(backend)).map(destination).collect())
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Only(destinations) if destinations.is_empty())
    }

    fn contains(&self, destination: &Destination) -> bool {
        match self {
            Self::Only(destinations) => destinations.contains(destination),
            Self::AllBut(destinations) => !destinations.contains(destination),
        }
    }
}

fn flows_in(maps: &Pinned, namespace: &Namespace, left: &Left) -> anyhow::Result<Vec<SocketFlow>> {
    let found = in_namespace(&namespace.file, diag::connected_udp).context("enter it")?.context("list its sockets")?;
    let mut suspects = Vec::new();
    for found in found.into_iter().filter(|found| left.contains(&destination(found))) {
        if !has_slot(maps, found.cookie)? {
            suspects.push(found);
        }
    }
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let owners = Owners::find(&namespace.pids, suspects.iter().map(|found| found.inode).collect());
    let flows = suspects.iter().filter_map(|found| {
        let flow = flow_of(maps, found, &owners);
        flow.inspect_err(|error| debug!(cookie = found.cookie, %error, "cannot ask a socket for its flow")).ok()?
    });
    Ok(flows.collect())
}

/// Where the kernel sends its datagrams.
fn destination(found: &Found) -> Destination {
    (found.id.destination_address.into(), Be16::new(found.id.destination_port))
}

/// Whether what the socket is connected to is in SOCKETS.
fn has_slot(maps: &Pinned, cookie: u64) -> anyhow::Result<bool> {
    let slot = cookie as u32 & (maps.sockets.max_entries() - 1);
    let flow = maps.sockets.get(&slot).context("read SOCKETS")?;
    Ok(flow.is_some_and(|flow| flow.cookie == cookie && is_connected_udp(&flow)))
}

/// The flow along which the socket goes where it goes.
fn flow_of(maps: &Pinned, found: &Found, owners: &Owners) -> anyhow::Result<Option<SocketFlow>> {
    let socket = owners.borrow(found)?;
    let more = maps.sockets_more.get(&socket.as_raw_fd()).context("read SOCKETS_MORE")?;
    let goes_there = |flow: &SocketFlow| (flow.backend_addr, flow.backend_port) == destination(found);
    let flows = more.into_iter().flatten().filter(|flow| is_connected_udp(flow) && goes_there(flow));
    Ok(flows.max_by_key(|flow| flow.used))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8, generation: u32) -> Backend {
        let (addr, port) = (Addr::v4([10, 244, 1, last]), Be16::new(53));
        Backend { addr, port, flags: Backend::SERVING, service: 1, generation, zone: 0 }
    }

    fn to(last: u8) -> Destination {
        (Addr::v4([10, 244, 1, last]), Be16::new(53))
    }

    #[test]
    fn what_stopped_serving_or_gave_its_id_away_was_left() {
        let before = serving(vec![(1, backend(1, 1)), (2, backend(2, 1)), (5, backend(5, 3))]);
        let ended = Backend { flags: Backend::TERMINATING, ..backend(1, 1) };
        let now = serving(vec![(1, ended), (2, backend(2, 1)), (5, backend(6, 4)), (7, backend(7, 1))]);
        let left = Left::since(Some(&before), &now);
        assert_eq!(left, Left::Only(HashSet::from([to(1), to(5)])));
        assert!(left.contains(&to(5)) && !left.contains(&to(6)) && !left.is_empty());
        assert!(Left::since(Some(&now), &now).is_empty());
    }

    #[test]
    fn the_first_look_asks_everybody_who_goes_to_no_backend_that_serves() {
        let left = Left::since(None, &[(2, backend(2, 1))]);
        assert!(left.contains(&to(1)) && !left.contains(&to(2)) && !left.is_empty());
    }
}
