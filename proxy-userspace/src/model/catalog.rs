//! Every Service that was told of or that a slice names, with its slices.
//!
//! Each has a number for as long as there is anything to know; whatever else leads to it (its name, a slice, an address)
//! leads to the number, so that nothing is kept twice. How slices come and go is in `slices`, who has which address in
//! `claims`.

use slab::Slab;
use smallvec::SmallVec;

use super::endpoints::Slice;
use super::index::Index;
use super::names::ObjectName;
use super::service::Service;

#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: ObjectName,
    pub(super) service: Option<Service>,
    /// Sorted by their names, as they are kept. Most Services have one.
    pub(super) slices: SmallVec<[Slice; 1]>,
}

#[derive(Debug, Default)]
pub(super) struct Catalog {
    pub(super) known: Slab<Known>,
    names: Index,
    /// By namespace and name of a slice that is not named after its Service; the others are found by that.
    pub(super) by_slice: Index,
    /// By every ClusterIP, as the key of an address, and by every frontend at another one.
    pub(super) by_frontend: Index,
    /// By every externalIP and load-balancer address.
    pub(super) by_outside_ip: Index,
}

impl Catalog {
    pub(super) fn services(&self) -> impl Iterator<Item = &Service> {
        self.known.iter().filter_map(|(_, known)| known.service.as_ref())
    }

    pub(super) fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.get(name)?.service.as_ref()
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<&Known> {
        self.find(name).map(|id| &self.known[id])
    }

    pub(super) fn find(&self, name: &ObjectName) -> Option<usize> {
        self.names.candidates(name).find(|id| self.known[*id].name == *name)
    }

    pub(super) fn find_or_add(&mut self, name: &ObjectName) -> usize {
        self.find(name).unwrap_or_else(|| {
            let id = self.known.insert(Known { name: name.clone(), service: None, slices: SmallVec::new() });
            self.names.add(name, id);
            id
        })
    }

    /// Lets go of who has neither a Service nor slices.
    pub(super) fn forget_if_empty(&mut self, id: usize) {
        let known = &self.known[id];
        if known.service.is_none() && known.slices.is_empty() {
            self.names.remove(&known.name, id);
            self.known.remove(id);
        }
    }
}
