//! ABSENT as the kernel holds it: which addresses nobody needs to look up.
//!
//! In: addresses that get an entry in FRONTEND, and now and then all that have one. Out: words to write. The order
//! is what counts: a bit falls before the entry is written, so that no entry is ever hidden, and rises when tidying. A bit
//! that says "look" for no reason costs time only, so nobody counts how many entries share one.

use std::collections::BTreeSet;

use proxy_common::abi::AbsentBit;
use proxy_common::addr::Addr;
use proxy_common::tables::ABSENT_WORDS;

use super::Op;

#[derive(Debug)]
pub(super) struct Absent {
    /// The table after every write that was handed out.
    words: Vec<u64>,
    /// Words that were found hiding entries.
    damaged: BTreeSet<u32>,
    /// A bit may say "look" without need.
    untidy: bool,
}

impl Absent {
    /// What the table holds, word by word; those that are missing are zero. `present` has every address with an entry.
    pub(super) fn restore(held: &[u64], present: impl Iterator<Item = Addr>) -> Self {
        let mut words = held.to_vec();
        words.resize(ABSENT_WORDS as usize, 0);
        let right = without(present);
        let (untidy, mut damaged) = (words != right, BTreeSet::new());
        for ((index, word), right) in (0..).zip(&mut words).zip(&right) {
            if *word & !right != 0 {
                *word &= right;
                damaged.insert(index);
            }
        }
        Self { words, damaged, untidy }
    }

    /// The words that were found hiding entries.
    pub(super) fn damaged(&self) -> impl Iterator<Item = u32> {
        self.damaged.iter().copied()
    }

    /// Uncovers what was found hidden.
    pub(super) fn repair(&mut self) -> Vec<Op> {
        let damaged = std::mem::take(&mut self.damaged);
        damaged.into_iter().map(|word| self.write(word)).collect()
    }

    /// What must be written before `addr` gets an entry.
    pub(super) fn admit(&mut self, addr: &Addr) -> Option<Op> {
        let bit = AbsentBit::of(addr);
        let word = &mut self.words[bit.word as usize];
        if *word & bit.mask == 0 {
            return None;
        }
        *word &= !bit.mask;
        Some(self.write(bit.word))
    }

    /// An entry goes; perhaps it was the last one of its bit.
    pub(super) fn dismiss(&mut self) {
        self.untidy = true;
    }

    pub(super) fn is_untidy(&self) -> bool {
        self.untidy
    }

    /// Says of everything but `present` that it is absent; `present` has every address with an entry.
    pub(super) fn tidy(&mut self, present: impl Iterator<Item = Addr>) -> Vec<Op> {
        if !std::mem::take(&mut self.untidy) {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.words, without(present));
        let changed = (0..).zip(before).filter(|(index, word)| self.words[*index as usize] != *word);
        changed.map(|(index, _)| self.write(index)).collect()
    }

    fn write(&self, index: u32) -> Op {
        Op::Absent { index, word: self.words[index as usize] }
    }
}

/// The table in which all but `present` is absent.
fn without(present: impl Iterator<Item = Addr>) -> Vec<u64> {
    let mut words = vec![u64::MAX; ABSENT_WORDS as usize];
    for bit in present.map(|addr| AbsentBit::of(&addr)) {
        words[bit.word as usize] &= !bit.mask;
    }
    words
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn addr(number: u32) -> Addr {
        Addr::v4((0x0a60_0000 + number).to_be_bytes())
    }

    fn tidied(present: &[Addr]) -> Absent {
        let mut absent = Absent::restore(&[], present.iter().copied());
        assert_eq!(absent.tidy(present.iter().copied()).len(), ABSENT_WORDS as usize, "all of a fresh table");
        absent
    }

    fn hides(absent: &Absent, addr: &Addr) -> bool {
        let bit = AbsentBit::of(addr);
        absent.words[bit.word as usize] & bit.mask != 0
    }

    #[test]
    fn a_fresh_table_hides_nothing_and_a_tidy_one_hides_nothing_that_is_there() {
        assert!(!hides(&Absent::restore(&[], [].into_iter()), &addr(1)));
        let absent = tidied(&[addr(1)]);
        assert_eq!([1, 2].map(|number| hides(&absent, &addr(number))), [false, true]);
    }

    #[test]
    fn an_address_is_uncovered_in_one_write_and_only_once() {
        let mut absent = tidied(&[]);
        let index = AbsentBit::of(&addr(7)).word;
        assert_eq!(absent.admit(&addr(7)), Some(Op::Absent { index, word: !AbsentBit::of(&addr(7)).mask }));
        assert_eq!(absent.admit(&addr(7)), None);
    }

    #[test]
    fn who_shares_a_bit_stays_visible_when_the_other_goes() {
        let mut seen = HashMap::new();
        let twins = (0..).map(addr).find_map(|addr| Some((seen.insert(AbsentBit::of(&addr), addr)?, addr)));
        let (one, other) = twins.unwrap();
        let mut absent = tidied(&[one, other]);
        absent.dismiss();
        assert_eq!(absent.tidy([one].into_iter()), []);
        assert!(!hides(&absent, &other), "one bit, two addresses");
        absent.dismiss();
        assert_eq!(absent.tidy([].into_iter()).len(), 1);
        assert!(hides(&absent, &one));
    }

    #[test]
    fn what_was_found_hidden_is_uncovered_and_a_restart_on_a_tidy_table_writes_nothing() {
        let bit = AbsentBit::of(&addr(1));
        let held = vec![u64::MAX; ABSENT_WORDS as usize];
        let mut damaged = Absent::restore(&held, [addr(1)].into_iter());
        assert_eq!(damaged.damaged().collect::<Vec<_>>(), [bit.word]);
        assert_eq!(damaged.repair(), [Op::Absent { index: bit.word, word: !bit.mask }]);
        assert_eq!((damaged.repair(), damaged.tidy([addr(1)].into_iter())), (vec![], vec![]));
        assert!(!Absent::restore(&held, [].into_iter()).is_untidy());
    }

    #[test]
    fn neighbours_spread_over_the_table() {
        let bits: BTreeSet<_> = (0..10_000).map(|number| AbsentBit::of(&addr(number))).collect();
        assert!(bits.len() > 9_700, "{} bits of 10,000 addresses", bits.len());
        let v6 = |number: u64| Addr::new((0xfd00_0010_u128 << 96 | u128::from(number)).to_be_bytes());
        let bits: BTreeSet<_> = (0..10_000).map(|number| AbsentBit::of(&v6(number))).collect();
        assert!(bits.len() > 9_700, "{} bits of 10,000 IPv6 addresses", bits.len());
    }
}
