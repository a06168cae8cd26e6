//! ABSENT as the kernel holds it: which addresses nobody needs to look up.
//!
//! In: addresses that get an entry in FRONTEND or lose it, now and then all that have one, and what flows of packets still
//! dial. Out: words to write. The order is what counts: a bit falls before the entry is written, so that no entry is ever
//! hidden, and rises when nobody needs it any more: flows outlive their Service (specification C2). A bit that says "look"
//! for no reason costs time only, so nobody counts how many entries share one.

use std::collections::BTreeSet;

use proxy_common::abi::AbsentBit;
use proxy_common::addr::Addr;
use proxy_common::tables::ABSENT_WORDS;

use super::Op;

/// What flows of packets dial, as one look at their tables tells it.
#[derive(Clone, Debug)]
pub struct Dialled(Vec<u64>);

impl Default for Dialled {
    fn default() -> Self {
        Self(vec![0; ABSENT_WORDS as usize])
    }
}

impl Dialled {
    pub fn add(&mut self, addr: &Addr) {
        let bit = AbsentBit::of(addr);
        self.0[bit.word as usize] |= bit.mask;
    }

    fn has(&self, bit: &AbsentBit) -> bool {
        self.0[bit.word as usize] & bit.mask != 0
    }
}

#[derive(Debug)]
pub(super) struct Absent {
    /// The table after every write that was handed out.
    words: Vec<u64>,
    /// Words that were found hiding entries.
    damaged: BTreeSet<u32>,
    /// It says "look" of everything.
    fresh: bool,
    /// Bits that may say "look" for flows only.
    left: BTreeSet<AbsentBit>,
    /// Those of them that the next look at flows may have begun too early for.
    just_left: BTreeSet<AbsentBit>,
}

impl Absent {
    /// What the table holds, word by word; those that are missing are zero. `present` has every address with an entry.
    pub(super) fn restore(held: &[u64], present: impl Iterator<Item = Addr>) -> Self {
        let mut words = held.to_vec();
        words.resize(ABSENT_WORDS as usize, 0);
        let fresh = words.iter().all(|word| *word == 0);
        let right = without(present);
        let (mut left, mut damaged) = (BTreeSet::new(), BTreeSet::new());
        for ((index, word), right) in (0..).zip(&mut words).zip(&right) {
            if *word & !right != 0 {
                *word &= right;
                damaged.insert(index);
            }
            if !fresh {
                left.extend(bits(index, right & !*word));
            }
        }
        Self { words, damaged, fresh, left, just_left: BTreeSet::new() }
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

    /// The entry of `addr` goes; perhaps it was the last one of its bit.
    pub(super) fn dismiss(&mut self, addr: &Addr) {
        self.just_left.insert(AbsentBit::of(addr));
    }

    /// Whether [`Self::tidy`] has something to do. `has_flows`: somebody may still dial what went.
    pub(super) fn is_untidy(&self, has_flows: bool) -> bool {
        self.fresh || !(has_flows || self.left.is_empty() && self.just_left.is_empty())
    }

    /// Says of everything but `present`, and of what just went where there are flows, that it is absent; `present` has every
    /// address with an entry.
    pub(super) fn tidy(&mut self, present: impl Iterator<Item = Addr>, has_flows: bool) -> Vec<Op> {
        let mut words = without(present);
        if has_flows {
            for bit in self.left.iter().chain(&self.just_left) {
                words[bit.word as usize] &= !bit.mask;
            }
        } else {
            self.left.clear();
            self.just_left.clear();
        }
        self.fresh = false;
        self.replace(words)
    }

    /// Takes in a look at flows: whether a bit may rise with it, which [`Self::cover`] says.
    pub(super) fn heed(&mut self, dialled: &Dialled) -> bool {
        let rises = self.left.iter().any(|bit| !dialled.has(bit));
        if !rises {
            self.left.append(&mut self.just_left);
        }
        rises
    }

    /// What went and no flow dials is absent, but for `present`.
    pub(super) fn cover(&mut self, present: impl Iterator<Item = Addr>, dialled: &Dialled) -> Vec<Op> {
        let right = without(present);
        let mut words = self.words.clone();
        for bit in self.left.extract_if(.., |bit| !dialled.has(bit)) {
            if !self.just_left.contains(&bit) {
                words[bit.word as usize] |= bit.mask & right[bit.word as usize];
            }
        }
        self.left.append(&mut self.just_left);
        self.replace(words)
    }

    fn replace(&mut self, words: Vec<u64>) -> Vec<Op> {
        let before = std::mem::replace(&mut self.words, words);
        let changed = (0..).zip(before).filter(|(index, word)| self.words[*index as usize] != *word);
        changed.map(|(index, _)| self.write(index)).collect()
    }

    fn write(&self, index: u32) -> Op {
        Op::Absent { index, word: self.words[index as usize] }
    }
}

/// Each bit of a word of the table.
fn bits(word: u32, set: u64) -> impl Iterator<Item = AbsentBit> {
    (0..u64::BITS).map(|bit| 1 << bit).filter(move |mask| set & mask != 0).map(move |mask| AbsentBit { word, mask })
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
        let written = absent.tidy(present.iter().copied(), true);
        assert_eq!(written.len(), ABSENT_WORDS as usize, "all of a fresh table");
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
        absent.dismiss(&other);
        assert_eq!(absent.tidy([one].into_iter(), false), []);
        assert!(!hides(&absent, &other), "one bit, two addresses");
        absent.dismiss(&one);
        assert_eq!(absent.tidy([].into_iter(), false).len(), 1);
        assert!(hides(&absent, &one));
    }

