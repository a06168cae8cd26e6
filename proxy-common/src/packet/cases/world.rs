//! A node for packets: the service "web" behind every kind of frontend, one backend here and one elsewhere.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::string::String;
use std::vec::Vec;

use super::build::{Build, syn, tcp};
use super::names::{addr, everybody};
use super::observe::{Hook, Moment, Run, Services, case, is_new_shape, is_news, is_observed, show};
use super::{Bytes, outcome, read};
use crate::abi::{
    Affinity, AffinityKey, Backend, Bucket, Cidr, Config, Device, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend,
    FrontendKey, PacketSettings, PortRange, Range, ServiceWord, Succession, TcpTimeouts, Version, Word, address,
    direct, near,
};
use crate::addr::{Addr, Be16, Family};
use crate::balance::NANOSECONDS;
use crate::fake::{FakeService, FakeTables};
use crate::index::Directory;
use crate::packet::ip::Ip;
use crate::packet::parse::{SCTP, parse, version};
use crate::packet::rush::Rush;
use crate::packet::state::State;
use crate::packet::tcp::{ACK, SYN};
use crate::packet::{Action, Flows, Host, NotAdded, Table, Way, hook};
use crate::reason::Reason;
use crate::socket::{TCP, UDP};
use crate::tables::Tables;

/// Ports of our own that [`TestNode`] draws from.
pub(super) const PORTS: PortRange = PortRange { first: 61_000, count: 1000 };

/// Which device a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Uplink,
    /// As [`On::Uplink`], but the port of a bridge.
    Port,
    PodDevice,
}

/// What a case wants of the node, besides what every case has.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) policies: u32,
    /// `L`: the local backend serves, `R`: the remote one, `P`: the pod that is a client elsewhere, `N`: the node itself.
    pub(super) backends: &'static str,
    pub(super) detector: bool,
    pub(super) settings: u32,
    pub(super) affinity_seconds: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self { policies: Version::HAS_ANY, backends: "LR", detector: true, settings: 0, affinity_seconds: 0 }
    }
}

impl Setup {
    /// Only the local or only the remote backend.
    pub(super) fn with(backends: &'static str) -> Self {
        Self { backends, ..Self::default() }
    }

    pub(super) fn node<A: Ip>(&self) -> TestNode<A> {
        TestNode::new(self)
    }
}

#[derive(Clone)]
pub(super) struct TestNode<A> {
    pub(super) tables: FakeTables,
    pub(super) settings: PacketSettings,
    pub(super) succession: Succession,
    pub(super) flows: HashMap<(Table, FlowKey<A>), Flow<A>>,
    pub(super) fragments: HashMap<FragmentKey<A>, FragmentPorts>,
    rush: [Rush; 2],
    pub(super) direct: [u32; direct::WORDS as usize],
    /// Flows that the tables say they have room for.
    pub(super) flows_room: u32,
    /// Entries that a table takes before it is full.
    pub(super) room: usize,
    /// The device of the packet.
    device: Device,
    /// The packet ends before it should.
    is_cut: bool,
    /// A device on top of that one, or under it, translated it already.
    was_translated: Option<Way>,
    /// Local ports that some process has.
    pub(super) sockets: Vec<u16>,
    pub(super) now: Cell<u64>,
    /// What another CPU does just before this one stores the request entry of a flow.
    pub(super) meanwhile: Option<fn(&mut Self, &Flow<A>)>,
    random: Cell<u32>,
    reasons: RefCell<Vec<Reason>>,
    pub(super) begun: RefCell<HashMap<u32, u32>>,
}

