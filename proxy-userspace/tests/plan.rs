//! Properties of plans: whatever the order of changes, and after every single write, a look-up is whole.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;
use proxy_common::abi::{
    AbsentBit, AffinityKey, Backend, Cidr, Config, Frontend, FrontendKey, Range, Version, Word, address,
};
use proxy_common::addr::{Addr, Be16, Family};
use proxy_common::balance::{Client, Origin, Verdict, balance};
use proxy_common::index;
use proxy_common::policy::Place;
use proxy_common::reason::Reason;
use proxy_common::tables::{ABSENT_WORDS, Capacity, Tables, name};
use proxy_userspace::desired::{ServicePortName, WantedBackend, WantedFrontend, WantedNode, WantedService};
use proxy_userspace::facts::facts;
use proxy_userspace::maps::memory::MemoryStore;
use proxy_userspace::maps::{MapStore, Snapshot};
use proxy_userspace::model::ObjectName;
use proxy_userspace::plan::{Ledger, Op};

type World = BTreeMap<ServicePortName, WantedService>;

const SMALL: Capacity = Capacity {
    frontends: 64,
    services: 32,
    versions: 64,
    slots: 256,
    backends: 128,
    sources: 32,
    affinity: 16,
    sockets: 16,
    flows: 64,
};

const NAMES: usize = 4;
const KEYS: usize = 6;
const PLACES: usize = 5;

fn service_name(number: usize) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("ns", &format!("svc{number}")),
        port: "".into(),
        proto: 6,
        family: Family::V4,
    }
}

fn key(number: usize) -> FrontendKey {
    FrontendKey { addr: Addr::v4([10, 96, 0, number as u8]), port: Be16::new(80), proto: 6, pad: 0 }
}

fn wanted(number: usize, frontends: Vec<WantedFrontend>, backends: Vec<WantedBackend>) -> WantedService {
    let name = service_name(number);
    WantedService { name, frontends, backends, affinity_seconds: 0, flags: Version::HAS_ANY, source_ranges: Vec::new() }
}

fn backend(last: usize, flags: u16) -> WantedBackend {
    WantedBackend { addr: Addr::v4([10, 244, 0, last as u8]), port: Be16::new(8080), flags }
}

/// A service port with one ClusterIP and `backends` ready backends.
fn simple(number: usize, backends: usize) -> WantedService {
    let frontend = WantedFrontend { key: key(number), kind: Frontend::KIND_CLUSTER_IP };
    let flags = Backend::IN_CLUSTER_SET | Backend::SERVING;
    wanted(number, vec![frontend], (0..backends).map(|last| backend(last, flags)).collect())
}

fn world(services: impl IntoIterator<Item = WantedService>) -> World {
    services.into_iter().map(|wanted| (wanted.name.clone(), wanted)).collect()
}

/// Every key has one owner or none; a service port without a key does not exist.
fn worlds() -> impl Strategy<Value = World> {
    let owners = prop::array::uniform6((0..=NAMES, 1_u32..5));
    let service = (prop::array::uniform5(prop::option::of(0_u16..32)), 0_u32..2, 0_u32..16, 0_u8..4);
    (owners, prop::array::uniform4(service)).prop_map(|(owners, services)| {
        let services = services.into_iter().enumerate().map(|(number, (backends, affinity, flags, sources))| {
            let owned = (0..KEYS).filter(|key| owners[*key].0 == number);
            let frontends = owned.map(|owned| WantedFrontend { key: key(owned), kind: owners[owned].1 }).collect();
            let places = (0..PLACES).filter_map(|last| Some(backend(last, backends[last]?))).collect();
            let ranges = if flags & Version::SOURCE_RANGES == 0 { 0 } else { sources };
            let source_ranges = (0..ranges).map(source).collect();
            WantedService { affinity_seconds: affinity, flags, source_ranges, ..wanted(number, frontends, places) }
        });
        world(services.filter(|wanted| !wanted.frontends.is_empty()))
    })
}

