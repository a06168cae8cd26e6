//! A ledger from what the tables hold, after a restart or a failed write.
//!
//! In: a [`Snapshot`], any bytes at all. Out: a [`Ledger`] and the [`Problem`]s found. Whatever contradicts itself counts
//! as absent: the next plan writes it anew, and [`Ledger::plan_orphans`] removes what nobody asks for. Only what can be
//! reached from FRONTENDS counts; all else is free room.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::{Backend, Frontend, FrontendId, FrontendKey, Range, SourceKey, Version, Word};
use proxy_common::addr::Addr;
use proxy_common::tables::{Capacity, name};

use super::absent::Absent;
use super::arena::Arena;
use super::change::{HeldBackend, Sets};
use super::held::{Held, Policy, Services, sets};
use super::ids::Ids;
use super::ledger::{Allocators, Holding, Ledger};
use crate::hash::HashMap;
use crate::maps::Snapshot;

/// Something in the tables that no process of ours writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}: entry {entry} {fault}; it will be written anew or removed")]
pub struct Problem {
    pub table: &'static str,
    pub entry: String,
    pub fault: &'static str,
}

/// No flag of a backend. Held in place of its flags it makes the next plan write the backend anew.
const DAMAGED: u16 = 1 << 15;

impl Ledger {
    /// The ledger of what `snapshot` holds. Service ports have no names until they are planned for.
    pub fn restore(snapshot: &Snapshot, limit: Capacity) -> (Self, Vec<Problem>) {
        let mut reading = Reading::new(snapshot, limit);
        let frontends = reading.frontends();
        let mut services = services(&frontends);
        let (generations, stray_backends) = reading.backends(&mut services);
        let slots = reading.versions(&mut services);
        let addrs = addrs(snapshot);
        let present = frontends.keys().map(|key| key.addr).chain(addrs.iter().map(|(addr, _)| *addr));
        let absent = Absent::restore(&snapshot.absent, present);
        for word in absent.damaged() {
            reading.problem(name::ABSENT, &word, "hides an address that is in the tables");
        }
        let ids = allocators(limit, &frontends, &services, &stray_backends, slots);
        let ledger = Self {
            limit,
            ids,
            unclaimed: services.ids().collect(),
            sticky: services.iter().filter(|(_, held)| held.is_sticky()).count() as u32,
            damaged: frontends.values().filter(|holding| **holding == Holding::NOBODY).count() as u32,
            services,
            frontends,
            generations,
            sources: sources(snapshot),
            addrs,
            absent,
            config: snapshot.config,
            packets: snapshot.packets,
            stray_backends,
            retired_sources: Vec::new(),
            full: BTreeMap::new(),
            needs_grace: true,
        };
        (ledger, reading.problems)
    }
}

struct Reading<'a> {
    snapshot: &'a Snapshot,
    limit: Capacity,
    /// The highest id that has a word in SERVICE: what leads past it leads nowhere.
    last_service: u32,
    problems: Vec<Problem>,
}

impl<'a> Reading<'a> {
    fn new(snapshot: &'a Snapshot, limit: Capacity) -> Self {
        let last_service = snapshot.service.iter().map(|(id, _)| *id).max().unwrap_or(0);
        Self { snapshot, limit, last_service: last_service.min(limit.services.saturating_sub(1)), problems: Vec::new() }
    }

    fn problem(&mut self, table: &'static str, entry: &impl ToString, fault: &'static str) {
        self.problems.push(Problem { table, entry: entry.to_string(), fault });
    }

    /// Who has each key. An entry whose copy says something else has nobody.
    fn frontends(&mut self) -> HashMap<FrontendKey, Holding> {
        let copies: HashMap<u32, &Frontend> = self.snapshot.frontend.iter().map(|(id, copy)| (*id, copy)).collect();
        let mut frontends = HashMap::default();
        frontends.reserve(self.snapshot.frontends.len());
        for &(key, FrontendId { id, service }) in &self.snapshot.frontends {
            let is_ours = |copy: &&&Frontend| (copy.key, copy.service) == (key, service) && self.is_frontend(id, copy);
            let copy = copies.get(&id).filter(is_ours);
            let holding = copy.map(|copy| Holding { id, service: copy.service, kind: copy.kind });
            if holding.is_none() {
                self.problem(name::FRONTENDS, &shown(&key), "leads to no frontend of this key");
            }
            frontends.insert(key, holding.unwrap_or(Holding::NOBODY));
        }
        frontends
    }

    fn is_frontend(&self, id: u32, frontend: &Frontend) -> bool {
        (1..self.limit.frontends).contains(&id)
            && (1..=self.last_service).contains(&frontend.service)
            && (Frontend::KIND_CLUSTER_IP..=Frontend::KIND_LOAD_BALANCER).contains(&frontend.kind)
    }

