//! The pinned tables as typed maps.
//!
//! In: the folder they are pinned in. Out: one [`Map`] per table. What the agent writes and `sluice list` reads.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use aya::Pod;
use proxy_common::abi::{
    Affinity, AffinityKey, Backend, BackendStats, Bucket, Config, Device, Flow, FlowKey, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, PacketSettings, SLOTS_PER_PAIR, ServiceWord, SlotPair, SocketFlow, SourceKey, Version,
    direct,
};
use proxy_common::addr::Family;
use proxy_common::index::{self, Hash, Word};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::socket::More;
use proxy_common::tables::{ABSENT_WORDS, Capacity, DEVICES_CAPACITY, REASONS_CAPACITY, UNSTEERED_CAPACITY, name};

use super::{MapError, Published, Snapshot};
use crate::sys::CallError;
use crate::sys::bpf::{Map, bytes_of, map_type};

/// What one table has to be so that our programs and our agent can use it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub name: &'static str,
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    /// `BPF_F_*` flags that decide what may be done with the map.
    pub flags: u32,
    pub entries: Entries,
    /// Whose flows it keeps: sizes alone do not tell another version's from ours.
    pub flows_of: Option<Family>,
}

/// How many entries a table should have.
#[derive(Clone, Copy, Debug)]
pub enum Entries {
    /// As many as a user asks for.
    Chosen(fn(&Capacity) -> u32),
    Fixed(u32),
}

impl Entries {
    pub fn of(&self, capacity: &Capacity) -> u32 {
        match self {
            Self::Chosen(entries) => entries(capacity),
            Self::Fixed(entries) => *entries,
        }
    }
}

use Entries::{Chosen, Fixed};

/// `BPF_F_NO_PREALLOC`: memory follows use.
const SPARSE: u32 = 1;
/// `BPF_F_RDONLY_PROG`: no program writes.
const FROZEN: u32 = 1 << 7;
/// `BPF_F_MMAPABLE`: single words change in place.
const MAPPED: u32 = 1 << 10;

/// A table of `$map_type` from key to value type.
macro_rules! layout {
    ($name:ident, $map_type:ident, $key:ty => $value:ty, $flags:expr, $entries:expr) => {
        Layout {
            name: name::$name,
            map_type: map_type::$map_type,
            key_size: size_of::<$key>() as u32,
            value_size: size_of::<$value>() as u32,
            flags: $flags,
            entries: $entries,
            flows_of: None,
        }
    };
}

/// A table of flows in a family.
macro_rules! flows {
    ($name:ident, $family:ty) => {
        Layout {
            flows_of: Some(<$family as Ip>::FAMILY),
            ..layout!($name, LRU_HASH, FlowKey<$family> => Flow<$family>, 0, Chosen(halves))
        }
    };
}

/// The tables that the agent writes or reads, in the order in which people should read them.
const SHARED: &[Layout] = &[
    layout!(INDEX, ARRAY, u32 => Bucket, MAPPED, Chosen(|c| index::buckets(c.frontends))),
    layout!(FRONTEND, ARRAY, u32 => Frontend, FROZEN, Chosen(|c| c.frontends)),
    layout!(SERVICE, ARRAY, u32 => ServiceWord, FROZEN, Chosen(|c| c.services)),
    layout!(VERSION, ARRAY, u32 => Version, FROZEN, Chosen(|c| c.versions)),
    layout!(SLOTS, ARRAY, u32 => SlotPair, FROZEN, Chosen(|c| c.slots / SLOTS_PER_PAIR)),
    layout!(BACKENDS, ARRAY, u32 => Backend, FROZEN, Chosen(|c| c.backends)),
    layout!(STATS, ARRAY, u32 => BackendStats, MAPPED, Chosen(|c| c.backends)),
    layout!(ABSENT, ARRAY, u32 => u64, FROZEN, Fixed(ABSENT_WORDS)),
    layout!(SOURCES, LPM_TRIE, SourceKey => u32, SPARSE | FROZEN, Chosen(|c| c.sources)),
    layout!(CONFIG, ARRAY, u32 => Config, FROZEN, Fixed(1)),
    layout!(PACKETS, ARRAY, u32 => PacketSettings, FROZEN, Fixed(1)),
    layout!(DEVICES, HASH, u32 => Device, SPARSE | FROZEN, Chosen(devices)),
    layout!(UNSTEERED, HASH, u64 => u32, SPARSE | FROZEN, Fixed(UNSTEERED_CAPACITY)),
    layout!(AFFINITY, LRU_HASH, AffinityKey => Affinity, 0, Chosen(|c| c.affinity)),
    layout!(SOCKETS, ARRAY, u32 => SocketFlow, MAPPED, Chosen(|c| c.sockets)),
];