/// Addresses of a node, some of which are keys of Services.
fn nodes() -> impl Strategy<Value = WantedNode> {
    let addresses = prop::collection::btree_map(0_u8..10, 1_u32..16, 0..8);
    addresses.prop_map(|addresses| WantedNode {
        addresses: addresses.into_iter().map(|(last, flags)| (Addr::v4([10, 96, 0, last]), flags)).collect(),
        config: Config::default(),
        packets: None,
    })
}

/// The writes that bring addresses to `node`, one address after the other.
fn plan_each_address(ledger: &mut Ledger, node: &WantedNode) -> Vec<Op> {
    let flags: BTreeMap<_, _> = node.addresses.iter().copied().collect();
    let wanted: Vec<_> =
        (0..10).map(|last| Addr::v4([10, 96, 0, last])).map(|addr| (addr, flags.get(&addr).copied())).collect();
    ledger.plan_addresses(&wanted).expect("there is room")
}

fn source(third: u8) -> Cidr {
    Cidr { addr: Addr::v4([10, 9, third, 0]), prefix_len: 96 + 24 }
}

/// Plans every service port of both worlds.
fn plan(ledger: &mut Ledger, old: &World, new: &World) -> Vec<Op> {
    let names: BTreeSet<&ServicePortName> = old.keys().chain(new.keys()).collect();
    let planned = ledger.plan_all(names.into_iter().map(|name| (name, new.get(name))));
    assert_eq!(planned.full, []);
    planned.ops
}

/// What a client of one key can meet, without ids.
#[derive(Debug, PartialEq)]
struct Met {
    kind: u32,
    rest: Rest,
}

#[derive(Debug, PartialEq)]
struct Rest {
    cluster: BTreeSet<(Addr, Be16)>,
    local: BTreeSet<(Addr, Be16)>,
    affinity: u32,
    flags: u32,
}

/// Follows `key` as the kernel does. Panics on anything that dangles.
fn look_up(tables: &impl Tables, key: &FrontendKey) -> Option<Met> {
    let (_, frontend) = index::find(tables, key)?;
    let word = tables.service(frontend.service).expect("no word");
    let version = match Word::of(word) {
        Word::Nobody => panic!("a service port that was never written"),
        Word::Plain { cluster, has_any } => Version::plain(frontend.service, cluster, has_any),
        Word::Version(number) => tables.version(number).expect("no version"),
    };
    assert_eq!(version.service, frontend.service, "a version of another service");
    let members = |range: Range| {
        let member = |index| {
            let id = tables.slot(index).expect("slot outside of the arena");
            let backend = tables.backend(id).expect("no backend");
            assert_eq!(backend.service, frontend.service, "a backend of another service");
            assert_ne!(backend.generation, 0, "a backend that was freed: {backend:?}");
            (backend.addr, backend.port)
        };
        (range.start..range.start + range.len).map(member).collect()
    };
    let rest = Rest {
        cluster: members(version.cluster),
        local: members(version.local),
        affinity: version.affinity_seconds,
        flags: version.flags,
    };
    Some(Met { kind: frontend.kind, rest })
}

fn owner<'a>(world: &'a World, key: &FrontendKey) -> Option<(&'a WantedService, u32)> {
    let kind_in = |wanted: &WantedService| Some(wanted.frontends.iter().find(|frontend| frontend.key == *key)?.kind);
    world.values().find_map(|wanted| Some((wanted, kind_in(wanted)?)))
}

fn expected(world: &World, key: &FrontendKey) -> Option<Met> {
    owner(world, key).map(|(wanted, kind)| Met { kind, rest: rest(wanted) })
}

fn rest(wanted: &WantedService) -> Rest {
    let set = |flag| {
        let members = wanted.backends.iter().filter(|backend| backend.flags & flag != 0);
        members.map(|backend| (backend.addr, backend.port)).collect()
    };
    Rest {
        cluster: set(Backend::IN_CLUSTER_SET),
        local: set(Backend::IN_LOCAL_SET),
        affinity: wanted.affinity_seconds,
        flags: wanted.flags,
    }
}

/// What a key may meet while `old` becomes `new`: its old owner as it was and as it will be, its new owner as it will
/// be. The kind belongs to the frontend and changes beside the rest.
struct Allowed {
    kinds: Vec<Option<u32>>,
    rests: Vec<Option<Rest>>,
}

