//! Runs of SLOTS: first fit, neighbours merged, and nothing given away again before a grace period has passed.
//!
//! Knows numbers only. A run begins with a pair of its own and takes whole pairs, so that no write touches another run.

use std::collections::BTreeMap;

use proxy_common::abi::{Range, SLOTS_PER_PAIR};

#[derive(Debug)]
pub struct Arena {
    capacity: u32,
    /// Start and length of every free run, in whole pairs; no two touch.
    free: BTreeMap<u32, u32>,
    retired: Vec<Range>,
    taken: u32,
    /// Every slot from here on was never used.
    end: u32,
}

impl Arena {
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity - capacity % SLOTS_PER_PAIR;
        let free = (capacity > 0).then_some((0, capacity)).into_iter().collect();
        Self { capacity, free, retired: Vec::new(), taken: 0, end: 0 }
    }

    pub fn fits(&self, len: u32) -> bool {
        let len = whole_pairs(len);
        len == 0 || self.free.values().any(|&free| free >= len)
    }

    /// The first run of `len` free slots. An empty run takes no room.
    pub fn allocate(&mut self, len: u32) -> Option<Range> {
        if len == 0 {
            return Some(Range::default());
        }
        let start = *self.free.iter().find(|&(_, &free)| free >= whole_pairs(len))?.0;
        let run = Range { start, len };
        self.take(start, run);
        Some(run)
    }

    /// Takes exactly `run`, as found in the kernel. False when it leaves the table, is not wholly free, or begins amid a
    /// pair.
    pub fn reserve(&mut self, run: Range) -> bool {
        if run.len == 0 {
            return true;
        }
        if !run.start.is_multiple_of(SLOTS_PER_PAIR) || run.len > self.capacity {
            return false;
        }
        let Some(end) = run.start.checked_add(whole_pairs(run.len)) else { return false };
        let around = self.free.range(..=run.start).next_back().map(|(&start, &len)| (start, len));
        let Some((start, _)) = around.filter(|(start, len)| end <= start + len) else { return false };
        self.take(start, run);
        true
    }

    /// Takes `run` out of the free run that begins at `start`.
    fn take(&mut self, start: u32, run: Range) {
        let run = Range { len: whole_pairs(run.len), ..run };
        let len = self.free.remove(&start).expect("the caller found it");
        let (before, after) = (run.start - start, start + len - run.start - run.len);
        if before > 0 {
            self.free.insert(start, before);
        }
        if after > 0 {
            self.free.insert(run.start + run.len, after);
        }
        self.taken += run.len;
        self.end = self.end.max(run.start + run.len);
    }

    /// Takes `run` out of use. It stays away until [`Self::release`].
    pub fn retire(&mut self, run: Range) {
        if run.len > 0 {
            self.retired.push(Range { len: whole_pairs(run.len), ..run });
        }
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Slots that are out of use and cannot be had yet.
    pub fn retired(&self) -> u32 {
        self.retired.iter().map(|run| run.len).sum()
    }

    /// A grace period has passed: whatever was retired may be given away again.
    pub fn release(&mut self) {
        for run in std::mem::take(&mut self.retired) {
            self.taken -= run.len;
            self.insert_merged(run);
        }
    }

    fn insert_merged(&mut self, mut run: Range) {
        if let Some(len) = self.free.remove(&(run.start + run.len)) {
            run.len += len;
        }
        match self.free.range_mut(..run.start).next_back() {
            Some((start, len)) if start + *len == run.start => *len += run.len,
            _ => _ = self.free.insert(run.start, run.len),
        }
    }

    /// Slots that a table must have for the runs given away so far.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Slots that cannot be had: in use or retired.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

fn whole_pairs(len: u32) -> u32 {
    len.next_multiple_of(SLOTS_PER_PAIR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn released_neighbours_become_one_run() {
        let mut arena = Arena::new(12);
        let runs = [3, 3, 3].map(|len| arena.allocate(len).unwrap());
        assert!(!arena.fits(1));
        for run in [runs[0], runs[2], runs[1]] {
            arena.retire(run);
            arena.release();
        }
        assert_eq!(arena.allocate(12), Some(Range { start: 0, len: 12 }));
    }

    #[test]
    fn a_retired_run_is_not_free() {
        let mut arena = Arena::new(4);
        let run = arena.allocate(4).unwrap();
        arena.retire(run);
        assert_eq!((arena.allocate(1), arena.taken()), (None, 4));
        arena.release();
        assert_eq!((arena.allocate(1), arena.taken()), (Some(Range { start: 0, len: 1 }), 2));
    }

    #[test]
    fn reserve_refuses_what_is_taken_or_outside() {
        let mut arena = Arena::new(10);
        assert!(arena.reserve(Range { start: 2, len: 3 }));
        for (start, len) in [(2, 1), (0, 3), (4, 2), (7, 2), (10, 1), (u32::MAX - 1, 2), (6, u32::MAX)] {
            assert!(!arena.reserve(Range { start, len }), "{start}+{len}");
        }
        assert!(arena.reserve(Range { start: 0, len: 2 }) && arena.reserve(Range { start: 6, len: 4 }));
        assert!(!arena.fits(1));
    }

    #[test]
    fn no_two_runs_share_a_pair() {
        let mut arena = Arena::new(9);
        let starts = [1, 3, 2].map(|len| arena.allocate(len).unwrap().start);
        assert_eq!((starts, arena.allocate(1)), ([0, 2, 6], None));
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_room_comes_back(lens in prop::collection::vec(0_u32..20, 1..60)) {
            let mut arena = Arena::new(200);
            let mut held: Vec<Range> = Vec::new();
            for (step, len) in lens.into_iter().enumerate() {
                if let Some(run) = arena.allocate(len) {
                    prop_assert!(run.start + run.len <= 200);
                    let apart = |other: &Range| run.len == 0 || other.len == 0
                        || run.start + run.len <= other.start || other.start + other.len <= run.start;
                    prop_assert!(held.iter().all(apart));
                    held.push(run);
                }
                if step % 3 == 2 && !held.is_empty() {
                    arena.retire(held.swap_remove(step % held.len()));
                    arena.release();
                }
            }
            for run in held {
                arena.retire(run);
            }
            arena.release();
            prop_assert_eq!((arena.taken(), arena.allocate(200)), (0, Some(Range { start: 0, len: 200 })));
        }
    }
}
