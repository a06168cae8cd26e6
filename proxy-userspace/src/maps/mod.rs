//! The kernel tables behind one narrow interface.
//!
//! In: [`Op`]s. Out: a [`Snapshot`] of what the tables hold. `kernel` is the real thing, `memory` a stand-in that can be
//! told to fail.

#[cfg(feature = "io")]
mod adopt;
#[cfg(feature = "io")]
pub mod carry;
#[cfg(feature = "io")]
pub mod described;
#[cfg(feature = "io")]
pub mod footprint;
#[cfg(feature = "io")]
pub mod kernel;
#[cfg(feature = "io")]
pub mod pinned;
#[cfg(feature = "io")]
pub mod reasons;
#[cfg(feature = "io")]
pub mod reshape;
pub mod shape;

use proxy_common::abi::{Backend, Bucket, Config, Frontend, PacketSettings, ServiceWord, SourceKey, Version, Word};
use proxy_common::addr::Addr;
use proxy_common::index;
use proxy_common::tables::Capacity;

use crate::hash::HashMap;
use crate::plan::Op;

pub mod memory;

/// A table store.
pub trait MapStore {
    /// What the tables hold now.
    fn capacity(&self) -> Capacity;
    /// What they may be grown to.
    fn limit(&self) -> Capacity {
        self.capacity()
    }
    /// Makes every table at least as large as `sizes` says, with all that it holds. On an error they stay as they are.
    fn grow(&mut self, sizes: &Capacity) -> Result<(), GrowError> {
        Err(GrowError(format!("these tables cannot grow to {sizes:?}").into()))
    }
    /// Everything the tables hold. Bytes are as found: the reader validates them.
    fn read(&self) -> Result<Snapshot, MapError>;
    /// INDEX, and the entries of FRONTEND that are not zero, by id.
    fn published(&self) -> Result<Published, MapError>;
    /// INDEX\[number\].
    fn bucket(&self, number: u32) -> Result<Bucket, MapError>;
    /// FRONTEND\[id\].
    fn frontend(&self, id: u32) -> Result<Frontend, MapError>;
    /// Applies ops in order and stops at the first failure; says how many were applied.
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError>;
}

/// All buckets, and entries of FRONTEND by id.
pub type Published = (Vec<Bucket>, Vec<(u32, Frontend)>);

/// What the tables hold. Arrays: only entries that are not zero, by index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// All buckets; none where there is no table yet.
    pub index: Vec<Bucket>,
    pub frontend: Vec<(u32, Frontend)>,
    pub service: Vec<(u32, ServiceWord)>,
    pub version: Vec<(u32, Version)>,
    /// The whole arena up to the last slot that is not zero.
    pub slots: Vec<u32>,
    pub backends: Vec<(u32, Backend)>,
    /// Word by word; those that are missing are zero.
    pub absent: Vec<u64>,
    pub sources: Vec<SourceKey>,
    pub config: Option<Config>,
    /// What the programs of devices are told; nothing where there never were any.
    pub packets: Option<PacketSettings>,
}

impl Snapshot {
    /// Entries of FRONTEND that words of INDEX lead to, by id; `None` for a word that leads nowhere.
    pub fn published(&self) -> impl Iterator<Item = (u32, Option<Frontend>)> {
        let entries: HashMap<u32, Frontend> = self.frontend.iter().copied().collect();
        let words = self.index.iter().flatten().filter(|word| **word != 0).map(|word| index::Word::of(*word));
        words.map(move |word| {
            let entry = entries.get(&word.id).copied();
            (word.id, entry.filter(|entry| index::Word::leading_to(word.id, entry) == word))
        })
    }

    /// Those of them that are dialled.
    pub fn frontends(&self) -> impl Iterator<Item = (u32, Frontend)> {
        let published = self.published().filter_map(|(id, entry)| Some((id, entry?)));
        published.filter(|(_, entry)| entry.kind != Frontend::KIND_ADDRESS)
    }

    /// Addresses with their flags ([`proxy_common::abi::address`]).
    pub fn addresses(&self) -> impl Iterator<Item = (Addr, u32)> {
        let entries = self.published().filter_map(|(_, entry)| entry);
        let addresses = entries.filter(|entry| entry.kind == Frontend::KIND_ADDRESS);
        addresses.map(|entry| (entry.key.addr, entry.service))
    }

    /// What every service port is, by id; those whose word leads nowhere are left out.
    pub fn service_versions(&self) -> HashMap<u32, Version> {
        let versions: HashMap<u32, Version> = self.version.iter().copied().collect();
        let version = |id, word| match Word::of(word) {
            Word::Nobody => None,
            Word::Plain { cluster, has_any } => Some(Version::plain(id, cluster, has_any)),
            Word::Version(number) => versions.get(&number).copied().filter(|version| version.service == id),
        };
        self.service.iter().filter_map(|(id, word)| Some((*id, version(*id, *word)?))).collect()
    }
}

/// Tables could not be made larger.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct GrowError(pub Box<dyn std::error::Error + Send + Sync>);

/// A table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("table {table}: {action} failed: {source}")]
pub struct MapError {
    pub table: &'static str,
    pub action: &'static str,
    #[source]
    pub source: std::io::Error,
}

/// Op number `applied` failed; those before it are in the kernel.
#[derive(Debug, thiserror::Error)]
#[error("after {applied} writes: {error}")]
pub struct ApplyError {
    pub applied: usize,
    #[source]
    pub error: MapError,
}