impl Allowed {
    fn between(old: &World, new: &World, key: &FrontendKey) -> Self {
        let owners = [old, new].map(|world| owner(world, key));
        let stays = owners[0].and_then(|(wanted, _)| new.get(&wanted.name));
        let mut rests: Vec<_> = owners.iter().map(|owner| owner.map(|(wanted, _)| rest(wanted))).collect();
        rests.extend(stays.map(|wanted| Some(rest(wanted))));
        Self { kinds: owners.iter().map(|owner| owner.map(|(_, kind)| kind)).collect(), rests }
    }

    /// What the datapath itself makes of the tables, remembered or drawn, is in the sets in force.
    fn assert_chosen(&self, tables: &MemoryStore, client: &HostProcess, key: &FrontendKey) {
        let in_force = look_up(tables, key).map(|met| met.rest);
        let holds = |backend: (Addr, Be16)| {
            in_force.iter().any(|rest| rest.cluster.contains(&backend) || rest.local.contains(&backend))
        };
        match balance(tables, client, key) {
            Verdict::To(choice) => {
                assert!(holds((choice.addr, choice.port)), "chose {choice:?}, in force {in_force:?}");
            }
            Verdict::Refuse(reason) => assert_ne!(reason, Reason::TablesChanging),
            Verdict::Leave => assert!(self.rests.contains(&None)),
            Verdict::Unreachable(_) => {}
        }
    }

    fn assert_holds(&self, met: Option<Met>) {
        let (kind, rest) = met.map(|met| (met.kind, met.rest)).unzip();
        assert!(self.rests.contains(&rest), "met {rest:#?}\nallowed {:#?}", self.rests);
        assert!(self.kinds.contains(&kind), "met kind {kind:?}, allowed {:?}", self.kinds);
    }
}

/// A process on the node that dials with a different random number each time.
#[derive(Default)]
struct HostProcess(Cell<u32>);

impl Client for HostProcess {
    fn place(&self) -> Place {
        Place::Node
    }

    fn origin(&self) -> Origin {
        Origin::OfTheNode
    }

    fn affinity(&self, service: u32) -> AffinityKey {
        AffinityKey::namespace(1, service)
    }

    fn random(&self) -> u32 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }

    fn now(&self) -> u64 {
        1
    }
}

/// Applies `ops` one by one; after each, what every key meets is whole.
fn apply_watched(store: &mut MemoryStore, ops: &[Op], old: &World, new: &World) {
    let keys: Vec<_> = (0..KEYS).map(key).map(|key| (key, Allowed::between(old, new, &key))).collect();
    let client = HostProcess::default();
    for op in ops {
        store.apply(std::slice::from_ref(op)).expect("the store never fails");
        for (key, allowed) in &keys {
            allowed.assert_holds(look_up(store, key));
            allowed.assert_chosen(store, &client, key);
        }
        assert_nobody_is_hidden(store);
    }
}

/// Every address that has an entry.
fn present(store: &MemoryStore) -> impl Iterator<Item = Addr> {
    let entries: Vec<_> = store.snapshot().published().filter_map(|(_, entry)| entry).collect();
    entries.into_iter().map(|entry| entry.key.addr)
}

fn addresses(store: &MemoryStore) -> Vec<(Addr, u32)> {
    let mut addresses: Vec<_> = store.snapshot().addresses().collect();
    addresses.sort_unstable();
    addresses
}

/// Nothing that has an entry is declared absent.
fn assert_nobody_is_hidden(store: &MemoryStore) {
    for addr in present(store) {
        assert!(!store.is_absent(&addr), "{addr} is in the tables and declared absent");
    }
}

/// All that has no entry is declared absent, but for who shares a bit.
fn assert_absence_is_known(store: &MemoryStore) {
    let absent: u32 = store.absent.iter().map(|word| word.count_ones()).sum();
    let present: BTreeSet<_> = present(store).map(|addr| AbsentBit::of(&addr)).collect();
    assert_eq!(absent, ABSENT_WORDS * u64::BITS - present.len() as u32);
}