impl<A: Ip> TestNode<A> {
    fn new(setup: &Setup) -> Self {
        let family = A::FAMILY;
        let mut tables = FakeTables::new();
        for proto in [TCP, UDP, SCTP] {
            serve(&mut tables, setup, family, proto);
        }
        for (name, flags) in [
            ("node", address::OWN | address::NODE_PORT),
            ("second", address::OWN),
            ("bridge", address::OWN),
            ("vip", address::CLUSTER_IP),
            ("other", address::CLUSTER_IP),
            ("external", address::EXTERNAL),
            ("lb", address::EXTERNAL),
        ] {
            tables.know(addr(name, family), flags);
        }
        let is_known = |addr: &Addr| tables.frontend.iter().any(|entry| entry.key.addr == *addr);
        tables.absent = everybody(family).into_iter().filter(|addr| !is_known(addr)).collect();
        tables.config.service_cidrs[0] = range("vip", family);
        tables.config.service_cidr_count = 1;
        tables.config.flags = if setup.detector { Config::DETECTOR_V4 | Config::DETECTOR_V6 } else { 0 };
        let pods = [Family::V4, Family::V6].map(|family| range("pod", family));
        let settings =
            PacketSettings { pods, tcp: TcpTimeouts::default(), ports: PORTS, seed: 7, flags: setup.settings };
        Self {
            tables,
            settings,
            succession: Succession::default(),
            flows: HashMap::new(),
            fragments: HashMap::new(),
            rush: [Rush::default(); 2],
            direct: [direct::LOOK; direct::WORDS as usize],
            flows_room: u32::MAX,
            room: usize::MAX,
            device: Device::default(),
            is_cut: false,
            was_translated: None,
            sockets: Vec::new(),
            now: Cell::new(1_000 * NANOSECONDS),
            meanwhile: None,
            random: Cell::new(0),
            reasons: RefCell::default(),
            begun: RefCell::default(),
        }
    }

