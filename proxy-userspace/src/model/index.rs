//! Who may have a key: a hash table of numbers alone. The keys stay with those who have them, who are asked.

use std::fmt;
use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

#[derive(Default)]
pub(super) struct Index {
    holders: HashTable<Holder>,
    hasher: RandomState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Holder {
    /// A part of the key's hash; kept, since the key cannot be asked for when the table grows.
    hash: u32,
    id: u32,
}

impl Index {
    /// Everybody who has `key`, and perhaps others: ask them.
    pub(super) fn candidates<'a, K: Hash>(&'a self, key: &K) -> impl Iterator<Item = usize> + use<'a, K> {
        let hash = self.hash(key);
        self.holders.iter_hash(spread(hash)).filter(move |holder| holder.hash == hash).map(|holder| holder.id as usize)
    }

    pub(super) fn add(&mut self, key: &impl Hash, id: usize) {
        let holder = Holder { hash: self.hash(key), id: id as u32 };
        self.holders.insert_unique(spread(holder.hash), holder, |other| spread(other.hash));
    }

    /// One entry of `id` that was added for `key`.
    pub(super) fn remove(&mut self, key: &impl Hash, id: usize) {
        let holder = Holder { hash: self.hash(key), id: id as u32 };
        if let Ok(entry) = self.holders.find_entry(spread(holder.hash), |other| *other == holder) {
            entry.remove();
        }
    }

    fn hash(&self, key: &impl Hash) -> u32 {
        self.hasher.hash_one(key) as u32
    }
}

/// The table looks at both ends of a hash.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index of {}", self.holders.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(index: &Index, key: &str) -> Vec<usize> {
        let mut holders: Vec<_> = index.candidates(&key).collect();
        holders.sort_unstable();
        holders
    }

    #[test]
    fn all_who_have_a_key_are_found_until_they_give_it_up_also_after_the_table_grew() {
        let mut index = Index::default();
        for id in 0..1000 {
            index.add(&id.to_string().as_str(), id);
        }
        index.add(&"7", 1000);
        assert_eq!(holders(&index, "7"), [7, 1000]);
        index.remove(&"7", 7);
        index.remove(&"7", 8);
        assert_eq!(holders(&index, "7"), [1000]);
        assert_eq!((0..1000).filter(|id| holders(&index, &id.to_string()).contains(id)).count(), 999);
    }
}