    #[test]
    fn what_was_found_hidden_is_uncovered_and_a_restart_on_a_tidy_table_writes_nothing() {
        let bit = AbsentBit::of(&addr(1));
        let held = vec![u64::MAX; ABSENT_WORDS as usize];
        let mut damaged = Absent::restore(&held, [addr(1)].into_iter());
        assert_eq!(damaged.damaged().collect::<Vec<_>>(), [bit.word]);
        assert_eq!(damaged.repair(), [Op::Absent { index: bit.word, word: !bit.mask }]);
        assert_eq!((damaged.repair(), damaged.tidy([addr(1)].into_iter(), false)), (vec![], vec![]));
        assert!(!Absent::restore(&held, [].into_iter()).is_untidy(false));
    }

    /// What a look at flows says that found these.
    fn dialled(addrs: &[Addr]) -> Dialled {
        let mut dialled = Dialled::default();
        for addr in addrs {
            dialled.add(addr);
        }
        dialled
    }

    /// The next look at flows: how many words are written.
    fn look(absent: &mut Absent, present: &[Addr], flows: &[Addr]) -> usize {
        let dialled = dialled(flows);
        if absent.heed(&dialled) { absent.cover(present.iter().copied(), &dialled).len() } else { 0 }
    }

    #[test]
    fn what_flows_dial_is_looked_up_until_the_last_of_them_is_gone() {
        let (stays, goes) = (addr(1), addr(2));
        let mut absent = tidied(&[stays, goes]);
        absent.dismiss(&goes);
        assert!(!absent.is_untidy(true), "nothing to do before somebody looked at flows");
        assert_eq!(look(&mut absent, &[stays], &[]), 0, "a look that may have begun before");
        assert_eq!(look(&mut absent, &[stays], &[goes]), 0, "a flow goes on");
        assert!(!hides(&absent, &goes));
        assert_eq!(look(&mut absent, &[stays], &[stays]), 1);
        assert_eq!([stays, goes].map(|addr| hides(&absent, &addr)), [false, true]);
        assert_eq!(look(&mut absent, &[stays], &[]), 0, "it is done");
    }

    #[test]
    fn what_comes_back_or_goes_once_more_meanwhile_is_looked_up() {
        let addr = addr(1);
        let mut absent = tidied(&[addr]);
        absent.dismiss(&addr);
        look(&mut absent, &[], &[]);
        assert_eq!(look(&mut absent, &[addr], &[]), 0, "it came back");
        assert!(!hides(&absent, &addr));
        absent.dismiss(&addr);
        look(&mut absent, &[], &[]);
        absent.dismiss(&addr);
        assert_eq!(look(&mut absent, &[], &[]), 0, "it was back, and went after the look had begun");
        assert_eq!(look(&mut absent, &[], &[]), 1);
    }

    #[test]
    fn a_restart_knows_what_went_and_may_still_be_dialled() {
        let (stays, goes) = (addr(1), addr(2));
        let held = tidied(&[stays, goes]).words;
        let mut absent = Absent::restore(&held, [stays].into_iter());
        assert_eq!(look(&mut absent, &[stays], &[goes]), 0);
        assert_eq!(look(&mut absent, &[stays], &[]), 1);
        let mut absent = Absent::restore(&held, [stays].into_iter());
        assert!(absent.is_untidy(false), "with sockets alone nobody dials it");
        assert_eq!(absent.tidy([stays].into_iter(), false).len(), 1);
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
