//! What larger tables take over from those that they succeed.
//!
//! In: the tables of today and larger ones beside them, some of which are the same map. Out: nothing is lost. What the
//! agent writes stays as it is meanwhile. What programs write does not: that is carried once before the programs of the
//! larger tables take over, and the difference once the old programs have ended. Tables of flows are the same map in both where
//! they can be, and [`super::reshape`] knows how else.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Pod;
use proxy_common::abi::{Affinity, AffinityKey, BackendStats, Bucket, Frontend};
use proxy_common::index::{WORDS, distribute};
use proxy_common::tables::name;

use super::MapError;
use super::pinned::{Pinned, read};
use crate::sys::bpf::Map;
use crate::sys::mapped::Mapped;

/// What the programs had written when all rows were copied.
#[derive(Debug)]
pub struct Copied {
    stats: Vec<(u32, BackendStats)>,
    affinity: HashMap<AffinityKey, Affinity>,
}

/// Copies every row of `old` to where `new` has another map.
pub fn copy(old: &Pinned, new: &Pinned) -> Result<Copied, MapError> {
    rows(name::FRONTEND, &old.frontend, &new.frontend)?;
    index(old, new)?;
    rows(name::SERVICE, &old.service, &new.service)?;
    rows(name::VERSION, &old.version, &new.version)?;
    rows(name::SLOTS, &old.slots, &new.slots)?;
    rows(name::BACKENDS, &old.backends, &new.backends)?;
    rows(name::ABSENT, &old.absent, &new.absent)?;
    rows(name::SOURCES, &old.sources, &new.sources)?;
    rows(name::CONFIG, &old.config, &new.config)?;
    rows(name::PACKETS, &old.packets, &new.packets)?;
    rows(name::UNSTEERED, &old.unsteered, &new.unsteered)?;
    // One map in both, unless the programs do not load over the old one.
    rows(name::SOCKETS, &old.sockets, &new.sockets)?;
    let stats = rows(name::STATS, &old.stats, &new.stats)?;
    let affinity = rows(name::AFFINITY, &old.affinity, &new.affinity)?.into_iter().collect();
    Ok(Copied { stats, affinity })
}

impl Copied {
    /// Hands on what the old programs wrote since. Only once they have ended; may be repeated after an error.
    pub fn hand_over(&self, old: &Pinned, new: &Pinned) -> Result<(), MapError> {
        self.add_affinity(old, new)?;
        self.add_stats(old, new)
    }

    /// By addition: the new programs count already. What may fail comes before the first one.
    fn add_stats(&self, old: &Pinned, new: &Pinned) -> Result<(), MapError> {
        if old.stats.is(&new.stats) {
            return Ok(());
        }
        let fail = |source| MapError { table: name::STATS, action: "mapping", source };
        let now = read(name::STATS, &old.stats)?;
        let counters = Mapped::new(&new.stats).map_err(fail)?;
        let add = |id, offset, amount| {
            let word = counters.word::<AtomicU32>(id, offset);
            word.map(|word| word.fetch_add(amount, Ordering::Relaxed))
        };
        // An array gives its elements in order.
        for ((id, then), (_, now)) in self.stats.iter().zip(now) {
            add(*id, offset_of!(BackendStats, total), now.total.wrapping_sub(then.total));
            add(*id, offset_of!(BackendStats, open), now.open.wrapping_sub(then.open));
        }
        Ok(())
    }

    /// What the new programs have written since is younger.
    fn add_affinity(&self, old: &Pinned, new: &Pinned) -> Result<(), MapError> {
        if old.affinity.is(&new.affinity) {
            return Ok(());
        }
        let fail = |source| MapError { table: name::AFFINITY, action: "writing", source };
        for (client, now) in read(name::AFFINITY, &old.affinity)? {
            let then = self.affinity.get(&client);
            if then != Some(&now) && new.affinity.get(&client).map_err(fail)?.as_ref() == then {
                new.affinity.set(&client, &now).map_err(fail)?;
            }
        }
        Ok(())
    }
}

/// Where a word is depends on how many buckets there are.
fn index(old: &Pinned, new: &Pinned) -> Result<(), MapError> {
    if old.index.max_entries() == new.index.max_entries() {
        return rows(name::INDEX, &old.index, &new.index).map(|_| ());
    }
    let frontend: HashMap<u32, Frontend> = read(name::FRONTEND, &old.frontend)?.into_iter().collect();
    let mut buckets = vec![[0; WORDS]; new.index.max_entries() as usize];
    let words = read(name::INDEX, &old.index)?.into_iter().flat_map(|(_, bucket)| bucket);
    distribute(words, |id| Some(frontend.get(&id)?.key), &mut buckets);
    let (numbers, buckets): (Vec<u32>, Vec<Bucket>) = (0..).zip(buckets).unzip();
    let fail = |source| MapError { table: name::INDEX, action: "copying", source };
    new.index.set_all(&numbers, &buckets).map_err(|error| fail(error.source))
}

/// Copies all elements, unless both are the same map; says which those were.
fn rows<K: Pod, V: Pod>(table: &'static str, from: &Map<K, V>, to: &Map<K, V>) -> Result<Vec<(K, V)>, MapError> {
    if from.is(to) {
        return Ok(Vec::new());
    }
    let entries = read(table, from)?;
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let fail = |source| MapError { table, action: "copying", source };
    to.set_all(&keys, &values).map_err(|error| fail(error.source))?;
    Ok(entries)
}