    pub(super) fn pass(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds * NANOSECONDS);
    }

    pub(super) fn enter(&mut self, on: On, packet: &Build) -> String {
        self.run(on, packet, Hook::Ingress)
    }

    pub(super) fn leave(&mut self, on: On, packet: &Build) -> String {
        self.run(on, packet, Hook::Egress)
    }

    /// What has left by a device above this one.
    #[cfg(test)]
    pub(super) fn leave_below(&mut self, on: On, packet: &Build) -> String {
        self.was_translated = Some(Way::Out);
        let outcome = self.leave(on, packet);
        self.was_translated = None;
        outcome
    }

    fn run(&mut self, on: On, packet: &Build, hook: Hook) -> String {
        let before = packet.bytes::<A>();
        let device = laid_out(device(on), packet.start());
        if version(&before, near::of(0, &device), packet.vlan) == Ok(None) {
            return "pass".into();
        }
        self.assert_cuts_do_no_harm(hook, device, &before, packet.start());
        let mut bytes = before.clone();
        let action = self.act(hook, device, &mut bytes, packet.start());
        if action == Action::Translated {
            self.assert_translated_for_good(hook, device, &bytes, packet.start());
        }
        if matches!(action, Action::Pass) {
            assert_eq!(bytes, before, "what passes is as it came");
        }
        self.assert_whole();
        outcome(self, action, &bytes, packet.link_header)
    }

    /// One packet at one hook.
    pub(super) fn act(&mut self, hook: Hook, device: Device, bytes: &mut Bytes, start: usize) -> Action {
        let device = laid_out(device, start);
        // Nowhere else is there another CPU or a table that refuses.
        let is_shown = is_observed() && self.meanwhile.is_none() && self.room > self.flows.len() + 8;
        let before = is_shown.then(|| (self.moment(bytes), self.random.get(), self.begun.borrow().clone()));
        let (counted, direct) = (self.reasons.borrow().len(), self.direct);
        let action = self.hook(hook, device, bytes, start);
        if let Some((before, random, begun)) = before {
            show(&Run {
                case: case(),
                is_cut: self.is_cut,
                hook,
                device,
                start,
                services: self.services(),
                settings: self.settings,
                succession: self.succession,
                direct,
                now: self.now.get(),
                random,
                sockets: self.sockets.clone(),
                before,
                after: self.moment(bytes),
                action,
                reasons: self.reasons.borrow()[counted..].to_vec(),
                begun: begun_since(&begun, &self.begun.borrow()),
            });
        }
        action
    }

    fn hook(&mut self, hook: Hook, device: Device, bytes: &mut Bytes, start: usize) -> Action {
        self.device = device;
        let state = &mut State::empty();
        match hook {
            Hook::Ingress => hook::ingress(self, bytes, state.at(start)),
            Hook::Egress => hook::egress(self, bytes, state.at(start)),
        }
    }

    /// A packet of each case, cut at any byte: what cannot be read is left to the stack as it is and leaves no trace. An observer
    /// is shown what cannot be read once, whatever the node knows then.
    fn assert_cuts_do_no_harm(&self, hook: Hook, device: Device, bytes: &Bytes, start: usize) {
        if !is_news(hook, bytes.0.len()) {
            return;
        }
        for len in 0..bytes.0.len().min(120) {
            let cut = Bytes(bytes.0[..len].to_vec());
            let is_broken = parse(&cut, start, &mut State::<A>::empty().parsed).is_err();
            if is_observed() && is_broken && !is_new_shape(hook, device, &cut.0) {
                continue;
            }
            let (mut node, mut after) = (self.clone(), cut.clone());
            node.is_cut = true;
            let action = node.act(hook, device, &mut after, start);
            if is_broken {
                let is_untouched = after == cut && node.flows == self.flows && node.fragments == self.fragments;
                assert!(action == Action::Pass && is_untouched, "{}: {action:?} of {len} bytes", case());
            }
        }
    }

    /// While programs of devices are put elsewhere, packets meet two of them. Only of a port that a flow and somebody else
    /// both send from do they take one for the other.
    fn assert_translated_for_good(&self, hook: Hook, device: Device, bytes: &Bytes, start: usize) {
        if is_observed() || self.flows.values().any(Flow::is_foreign) {
            return;
        }
        let (mut node, mut again) = (self.clone(), bytes.clone());
        node.was_translated = Some(if hook == Hook::Egress { Way::Out } else { Way::In });
        node.hook(hook, device, &mut again, start);
        assert_eq!(again, *bytes, "{}: translated once more", case());
    }

    fn moment(&self, bytes: &Bytes) -> Moment<A> {
        Moment {
            packet: bytes.0.clone(),
            flows: self.flows.iter().map(|((table, key), flow)| (*table, *key, *flow)).collect(),
            fragments: pairs(&self.fragments),
            affinity: pairs(&self.tables.affinity.borrow()),
        }
    }

    fn services(&self) -> Services {
        Services {
            index: self.tables.index.clone(),
            frontend: self.tables.frontend.clone(),
            services: self.tables.services.clone(),
            versions: self.tables.versions.clone(),
            slots: self.tables.slots.clone(),
            backends: self.tables.backends.clone(),
            absent: self.tables.absent.clone(),
            allowed: self.tables.allowed.clone(),
            config: self.tables.config,
        }
    }

    /// No half of a flow is ever alone.
    fn assert_whole(&self) {
        if self.room != usize::MAX {
            return;
        }
        for ((table, key), flow) in &self.flows {
            assert!(flow.is_sealed() && flow.is_at(key), "{key:?} files {flow:?}");
            let partner = self.flows.get(&(*table, flow.partner_key(key, self.settings.ports)));
            assert!(partner.is_some_and(|partner| partner.seal == flow.seal), "{key:?} is alone");
        }
    }

    /// How many flows each table has: established, embryonic.
    pub(super) fn count(&self) -> (usize, usize) {
        let of = |wanted| self.flows.keys().filter(|(table, _)| *table == wanted).count();
        assert!(of(Table::Established).is_multiple_of(2) && of(Table::Embryonic).is_multiple_of(2));
        (of(Table::Established) / 2, of(Table::Embryonic) / 2)
    }

    pub(super) fn reasons_since_last_asked(&self) -> String {
        read::joined(self.reasons.take().into_iter().map(Reason::name).collect())
    }

    /// What BACKENDS says of the backend with this name from now on, whatever the protocol.
    pub(super) fn set_backend(&mut self, name: &str, flags: u16) {
        let wanted = addr(name, A::FAMILY);
        for backend in self.tables.backends.iter_mut().filter(|backend| backend.addr == wanted) {
            backend.flags = flags;
        }
    }

    /// New flows find these slots only: the first or the second backend of [`Setup::backends`], or all.
    pub(super) fn choose_from(&mut self, first: u32, len: u32) {
        let some = |all: Range| Range { start: all.start + first, len };
        for version in &mut self.tables.versions[1..] {
            version.cluster = some(version.cluster);
        }
        for word in &mut self.tables.services {
            if let Word::Plain { cluster, has_any } = Word::of(*word) {
                *word = Word::Plain { cluster: some(cluster), has_any }.word();
            }
        }
    }

    /// Nobody serves any more.
    pub(super) fn without_endpoints(&mut self) {
        self.tables.services.fill(0);
        for backend in &mut self.tables.backends {
            (backend.flags, backend.generation) = (0, 0);
        }
    }

    /// Forgets all entries of a direction, as an LRU would.
    pub(super) fn evict(&mut self, direction: u8) {
        self.flows.retain(|(_, key), _| key.direction() != direction);
    }
}

