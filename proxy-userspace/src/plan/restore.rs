//! A ledger from what the tables hold, after a restart or a failed write.
//!
//! In: a [`Snapshot`], any bytes at all. Out: a [`Ledger`] and the [`Problem`]s found. Whatever contradicts itself counts
//! as absent: the next plan writes it anew, and [`Ledger::plan_orphans`] removes what nobody asks for. Only what can be
//! reached from INDEX counts; all else is free room.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::abi::{Backend, Frontend, Range, SourceKey, Version, Word};
use proxy_common::tables::{Capacity, name};

use super::absent::Absent;
use super::arena::Arena;
use super::backends::Backends;
use super::change::{HeldBackend, Sets};
use super::held::{Held, Policy, Services, sets};
use super::ids::Ids;
use super::index::Index;
use super::ledger::{Allocators, Ledger};
use crate::desired::WantedFrontend;
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
        let index = reading.index();
        let mut services = services(&index);
        let (backends, stray_backends) = reading.backends(&mut services);
        let slots = reading.versions(&mut services, &backends);
        let absent = Absent::restore(&snapshot.absent, index.iter().map(|(_, entry)| entry.key.addr));
        for word in absent.damaged() {
            reading.problem(name::ABSENT, &word, "hides an address that is in the tables");
        }
        let ids = allocators(limit, &index, &services, &stray_backends, slots);
        let ledger = Self {
            limit,
            ids,
            unclaimed: services.ids().collect(),
            sticky: services.iter().filter(|(_, held)| held.is_sticky()).count() as u32,
            services,
            index,
            backends,
            sources: sources(snapshot),
            absent,
            config: snapshot.config,
            packets: snapshot.packets,
            has_flows: false,
            stray_backends,
            retired_sources: Vec::new(),
            full: BTreeMap::new(),
            lacks_addresses: false,
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

    /// Tables that do not exist yet will be as large as they may be.
    fn index(&mut self) -> Index {
        if self.snapshot.index.is_empty() {
            return Index::new(self.limit.frontends);
        }
        let entries: HashMap<u32, Frontend> = self.snapshot.frontend.iter().copied().collect();
        let sound = |id: u32| entries.get(&id).copied().filter(|entry| self.is_sound(id, entry));
        let index = Index::restore(&self.snapshot.index, sound);
        for place in index.damaged() {
            self.problem(name::INDEX, place, "leads to no frontend that belongs there");
        }
        index
    }

    fn is_sound(&self, id: u32, Frontend { key, service, kind }: &Frontend) -> bool {
        let is_address = (key.port.get(), key.proto) == (0, 0);
        (1..self.limit.frontends).contains(&id)
            && match *kind {
                Frontend::KIND_ADDRESS => is_address,
                Frontend::KIND_CLUSTER_IP..=Frontend::KIND_LOAD_BALANCER => {
                    !is_address && (1..=self.last_service).contains(service)
                }
                _ => false,
            }
    }

    /// Gives every backend to its service port. Out: all of them, and those that belong to nobody.
    fn backends(&mut self, services: &mut Services) -> (Backends, Vec<(u32, Backend)>) {
        let mut backends = Backends::default();
        let mut strays = Vec::new();
        let mut owned: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let found: BTreeMap<u32, &Backend> =
            self.snapshot.backends.iter().map(|(id, backend)| (*id, backend)).collect();
        for (&id, &&backend) in found.range(1..self.limit.backends.max(1)) {
            backends.set(held_backend(id, &backend));
            backends.set_generation(id, if backend.generation == 0 { backend.zone } else { backend.generation });
            match services.get(backend.service) {
                _ if backend.generation == 0 => {}
                Some(_) => owned.entry(backend.service).or_default().push(id),
                None => strays.push((id, backend)),
            }
        }
        for (id, _) in &strays {
            self.problem(name::BACKENDS, id, "belongs to no service port");
        }
        for (service, mut ids) in owned {
            ids.sort_unstable_by_key(|id| (backends.get(*id).place(), *id));
            services[service].backends = ids.into();
        }
        (backends, strays)
    }

    /// Fills in the version of every service port; the slots of sound ones are reserved.
    fn versions(&mut self, services: &mut Services, backends: &Backends) -> Arena {
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
                    held.policy = self.policy(version, held, backends);
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
        let ids: BTreeSet<u32> = held.backends.iter().copied().collect();
        self.slots(run)?.iter().all(|id| ids.contains(id)).then_some(run)
    }

    fn slots(&self, run: Range) -> Option<&'a [u32]> {
        let end = (run.start as usize).checked_add(run.len as usize)?;
        self.snapshot.slots.get(run.start as usize..end).or((run.len == 0).then_some(&[]))
    }

    /// What the version says, when the flags of the backends tell the same sets. They do not after a crash around the
    /// switch: then the version is kept until the next plan replaces it.
    fn policy(&self, version: &Version, held: &Held, backends: &Backends) -> Option<Policy> {
        let sets = Sets::of(&backends.all(&held.backends));
        let same = sets.cluster == version.cluster.len && self.slots(held.run) == Some(&sets.slots);
        Policy::read(version).filter(|_| same)
    }
}

/// The service ports that frontends lead to.
fn services(index: &Index) -> Services {
    let mut services = Services::default();
    for (_, frontend) in index.dialled() {
        if services.get(frontend.service).is_none() {
            services.insert(frontend.service, Held::default());
        }
        services[frontend.service].frontends.push(WantedFrontend { key: frontend.key, kind: frontend.kind });
    }
    for (_, held) in services.iter_mut() {
        held.frontends.sort_unstable();
    }
    services
}

fn held_backend(id: u32, backend: &Backend) -> HeldBackend {
    let damage = if backend.zone == 0 { 0 } else { DAMAGED };
    HeldBackend { addr: backend.addr, port: backend.port, flags: backend.flags | damage, id }
}

fn allocators(
    limit: Capacity,
    index: &Index,
    services: &Services,
    strays: &[(u32, Backend)],
    slots: Arena,
) -> Allocators {
    let held = services.iter().flat_map(|(_, held)| held.backends.iter().copied());
    Allocators {
        services: Ids::restore(limit.services, services.ids()),
        versions: Ids::restore(limit.versions, services.iter().map(|(_, held)| held.version)),
        frontends: Ids::restore(limit.frontends, index.iter().map(|(id, _)| id)),
        backends: Ids::restore(limit.backends, held.chain(strays.iter().map(|(id, _)| *id))),
        slots,
    }
}

/// Sources by service port. One that is not written the way we write it gets replaced.
fn sources(snapshot: &Snapshot) -> BTreeMap<u32, BTreeSet<SourceKey>> {
    let mut sources: BTreeMap<u32, BTreeSet<SourceKey>> = BTreeMap::new();
    for key in &snapshot.sources {
        sources.entry(u32::from_be_bytes(key.service)).or_default().insert(*key);
    }
    sources
}
