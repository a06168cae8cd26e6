//! Internet checksums (RFC 1071), changed by what changed (RFC 1624).
//!
//! Words are read as they lie in memory: a one's complement sum is the same in either byte order, as long as one order is
//! kept (RFC 1071 section 2 B). So a [`Change`] is also what the kernel's checksum helpers take.

/// What a checksum has to learn: a one's complement sum, not folded to 16 bits yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Change(u32);

impl Change {
    pub const NONE: Self = Self(0);

    /// Two bytes at an even distance from where the sum begins.
    #[inline(always)]
    pub const fn of_two(from: [u8; 2], to: [u8; 2]) -> Self {
        Self((!u16::from_ne_bytes(from)) as u32 + u16::from_ne_bytes(to) as u32)
    }

    /// A word, as it lies in memory, at an even distance from where the sum begins.
    #[inline(always)]
    pub const fn of_four(from: u32, to: u32) -> Self {
        Self(add(!from, to))
    }

    /// An address, as it lies in memory, at an even distance from where the sum begins.
    #[inline(always)]
    pub const fn of_sixteen(from: [u64; 2], to: [u64; 2]) -> Self {
        // Eight halves: what overflows 32 bits is kept beside them until the end.
        let sum = halves(!from[0]) + halves(!from[1]) + halves(to[0]) + halves(to[1]);
        Self(add(sum as u32, (sum >> 32) as u32))
    }

    /// A word that was not summed before.
    #[inline(always)]
    pub const fn with(word: u32) -> Self {
        Self(word)
    }

    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// The checksum that `sum` becomes.
    #[inline(always)]
    pub const fn applied(self, sum: [u8; 2]) -> [u8; 2] {
        let total = !u16::from_ne_bytes(sum) as u32 + fold(self.0);
        (!(fold(total) as u16)).to_ne_bytes()
    }

    /// The checksum of what was summed, and of nothing else.
    #[inline(always)]
    pub const fn checksum(self) -> [u8; 2] {
        self.applied([0xff, 0xff])
    }

    /// As `bpf_l4_csum_replace` takes a difference.
    #[inline(always)]
    pub const fn difference(self) -> u32 {
        self.0
    }
}

/// One's complement: what overflows comes in again at the other end.
#[inline(always)]
const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

#[inline(always)]
const fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

#[inline(always)]
const fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 section 4.1 sums.
    fn whole(words: &[[u8; 4]]) -> [u8; 2] {
        let mut sum: u32 =
            words.as_flattened().chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn a_changed_checksum_is_the_checksum_of_what_is_there_now(
            before: [[u8; 4]; 6],
            word in 0_usize..6,
            to: [u8; 4],
        ) {
            let mut after = before;
            after[word] = to;
            // A sum over nothing but zeros has two names; no header is that.
            after[(word + 1) % 6] = [0x45, 0, 0, 1];
            let before = { let mut b = before; b[(word + 1) % 6] = [0x45, 0, 0, 1]; b };
            let by_four = Change::of_four(u32::from_ne_bytes(before[word]), u32::from_ne_bytes(to)).applied(whole(&before));
            prop_assert_eq!(by_four, whole(&after));
            let [a, b, c, d] = before[word];
            let [e, f, g, h] = to;
            let by_two = Change::of_two([a, b], [e, f]).and(Change::of_two([c, d], [g, h])).applied(whole(&before));
            prop_assert_eq!(by_two, whole(&after));
        }

        #[test]
        fn a_changed_address_is_its_changed_words(from: [u64; 2], to: [u64; 2], before: [u8; 2]) {
            let [from_words, to_words] = [from, to].map(|address| address.map(|word| [word as u32, (word >> 32) as u32]));
            let words = from_words.as_flattened().iter().zip(to_words.as_flattened());
            let by_word = words.fold(Change::NONE, |change, (from, to)| change.and(Change::of_four(*from, *to)));
            prop_assert_eq!(Change::of_sixteen(from, to).applied(before), by_word.applied(before));
        }

        #[test]
        fn a_checksum_of_words_is_that_of_rfc_1071(words: [[u8; 4]; 9]) {
            let sum = words.iter().fold(Change::NONE, |sum, word| sum.and(Change::with(u32::from_ne_bytes(*word))));
            prop_assert_eq!(sum.checksum(), whole(&words));
        }
    }
}