/// Tables that the agent has no business with, pinned so that the next agent's programs find the same ones.
const PRIVATE: &[Layout] = &[
    layout!(SOCKETS_MORE, SK_STORAGE, u32 => More, SPARSE, Fixed(0)),
    layout!(REASONS, PERCPU_ARRAY, u32 => u64, 0, Fixed(REASONS_CAPACITY)),
    flows!(FLOWS4, V4),
    flows!(FLOWS6, V6),
    flows!(EMBRYONIC4, V4),
    flows!(EMBRYONIC6, V6),
    layout!(FRAGMENTS4, LRU_HASH, FragmentKey<V4> => FragmentPorts, 0, Chosen(datagrams)),
    layout!(FRAGMENTS6, LRU_HASH, FragmentKey<V6> => FragmentPorts, 0, Chosen(datagrams)),
    layout!(DIRECT, ARRAY, u32 => u32, 0, Fixed(direct::WORDS)),
];

fn devices(capacity: &Capacity) -> u32 {
    if capacity.flows == 0 { 1 } else { DEVICES_CAPACITY }
}

/// A flow has an entry for each direction. No table is empty, and where no programs are wanted at devices it is as small as
/// can be.
fn halves(capacity: &Capacity) -> u32 {
    (2 * capacity.flows).max(1)
}

/// Datagrams that come in fragments at the same time: few of all.
fn datagrams(capacity: &Capacity) -> u32 {
    (capacity.flows / 4).max(1)
}

/// Every table that is pinned.
pub fn layouts() -> impl Iterator<Item = &'static Layout> {
    SHARED.iter().chain(PRIVATE)
}

/// The tables of one node, opened from their pins.
#[derive(Debug)]
pub struct Pinned {
    pub index: Map<u32, Bucket>,
    pub frontend: Map<u32, Frontend>,
    pub service: Map<u32, ServiceWord>,
    pub version: Map<u32, Version>,
    pub slots: Map<u32, SlotPair>,
    pub backends: Map<u32, Backend>,
    pub stats: Map<u32, BackendStats>,
    pub absent: Map<u32, u64>,
    pub sources: Map<SourceKey, u32>,
    pub config: Map<u32, Config>,
    pub packets: Map<u32, PacketSettings>,
    /// By the id of a cgroup.
    pub unsteered: Map<u64, u32>,
    pub affinity: Map<AffinityKey, Affinity>,
    pub sockets: Map<u32, SocketFlow>,
    /// User space finds a socket by a descriptor of its own.
    pub sockets_more: Map<RawFd, More>,
    /// The one that stands for all tables of flows: they are as large.
    pub flows: Map<FlowKey<V4>, Flow<V4>>,
}

impl Pinned {
    /// Opens every table below `folder`.
    pub fn open(folder: &Path) -> Result<Self, CallError> {
        Self::open_each(|_| folder)
    }

