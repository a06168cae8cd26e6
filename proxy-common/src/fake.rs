//! Tables, a client and a socket made of plain collections, for the tests of the rules.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::vec::Vec;

use crate::abi::{
    Affinity, AffinityKey, Backend, Config, Frontend, FrontendKey, Range, ServiceWord, SocketFlow, Version,
};
use crate::addr::{Addr, Be16};
use crate::balance::Client;
use crate::reason::Reason;
use crate::socket::{More, NO_FLOW, Socket, TCP};
use crate::tables::{FLOWS_MORE, Tables};

/// Tables of services that all look like those of [`FakeTables::serve`].
#[derive(Default)]
pub(crate) struct FakeTables {
    pub(crate) frontends: RefCell<HashMap<FrontendKey, u32>>,
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
        self.versions.push(version);
        self.services.push(self.versions.len() as u64 - 1);
        for (key, kind) in &wanted.frontends {
            self.frontends.get_mut().insert(*key, self.frontend.len() as u32);
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
        Range { start, len: self.slots.len() as u32 - start }
    }
}

fn empty_version(service: u32) -> Version {
    let (cluster, local, scheduler) = (Range::default(), Range::default(), Version::SCHEDULER_RANDOM);
    Version { cluster, local, affinity_seconds: 0, flags: 0, service, scheduler }
}

impl Tables for FakeTables {
    fn frontend_id(&self, key: &FrontendKey) -> Option<u32> {
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

/// A client of namespace 7, which is the node's own for [`FakeClient::host`].
pub(crate) struct FakeClient {
    pub(crate) host: bool,
    /// Somebody wanted to know `host`: a helper call in the kernel.
    pub(crate) asked: Cell<bool>,
    pub(crate) namespace: u64,
    pub(crate) source: Option<Addr>,
    /// The next random number.
    pub(crate) random: Cell<u32>,
    pub(crate) now: Cell<u64>,
}

impl FakeClient {
    pub(crate) fn host() -> Self {
        let (random, now) = (Cell::new(0), Cell::new(1_000_000_000_000));
        Self { host: true, asked: Cell::new(false), namespace: 7, source: None, random, now }
    }

    pub(crate) fn pod() -> Self {
        Self { host: false, namespace: 8, ..Self::host() }
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds * crate::balance::NANOSECONDS);
    }
}

impl Client for FakeClient {
    fn namespace(&self) -> u64 {
        self.namespace
    }

    fn is_host(&self) -> bool {
        self.asked.set(true);
        self.host
    }

    fn source(&self) -> Option<Addr> {
        self.source
    }

    fn random(&self) -> u32 {
        self.random.replace(self.random.get().wrapping_add(1))
    }

    fn now(&self) -> u64 {
        // Time never stands still between two calls.
        self.now.replace(self.now.get() + 1)
    }
}

/// One socket; `slot` may be somebody else's.
pub(crate) struct FakeSocket {
    pub(crate) cookie: u64,
    pub(crate) slot: SocketFlow,
    pub(crate) more: Option<More>,
    pub(crate) memory: bool,
    pub(crate) reasons: RefCell<HashMap<Reason, u32>>,
    /// Per backend: flows ever, open now.
    pub(crate) stats: RefCell<HashMap<u32, (u64, i64)>>,
}

impl FakeSocket {
    pub(crate) fn new() -> Self {
        let (reasons, stats) = (RefCell::default(), RefCell::default());
        Self { cookie: 41, slot: NO_FLOW, more: None, memory: true, reasons, stats }
    }

    /// A socket whose slot another one holds.
    pub(crate) fn displaced() -> Self {
        Self { slot: SocketFlow { cookie: 42, abi: crate::tables::ABI_VERSION, ..NO_FLOW }, ..Self::new() }
    }

    pub(crate) fn counted(&self, reason: Reason) -> u32 {
        self.reasons.borrow().get(&reason).copied().unwrap_or(0)
    }

    pub(crate) fn stats(&self, backend: u32) -> (u64, i64) {
        self.stats.borrow().get(&backend).copied().unwrap_or((0, 0))
    }

    fn add(&self, backend: u32, total: u64, open: i64) {
        let mut stats = self.stats.borrow_mut();
        let entry = stats.entry(backend).or_default();
        *entry = (entry.0 + total, entry.1 + open);
    }
}

impl Socket for FakeSocket {
    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn slot(&mut self) -> Option<&mut SocketFlow> {
        Some(&mut self.slot)
    }

    fn fetch_slot(&self) {}

    fn more(&mut self) -> Option<&mut More> {
        self.more.as_mut()
    }

    fn more_or_new(&mut self) -> Option<&mut More> {
        if self.more.is_none() && self.memory {
            self.more = Some([NO_FLOW; FLOWS_MORE]);
        }
        self.more.as_mut()
    }

    fn count_flow(&self, backend: u32) {
        self.add(backend, 1, 0);
    }

    fn count_open(&self, backend: u32) {
        self.add(backend, 0, 1);
    }

    fn count_closed(&self, backend: u32) {
        self.add(backend, 0, -1);
    }

    fn count(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason).or_default() += 1;
    }
}

/// 172.30.0.`last`:80/TCP.
pub(crate) fn vip(last: u8) -> FrontendKey {
    FrontendKey { addr: Addr::v4([172, 30, 0, last]), port: Be16::new(80), proto: TCP, pad: 0 }
}

/// A service with one ClusterIP, [`vip`] number `last`, and backends in the cluster set.
pub(crate) fn cluster_ip(last: u8, backends: usize) -> FakeService {
    FakeService {
        frontends: std::vec![(vip(last), Frontend::KIND_CLUSTER_IP)],
        sets: std::vec![Backend::IN_CLUSTER_SET; backends],
        flags: Version::HAS_ANY,
        affinity_seconds: 0,
    }
}
