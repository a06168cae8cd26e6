//! All EndpointSlices by the Service they belong to, and their join with a service port (specification A5).

use proxy_common::addr::{Addr, Be16, Family};

use super::catalog::{Catalog, Known};
use super::endpoints::{Endpoint, Slice};
use super::names::{ObjectName, SliceName};
use super::service::Port;

/// An endpoint as one service port sees it.
#[derive(Clone, Copy, Debug)]
pub struct Joined<'a> {
    pub addr: Addr,
    pub port: Be16,
    pub endpoint: &'a Endpoint,
}

impl Catalog {
    /// Puts a slice in its place; returns the Services that see a difference.
    pub(super) fn put_slice(&mut self, name: &ObjectName, service: &ObjectName, slice: Slice) -> Vec<ObjectName> {
        let owner = self.owner(name);
        let mut changed = Vec::new();
        if owner.is_some_and(|id| self.known[id].name() != service) {
            changed.extend(self.remove_slice(name));
        }
        changed.extend(self.insert_slice(name, service, slice).then(|| service.clone()));
        changed
    }

    fn insert_slice(&mut self, name: &ObjectName, service: &ObjectName, slice: Slice) -> bool {
        let id = self.find_or_add(service);
        let slices = &mut self.known[id].slices;
        match slices.binary_search_by(|other| other.name.cmp(&slice.name)) {
            Ok(at) if slices[at] == slice => return false,
            Ok(at) => slices[at] = slice,
            Err(at) => {
                if !slice.name.is_named_after_service() {
                    self.by_slice.add(name, id);
                }
                slices.insert(at, slice);
            }
        }
        true
    }

    /// Takes a slice away and returns its Service; one that is not there changes nothing.
    pub(super) fn remove_slice(&mut self, name: &ObjectName) -> Option<ObjectName> {
        let id = self.owner(name)?;
        let known = &mut self.known[id];
        let service = known.name().clone();
        let gone = SliceName::new(&service, name.name());
        known.slices.retain(|slice| slice.name != gone);
        if !gone.is_named_after_service() {
            self.by_slice.remove(name, id);
        }
        self.forget_if_empty(id);
        Some(service)
    }

    /// The number of the Service that a slice belongs to.
    fn owner(&self, name: &ObjectName) -> Option<usize> {
        let has_it = |known: &Known| {
            let wanted = SliceName::new(known.name(), name.name());
            known.name().namespace() == name.namespace() && known.slices.iter().any(|slice| slice.name == wanted)
        };
        let named_after = name.named_after().and_then(|service| self.find(&service));
        named_after.into_iter().chain(self.by_slice.candidates(name)).find(|id| has_it(&self.known[*id]))
    }

    pub(super) fn slice_names(&self) -> impl Iterator<Item = ObjectName> {
        self.known.iter().flat_map(|(_, known)| known.slices.iter().map(|slice| slice.name.of(known.name())))
    }

    /// Every endpoint of a Service, as often as slices name it.
    pub(super) fn endpoints_of(&self, service: &ObjectName) -> impl Iterator<Item = &Endpoint> {
        self.slices_of(service).iter().flat_map(|slice| &slice.endpoints)
    }

    fn slices_of(&self, service: &ObjectName) -> &[Slice] {
        self.get(service).map_or(&[], |known| &known.slices)
    }

    /// How many endpoints one service port has, duplicates included.
    pub(super) fn count(&self, service: &ObjectName, port: &Port, family: Family) -> u32 {
        let of = |slice: &Slice| target_ports(slice, port, family).count() * slice.endpoints.len();
        self.slices_of(service).iter().map(|slice| of(slice) as u32).sum()
    }

    /// The endpoints of one service port, sorted by address and port, each pair once.
    pub(super) fn join(&self, service: &ObjectName, port: &Port, family: Family) -> Vec<Joined<'_>> {
        let slices = self.slices_of(service);
        let mut joined = Vec::with_capacity(slices.iter().map(|slice| slice.endpoints.len()).sum());
        for slice in slices {
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
    let ports = if slice.family() == Some(family) { &slice.ports[..] } else { &[] };
    ports.iter().filter(joins).map(|target| Be16::new(target.port))
}

/// Of duplicates one that stays beats one that terminates. Among those that stay kube-proxy takes any; here the ready one,
/// then the first by slice name, so that the order of events never decides.
fn is_better(new: &Endpoint, known: &Endpoint) -> bool {
    let rank = |endpoint: &Endpoint| (!endpoint.is_terminating(), !endpoint.is_terminating() && endpoint.is_ready());
    rank(new) > rank(known)
}
