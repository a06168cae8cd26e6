//! Who dials what, and its socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::FakeService;
use crate::abi::{AffinityKey, Backend, Frontend, FrontendKey, SocketFlow, Version};
use crate::addr::{Addr, Be16};
use crate::balance::{Client, Origin};
use crate::policy::{Place, Steered};
use crate::reason::Reason;
use crate::socket::{More, NO_FLOW, Socket, TCP};
use crate::tables::FLOWS_MORE;

/// A client of namespace 7, which is the node's own for [`FakeClient::host`].
pub(crate) struct FakeClient {
    pub(crate) host: bool,
    pub(crate) steered: Steered,
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
        Self {
            host: true,
            steered: Steered::Everybody,
            asked: Cell::new(false),
            namespace: 7,
            source: None,
            random,
            now,
        }
    }

    pub(crate) fn pod() -> Self {
        Self { host: false, namespace: 8, ..Self::host() }
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds * crate::balance::NANOSECONDS);
    }
}

impl Client for FakeClient {
    fn is_steered(&self) -> bool {
        self.steered.has(|| self.place())
    }

    fn place(&self) -> Place {
        self.asked.set(true);
        if self.host { Place::Node } else { Place::Pod }
    }

    fn origin(&self) -> Origin {
        if self.host { self.source.map_or(Origin::OfTheNode, Origin::Known) } else { Origin::Unknown }
    }

    fn affinity(&self, service: u32) -> AffinityKey {
        AffinityKey::namespace(self.namespace, service)
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