    /// Opens every table in the folder that is named for it.
    pub fn open_each<'a>(folder: impl Fn(&str) -> &'a Path) -> Result<Self, CallError> {
        let at = |table: &str| folder(table).join(table);
        Ok(Self {
            index: Map::open(&at(name::INDEX))?,
            frontend: Map::open(&at(name::FRONTEND))?,
            service: Map::open(&at(name::SERVICE))?,
            version: Map::open(&at(name::VERSION))?,
            slots: Map::open(&at(name::SLOTS))?,
            backends: Map::open(&at(name::BACKENDS))?,
            stats: Map::open(&at(name::STATS))?,
            absent: Map::open(&at(name::ABSENT))?,
            sources: Map::open(&at(name::SOURCES))?,
            config: Map::open(&at(name::CONFIG))?,
            packets: Map::open(&at(name::PACKETS))?,
            unsteered: Map::open(&at(name::UNSTEERED))?,
            affinity: Map::open(&at(name::AFFINITY))?,
            sockets: Map::open(&at(name::SOCKETS))?,
            sockets_more: Map::open(&at(name::SOCKETS_MORE))?,
            flows: Map::open(&at(name::FLOWS4))?,
        })
    }

    /// The frontend that is published under `key`.
    pub fn frontend_of(&self, key: &FrontendKey) -> io::Result<Option<Frontend>> {
        let hash = Hash::of(key);
        for number in hash.buckets(self.index.max_entries()) {
            let word = self.index.get(&number)?.map_or(0, |bucket| hash.word_in(&bucket));
            let entry = if word == 0 { None } else { self.frontend.get(&Word::of(word).id)? };
            if let Some(frontend) = entry.filter(|entry| entry.key == *key) {
                return Ok(Some(frontend));
            }
        }
        Ok(None)
    }

    /// How much the tables hold: what they were made with, whatever is asked for today.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontend.max_entries().min(index::entries(self.index.max_entries())),
            services: self.service.max_entries(),
            versions: self.version.max_entries(),
            slots: self.slots.max_entries().saturating_mul(SLOTS_PER_PAIR),
            backends: self.backends.max_entries().min(self.stats.max_entries()),
            sources: self.sources.max_entries(),
            affinity: self.affinity.max_entries(),
            sockets: self.sockets.max_entries(),
            flows: self.flows.max_entries() / 2,
        }
    }

    /// Everything the agent writes, as found.
    pub fn read(&self) -> Result<Snapshot, MapError> {
        let config = read(name::CONFIG, &self.config)?.into_iter().next().map(|(_, config)| config);
        let packets = read(name::PACKETS, &self.packets)?.into_iter().next().map(|(_, packets)| packets);
        let (index, frontend) = self.published()?;
        Ok(Snapshot {
            index,
            frontend,
            service: not_zero(read(name::SERVICE, &self.service)?),
            version: not_zero(read(name::VERSION, &self.version)?),
            slots: arena(&read(name::SLOTS, &self.slots)?),
            backends: not_zero(read(name::BACKENDS, &self.backends)?),
            absent: read(name::ABSENT, &self.absent)?.into_iter().map(|(_, word)| word).collect(),
            sources: read(name::SOURCES, &self.sources)?.into_iter().map(|(key, _)| key).collect(),
            config: config.filter(|config| !is_zero(config)),
            packets: packets.filter(|packets| !is_zero(packets)),
        })
    }

    /// INDEX and FRONTEND.
    pub fn published(&self) -> Result<Published, MapError> {
        let buckets = read(name::INDEX, &self.index)?.into_iter().map(|(_, bucket)| bucket);
        Ok((buckets.collect(), not_zero(read(name::FRONTEND, &self.frontend)?)))
    }
}

/// All elements of one table.
pub fn read<K: Pod, V: Pod>(table: &'static str, map: &Map<K, V>) -> Result<Vec<(K, V)>, MapError> {
    map.entries().map_err(|source| MapError { table, action: "reading", source })
}

/// Arrays always hold all their indices; what is zero is not there.
fn not_zero<V: Pod>(mut entries: Vec<(u32, V)>) -> Vec<(u32, V)> {
    entries.retain(|(_, value)| !is_zero(value));
    entries
}

fn is_zero<V: Pod>(value: &V) -> bool {
    bytes_of(value).iter().all(|byte| *byte == 0)
}

/// Slot values of an array's elements in order, up to the last one that is not zero.
fn arena(pairs: &[(u32, SlotPair)]) -> Vec<u32> {
    let mut slots: Vec<u32> = pairs.iter().flat_map(|(_, pair)| *pair).collect();
    let used = slots.iter().rposition(|backend| *backend != 0).map_or(0, |last| last + 1);
    slots.truncate(used);
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arena_ends_with_the_last_slot_in_use() {
        assert_eq!(arena(&[(0, [0, 7]), (1, [0, 9]), (2, [0, 0])]), [0, 7, 0, 9]);
        assert_eq!(arena(&[(0, [0, 7]), (1, [9, 0])]), [0, 7, 9]);
        assert_eq!(arena(&[(0, [0, 0])]), Vec::<u32>::new());
    }

    #[test]
    fn an_array_entry_of_zeros_is_not_there() {
        assert_eq!(not_zero(vec![(0, 0_u64), (1, 5), (2, 0)]), [(1, 5)]);
    }
}