/// The store and ledger after `world`, from tables that say of everything that it is absent.
fn settled(world: &World) -> (MemoryStore, Ledger) {
    let mut store = MemoryStore::new(SMALL);
    store.absent.fill(u64::MAX);
    let mut ledger = restored(&store);
    let ops = plan(&mut ledger, &World::new(), world);
    apply_watched(&mut store, &ops, &World::new(), world);
    (store, ledger)
}

fn fresh_facts(world: &World) -> Vec<String> {
    facts(&settled(world).0.snapshot())
}

/// A new process on what `store` holds.
fn restored(store: &MemoryStore) -> Ledger {
    Ledger::restore(&store.snapshot(), SMALL).0
}

fn assert_settled(store: &MemoryStore, world: &World) {
    assert_eq!(facts(&store.snapshot()), fresh_facts(world));
    let (mut ledger, problems) = Ledger::restore(&store.snapshot(), SMALL);
    assert_eq!(problems, []);
    assert_eq!(plan(&mut ledger, &World::new(), world), []);
    assert_eq!((ledger.plan_orphans(), ledger.collect()), (vec![], vec![]));
    assert_absence_is_known(store);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_every_write_a_look_up_is_wholly_old_or_wholly_new(
        steps in prop::collection::vec((worlds(), any::<bool>()), 2..6),
    ) {
        let (mut store, mut ledger) = settled(&World::new());
        let mut old = World::new();
        for (new, collect) in steps {
            let ops = plan(&mut ledger, &old, &new);
            apply_watched(&mut store, &ops, &old, &new);
            if collect {
                let ops = ledger.collect();
                apply_watched(&mut store, &ops, &new, &new);
            }
            prop_assert_eq!(facts(&store.snapshot()), fresh_facts(&new));
            old = new;
        }
    }

    #[test]
    fn after_every_write_no_address_that_has_an_entry_is_declared_absent(
        steps in prop::collection::vec((worlds(), nodes(), any::<bool>(), any::<bool>(), any::<Index>()), 2..6),
    ) {
        let (mut store, mut ledger) = settled(&World::new());
        let mut old = World::new();
        for (new, node, whole, tidies, crash) in steps {
            let mut ops = plan(&mut ledger, &old, &new);
            ops.extend(if whole { ledger.plan_node(&node).0 } else { plan_each_address(&mut ledger, &node) });
            if tidies {
                ops.extend(ledger.collect());
            }
            let crash = crash.index(2 * ops.len() + 1);
            for op in ops.iter().take(crash) {
                store.apply(std::slice::from_ref(op)).unwrap();
                assert_nobody_is_hidden(&store);
            }
            if crash < ops.len() {
                ledger = restored(&store);
                for op in plan(&mut ledger, &World::new(), &new).into_iter().chain(ledger.plan_node(&node).0) {
                    store.apply(&[op]).unwrap();
                    assert_nobody_is_hidden(&store);
                }
            } else if tidies {
                assert_absence_is_known(&store);
            }
            old = new;
        }
    }

    #[test]
    fn a_plan_for_what_is_there_is_empty_and_a_replay_changes_nothing(old in worlds(), new in worlds()) {
        let (mut store, mut ledger) = settled(&old);
        let ops = plan(&mut ledger, &old, &new);
        store.apply(&ops).unwrap();
        let before = store.snapshot();
        store.apply(&ops).unwrap();
        prop_assert_eq!(store.snapshot(), before);
        prop_assert_eq!(plan(&mut ledger, &old, &new), []);
    }

    #[test]
    fn a_restart_writes_nothing(before in worlds(), world in worlds()) {
        let (mut store, mut ledger) = settled(&before);
        store.apply(&plan(&mut ledger, &before, &world)).unwrap();
        store.apply(&ledger.collect()).unwrap();
        assert_settled(&store, &world);
    }

    #[test]
    fn a_crash_after_any_write_is_repaired_without_a_gap(old in worlds(), new in worlds(), at in any::<Index>()) {
        let (mut store, mut ledger) = settled(&old);
        let mut ops = plan(&mut ledger, &old, &new);
        ops.extend(ledger.collect());
        apply_watched(&mut store, &ops[..at.index(ops.len() + 1)], &old, &new);
        let mut ledger = restored(&store);
        let ops = plan(&mut ledger, &World::new(), &new);
        apply_watched(&mut store, &ops, &old, &new);
        apply_watched(&mut store, &ledger.plan_orphans(), &old, &new);
        apply_watched(&mut store, &ledger.collect(), &new, &new);
        assert_settled(&store, &new);
    }

    #[test]
    fn a_reused_backend_id_has_a_newer_generation_also_after_a_restart(
        steps in prop::collection::vec((worlds(), any::<bool>()), 2..6),
    ) {
        let (mut store, mut ledger) = settled(&World::new());
        let mut old = World::new();
        let mut given: BTreeMap<u32, (u32, Addr)> = BTreeMap::new();
        for (new, restart) in steps {
            store.apply(&plan(&mut ledger, &old, &new)).unwrap();
            store.apply(&ledger.collect()).unwrap();
            for (id, backend) in store.backends.iter().filter(|(_, backend)| backend.generation != 0) {
                let (generation, addr) = given.insert(*id, (backend.generation, backend.addr)).unwrap_or_default();
                let kept = (generation, addr) == (backend.generation, backend.addr);
                prop_assert!(kept || generation < backend.generation, "{} {:?}", id, backend);
            }
            if restart {
                ledger = restored(&store);
                plan(&mut ledger, &World::new(), &new);
            }
            old = new;
        }
    }

    #[test]
    fn damaged_tables_are_repaired(
        before in worlds(),
        world in worlds(),
        damages in prop::collection::vec(damages(), 1..12),
    ) {
        let mut snapshot = settled(&before).0.snapshot();
        for damage in damages {
            damage.strike(&mut snapshot);
        }
        let mut store = MemoryStore::holding(SMALL, snapshot);
        let mut ledger = restored(&store);
        store.apply(&plan(&mut ledger, &World::new(), &world)).unwrap();
        store.apply(&ledger.plan_orphans()).unwrap();
        store.apply(&ledger.collect()).unwrap();
        assert_settled(&store, &world);
    }
}

