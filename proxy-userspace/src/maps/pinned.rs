//! The pinned tables as typed maps, and the look-ups of a decision over them.
//!
//! In: the folder they are pinned in. Out: one [`Map`] per table. What the agent writes and `sluice list` reads.

use std::path::Path;

use aya::Pod;
use proxy_common::abi::{
    Affinity, AffinityKey, Backend, BackendStats, Config, Frontend, FrontendKey, ServiceWord, SocketFlow, SourceKey,
    Version,
};
use proxy_common::addr::Addr;
use proxy_common::tables::{Capacity, Tables, name};

use super::{MapError, Snapshot};
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
    /// The entries it should have, `None` where nobody chooses.
    pub entries: fn(&Capacity) -> Option<u32>,
}

/// `BPF_F_NO_PREALLOC`: memory follows use.
const SPARSE: u32 = 1;
/// `BPF_F_RDONLY_PROG`: no program writes.
const FROZEN: u32 = 1 << 7;

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
        }
    };
}

/// Every table, in the order in which people should read them.
pub const LAYOUTS: &[Layout] = &[
    layout!(FRONTENDS, HASH, FrontendKey => u32, SPARSE | FROZEN, |c| Some(c.frontends)),
    layout!(FRONTEND, ARRAY, u32 => Frontend, FROZEN, |c| Some(c.frontends)),
    layout!(SERVICE, ARRAY, u32 => ServiceWord, FROZEN, |c| Some(c.services)),
    layout!(VERSION, ARRAY, u32 => Version, FROZEN, |c| Some(c.versions)),
    layout!(SLOTS, ARRAY, u32 => u32, FROZEN, |c| Some(c.slots)),
    layout!(BACKENDS, ARRAY, u32 => Backend, FROZEN, |c| Some(c.backends)),
    layout!(STATS, ARRAY, u32 => BackendStats, 0, |c| Some(c.backends)),
    layout!(ADDRS, HASH, Addr => u32, SPARSE | FROZEN, |c| Some(c.addrs)),
    layout!(SOURCES, LPM_TRIE, SourceKey => u32, SPARSE | FROZEN, |c| Some(c.sources)),
    layout!(CONFIG, ARRAY, u32 => Config, FROZEN, |_| None),
    layout!(AFFINITY, LRU_HASH, AffinityKey => Affinity, 0, |c| Some(c.affinity)),
    layout!(SOCKETS, ARRAY, u32 => SocketFlow, 0, |c| Some(c.sockets)),
];

/// The tables of one node, opened from their pins.
#[derive(Debug)]
pub struct Pinned {
    pub frontends: Map<FrontendKey, u32>,
    pub frontend: Map<u32, Frontend>,
    pub service: Map<u32, ServiceWord>,
    pub version: Map<u32, Version>,
    pub slots: Map<u32, u32>,
    pub backends: Map<u32, Backend>,
    pub stats: Map<u32, BackendStats>,
    pub addrs: Map<Addr, u32>,
    pub sources: Map<SourceKey, u32>,
    pub config: Map<u32, Config>,
    pub affinity: Map<AffinityKey, Affinity>,
    pub sockets: Map<u32, SocketFlow>,
}

impl Pinned {
    /// Opens every table below `folder`.
    pub fn open(folder: &Path) -> Result<Self, CallError> {
        Ok(Self {
            frontends: Map::open(&folder.join(name::FRONTENDS))?,
            frontend: Map::open(&folder.join(name::FRONTEND))?,
            service: Map::open(&folder.join(name::SERVICE))?,
            version: Map::open(&folder.join(name::VERSION))?,
            slots: Map::open(&folder.join(name::SLOTS))?,
            backends: Map::open(&folder.join(name::BACKENDS))?,
            stats: Map::open(&folder.join(name::STATS))?,
            addrs: Map::open(&folder.join(name::ADDRS))?,
            sources: Map::open(&folder.join(name::SOURCES))?,
            config: Map::open(&folder.join(name::CONFIG))?,
            affinity: Map::open(&folder.join(name::AFFINITY))?,
            sockets: Map::open(&folder.join(name::SOCKETS))?,
        })
    }

