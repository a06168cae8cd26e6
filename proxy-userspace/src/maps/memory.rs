//! Tables in memory, with a failure plan: the stand-in for the kernel in tests and stories.
//!
//! It answers the kernel's own look-ups ([`Tables`]), so that a plan can be judged after every single write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use proxy_common::abi::{
    AbsentBit, Affinity, AffinityKey, Backend, Bucket, Config, Frontend, IndexWord, PacketSettings, SLOTS_PER_PAIR,
    ServiceWord, SourceKey, Version,
};
use proxy_common::addr::Addr;
use proxy_common::index::{self, Directory, WORDS};
use proxy_common::tables::{ABSENT_WORDS, Capacity, Tables, name};

use super::{ApplyError, GrowError, MapError, MapStore, Published, Snapshot};
use crate::plan::{Op, UNUSED_FRONTEND, growth};

/// Which writes fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    Never,
    /// The write with this number, counted from 0 over the life of the store, once.
    Number(u64),
    /// This many writes of a hundred, chosen by the seed.
    Percent {
        seed: Seed,
        percent: u64,
    },
}

/// A xorshift generator: the same seed fails the same writes on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The next number below `limit`.
    pub fn next_below(&mut self, limit: u64) -> u64 {
        // Zero is the one state that xorshift never leaves.
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[derive(Clone, Debug)]
pub struct MemoryStore {
    capacity: Capacity,
    limit: Capacity,
    growths: u64,
    failures: Failures,
    writes: u64,
    pub index: Vec<Bucket>,
    pub frontend: BTreeMap<u32, Frontend>,
    pub service: BTreeMap<u32, ServiceWord>,
    pub version: BTreeMap<u32, Version>,
    pub slots: Vec<u32>,
    pub backends: BTreeMap<u32, Backend>,
    pub absent: Vec<u64>,
    pub sources: BTreeSet<SourceKey>,
    pub config: Option<Config>,
    pub packets: Option<PacketSettings>,
}

impl MemoryStore {
    pub fn new(capacity: Capacity) -> Self {
        Self::holding(capacity, Snapshot::default())
    }

    /// A store of the smallest tables, which may grow to `limit`.
    pub fn growing(limit: Capacity) -> Self {
        Self { limit, ..Self::new(growth::smallest(&limit)) }
    }

    /// A store that holds `snapshot`, whatever that may be.
    pub fn holding(capacity: Capacity, snapshot: Snapshot) -> Self {
        Self {
            capacity,
            limit: capacity,
            growths: 0,
            failures: Failures::Never,
            writes: 0,
            index: buckets(snapshot.index, &capacity),
            frontend: snapshot.frontend.into_iter().collect(),
            service: snapshot.service.into_iter().collect(),
            version: snapshot.version.into_iter().collect(),
            slots: snapshot.slots,
            backends: snapshot.backends.into_iter().collect(),
            absent: absent_words(snapshot.absent),
            sources: snapshot.sources.into_iter().collect(),
            config: snapshot.config,
            packets: snapshot.packets,
        }
    }

    #[must_use]
    pub fn failing(mut self, failures: Failures) -> Self {
        self.failures = failures;
        self
    }

    /// The same tables for a new process, which may let them grow to `limit`.
    #[must_use]
    pub fn reopened(self, limit: Capacity) -> Self {
        Self { limit, writes: 0, growths: 0, ..self }
    }

    /// The next write fails.
    pub fn fail_next(&mut self) {
        self.failures = Failures::Number(self.writes);
    }

    /// How often tables were made or made larger.
    pub fn growths(&self) -> u64 {
        self.growths
    }

    /// How many writes were asked for, failed ones included.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Everything it holds.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            index: self.index.clone(),
            frontend: pairs(&self.frontend),
            service: pairs(&self.service),
            version: pairs(&self.version),
            slots: self.slots.clone(),
            backends: pairs(&self.backends),
            absent: self.absent.clone(),
            sources: self.sources.iter().copied().collect(),
            config: self.config,
            packets: self.packets,
        }
    }

    /// Words of ABSENT come by the thousand and share calls: by chance fails the first of neighbours only, or a failing store
    /// would never have written them all.
    fn fails(&mut self, shares_its_call: bool) -> bool {
        let number = self.writes;
        self.writes += 1;
        match &mut self.failures {
            Failures::Never => false,
            Failures::Number(failing) => *failing == number,
            Failures::Percent { seed, percent } => !shares_its_call && seed.next_below(100) < *percent,
        }
    }

    fn write(&mut self, op: &Op, shares_its_call: bool) -> Result<(), MapError> {
        if self.fails(shares_its_call) {
            return Err(error(op.table(), io::Error::other("failed on purpose")));
        }
        match op {
            Op::Backend { id, value, .. } => {
                set(&mut self.backends, name::BACKENDS, self.capacity.backends, *id, *value)?;
            }
            Op::Slots { start, backends } => self.write_slots(*start, backends)?,
            Op::Version { number, value } => {
                set(&mut self.version, name::VERSION, self.capacity.versions, *number, *value)?;
            }
            Op::Service { id, word } => set(&mut self.service, name::SERVICE, self.capacity.services, *id, *word)?,
            Op::Frontend { id, value } => {
                set(&mut self.frontend, name::FRONTEND, self.capacity.frontends, *id, *value)?;
            }
            Op::Index { place, word } => self.write_index(*place, *word)?,
            Op::Absent { index, word } => self.absent[*index as usize] = *word,
            Op::AllowSource { key } => self.allow_source(*key)?,
            Op::ForgetSource { key } => _ = self.sources.remove(key),
            Op::Config { value } => self.config = Some(**value),
            Op::Packets { value } => self.packets = Some(**value),
            Op::Grace => {}
        }
        Ok(())
    }

    /// INDEX with more buckets.
    fn replaced(&self, buckets: u32) -> Vec<Bucket> {
        let mut larger = vec![[0; WORDS]; buckets as usize];
        let key = |id: u32| Some(self.frontend.get(&id)?.key);
        index::distribute(self.index.as_flattened().iter().copied(), key, &mut larger);
        larger
    }

    fn allow_source(&mut self, key: SourceKey) -> Result<(), MapError> {
        self.sources.insert(key);
        if self.sources.len() > self.capacity.sources as usize {
            self.sources.remove(&key);
            return Err(error(name::SOURCES, io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    fn write_index(&mut self, place: u32, word: IndexWord) -> Result<(), MapError> {
        let held = self.index.as_flattened_mut().get_mut(place as usize);
        *held.ok_or_else(|| outside(name::INDEX))? = word;
        Ok(())
    }

    fn write_slots(&mut self, start: u32, backends: &[u32]) -> Result<(), MapError> {
        assert!(start.is_multiple_of(SLOTS_PER_PAIR), "a run that begins amid a pair would change another one");
        let (start, end) = (start as usize, start as usize + backends.len());
        if end > self.capacity.slots as usize {
            return Err(outside(name::SLOTS));
        }
        if self.slots.len() < end {
            self.slots.resize(end, 0);
        }
        self.slots[start..end].copy_from_slice(backends);
        Ok(())
    }
}

impl MapStore for MemoryStore {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn limit(&self) -> Capacity {
        self.limit.zip(&self.capacity, u32::max)
    }

    fn grow(&mut self, sizes: &Capacity) -> Result<(), GrowError> {
        if self.fails(false) {
            return Err(GrowError("failed on purpose".into()));
        }
        assert_eq!(self.capacity.zip(sizes, u32::max), *sizes, "tables never shrink");
        assert_eq!(self.limit().zip(sizes, u32::max), self.limit(), "tables stay below their limit");
        self.capacity = *sizes;
        self.index = self.replaced(index::buckets(sizes.frontends));
        self.growths += 1;
        Ok(())
    }

    fn read(&self) -> Result<Snapshot, MapError> {
        Ok(self.snapshot())
    }

    fn published(&self) -> Result<Published, MapError> {
        Ok((self.index.clone(), pairs(&self.frontend)))
    }

    fn bucket(&self, number: u32) -> Result<Bucket, MapError> {
        self.index.get(number as usize).copied().ok_or_else(|| outside(name::INDEX))
    }

    fn frontend(&self, id: u32) -> Result<Frontend, MapError> {
        if id >= self.capacity.frontends {
            return Err(outside(name::FRONTEND));
        }
        Ok(self.frontend.get(&id).copied().unwrap_or(UNUSED_FRONTEND))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        let is_absent = |at: usize| matches!(ops[at], Op::Absent { .. });
        for (applied, op) in ops.iter().enumerate() {
            let shares_its_call = applied > 0 && is_absent(applied - 1) && is_absent(applied);
            self.write(op, shares_its_call).map_err(|error| ApplyError { applied, error })?;
        }
        Ok(())
    }
}

impl Directory for MemoryStore {
    fn buckets(&self) -> u32 {
        self.index.len() as u32
    }

    fn bucket(&self, number: u32) -> Option<&Bucket> {
        self.index.get(number as usize)
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        self.frontend.get(&id).copied()
    }
}

impl Tables for MemoryStore {
    fn service(&self, id: u32) -> Option<ServiceWord> {
        self.service.get(&id).copied()
    }

    fn version(&self, number: u32) -> Option<Version> {
        self.version.get(&number).copied()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn is_absent(&self, addr: &Addr) -> bool {
        let bit = AbsentBit::of(addr);
        self.absent[bit.word as usize] & bit.mask != 0
    }

    fn source_allowed(&self, service: u32, client: &Addr) -> bool {
        let holds = |key: &SourceKey| key.service == service.to_be_bytes() && leading_bits_equal(key, client);
        self.sources.iter().any(holds)
    }

    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }

    fn remember(&self, _: &AffinityKey, _: &Affinity) {}
}

/// All buckets of INDEX.
fn buckets(mut held: Vec<Bucket>, capacity: &Capacity) -> Vec<Bucket> {
    held.resize(index::buckets(capacity.frontends) as usize, [0; WORDS]);
    held
}

/// All words of ABSENT.
fn absent_words(mut held: Vec<u64>) -> Vec<u64> {
    held.resize(ABSENT_WORDS as usize, 0);
    held
}

fn leading_bits_equal(key: &SourceKey, client: &Addr) -> bool {
    let bits = key.prefix_len.saturating_sub(32).min(128);
    let differing = key.addr.bits() ^ client.bits();
    differing.leading_zeros() >= bits
}

fn pairs<K: Copy, V: Copy>(map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (*key, *value)).collect()
}

fn set<V>(table: &mut BTreeMap<u32, V>, name: &'static str, capacity: u32, id: u32, value: V) -> Result<(), MapError> {
    if id >= capacity {
        return Err(outside(name));
    }
    table.insert(id, value);
    Ok(())
}

fn outside(table: &'static str) -> MapError {
    error(table, io::Error::other("index outside of the table"))
}

fn error(table: &'static str, source: io::Error) -> MapError {
    MapError { table, action: "write", source }
}