/// One wrong value in one table.
#[derive(Clone, Debug)]
struct Damage {
    table: u8,
    entry: Index,
    value: u32,
    field: u8,
}

fn damages() -> impl Strategy<Value = Damage> {
    let value = prop_oneof![0_u32..20, 0_u32..300, any::<u32>()];
    (0_u8..7, any::<Index>(), value, 0_u8..6).prop_map(|(table, entry, value, field)| Damage {
        table,
        entry,
        value,
        field,
    })
}

impl Damage {
    fn strike(&self, snapshot: &mut Snapshot) {
        let value = self.value;
        match self.table {
            0 => self.pick(snapshot.index.as_flattened_mut(), |word| match self.field {
                0..3 => *word = *word & !0xff_ffff | u64::from(value) & 0xff_ffff,
                _ => *word ^= u64::from(value) << (self.field * 8),
            }),
            1 => self.pick(&mut snapshot.frontend, |(_, frontend)| match self.field {
                0 => frontend.service = value,
                1 => frontend.kind = value,
                _ => frontend.key = key(value as usize % KEYS),
            }),
            2 => self.pick(&mut snapshot.service, |(_, word)| *word = u64::from(value) << (self.field * 8)),
            3 => self.pick(&mut snapshot.version, |(_, version)| match self.field {
                0 => version.cluster.start = value,
                1 => version.cluster.len = value,
                2 => version.local = Range { start: value, len: value },
                3 => version.service = value,
                4 => version.scheduler = value,
                _ => version.flags = value,
            }),
            4 => self.pick(&mut snapshot.slots, |slot| *slot = value),
            5 => self.pick(&mut snapshot.absent, |word| *word = u64::from(value) << (self.field * 8)),
            _ => self.pick(&mut snapshot.backends, |(_, backend)| match self.field {
                0 => backend.service = value,
                1 => backend.flags = value as u16,
                2 => backend.generation = value,
                3 => backend.zone = value,
                4 => backend.port = Be16::new(value as u16),
                _ => backend.addr = Addr::v4([10, 244, 0, value as u8 % 5]),
            }),
        }
    }