    /// Gives every backend to its service port. Out: all generations, and the backends that belong to nobody.
    fn backends(&mut self, services: &mut Services) -> (Vec<u32>, Vec<(u32, Backend)>) {
        let mut generations = Vec::new();
        let mut strays = Vec::new();
        let mut owned: BTreeMap<u32, Vec<HeldBackend>> = BTreeMap::new();
        let found: BTreeMap<u32, &Backend> =
            self.snapshot.backends.iter().map(|(id, backend)| (*id, backend)).collect();
        for (&id, &&backend) in found.range(1..self.limit.backends.max(1)) {
            generations.resize(id as usize + 1, 0);
            generations[id as usize] = if backend.generation == 0 { backend.zone } else { backend.generation };
            match services.get(backend.service) {
                _ if backend.generation == 0 => {}
                Some(_) => owned.entry(backend.service).or_default().push(held_backend(id, &backend)),
                None => strays.push((id, backend)),
            }
        }
        for (id, _) in &strays {
            self.problem(name::BACKENDS, id, "belongs to no service port");
        }
        for (service, mut backends) in owned {
            backends.sort_unstable_by_key(|held| (held.place(), held.id));
            services[service].backends = backends.into();
        }
        (generations, strays)
    }

    /// Fills in the version of every service port; the slots of sound ones are reserved.
    fn versions(&mut self, services: &mut Services) -> Arena {
        let words: HashMap<u32, Word> = self.snapshot.service.iter().map(|(id, word)| (*id, Word::of(*word))).collect();
        let versions = self.snapshot.service_versions();
        let mut slots = Arena::new(self.limit.slots);
        for (id, held) in services.iter_mut() {
            let number = match words.get(&id) {
                Some(Word::Version(number)) => *number,
                _ => 0,
            };
            let Some(version) = versions.get(&id).filter(|_| number < self.limit.versions) else {
                self.problem(name::SERVICE, &id, "names no version of its own");
                continue;
            };
            held.version = number;
            match self.run(version, held).filter(|run| slots.reserve(*run)) {
                Some(run) => {
                    held.run = run;
                    held.policy = self.policy(version, held);
                }
                None => self.problem(name::SERVICE, &id, "leads to backends of others"),
            }
        }
        slots
    }

    /// The slots of a version, when they are ours and every one leads to a backend of this service port.
    fn run(&self, version: &Version, held: &Held) -> Option<Range> {
        let Version { cluster, local, .. } = *version;
        let start = if cluster.len > 0 { cluster.start } else { local.start };
        let len = cluster.len.checked_add(local.len).filter(|len| start.checked_add(*len).is_some())?;
        let run = if len == 0 { Range::default() } else { Range { start, len } };
        if sets(run, cluster.len) != [cluster, local] {
            return None;
        }
        let ids: BTreeSet<u32> = held.backends.iter().map(|backend| backend.id).collect();
        self.slots(run)?.iter().all(|id| ids.contains(id)).then_some(run)
    }

    fn slots(&self, run: Range) -> Option<&'a [u32]> {
        let end = (run.start as usize).checked_add(run.len as usize)?;
        self.snapshot.slots.get(run.start as usize..end).or((run.len == 0).then_some(&[]))
    }

    /// What the version says, when the flags of the backends tell the same sets. They do not after a crash around the
    /// switch: then the version is kept until the next plan replaces it.
    fn policy(&self, version: &Version, held: &Held) -> Option<Policy> {
        let sets = Sets::of(&held.backends);
        let same = sets.cluster == version.cluster.len && self.slots(held.run) == Some(&sets.slots);
        Policy::read(version).filter(|_| same)
    }
}

/// The service ports that frontends lead to.
fn services(frontends: &HashMap<FrontendKey, Holding>) -> Services {
    let mut services = Services::default();
    for (key, holding) in frontends.iter().filter(|(_, holding)| **holding != Holding::NOBODY) {
        if services.get(holding.service).is_none() {
            services.insert(holding.service, Held::default());
        }
        services[holding.service].frontends.push(*key);
    }
    for (_, held) in services.iter_mut() {
        held.frontends.sort_unstable();
    }
    services
}

fn shown(key: &FrontendKey) -> String {
    format!("{} port {} protocol {}", key.addr, key.port.get(), key.proto)
}

fn held_backend(id: u32, backend: &Backend) -> HeldBackend {
    let damage = if backend.zone == 0 { 0 } else { DAMAGED };
    HeldBackend { addr: backend.addr, port: backend.port, flags: backend.flags | damage, id }
}

fn allocators(
    limit: Capacity,
    frontends: &HashMap<FrontendKey, Holding>,
    services: &Services,
    strays: &[(u32, Backend)],
    slots: Arena,
) -> Allocators {
    let held = services.iter().flat_map(|(_, held)| held.backends.iter().map(|backend| backend.id));
    Allocators {
        services: Ids::restore(limit.services, services.ids()),
        versions: Ids::restore(limit.versions, services.iter().map(|(_, held)| held.version)),
        frontends: Ids::restore(limit.frontends, frontends.values().map(|holding| holding.id)),
        backends: Ids::restore(limit.backends, held.chain(strays.iter().map(|(id, _)| *id))),
        slots,
    }
}

fn addrs(snapshot: &Snapshot) -> Vec<(Addr, u32)> {
    let addrs: BTreeMap<Addr, u32> = snapshot.addrs.iter().copied().collect();
    addrs.into_iter().collect()
}

/// Sources by service port. One that is not written the way we write it gets replaced.
fn sources(snapshot: &Snapshot) -> BTreeMap<u32, BTreeSet<SourceKey>> {
    let mut sources: BTreeMap<u32, BTreeSet<SourceKey>> = BTreeMap::new();
    for key in &snapshot.sources {
        sources.entry(u32::from_be_bytes(key.service)).or_default().insert(*key);
    }
    sources
}
