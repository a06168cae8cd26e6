//! What the kernel holds, as far as the next plan must know: ids, places and flags, no second image. Who has a key is read
//! from the tables when a plan asks for it.
//!
//! In: wanted services and the node. Out: [`Op`]s. The ledger takes every op that it hands out as done. When one fails,
//! throw the ledger away: [`Ledger::restore`] from what the tables hold, then plan everything again. Service ports are
//! found by their frontends, so what got through is kept and only the rest is written.
//!
//! A batch of services is planned in two phases. First everything that adds, kind by kind for all of them: backends,
//! slots, versions, the switch, frontends. Then everything that takes away. So a key that moves from one service port to
//! another is overwritten in one write. The flags of a backend change before the switch: they say who is remembered,
//! slots say who is drawn.
//!
//! Ids that go out of use are retired; [`Ledger::collect`] lets a grace period pass and gives them back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proxy_common::abi::{Backend, Config, Frontend, FrontendKey, PacketSettings, Range, SourceKey, Word};
use proxy_common::addr::{Addr, Be16};
use proxy_common::tables::{Capacity, name};

use super::absent::{Absent, Dialled};
use super::arena::Arena;
use super::backends::Backends;
use super::change::{BackendChange, HeldBackend, SET_FLAGS, Sets};
use super::held::{Held, Policy, Services};
use super::ids::Ids;
use super::index::Index;
use super::pressure::Pressure;
use super::{Op, UNUSED_FRONTEND, growth};
use crate::desired::{ServicePortName, WantedFrontend, WantedService};
use crate::hash::HashSet;
use crate::maps::{MapError, MapStore, Snapshot};

/// A service port that did not fit. What it was before stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table} is full ({capacity} entries)")]
pub struct Full {
    pub table: &'static str,
    pub capacity: u32,
}

/// The writes of one batch, and who did not fit.
#[derive(Debug, Default, PartialEq)]
pub struct Planned {
    pub ops: Vec<Op>,
    pub full: Vec<(ServicePortName, Full)>,
}

#[derive(Debug)]
pub struct Ledger {
    /// How large the tables may become.
    pub(super) limit: Capacity,
    pub(super) ids: Allocators,
    pub(super) services: Services,
    pub(super) index: Index,
    pub(super) backends: Backends,
    pub(super) sources: BTreeMap<u32, BTreeSet<SourceKey>>,
    pub(super) absent: Absent,
    pub(super) config: Option<Config>,
    pub(super) packets: Option<PacketSettings>,
    /// Packets are translated, so flows outlive the Service that they dialled. Learned with the node.
    pub(super) has_flows: bool,
    /// Service ports with affinity.
    pub(super) sticky: u32,
    /// Service ports found in the kernel that nobody has asked for since.
    pub(super) unclaimed: BTreeSet<u32>,
    /// Backends found in the kernel that belong to no service port.
    pub(super) stray_backends: Vec<(u32, Backend)>,
    /// Sources that programs of an older version may still ask for.
    pub(super) retired_sources: Vec<SourceKey>,
    pub(super) full: BTreeMap<ServicePortName, Full>,
    /// Some addresses did not fit.
    pub(super) lacks_addresses: bool,
    /// Free ids may have been in use a moment ago, by a ledger that was thrown away.
    pub(super) needs_grace: bool,
}

#[derive(Debug)]
pub(super) struct Allocators {
    pub(super) services: Ids,
    pub(super) versions: Ids,
    pub(super) frontends: Ids,
    pub(super) backends: Ids,
    pub(super) slots: Arena,
}

/// The ops of a batch while it is planned.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) adding: Vec<Op>,
    pub(super) removing: Vec<Op>,
    /// Keys that their service port gives up. Who took one over in this batch keeps it.
    leaving: Vec<(FrontendKey, u32)>,
    /// Keys that somebody else takes over from their service port.
    taken: Vec<(FrontendKey, u32)>,
    /// Every key that somebody in this batch wants. Only filled while service ports wait to be adopted.
    wanted: HashSet<FrontendKey>,
}

/// What one service port needs that it does not have.
struct Needs {
    service: Option<u32>,
    backends: BackendChange,
    /// The slots can stay as they are.
    same_slots: bool,
    /// The word must swing to a new version.
    switch: bool,
    /// Frontends that it does not have.
    frontends: Vec<WantedFrontend>,
    /// Keys that it has and nobody wants of it.
    leaving: Vec<FrontendKey>,
}

