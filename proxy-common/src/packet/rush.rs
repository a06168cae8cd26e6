//! Whether a table of flows is filled so fast that it forgets what was in use this very second.
//!
//! A table forgets each half of a flow by itself, and tells nobody. A packet looks at its own half, and once a second at the
//! other one: so neither is forgotten before the other as long as a table lasts for longer than that. In: flows that are
//! added. Out: when every packet should look at both halves.

/// A table is in a rush once a part like this of it was added within a second. It takes several such parts until what was
/// looked at is forgotten.
const PART: u32 = 8;

/// What one table has come to. Processors write it without regard for each other: a count that is lost matters little.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rush {
    /// The last second of a rush.
    last: u32,
    /// Every packet reads the first word and every new flow writes the next ones: not in one cache line.
    pad: [u32; 15],
    second: u32,
    added: u32,
}

impl Rush {
    /// A flow was added to the table, which has room for so many.
    #[inline(always)]
    pub fn add(&mut self, now: u32, room: u32) {
        if self.second != now {
            (self.second, self.added) = (now, 0);
        }
        self.added += 1;
        if self.added > room / PART {
            self.last = now;
        }
    }

    /// True until a second has passed.
    #[inline(always)]
    pub const fn is_on(&self, now: u32) -> bool {
        now.wrapping_sub(self.last) <= 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u32 = 800;

    fn after(added: impl IntoIterator<Item = u32>) -> Rush {
        let mut rush = Rush::default();
        added.into_iter().for_each(|second| rush.add(second, ROOM));
        rush
    }

    #[test]
    fn an_eighth_of_the_table_within_a_second_is_a_rush_for_that_second_and_the_next() {
        let rush = after([70; 101]);
        assert!(rush.is_on(70) && rush.is_on(71) && !rush.is_on(72) && !rush.is_on(69));
        assert!(!after([70; 100]).is_on(70), "one fewer");
    }

    #[test]
    fn what_comes_over_many_seconds_is_none() {
        let rush = after((0..4000).map(|number| 70 + number / 100));
        assert!((70..120).all(|second| !rush.is_on(second)));
    }
}
