//! Service ports as the kernel holds them, by id and by name.

use std::fmt;
use std::hash::BuildHasher;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use proxy_common::abi::{FrontendKey, Range, Version};
use smallvec::SmallVec;

use super::make_room;
use crate::desired::{ServicePortName, WantedFrontend, WantedService};

/// One service port in the kernel.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// `None` until somebody asks for it.
    name: Option<ServicePortName>,
    /// 0 for none.
    pub(super) version: u32,
    /// What the version says, beside its sets, which the backends tell; none when it must be written anew.
    pub(super) policy: Option<Policy>,
    /// The slots of both sets.
    pub(super) run: Range,
    /// What is published for it now, each key once.
    pub(super) frontends: SmallVec<[WantedFrontend; 1]>,
    /// Ids, sorted by (address, port).
    pub(super) backends: Arc<[u32]>,
}

impl Held {
    pub(super) fn is_sticky(&self) -> bool {
        self.policy.is_some_and(Policy::is_sticky)
    }
}

/// What a version says about everything but endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    affinity_seconds: u32,
    flags: u32,
}

impl Policy {
    pub(super) fn of(wanted: &WantedService) -> Self {
        Self { affinity_seconds: wanted.affinity_seconds, flags: wanted.flags }
    }

    /// `None` when the version is not one that we write.
    pub(super) fn read(version: &Version) -> Option<Self> {
        let Version { affinity_seconds, flags, scheduler, .. } = *version;
        (scheduler == Version::SCHEDULER_RANDOM).then_some(Self { affinity_seconds, flags })
    }

    /// The version of `service` with both sets in `run`.
    pub(super) fn version(self, service: u32, run: Range, cluster: u32) -> Version {
        let [cluster, local] = sets(run, cluster);
        Version {
            cluster,
            local,
            affinity_seconds: self.affinity_seconds,
            flags: self.flags,
            service,
            scheduler: Version::SCHEDULER_RANDOM,
        }
    }

    pub(super) fn is_sticky(self) -> bool {
        self.affinity_seconds != 0
    }
}

/// Where both sets are in `run`: the cluster set first, so many slots long. An empty set is the empty range.
pub(super) fn sets(run: Range, cluster: u32) -> [Range; 2] {
    let range = |start, len| if len == 0 { Range::default() } else { Range { start, len } };
    [range(run.start, cluster), range(run.start + cluster, run.len - cluster)]
}

/// Service ports by id. Ids are dense, names are kept with what they name.
#[derive(Default)]
pub(super) struct Services {
    held: Vec<Option<Held>>,
    /// Ids, in the places of their names.
    by_name: HashTable<u32>,
    hasher: RandomState,
}

impl Services {
    pub(super) fn get(&self, id: u32) -> Option<&Held> {
        self.held.get(id as usize)?.as_ref()
    }

    pub(super) fn insert(&mut self, id: u32, held: Held) {
        let index = id as usize;
        if self.held.len() <= index {
            make_room(&mut self.held, index + 1);
            self.held.resize_with(index + 1, || None);
        }
        self.held[index] = Some(held);
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Held> {
        let held = self.held.get_mut(id as usize)?.take()?;
        if let Some(name) = &held.name
            && let Ok(entry) = self.by_name.find_entry(self.hasher.hash_one(name), |other| *other == id)
        {
            entry.remove();
        }
        Some(held)
    }

    pub(super) fn find(&self, name: &ServicePortName) -> Option<u32> {
        let named = |id: &u32| self[*id].name.as_ref() == Some(name);
        self.by_name.find(self.hasher.hash_one(name), named).copied()
    }

    /// Names a service port that had no name.
    pub(super) fn give_name(&mut self, id: u32, name: &ServicePortName) {
        self[id].name = Some(name.clone());
        let Self { held, by_name, hasher } = self;
        by_name.insert_unique(hasher.hash_one(name), id, |other| {
            let named = held[*other as usize].as_ref().and_then(|held| held.name.as_ref());
            hasher.hash_one(named.expect("in this table is who has a name"))
        });
    }

    /// Somebody else gets `key`, if this one has it.
    pub(super) fn take_key(&mut self, id: u32, key: &FrontendKey) {
        if let Some(Some(held)) = self.held.get_mut(id as usize) {
            held.frontends.retain(|frontend| frontend.key != *key);
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.iter().map(|(id, _)| id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Held)> {
        (0..).zip(&self.held).filter_map(|(id, held)| Some((id, held.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Held)> {
        (0..).zip(&mut self.held).filter_map(|(id, held)| Some((id, held.as_mut()?)))
    }
}

impl Index<u32> for Services {
    type Output = Held;

    fn index(&self, id: u32) -> &Held {
        self.get(id).expect("whoever has the id knows that it is held")
    }
}

impl IndexMut<u32> for Services {
    fn index_mut(&mut self, id: u32) -> &mut Held {
        self.held.get_mut(id as usize).and_then(Option::as_mut).expect("whoever has the id knows that it is held")
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
