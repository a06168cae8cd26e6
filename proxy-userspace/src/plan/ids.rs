//! Dense ids of one table: lowest free first, and never again before a grace period has passed.
//!
//! Knows numbers only. An id is free, in use, or retired (out of use, but a running program may still hold it).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The ids 1 to capacity - 1. Zero is never given away: in every table it means "none".
#[derive(Debug)]
pub struct Ids {
    capacity: u32,
    /// Every id from here on was never used.
    unused_from: u32,
    free: BinaryHeap<Reverse<u32>>,
    retired: Vec<u32>,
}

impl Ids {
    pub fn new(capacity: u32) -> Self {
        Self { capacity, unused_from: 1, free: BinaryHeap::new(), retired: Vec::new() }
    }

    /// An allocator in which exactly `used` is in use. Ids that do not fit the table are passed over.
    pub fn restore(capacity: u32, used: impl IntoIterator<Item = u32>) -> Self {
        let mut used: Vec<u32> = used.into_iter().filter(|id| (1..capacity).contains(id)).collect();
        used.sort_unstable();
        let mut ids = Self::new(capacity);
        for id in used {
            ids.free.extend((ids.unused_from..id).map(Reverse));
            ids.unused_from = ids.unused_from.max(id + 1);
        }
        ids
    }

    /// How many ids can be had now.
    pub fn available(&self) -> usize {
        self.free.len() + self.capacity.saturating_sub(self.unused_from) as usize
    }

    pub fn allocate(&mut self) -> Option<u32> {
        if let Some(Reverse(id)) = self.free.pop() {
            return Some(id);
        }
        let id = self.unused_from;
        (id < self.capacity).then(|| {
            self.unused_from += 1;
            id
        })
    }

    /// Takes `id` out of use. It stays away until [`Self::release`].
    pub fn retire(&mut self, id: u32) {
        self.retired.push(id);
    }

    pub fn retired(&self) -> &[u32] {
        &self.retired
    }

    /// A grace period has passed: whatever was retired may be given away again.
    pub fn release(&mut self) {
        self.free.extend(self.retired.drain(..).map(Reverse));
    }

    /// Entries that a table must have for the ids given away so far.
    pub fn end(&self) -> u32 {
        self.unused_from
    }

    /// Ids that cannot be had: in use or retired.
    pub fn taken(&self) -> u32 {
        self.unused_from - 1 - self.free.len() as u32
    }

    /// How many ids there are.
    pub fn capacity(&self) -> u32 {
        self.capacity.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_start_at_one_and_are_dense() {
        let mut ids = Ids::new(4);
        assert_eq!([(); 4].map(|()| ids.allocate()), [Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn a_retired_id_comes_back_only_after_release() {
        let mut ids = Ids::new(2);
        let id = ids.allocate().unwrap();
        ids.retire(id);
        assert_eq!(ids.allocate(), None);
        assert_eq!(ids.taken(), 1);
        ids.release();
        assert_eq!(ids.taken(), 0);
        assert_eq!(ids.allocate(), Some(id));
    }

    #[test]
    fn restore_fills_the_gaps_first() {
        let mut ids = Ids::restore(8, [5, 2, 2, 0, 8, u32::MAX]);
        assert_eq!(ids.available(), 5);
        assert_eq!([(); 6].map(|()| ids.allocate()), [Some(1), Some(3), Some(4), Some(6), Some(7), None]);
    }

    #[test]
    fn a_table_without_room_gives_nothing() {
        assert_eq!(Ids::new(0).available(), 0);
        assert_eq!(Ids::new(1).allocate(), None);
    }
}