fn pairs<K: Copy, V: Copy>(map: &HashMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

fn begun_since(before: &HashMap<u32, u32>, after: &HashMap<u32, u32>) -> Vec<(u32, u32)> {
    let new = |(backend, count): (&u32, &u32)| (*backend, count - before.get(backend).copied().unwrap_or(0));
    after.iter().map(new).filter(|(_, count)| *count > 0).collect()
}

pub(super) fn device(on: On) -> Device {
    let (source, flags) = match on {
        On::Uplink => ("node", 0),
        On::Port => ("node", Device::HAS_VLANS),
        On::PodDevice => ("bridge", Device::LOCAL_PODS),
    };
    Device { source_v4: addr(source, Family::V4), source_v6: addr(source, Family::V6), flags }
}

/// A device whose packets have their network header at `start`.
fn laid_out(device: Device, start: usize) -> Device {
    let bare = if start == 0 { Device::NO_LINK_HEADER } else { 0 };
    Device { flags: device.flags | bare, ..device }
}

/// The range around a name: /16, and /48 in IPv6.
fn range(name: &str, family: Family) -> Cidr {
    let prefix_len = if family == Family::V4 { 96 + 16 } else { 48 };
    Cidr { addr: addr(name, family), prefix_len }
}

fn serve(tables: &mut FakeTables, setup: &Setup, family: Family, proto: u8) {
    let key = |addr: Addr, port| FrontendKey { addr, port: Be16::new(port), proto, pad: 0 };
    let frontends = std::vec![
        (key(addr("vip", family), 80), Frontend::KIND_CLUSTER_IP),
        (key(addr("other", family), 81), Frontend::KIND_CLUSTER_IP),
        (key(Addr::unspecified(family), 30_080), Frontend::KIND_NODE_PORT),
        (key(addr("external", family), 80), Frontend::KIND_EXTERNAL_IP),
        (key(addr("lb", family), 80), Frontend::KIND_LOAD_BALANCER),
        // Same port as the backends: SCTP can be sent there.
        (key(addr("vip", family), 8080), Frontend::KIND_CLUSTER_IP),
    ];
    let sets = setup.backends.chars().map(|letter| {
        let local = if letter == 'R' { 0 } else { Backend::IN_LOCAL_SET | Backend::ON_THIS_NODE };
        Backend::IN_CLUSTER_SET | local
    });
    let service = FakeService {
        frontends,
        sets: sets.collect(),
        flags: setup.policies,
        affinity_seconds: setup.affinity_seconds,
    };
    let (_, ids) = tables.serve(&service);
    for (id, letter) in ids.into_iter().zip(setup.backends.chars()) {
        let name = match letter {
            'L' => "local",
            'R' => "remote",
            'P' => "pod",
            'N' => "node",
            other => panic!("which backend is {other}?"),
        };
        tables.backends[id as usize].addr = addr(name, family);
    }
}

/// Opens a connection from the client's port 4000 to the external address; its backend is "local".
pub(super) fn connected<A: Ip>() -> TestNode<A> {
    let mut node = Setup::with("L").node::<A>();
    assert_eq!(node.enter(On::Uplink, &syn("client:4000 > lb:80")), "client:4000 > local:8080 tcp S");
    assert_eq!(node.leave(On::Uplink, &tcp("local:8080 > client:4000").flags(SYN | ACK)), "lb:80 > client:4000 tcp SA");
    assert_eq!(node.enter(On::Uplink, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A");
    node
}

impl<A: Ip> Directory for TestNode<A> {
    fn buckets(&self) -> u32 {
        self.tables.buckets()
    }

    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.tables.bucket(number)
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        self.tables.frontend(id)
    }
}

impl<A: Ip> Tables for TestNode<A> {
    fn service(&self, id: u32) -> Option<ServiceWord> {
        self.tables.service(id)
    }

    fn version(&self, number: u32) -> Option<Version> {
        self.tables.version(number)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.tables.slot(index)
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.tables.backend(id)
    }

    fn is_absent(&self, addr: &Addr) -> bool {
        self.tables.is_absent(addr)
    }

    fn address(&self, addr: &Addr) -> Option<u32> {
        assert!(!self.is_absent(addr), "{addr} is looked up, though no table has it");
        self.tables.address(addr)
    }

    fn source_allowed(&self, service: u32, client: &Addr) -> bool {
        self.tables.source_allowed(service, client)
    }

    fn config(&self) -> Option<&Config> {
        self.tables.config()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.tables.affinity(key)
    }

    fn remember(&self, key: &AffinityKey, value: &Affinity) {
        self.tables.remember(key, value);
    }
}

impl<A: Ip> Flows<A> for TestNode<A> {
    fn flow(&mut self, table: Table, key: &FlowKey<A>) -> Option<&mut Flow<A>> {
        self.flows.get_mut(&(table, *key))
    }

    fn add_flow(&mut self, table: Table, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), NotAdded> {
        if key.direction() == FlowKey::<A>::REQUEST
            && let Some(meanwhile) = self.meanwhile.take()
        {
            meanwhile(self, flow);
        }
        if self.flows.contains_key(&(table, *key)) {
            return Err(NotAdded::Exists);
        }
        if self.flows.len() >= self.room {
            return Err(NotAdded::Full);
        }
        self.flows.insert((table, *key), *flow);
        Ok(())
    }

    fn remove_flow(&mut self, table: Table, key: &FlowKey<A>) {
        self.flows.remove(&(table, *key));
    }

    fn rush(&mut self, table: Table) -> Option<&mut Rush> {
        Some(&mut self.rush[table as usize])
    }

    fn direct(&mut self, proto: u8) -> Option<&mut u32> {
        Some(&mut self.direct[direct::place(A::FAMILY, proto) as usize])
    }

    fn drops_redirects(&self) -> bool {
        true
    }

    fn room(&self) -> u32 {
        self.flows_room
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        self.fragments.get(key).copied()
    }

    fn keep_fragment(&mut self, key: &FragmentKey<A>, ports: &FragmentPorts) {
        self.fragments.insert(*key, *ports);
    }
}

impl<A: Ip> Host for TestNode<A> {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn random(&self) -> u32 {
        self.random.replace(self.random.get().wrapping_add(1))
    }

    fn settings(&self) -> Option<&PacketSettings> {
        Some(&self.settings)
    }

    fn device(&self) -> Option<&Device> {
        Some(&self.device)
    }

    fn succession(&self) -> Option<&Succession> {
        Some(&self.succession)
    }

    /// Its sockets have their ports at every address.
    fn find_local<B: Ip>(&self, _to: &B, found: &mut B) {
        found.set(&B::ANY);
    }

    fn has_socket<B: Ip>(&self, flow: &Flow<B>, _local: &B) -> bool {
        self.sockets.contains(&flow.source_port.get())
    }

    fn has_fast_path(&self) -> bool {
        self.settings.flags & PacketSettings::FAST_PATH != 0
    }

    /// As it is to programs that are told the time.
    fn has_plain_ways<B: Ip>(&self, _flow: &Flow<B>) -> bool {
        true
    }

    fn was_translated(&self, way: Way) -> bool {
        self.was_translated == Some(way)
    }

    fn note_translated(&mut self, _: Way) {}

    fn count_flow(&self, backend: u32) {
        *self.begun.borrow_mut().entry(backend).or_default() += 1;
    }

    fn count(&self, reason: Reason) {
        if reason != Reason::Translated {
            self.reasons.borrow_mut().push(reason);
        }
    }
}
