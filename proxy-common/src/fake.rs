//! Tables, a client and a socket made of plain collections, for the tests of the rules.

#[cfg(test)]
mod dialler;

use std::cell::RefCell;
use std::collections::HashMap;
use std::vec::Vec;

use crate::abi::{
    Affinity, AffinityKey, Backend, Config, Frontend, FrontendId, FrontendKey, Range, ServiceWord, Version, Word,
};
use crate::addr::{Addr, Be16};
use crate::tables::Tables;

#[cfg(test)]
pub(crate) use dialler::{FakeClient, FakeSocket, cluster_ip, vip};

/// Tables of services that all look like those of [`FakeTables::serve`].
#[derive(Clone, Default)]
pub(crate) struct FakeTables {
    pub(crate) frontends: RefCell<HashMap<FrontendKey, FrontendId>>,
    pub(crate) frontend: Vec<Frontend>,
    pub(crate) services: Vec<ServiceWord>,
    pub(crate) versions: Vec<Version>,
    pub(crate) slots: Vec<u32>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) addrs: HashMap<Addr, u32>,
    pub(crate) absent: Vec<Addr>,
    pub(crate) allowed: Vec<(u32, Addr)>,
    pub(crate) config: Config,
    pub(crate) affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    /// Whose counters were asked for.
    pub(crate) fetched: RefCell<Vec<u32>>,
    /// Called before each look-up in FRONTENDS: what "meanwhile" does.
    pub(crate) meanwhile: Option<fn(&FakeTables)>,
}

/// Node-port frontends, ClusterIPs and the rest: `kind` of each; backends by their sets.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeService {
    pub(crate) frontends: Vec<(FrontendKey, u32)>,
    pub(crate) sets: Vec<u16>,
    pub(crate) flags: u32,
    pub(crate) affinity_seconds: u32,
}

impl FakeTables {
    pub(crate) fn new() -> Self {
        let config = Config { udp_timeout: 30, udp_stream_timeout: 120, ..Config::default() };
        // Number 0 of a version means none.
        Self { config, versions: std::vec![empty_version(u32::MAX)], ..Self::default() }
    }

    /// Writes a service; its id, and the ids of its backends in order.
    pub(crate) fn serve(&mut self, wanted: &FakeService) -> (u32, Vec<u32>) {
        let service = self.services.len() as u32;
        let ids: Vec<u32> = wanted.sets.iter().map(|sets| self.backend_of(service, *sets)).collect();
        let version = Version {
            cluster: self.range(&ids, Backend::IN_CLUSTER_SET),
            local: self.range(&ids, Backend::IN_LOCAL_SET),
            affinity_seconds: wanted.affinity_seconds,
            flags: wanted.flags,
            ..empty_version(service)
        };
        let word = version.as_word().unwrap_or_else(|| {
            self.versions.push(version);
            Word::Version(self.versions.len() as u32 - 1).word()
        });
        self.services.push(word);
        for (key, kind) in &wanted.frontends {
            self.frontends.get_mut().insert(*key, FrontendId { id: self.frontend.len() as u32, service });
            self.frontend.push(Frontend { key: *key, service, kind: *kind });
        }
        (service, ids)
    }

    fn backend_of(&mut self, service: u32, sets: u16) -> u32 {
        let id = self.backends.len() as u32;
        let addr = Addr::v4([10, 1, 0, id as u8]);
        let flags = sets | Backend::SERVING;
        self.backends.push(Backend { addr, port: Be16::new(8080), flags, service, generation: 1, zone: 0 });
        id
    }

    fn range(&mut self, ids: &[u32], set: u16) -> Range {
        let start = self.slots.len() as u32;
        let members = ids.iter().filter(|id| self.backends[**id as usize].flags & set != 0);
        self.slots.extend(members);
        let len = self.slots.len() as u32 - start;
        if len == 0 { Range::default() } else { Range { start, len } }
    }
}

fn empty_version(service: u32) -> Version {
    let (cluster, local, scheduler) = (Range::default(), Range::default(), Version::SCHEDULER_RANDOM);
    Version { cluster, local, affinity_seconds: 0, flags: 0, service, scheduler }
}

impl Tables for FakeTables {
    fn frontend_id(&self, key: &FrontendKey) -> Option<FrontendId> {
        if let Some(meanwhile) = self.meanwhile {
            meanwhile(self);
        }
        self.frontends.borrow().get(key).copied()
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        self.frontend.get(id as usize).copied()
    }

    fn service(&self, id: u32) -> Option<ServiceWord> {
        self.services.get(id as usize).copied()
    }

    fn version(&self, number: u32) -> Option<Version> {
        self.versions.get(number as usize).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(id as usize).copied()
    }

    fn fetch_stats(&self, backend: u32) {
        self.fetched.borrow_mut().push(backend);
    }

    fn is_absent(&self, addr: &Addr) -> bool {
        self.absent.contains(addr)
    }

    fn address(&self, addr: &Addr) -> Option<u32> {
        self.addrs.get(addr).copied()
    }

    fn source_allowed(&self, service: u32, client: &Addr) -> bool {
        self.allowed.contains(&(service, *client))
    }

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }

    fn remember(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
}