impl Needs {
    /// It is as wanted, sources aside.
    fn is_nothing(&self) -> bool {
        !self.switch && self.frontends.is_empty() && self.leaving.is_empty() && self.backends.is_nothing()
    }
}

impl Ledger {
    /// The ledger of empty tables that may grow to `limit`.
    pub fn new(limit: Capacity) -> Self {
        Self::restore(&Snapshot::default(), limit).0
    }

    /// How large the tables must be for everything that was planned; what is not counted here never grows.
    pub fn required(&self) -> Capacity {
        let ids = &self.ids;
        Capacity {
            frontends: ids.frontends.end().max(self.index.required()),
            services: ids.services.end(),
            versions: ids.versions.end(),
            slots: ids.slots.end(),
            backends: ids.backends.end(),
            affinity: growth::clients(self.sticky),
            sources: 0,
            sockets: 0,
            flows: self.limit.flows,
        }
    }

    /// All that was planned is written: lets go of what only plans need to know.
    pub fn rest(&mut self) {
        self.index.rest();
    }

    /// Reads what plans of these service ports and addresses need to know of `tables`, which the ledger is of.
    pub fn read_for<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a ServicePortName, Option<&'a WantedService>)>,
        addresses: impl IntoIterator<Item = Addr>,
        tables: &impl MapStore,
    ) -> Result<(), MapError> {
        let mut keys: Vec<_> = addresses.into_iter().map(FrontendKey::of_address).collect();
        for (name, wanted) in wanted {
            let held = self.services.find(name).map_or(&[][..], |id| &self.services[id].frontends);
            let wanted = wanted.map_or(&[][..], |wanted| &wanted.frontends);
            let only = |of: &[WantedFrontend], others: &[WantedFrontend]| {
                of.iter().filter(|one| !others.contains(one)).map(|one| one.key).collect::<Vec<_>>()
            };
            keys.extend(only(held, wanted));
            keys.extend(only(wanted, held));
        }
        self.index.read(&keys, tables)
    }

    /// Reads what every plan may need to know.
    pub fn read_all(&mut self, tables: &impl MapStore) -> Result<(), MapError> {
        self.index.read_all(tables)
    }

    /// As [`Self::read_all`], where [`Self::collect`] needs it; says whether it does.
    pub fn read_to_collect(&mut self, tables: &impl MapStore) -> Result<bool, MapError> {
        let needs_all = self.absent.is_untidy(self.has_flows);
        if needs_all {
            self.read_all(tables)?;
        }
        Ok(needs_all)
    }

    /// Plans a set of service ports; `None` removes one. What is as wanted costs nothing.
    pub fn plan_all<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a ServicePortName, Option<&'a WantedService>)>,
    ) -> Planned {
        let wanted: Vec<_> = wanted.into_iter().collect();
        let mut batch = Batch::default();
        if !self.unclaimed.is_empty() {
            let frontends = wanted.iter().filter_map(|(_, wanted)| *wanted).flat_map(|wanted| &wanted.frontends);
            batch.wanted = frontends.map(|frontend| frontend.key).collect();
        }
        let mut planned = Planned::default();
        for (name, wanted) in wanted {
            match self.plan_one(&mut batch, name, wanted) {
                Ok(()) => _ = self.full.remove(name),
                Err(full) => {
                    self.full.insert(name.clone(), full.clone());
                    planned.full.push((name.clone(), full));
                }
            }
        }
        planned.ops = self.finish(batch);
        planned
    }

    /// Removes what was found in the kernel and nobody asked for. Only when everything is known and planned.
    pub fn plan_orphans(&mut self) -> Vec<Op> {
        let mut batch = Batch::default();
        for service in std::mem::take(&mut self.unclaimed) {
            self.remove_service(&mut batch, service);
        }
        batch.removing.extend(self.index.repair());
        for (id, backend) in std::mem::take(&mut self.stray_backends) {
            let held = HeldBackend { addr: backend.addr, port: backend.port, flags: 0, id };
            self.retire_backend(&mut batch, held, backend.service);
        }
        let strays = |service: &u32, _: &mut BTreeSet<SourceKey>| self.services.get(*service).is_none();
        for (_, sources) in self.sources.extract_if(.., strays) {
            batch.removing.extend(sources.into_iter().map(|key| Op::ForgetSource { key }));
        }
        self.finish(batch)
    }

    /// Lets a grace period pass, wipes what was retired, and takes it for free; puts ABSENT right. Nothing when nothing was
    /// retired and no address went.
    pub fn collect(&mut self) -> Vec<Op> {
        if !self.has_retired() {
            return Vec::new();
        }
        let mut ops = vec![Op::Grace];
        ops.extend(self.ids.services.retired().iter().map(|&id| Op::Service { id, word: 0 }));
        ops.extend(self.ids.frontends.retired().iter().map(|&id| Op::Frontend { id, value: UNUSED_FRONTEND }));
        ops.extend(self.retired_sources.drain(..).map(|key| Op::ForgetSource { key }));
        let Allocators { services, versions, frontends, backends, slots } = &mut self.ids;
        for ids in [services, versions, frontends, backends] {
            ids.release();
        }
        slots.release();
        if self.absent.is_untidy(self.has_flows) {
            ops.extend(self.absent.tidy(self.index.iter().map(|(_, entry)| entry.key.addr), self.has_flows));
        }
        self.needs_grace = false;
        ops
    }

    /// True when a quarter of SLOTS is out of use: a change of one endpoint takes all slots of its Service out of use, and
    /// tables should not grow for changes that never pause.
    pub fn wastes_slots(&self, tables: &Capacity) -> bool {
        self.ids.slots.retired() > tables.slots / 4
    }

    /// True when [`Self::collect`] would free something.
    pub fn has_retired(&self) -> bool {
        let Allocators { services, versions, frontends, backends, slots } = &self.ids;
        [services, versions, frontends, backends].iter().any(|ids| !ids.retired().is_empty())
            || slots.has_retired()
            || !self.retired_sources.is_empty()
            || self.absent.is_untidy(self.has_flows)
    }

    /// Takes in what flows of packets dial: what went before the look at them, and is none of it, need not be looked up any
    /// more. Reads what it needs of `tables`, which the ledger is of.
    pub fn heed_flows(&mut self, dialled: &Dialled, tables: &impl MapStore) -> Result<Vec<Op>, MapError> {
        if !self.absent.heed(dialled) {
            return Ok(Vec::new());
        }
        self.read_all(tables)?;
        Ok(self.absent.cover(self.index.iter().map(|(_, entry)| entry.key.addr), dialled))
    }

    /// Service ports that did not fit. Plan them again when something was collected.
    pub fn full(&self) -> &BTreeMap<ServicePortName, Full> {
        &self.full
    }

    /// Some addresses did not fit. Plan the node again when something was collected.
    pub fn lacks_addresses(&self) -> bool {
        self.lacks_addresses
    }

    /// How much of what every table may grow to is taken.
    pub fn pressure(&self) -> [Pressure; 6] {
        let of = |table, used, capacity| Pressure { table, used, capacity };
        let ids = |table, ids: &Ids| of(table, ids.taken(), ids.capacity());
        let sources = self.source_count() as u32;
        [
            ids(name::SERVICE, &self.ids.services),
            ids(name::VERSION, &self.ids.versions),
            ids(name::FRONTEND, &self.ids.frontends),
            ids(name::BACKENDS, &self.ids.backends),
            of(name::SLOTS, self.ids.slots.taken(), self.ids.slots.capacity()),
            of(name::SOURCES, sources, self.limit.sources),
        ]
    }

    fn plan_one(
        &mut self,
        batch: &mut Batch,
        name: &ServicePortName,
        wanted: Option<&WantedService>,
    ) -> Result<(), Full> {
        if let Some(wanted) = wanted.filter(|wanted| !wanted.frontends.is_empty()) {
            return self.plan_wanted(batch, name, wanted);
        }
        if let Some(service) = self.services.find(name) {
            self.remove_service(batch, service);
        }
        Ok(())
    }

    fn plan_wanted(&mut self, batch: &mut Batch, name: &ServicePortName, wanted: &WantedService) -> Result<(), Full> {
        let found = self.services.find(name).or_else(|| self.adopt(batch, name, wanted));
        let needs = self.needs(found, wanted);
        if needs.is_nothing() && self.has_no_sources(found, wanted) {
            return Ok(());
        }
        let places = self.check_room(&needs, wanted)?;
        // From here on nothing can fail: a service is written whole or not at all.
        let id = found.unwrap_or_else(|| self.ids.services.allocate().expect(ROOM));
        if found.is_none() {
            self.services.insert(id, Held::default());
            self.services.give_name(id, name);
        }
        let mut held = std::mem::take(&mut self.services[id]);
        self.plan_sources(batch, id, wanted);
        self.plan_backends(batch, id, &mut held, wanted, needs.backends, needs.same_slots);
        self.publish(batch, id, &needs.frontends, &places);
        batch.leaving.extend(needs.leaving.into_iter().map(|key| (key, id)));
        held.frontends = wanted.frontends.iter().copied().collect();
        self.services[id] = held;
        Ok(())
    }

    /// Gives a service port that was found in the kernel its name, whether or not its changes will fit.
    fn adopt(&mut self, batch: &mut Batch, name: &ServicePortName, wanted: &WantedService) -> Option<u32> {
        let id = self.adoptable(batch, wanted)?;
        self.unclaimed.remove(&id);
        self.services.give_name(id, name);
        self.shed_keys(batch, id, wanted);
        Some(id)
    }

    /// The service port in the kernel that already has the first of the wanted frontends, ClusterIP before others.
    ///
    /// It must not have keys that go to somebody else: they would lead to the wrong service until they are taken over.
    fn adoptable(&self, batch: &Batch, wanted: &WantedService) -> Option<u32> {
        let holder = |frontend: &WantedFrontend| {
            let holding = self.index.get(&frontend.key)?;
            self.unclaimed.contains(&holding.service).then_some((frontend.kind, holding.service))
        };
        let (_, service) = wanted.frontends.iter().filter_map(holder).min()?;
        let elsewhere = |held: &&WantedFrontend| batch.wanted.contains(&held.key) && !wants(wanted, &held.key);
        self.services[service].frontends.iter().find(elsewhere).is_none().then_some(service)
    }

    /// Withdraws what an adopted service port has and nobody wants, before anything else of it changes: perhaps these
    /// keys were another service's.
    fn shed_keys(&mut self, batch: &mut Batch, id: u32, wanted: &WantedService) {
        let keys = self.services[id].frontends.iter().map(|held| held.key).filter(|key| !wants(wanted, key));
        for key in keys.collect::<Vec<_>>() {
            self.withdraw(&mut batch.adding, key, id);
        }
    }

    /// Withdraws a key of `service`, unless somebody else took it over.
    fn withdraw(&mut self, ops: &mut Vec<Op>, key: FrontendKey, service: u32) {
        if let Some(holding) = self.index.get(&key).filter(|holding| holding.service == service) {
            self.ids.frontends.retire(holding.id);
            self.absent.dismiss(&key.addr);
            ops.push(self.index.withdraw(&key));
        }
    }

    fn needs(&self, service: Option<u32>, wanted: &WantedService) -> Needs {
        let held = service.and_then(|service| self.services.get(service));
        let held_backends = held.map_or_else(Vec::new, |held| self.backends.all(&held.backends));
        let backends = BackendChange::between(&held_backends, &wanted.backends);
        let policy = held.and_then(|held| held.policy);
        let same_slots = policy.is_some() && backends.keeps_sets();
        let switch = !same_slots || policy != Some(Policy::of(wanted));
        let has = held.map_or(&[][..], |held| &held.frontends);
        let frontends = wanted.frontends.iter().filter(|new| !has.contains(new)).copied().collect();
        let leaving = has.iter().map(|held| held.key).filter(|key| !wants(wanted, key)).collect();
        Needs { service, backends, same_slots, switch, frontends, leaving }
    }

    /// Whether a service port fits below the limits, and where in INDEX its new frontends go; whether it fits the tables of
    /// today is for [`Self::required`] to say.
    fn check_room(&mut self, needs: &Needs, wanted: &WantedService) -> Result<Vec<u32>, Full> {
        let ids = &self.ids;
        let check = |fits: bool, table, capacity| if fits { Ok(()) } else { Err(Full { table, capacity }) };
        let has = |ids: &Ids, count: usize, table| check(ids.available() >= count, table, ids.capacity());
        has(&ids.services, usize::from(needs.service.is_none()), name::SERVICE)?;
        has(&ids.backends, needs.backends.added.len(), name::BACKENDS)?;
        has(&ids.versions, usize::from(needs.switch && !wanted.is_plain()), name::VERSION)?;
        let slots = if needs.same_slots { 0 } else { Sets::room(&wanted.backends) };
        check(ids.slots.fits(slots), name::SLOTS, ids.slots.capacity())?;
        has(&ids.frontends, needs.frontends.len(), name::FRONTEND)?;
        let sources = wanted.source_ranges.len();
        let fits = sources == 0 || self.source_count() + sources <= self.limit.sources as usize;
        check(fits, name::SOURCES, self.limit.sources)?;
        let keys: Vec<_> = needs.frontends.iter().map(|frontend| frontend.key).collect();
        let full = Full { table: name::INDEX, capacity: self.limit.frontends };
        self.index.places(&keys, self.limit.frontends).ok_or(full)
    }

    /// Backends, slots, version and the switch.
    fn plan_backends(
        &mut self,
        batch: &mut Batch,
        id: u32,
        held: &mut Held,
        wanted: &WantedService,
        change: BackendChange,
        same_slots: bool,
    ) {
        let BackendChange { kept, added, removed } = change;
        let mut backends: Vec<HeldBackend> = Vec::with_capacity(wanted.backends.len());
        let mut changed = Vec::new();
        for (old, flags) in kept {
            if old.flags != flags {
                changed.push((old, flags));
            }
            backends.push(old.with_flags(flags));
        }
        for new in added {
            let backend = self.new_backend(new.addr, new.port, new.flags);
            batch.adding.push(self.backend_op(id, backend, true));
            backends.push(backend);
        }
        backends.sort_unstable_by_key(HeldBackend::place);
        if wanted.affinity_seconds != 0 {
            changed.extend(removed.iter().map(|old| (*old, old.flags & !SET_FLAGS)));
        }
        self.plan_flags(batch, id, &changed);
        let sets = Sets::of(&backends);
        let ids: Arc<[u32]> = backends.iter().map(|backend| backend.id).collect();
        let run = if same_slots {
            held.run
        } else {
            // Nearly always all are in one set: one list does for both.
            let slots = if sets.slots[..] == *ids { Arc::clone(&ids) } else { sets.slots.into() };
            self.write_slots(batch, slots)
        };
        self.plan_switch(batch, id, held, Policy::of(wanted), run, sets.cluster);
        held.backends = ids;
        for backend in backends {
            self.backends.set(backend);
        }
        for old in removed {
            self.retire_backend(batch, old, id);
        }
    }

    fn new_backend(&mut self, addr: Addr, port: Be16, flags: u16) -> HeldBackend {
        let id = self.ids.backends.allocate().expect(ROOM);
        // Zero marks a freed id.
        self.backends.set_generation(id, self.backends.generation(id).wrapping_add(1).max(1));
        HeldBackend { addr, port, flags, id }
    }

    fn backend_op(&self, service: u32, backend: HeldBackend, fresh: bool) -> Op {
        let HeldBackend { addr, port, flags, id } = backend;
        let generation = self.backends.generation(id);
        Op::Backend { id, value: Backend { addr, port, flags, service, generation, zone: 0 }, fresh }
    }

    /// Flags change before the switch. Who draws goes through slots; flags only keep what is remembered, and must not
    /// lead a client of the new version to what has just left.
    fn plan_flags(&self, batch: &mut Batch, service: u32, changed: &[(HeldBackend, u16)]) {
        let changed = changed.iter().filter(|(old, flags)| old.flags != *flags);
        batch.adding.extend(changed.map(|(old, flags)| self.backend_op(service, old.with_flags(*flags), false)));
    }

    fn write_slots(&mut self, batch: &mut Batch, slots: Arc<[u32]>) -> Range {
        let run = self.ids.slots.allocate(slots.len() as u32).expect(ROOM);
        if run.len > 0 {
            batch.adding.push(Op::Slots { start: run.start, backends: slots });
        }
        run
    }

    /// A run that stays has the same sets: of the two, only new ones are written.
    fn plan_switch(
        &mut self,
        batch: &mut Batch,
        service: u32,
        held: &mut Held,
        policy: Policy,
        run: Range,
        cluster: u32,
    ) {
        if (held.policy, held.run) == (Some(policy), run) {
            return;
        }
        let content = policy.version(service, run, cluster);
        let mut number = 0;
        let word = content.as_word().unwrap_or_else(|| {
            number = self.ids.versions.allocate().expect(ROOM);
            batch.adding.push(Op::Version { number, value: content });
            Word::Version(number).word()
        });
        batch.adding.push(Op::Service { id: service, word });
        self.retire_version(held, run);
        self.sticky += u32::from(policy.is_sticky());
        (held.version, held.policy, held.run) = (number, Some(policy), run);
    }

    /// Retires the version of `held`, and its slots unless they go on as `next`.
    fn retire_version(&mut self, held: &Held, next: Range) {
        if held.version != 0 {
            self.ids.versions.retire(held.version);
        }
        self.sticky -= u32::from(held.is_sticky());
        if held.run != next {
            self.ids.slots.retire(held.run);
        }
    }

    /// Takes its id out of use at once: whoever remembers (id, generation) asks again. The address stays readable.
    fn retire_backend(&mut self, batch: &mut Batch, backend: HeldBackend, service: u32) {
        let HeldBackend { addr, port, id, .. } = backend;
        let zone = self.backends.generation(id);
        let value = Backend { addr, port, flags: 0, service, generation: 0, zone };
        batch.removing.push(Op::Backend { id, value, fresh: false });
        self.ids.backends.retire(id);
    }

    /// Frontends that `service` does not have, at these places of INDEX; who had one loses it in the same write.
    fn publish(&mut self, batch: &mut Batch, service: u32, frontends: &[WantedFrontend], places: &[u32]) {
        for (&WantedFrontend { key, kind }, &place) in frontends.iter().zip(places) {
            let before = self.index.get(&key).filter(|holding| holding.service != service);
            batch.taken.extend(before.map(|holding| (key, holding.service)));
            let ops = self.publish_one(place, Frontend { key, service, kind }).expect(ROOM);
            batch.adding.extend(ops);
        }
    }

    /// Gives an entry its word; none when there is no id left.
    pub(super) fn publish_one(&mut self, place: u32, value: Frontend) -> Option<impl Iterator<Item = Op> + use<>> {
        let id = self.ids.frontends.allocate()?;
        if let Some(before) = self.index.get(&value.key) {
            self.ids.frontends.retire(before.id);
        }
        let uncovered = self.absent.admit(&value.key.addr);
        let written = [Op::Frontend { id, value }, self.index.publish(place, id, value)];
        Some(uncovered.into_iter().chain(written))
    }

    fn remove_service(&mut self, batch: &mut Batch, service: u32) {
        let Some(held) = self.services.remove(service) else { return };
        batch.leaving.extend(held.frontends.iter().map(|frontend| (frontend.key, service)));
        self.retire_version(&held, Range::default());
        for id in held.backends.iter() {
            self.retire_backend(batch, self.backends.get(*id), service);
        }
        self.retired_sources.extend(self.sources.remove(&service).into_iter().flatten());
        self.ids.services.retire(service);
    }

    /// Withdraws the keys that nobody took over, and puts the phases in order.
    fn finish(&mut self, batch: Batch) -> Vec<Op> {
        let Batch { mut adding, removing, leaving, taken, .. } = batch;
        for (key, service) in taken {
            self.services.take_key(service, &key);
        }
        adding.sort_by_key(step);
        let mut ops = self.absent.repair();
        ops.extend(adding);
        for (key, service) in leaving {
            self.withdraw(&mut ops, key, service);
        }
        ops.extend(removing);
        if self.needs_grace && !ops.is_empty() {
            ops.insert(0, Op::Grace);
            self.needs_grace = false;
        }
        ops
    }
}

fn wants(wanted: &WantedService, key: &FrontendKey) -> bool {
    wanted.frontends.binary_search_by_key(key, |frontend| frontend.key).is_ok()
}

/// Which kind of op comes when, for all service ports of a batch: neighbours of one kind share a call, and nothing leads
/// to what has yet to be written.
pub(super) fn step(op: &Op) -> u8 {
    match op {
        Op::Absent { .. } => 0,
        Op::Index { word: 0, .. } => 1,
        Op::AllowSource { .. } => 2,
        Op::Backend { .. } => 3,
        Op::Slots { .. } => 4,
        Op::Version { .. } => 5,
        Op::Service { .. } => 6,
        Op::Frontend { .. } => 7,
        Op::Index { .. } => 8,
        other => unreachable!("{other:?} adds nothing to a service port"),
    }
}

const ROOM: &str = "check_room found room";