    fn pick<T>(&self, table: &mut [T], damage: impl FnOnce(&mut T)) {
        if !table.is_empty() {
            damage(&mut table[self.entry.index(table.len())]);
        }
    }
}

fn planned(ledger: &mut Ledger, wanted: &WantedService) -> (Vec<Op>, Vec<&'static str>) {
    let planned = ledger.plan_all([(&wanted.name, Some(wanted))]);
    (planned.ops, planned.full.into_iter().map(|(_, full)| full.table).collect())
}

#[test]
fn a_full_table_costs_only_the_service_that_does_not_fit() {
    for (capacity, table) in [
        (Capacity { frontends: 3, ..SMALL }, name::FRONTEND),
        (Capacity { services: 3, ..SMALL }, name::SERVICE),
        (Capacity { versions: 3, ..SMALL }, name::VERSION),
        (Capacity { slots: 8, ..SMALL }, name::SLOTS),
        (Capacity { backends: 9, ..SMALL }, name::BACKENDS),
    ] {
        // Plain service ports have no version.
        let affinity_seconds = if table == name::VERSION { 60 } else { 0 };
        let simple = |number, backends| WantedService { affinity_seconds, ..simple(number, backends) };
        let mut store = MemoryStore::new(capacity);
        let mut ledger = Ledger::new(capacity);
        for number in 0..2 {
            let (ops, full) = planned(&mut ledger, &simple(number, 4));
            assert_eq!(full, [""; 0]);
            store.apply(&ops).unwrap();
        }
        let before = store.snapshot();
        let (ops, full) = planned(&mut ledger, &simple(2, 1));
        assert_eq!((ops, full), (vec![], vec![table]));
        assert!(ledger.pressure().iter().any(|pressure| pressure.table == table && pressure.is_high()), "{table}");
        assert_eq!(store.snapshot(), before);

        // Space returns only after a grace period.
        store.apply(&ledger.plan_all([(&service_name(0), None)]).ops).unwrap();
        let (ops, full) = planned(&mut ledger, &simple(2, 1));
        assert_eq!((ops.as_slice(), full), (&[][..], vec![table]));
        store.apply(&ledger.collect()).unwrap();
        let (ops, full) = planned(&mut ledger, &simple(2, 1));
        assert_eq!(full, [""; 0]);
        store.apply(&ops).unwrap();
        assert!(ledger.full().is_empty());
        assert_eq!(look_up(&store, &key(2)), expected(&world([simple(2, 1)]), &key(2)));
    }
}

#[test]
fn work_follows_the_change_and_not_the_cluster() {
    let (_, mut ledger) = settled(&world((0..KEYS).map(|number| simple(number, 4))));
    let (ops, _) = planned(&mut ledger, &simple(3, 5));
    // The backend, the slots, the switch.
    assert_eq!(ops.len(), 3, "{ops:#?}");
    let mut stopping = simple(3, 5);
    stopping.backends[0].flags |= Backend::TERMINATING;
    assert_eq!(planned(&mut ledger, &stopping).0.len(), 1);
    stopping.affinity_seconds = 10;
    // The slots stay: a version and the switch.
    assert_eq!(planned(&mut ledger, &stopping).0.len(), 2);
}

#[test]
fn a_change_of_a_large_service_swings_one_switch_word() {
    const MEMBERS: u32 = 5_000;
    const AT_ONCE: u32 = 25;
    let address = |number: u32| Addr::v4((0x0ac8_0001 + number).to_be_bytes());
    let member = |number| WantedBackend { addr: address(number), ..backend(0, Backend::IN_CLUSTER_SET) };
    let without_the_first = |replaced: u32| WantedService {
        backends: (replaced..MEMBERS + replaced).map(member).collect(),
        ..simple(0, 0)
    };
    let mut ledger = Ledger::new(Capacity::LIMIT);
    planned(&mut ledger, &without_the_first(0));
    for replaced in (1..=MEMBERS / AT_ONCE).map(|change| change * AT_ONCE) {
        let (ops, _) = planned(&mut ledger, &without_the_first(replaced));
        let writes = |table| ops.iter().filter(|op| op.table() == table).count();
        let tables = [name::SERVICE, name::VERSION, name::SLOTS, name::BACKENDS];
        assert_eq!(tables.map(writes), [1, 0, 1, 2 * AT_ONCE as usize], "what comes and what goes, and one switch");
        assert_eq!(ops.len(), 2 + 2 * AT_ONCE as usize);
        ledger.collect();
    }
}

