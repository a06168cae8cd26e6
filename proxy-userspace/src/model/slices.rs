//! All EndpointSlices by the Service they belong to, and their join with a service port (specification A5).

use std::sync::Arc;

use proxy_common::addr::{Addr, Be16, Family};

use super::endpoints::{Endpoint, Slice};
use super::names::ObjectName;
use super::service::Port;
use crate::hash::HashMap;

/// An endpoint as one service port sees it.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'a> {
    pub addr: Addr,
    pub port: Be16,
    pub endpoint: &'a Endpoint,
}

#[derive(Debug, Default)]
pub(super) struct Slices {
    /// Slices of a Service, sorted by their names: a Service mostly has one.
    by_service: HashMap<ObjectName, Vec<(Arc<str>, Slice)>>,
    /// The Service of each slice.
    owner: HashMap<ObjectName, ObjectName>,
}

impl Slices {
    /// Puts a slice in its place; returns the Services that see a difference.
    pub(super) fn put(&mut self, name: ObjectName, service: ObjectName, slice: Slice) -> Vec<ObjectName> {
        if self.owner.get(&name).is_some_and(|owner| *owner != service) {
            let mut changed = self.remove(&name);
            changed.extend(self.insert(name, service, slice));
            return changed;
        }
        self.insert(name, service, slice).into_iter().collect()
    }

    fn insert(&mut self, name: ObjectName, service: ObjectName, slice: Slice) -> Option<ObjectName> {
        let slices = self.by_service.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
        match slices.binary_search_by(|(other, _)| other.cmp(&name.name)) {
            Ok(at) if slices[at].1 == slice => return None,
            Ok(at) => slices[at].1 = slice,
            Err(at) => slices.insert(at, (Arc::clone(&name.name), slice)),
        }
        self.owner.insert(name, service.clone());
        Some(service)
    }

    /// Takes a slice away; one that is not there changes nothing.
    pub(super) fn remove(&mut self, name: &ObjectName) -> Vec<ObjectName> {
        let Some(service) = self.owner.remove(name) else { return Vec::new() };
        if let Some(slices) = self.by_service.get_mut(&service) {
            slices.retain(|(other, _)| *other != name.name);
            if slices.is_empty() {
                self.by_service.remove(&service);
            }
        }
        vec![service]
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.owner.keys()
    }

    fn of(&self, service: &ObjectName) -> &[(Arc<str>, Slice)] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// How many endpoints one service port has, duplicates included.
    pub(super) fn count(&self, service: &ObjectName, port: &Port, family: Family) -> u32 {
        let of = |slice: &Slice| target_ports(slice, port, family).count() * slice.endpoints.len();
        self.of(service).iter().map(|(_, slice)| of(slice) as u32).sum()
    }

    /// The endpoints of one service port, sorted by address and port, each pair once.
    pub(super) fn join(&self, service: &ObjectName, port: &Port, family: Family) -> Vec<Joined<'_>> {
        let slices = self.of(service);
        let mut joined = Vec::with_capacity(slices.iter().map(|(_, slice)| slice.endpoints.len()).sum());
        for (_, slice) in slices {
            for number in target_ports(slice, port, family) {
                let endpoints = slice.endpoints.iter();
                joined.extend(endpoints.map(|endpoint| Joined { addr: endpoint.addr, port: number, endpoint }));
            }
        }
        // Stable: of equal duplicates the first one by slice name stays.
        joined.sort_by_key(|found: &Joined<'_>| (found.addr, found.port));
        joined.dedup_by(|next, kept| {
            let same = (next.addr, next.port) == (kept.addr, kept.port);
            if same && is_better(next.endpoint, kept.endpoint) {
                *kept = *next;
            }
            same
        });
        joined
    }
}

fn target_ports<'a>(slice: &'a Slice, port: &'a Port, family: Family) -> impl Iterator<Item = Be16> + 'a {
    let joins = move |target: &&super::endpoints::SlicePort| target.name == port.name && target.proto == port.proto;
    let ports = if slice.family == family { &slice.ports[..] } else { &[] };
    ports.iter().filter(joins).map(|target| Be16::new(target.port))
}

/// Of duplicates one that stays beats one that terminates. Among those that stay kube-proxy takes any; here the ready one,
/// then the first by slice name, so that the order of events never decides.
fn is_better(new: &Endpoint, known: &Endpoint) -> bool {
    (!new.terminating, !new.terminating && new.ready) > (!known.terminating, !known.terminating && known.ready)
}
