//! Every Service that was told of or that a slice names, with its slices.
//!
//! Each has a number for as long as there is anything to know; whatever else leads to it (its name, a slice, an address)
//! leads to the number, so that nothing is kept twice. How slices come and go is in `slices`, who has which address in
//! `claims`.

use std::hash::Hash;

use slab::Slab;
use smallvec::SmallVec;

use super::endpoints::Slice;
use super::index::Index;
use super::names::ObjectName;
use super::service::Service;

#[derive(Debug)]
pub(super) struct Known {
    identity: Identity,
    /// Sorted by their names, as they are kept. Most Services have one.
    pub(super) slices: SmallVec<[Slice; 1]>,
}

#[derive(Debug)]
enum Identity {
    Told(Service),
    /// Only slices name it.
    Name(ObjectName),
}

impl Known {
    fn new(name: ObjectName) -> Self {
        Self { identity: Identity::Name(name), slices: SmallVec::new() }
    }

    pub(super) fn name(&self) -> &ObjectName {
        match &self.identity {
            Identity::Told(Service { name, .. }) | Identity::Name(name) => name,
        }
    }

    pub(super) fn service(&self) -> Option<&Service> {
        match &self.identity {
            Identity::Told(service) => Some(service),
            Identity::Name(_) => None,
        }
    }

    pub(super) fn set_service(&mut self, service: Service) {
        self.identity = Identity::Told(service);
    }

    pub(super) fn take_service(&mut self) -> Option<Service> {
        let name = Identity::Name(self.name().clone());
        match std::mem::replace(&mut self.identity, name) {
            Identity::Told(service) => Some(service),
            Identity::Name(_) => None,
        }
    }
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
        self.known.iter().filter_map(|(_, known)| known.service())
    }

    /// Every Service that one of the indexes leads to by `key`, and perhaps others: ask them.
    pub(super) fn services_by<'a, K: Hash>(
        &'a self,
        index: &'a Index,
        key: &K,
    ) -> impl Iterator<Item = &'a Service> + use<'a, K> {
        index.candidates(key).filter_map(|id| self.known[id].service())
    }

    pub(super) fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.get(name)?.service()
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<&Known> {
        self.find(name).map(|id| &self.known[id])
    }

    pub(super) fn find(&self, name: &ObjectName) -> Option<usize> {
        self.names.candidates(name).find(|id| self.known[*id].name() == name)
    }

    pub(super) fn find_or_add(&mut self, name: &ObjectName) -> usize {
        self.find(name).unwrap_or_else(|| {
            let id = self.known.insert(Known::new(name.clone()));
            self.names.add(name, id);
            id
        })
    }

    /// Lets go of who has neither a Service nor slices.
    pub(super) fn forget_if_empty(&mut self, id: usize) {
        let known = &self.known[id];
        if known.service().is_none() && known.slices.is_empty() {
            self.names.remove(known.name(), id);
            self.known.remove(id);
        }
    }
}
