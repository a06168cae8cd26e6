//! Which source ports a translation may try.

use crate::abi::PortRange;

/// More is not tried: a range so full is exhausted, and the client hears of it.
pub const TRIES: u32 = 16;

/// Of so many, the first ones, it is asked who has them: where a range is full of what has ended, any will do.
pub const HELD_TRIES: u32 = 4;
const _: () = assert!(HELD_TRIES <= TRIES);

impl PortRange {
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        port.wrapping_sub(self.first) < self.count
    }

    /// Try number `number` of a flow with this `hash`: first `wanted` if it is in the range, then all over it. `None` where
    /// the range is empty.
    #[inline(always)]
    pub fn candidate(self, wanted: u16, hash: u32, number: u32) -> Option<u16> {
        if number == 0 && self.contains(wanted) {
            return Some(wanted);
        }
        // Golden section: 16 tries fall far apart, whatever the length of the range.
        let offset = hash.wrapping_add(number.wrapping_mul(0x9e37_79b1)) >> 8;
        let offset = offset.checked_rem(u32::from(self.count))?;
        Some(self.first.wrapping_add(offset as u16))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const RANGE: PortRange = PortRange { first: 61_000, count: 4536 };

    #[test]
    fn every_try_is_inside_the_range_and_nearly_all_differ() {
        for hash in (0..u32::MAX).step_by(7_777_777) {
            let tries: HashSet<_> = (0..TRIES).filter_map(|number| RANGE.candidate(1, hash, number)).collect();
            assert!(tries.iter().all(|port| RANGE.contains(*port)), "{tries:?}");
            assert!(tries.len() >= 15, "hash {hash}: {tries:?}");
        }
    }

    /// S9 of the threat model asks for 99 %, which would take hundreds of tries for one packet. Mostly it is two thirds.
    #[test]
    fn nobody_is_refused_before_half_of_the_range_is_open() {
        for seed in 0..20_u32 {
            let mut open = HashSet::new();
            let hashes = (0_u32..).map(|number| (number ^ seed << 20).wrapping_mul(0x85eb_ca6b).rotate_left(13));
            for hash in hashes {
                let tries = (0..TRIES).filter_map(|number| RANGE.candidate(1, hash.wrapping_mul(0xc2b2_ae35), number));
                let Some(free) = tries.into_iter().find(|port| !open.contains(port)) else { break };
                open.insert(free);
            }
            assert!(open.len() > usize::from(RANGE.count) / 2, "{} of {}, seed {seed}", open.len(), RANGE.count);
        }
    }

    #[test]
    fn a_client_port_inside_the_range_comes_first() {
        assert_eq!(RANGE.candidate(61_007, 99, 0), Some(61_007));
        assert_ne!(RANGE.candidate(61_007, 99, 1), Some(61_007));
    }

    #[test]
    fn ranges_have_edges_and_may_be_empty() {
        assert!(RANGE.contains(61_000) && RANGE.contains(65_535));
        assert!(!RANGE.contains(60_999) && !RANGE.contains(0));
        let empty = PortRange::default();
        assert!(!empty.contains(0));
        assert_eq!(empty.candidate(0, 5, 1), None);
    }
}
