//! Tables, a client and a socket made of plain collections, for the tests of the rules.

#[cfg(test)]
mod dialler;

use std::cell::RefCell;
use std::collections::HashMap;
use std::vec::Vec;

use crate::abi::{
    Affinity, AffinityKey, Backend, Bucket, Config, Frontend, FrontendKey, Range, ServiceWord, Version, Word,
};
use crate::addr::{Addr, Be16};
use crate::index::{self, Directory};
use crate::tables::Tables;

#[cfg(test)]
pub(crate) use dialler::{FakeClient, FakeSocket, cluster_ip, vip};

/// Tables of services that all look like those of [`FakeTables::serve`].
#[derive(Clone, Default)]
pub(crate) struct FakeTables {
    pub(crate) index: Vec<Bucket>,
    pub(crate) frontend: Vec<Frontend>,
    pub(crate) services: Vec<ServiceWord>,
    pub(crate) versions: Vec<Version>,
    pub(crate) slots: Vec<u32>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) absent: Vec<Addr>,
    pub(crate) allowed: Vec<(u32, Addr)>,
    pub(crate) config: Config,
    pub(crate) affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    /// Whose counters were asked for.
    pub(crate) fetched: RefCell<Vec<u32>>,
}

/// Entries that [`FakeTables`] have room for.
pub const FRONTENDS: u32 = 256;

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
        let index = std::vec![[0; index::WORDS]; index::buckets(FRONTENDS) as usize];
        Self { config, index, versions: std::vec![empty_version(u32::MAX)], ..Self::default() }
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
            self.publish(Frontend { key: *key, service, kind: *kind });
        }
        (service, ids)
    }

    /// Says what an address is.
    pub(crate) fn know(&mut self, addr: Addr, flags: u32) {
        self.publish(Frontend { key: FrontendKey::of_address(addr), service: flags, kind: Frontend::KIND_ADDRESS });
    }

    /// Takes every entry out of INDEX for which this is so.
    pub(crate) fn withdraw(&mut self, is_gone: impl Fn(&Frontend) -> bool) {
        for word in self.index.iter_mut().flatten() {
            let id = index::Word::of(*word).id as usize;
            if *word != 0 && is_gone(&self.frontend[id]) {
                *word = 0;
            }
        }
    }

    fn publish(&mut self, frontend: Frontend) {
        self.withdraw(|other| other.key == frontend.key);
        let place = index::vacancy(self, &frontend.key).expect("few frontends");
        let word = index::Word::leading_to(self.frontend.len() as u32, &frontend).word();
        *index::word_at(&mut self.index, place) = word;
        self.frontend.push(frontend);
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

impl Directory for FakeTables {
    fn buckets(&self) -> u32 {
        self.index.len() as u32
    }

    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.index.get(number as usize)
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        self.frontend.get(id as usize).copied()
    }
}

impl Tables for FakeTables {
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