#[test]
fn a_source_that_is_allowed_again_before_collect_stays_allowed() {
    let restricted = WantedService {
        flags: Version::HAS_ANY | Version::SOURCE_RANGES,
        source_ranges: vec![source(1)],
        ..simple(0, 1)
    };
    let (mut store, mut ledger) = settled(&world([restricted.clone()]));
    for wanted in [&simple(0, 1), &restricted] {
        store.apply(&planned(&mut ledger, wanted).0).unwrap();
    }
    store.apply(&ledger.collect()).unwrap();
    assert_settled(&store, &world([restricted]));
    assert_eq!(store.sources.len(), 1);
}

#[test]
fn nothing_that_was_found_is_removed_before_it_is_said_so() {
    let (mut store, _) = settled(&world([simple(0, 2), simple(1, 2)]));
    let mut ledger = restored(&store);
    let (ops, _) = planned(&mut ledger, &simple(1, 2));
    assert_eq!((ops, ledger.collect()), (vec![], vec![]));
    store.apply(&ledger.plan_orphans()).unwrap();
    store.apply(&ledger.collect()).unwrap();
    assert_settled(&store, &world([simple(1, 2)]));
}

#[test]
fn addresses_follow_the_node_and_past_the_capacity_are_named() {
    let mut store = MemoryStore::new(SMALL);
    let mut ledger = Ledger::new(SMALL);
    let node = |addresses: &[(u8, u32)]| WantedNode {
        addresses: addresses.iter().map(|(last, flags)| (Addr::v4([192, 0, 2, *last]), *flags)).collect(),
        config: Config::default(),
        packets: None,
    };
    for wanted in [&[(1, 1), (2, 4), (3, 4)][..], &[(2, 5), (4, 4)], &[], &[(1, 1), (9, 1)]] {
        let (ops, full) = ledger.plan_node(&node(wanted));
        assert_eq!(full, None);
        store.apply(&ops).unwrap();
        assert_eq!(addresses(&store), node(wanted).addresses);
        assert_eq!(restored(&store).plan_node(&node(wanted)), (vec![], None));
    }
    store.apply(&ledger.collect()).unwrap();
    let many: Vec<(u8, u32)> = (0..80).map(|last| (last, 1)).collect();
    let (ops, full) = ledger.plan_node(&node(&many));
    store.apply(&ops).unwrap();
    assert_eq!((full.map(|full| full.table), addresses(&store).len()), (Some(name::FRONTEND), 63));
}

#[test]
fn in_a_full_table_own_addresses_come_first_and_the_others_when_a_grace_period_has_passed() {
    let capacity = Capacity { frontends: 17, ..SMALL };
    let mut store = MemoryStore::new(capacity);
    let mut ledger = Ledger::new(capacity);
    let node = |cluster_ips: std::ops::Range<u8>, own: u8| WantedNode {
        addresses: cluster_ips
            .map(|last| (Addr::v4([10, 96, 0, last]), address::CLUSTER_IP))
            .chain([(Addr::v4([192, 0, 2, own]), address::OWN)])
            .collect(),
        config: Config::default(),
        packets: None,
    };
    for (wanted, fits) in
        [(node(0..14, 1), true), (node(1..15, 2), true), (node(20..34, 3), true), (node(0..40, 4), false)]
    {
        let (ops, _) = ledger.plan_node(&wanted);
        store.apply(&ops).unwrap();
        store.apply(&ledger.collect()).unwrap();
        let (ops, full) = ledger.plan_node(&wanted);
        assert_eq!(full.is_none(), fits);
        store.apply(&ops).unwrap();
        assert!(addresses(&store).contains(wanted.addresses.last().unwrap()));
        store.apply(&ledger.collect()).unwrap();
    }
}