    /// How much the tables hold: what they were made with, whatever is asked for today.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.max_entries().min(self.frontend.max_entries()),
            services: self.service.max_entries(),
            versions: self.version.max_entries(),
            slots: self.slots.max_entries(),
            backends: self.backends.max_entries().min(self.stats.max_entries()),
            addrs: self.addrs.max_entries(),
            sources: self.sources.max_entries(),
            affinity: self.affinity.max_entries(),
            sockets: self.sockets.max_entries(),
        }
    }

    /// Everything the agent writes, as found.
    pub fn read(&self) -> Result<Snapshot, MapError> {
        let config = read(name::CONFIG, &self.config)?.into_iter().next().map(|(_, config)| config);
        Ok(Snapshot {
            frontends: read(name::FRONTENDS, &self.frontends)?,
            frontend: not_zero(read(name::FRONTEND, &self.frontend)?),
            service: not_zero(read(name::SERVICE, &self.service)?),
            version: not_zero(read(name::VERSION, &self.version)?),
            slots: arena(read(name::SLOTS, &self.slots)?),
            backends: not_zero(read(name::BACKENDS, &self.backends)?),
            addrs: read(name::ADDRS, &self.addrs)?,
            sources: read(name::SOURCES, &self.sources)?.into_iter().map(|(key, _)| key).collect(),
            config: config.filter(|config| !is_zero(config)),
        })
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

/// Slot values by index, up to the last one that is not zero.
fn arena(entries: Vec<(u32, u32)>) -> Vec<u32> {
    let used = entries.iter().filter(|(_, backend)| *backend != 0).map(|(index, _)| index + 1).max().unwrap_or(0);
    let mut slots = vec![0; used as usize];
    for (index, backend) in entries {
        if let Some(slot) = slots.get_mut(index as usize) {
            *slot = backend;
        }
    }
    slots
}


/// The pinned tables as a decision sees them, with CONFIG as it was when they were opened. Remembers nothing.
#[derive(Debug)]
pub struct Lookups {
    pub maps: Pinned,
    config: Option<Config>,
}

impl Lookups {
    pub fn open(folder: &Path) -> Result<Self, CallError> {
        let maps = Pinned::open(folder)?;
        let config = maps.config.get(&0).map_err(|error| CallError::new("read table", name::CONFIG, error))?;
        Ok(Self { maps, config })
    }
}

/// A failed look-up counts as a miss, as it does in the kernel.
impl Tables for Lookups {
    fn frontend_id(&self, key: &FrontendKey) -> Option<u32> {
        self.maps.frontends.get(key).ok().flatten()
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        self.maps.frontend.get(&id).ok().flatten()
    }

    fn service(&self, id: u32) -> Option<ServiceWord> {
        self.maps.service.get(&id).ok().flatten()
    }

    fn version(&self, number: u32) -> Option<Version> {
        self.maps.version.get(&number).ok().flatten()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.maps.slots.get(&index).ok().flatten()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.maps.backends.get(&id).ok().flatten()
    }

    fn address(&self, addr: &Addr) -> Option<u32> {
        self.maps.addrs.get(addr).ok().flatten()
    }

    fn source_allowed(&self, service: u32, client: &Addr) -> bool {
        let key = SourceKey { prefix_len: 32 + 128, service: service.to_be_bytes(), addr: *client };
        self.maps.sources.get(&key).is_ok_and(|value| value.is_some())
    }

    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.maps.affinity.get(key).ok().flatten()
    }

    fn remember(&self, _key: &AffinityKey, _value: &Affinity) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arena_ends_with_the_last_slot_in_use() {
        assert_eq!(arena(vec![(0, 0), (1, 7), (2, 0), (3, 9), (4, 0)]), [0, 7, 0, 9]);
        assert_eq!(arena(vec![(0, 0), (1, 0)]), Vec::<u32>::new());
    }

    #[test]
    fn an_array_entry_of_zeros_is_not_there() {
        assert_eq!(not_zero(vec![(0, 0_u64), (1, 5), (2, 0)]), [(1, 5)]);
    }
}
