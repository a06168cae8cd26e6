//! INDEX: from a key to its entry in FRONTEND, in two reads of an array.
//!
//! A key may be in one of two buckets, which its hash names; a bucket is one cache line of eight words. A word has a part
//! of the hash and the number of the entry, whose copy of the key decides. A word is switched in one write and an entry
//! stays as it is until the grace period after its word has gone, so who reads meets a key as it was or as it is, and never
//! needs to look again. Words do not move: a larger table is another one.
//!
//! In: keys, through [`Directory`]. Out: entries of FRONTEND; for who writes, the place of a word. A hash table of the kernel
//! would take ten times as much memory for an entry, and one read more that waits for another.

use crate::abi::{Bucket, Frontend, FrontendKey, IndexWord};
use crate::addr::Addr;

/// Words of a bucket.
pub const WORDS: usize = 8;

/// Entries for which there is a bucket: half of its words, so that two buckets of one key are never both full by chance.
const ENTRIES_PER_BUCKET: u32 = 4;

/// Words that a first bucket takes before the second one is looked at, so that most keys are found where they are sought
/// first.
const PREFERRED: usize = 6;

/// How many buckets a table for so many entries has.
#[inline(always)]
pub const fn buckets(entries: u32) -> u32 {
    let buckets = entries.div_ceil(ENTRIES_PER_BUCKET);
    if buckets == 0 { 1 } else { buckets }
}

/// How many entries this many buckets are for.
pub const fn entries(buckets: u32) -> u32 {
    buckets.saturating_mul(ENTRIES_PER_BUCKET)
}

/// INDEX and FRONTEND.
pub trait Directory {
    /// How many buckets there are.
    fn buckets(&self) -> u32;
    fn bucket(&self, number: u32) -> Option<&Bucket>;
    /// Lets the word of a service port come from memory while the frontend that leads to it does.
    fn fetch_service(&self, _id: u32) {}
    fn frontend(&self, id: u32) -> Option<Frontend>;
}

/// What a [`IndexWord`] says: 24 bits of an entry's number, 24 of the service port that it leads to, 16 of its key's hash.
/// Zero is no word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub id: u32,
    pub service: u32,
    tag: u16,
}

/// Numbers of entries and service ports are smaller than this.
pub const LARGEST: u32 = 1 << 24;

impl Word {
    #[inline(always)]
    pub const fn of(word: IndexWord) -> Self {
        Self { id: word as u32 % LARGEST, service: (word >> 24) as u32 % LARGEST, tag: (word >> 48) as u16 }
    }

    /// The word that leads to entry `id`, which is `frontend`.
    pub fn leading_to(id: u32, frontend: &Frontend) -> Self {
        Self { id, service: frontend.service % LARGEST, tag: Hash::of(&frontend.key).tag }
    }

    pub const fn word(self) -> IndexWord {
        (self.tag as u64) << 48 | (self.service as u64) << 24 | self.id as u64
    }
}

/// Where a key may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    numbers: [u32; 2],
    /// Never zero, so no empty word has it.
    tag: u16,
}

impl Hash {
    #[inline(always)]
    pub const fn of(key: &FrontendKey) -> Self {
        // Two rounds of the finalizer of MurmurHash3. Both halves are as they are in memory: nobody but this node reads them.
        let [a, b, c, d] = key.addr.words();
        let port = (key.port.raw() as u64) << 8 | key.proto as u64;
        let high = (a as u64 | (b as u64) << 32) ^ port << 16;
        let low = c as u64 | (d as u64) << 32;
        let hash = mix(mix(high, 0xff51_afd7_ed55_8ccd) ^ low, 0xc4ce_b9fe_1a85_ec53);
        let tag = (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
        Self { numbers: [(hash >> 32) as u32, hash as u32], tag: if tag == 0 { 1 } else { tag } }
    }

    /// Its buckets, the first one first.
    #[inline(always)]
    pub const fn buckets(&self, of: u32) -> [u32; 2] {
        let [first, second] = self.numbers;
        [share(first, of), share(second, of)]
    }

    /// The word of `bucket` that may be the key's; a bucket has each tag once.
    #[inline(always)]
    pub fn word_in(&self, bucket: &Bucket) -> IndexWord {
        for word in bucket {
            if word >> 48 == u64::from(self.tag) {
                return *word;
            }
        }
        0
    }

    /// How many words a bucket has; all of them when one has this tag.
    fn used(&self, bucket: &Bucket) -> usize {
        if self.word_in(bucket) != 0 { WORDS } else { bucket.iter().filter(|word| **word != 0).count() }
    }
}

/// As far into `of` as `number` is into all numbers.
#[inline(always)]
const fn share(number: u32, of: u32) -> u32 {
    ((number as u64 * of as u64) >> 32) as u32
}

#[inline(always)]
const fn mix(number: u64, factor: u64) -> u64 {
    let number = (number ^ number >> 33).wrapping_mul(factor);
    number ^ number >> 29
}

/// The entry of `key` and its number.
#[inline(always)]
pub fn find(directory: &impl Directory, key: &FrontendKey) -> Option<(u32, Frontend)> {
    look_up(directory, key, |service| directory.fetch_service(service))
}

/// As [`find`]; `lead` learns where an entry leads that may be the one.
#[inline(always)]
fn look_up<D: Directory>(directory: &D, key: &FrontendKey, lead: impl Fn(u32)) -> Option<(u32, Frontend)> {
    let hash = Hash::of(key);
    for number in hash.buckets(directory.buckets()) {
        let word = Word::of(directory.bucket(number).map_or(0, |bucket| hash.word_in(bucket)));
        if word.tag == 0 {
            continue;
        }
        lead(word.service);
        if let Some(frontend) = directory.frontend(word.id).filter(|frontend| frontend.key == *key) {
            return Some((word.id, frontend));
        }
    }
    None
}

/// The flags ([`crate::abi::address`]) of an address that is in the tables.
#[inline(always)]
pub fn address(directory: &impl Directory, addr: &Addr) -> Option<u32> {
    look_up(directory, &FrontendKey::of_address(*addr), |_| {}).map(|(_, entry)| entry.service)
}

/// Where the word of `key` goes that has none yet: the number of a word, counted over all buckets. `None` when both of its
/// buckets are full, which takes keys made for it.
pub fn vacancy(directory: &impl Directory, key: &FrontendKey) -> Option<u32> {
    let hash = Hash::of(key);
    let [first, second] = hash.buckets(directory.buckets());
    vacancy_in([(first, directory.bucket(first)?), (second, directory.bucket(second)?)], hash)
}

fn vacancy_in(choice: [(u32, &Bucket); 2], hash: Hash) -> Option<u32> {
    let [first, second] = choice.map(|(number, bucket)| (number, bucket, hash.used(bucket)));
    let (number, bucket, used) = if first.2 < PREFERRED || first.2 <= second.2 { first } else { second };
    let at = bucket.iter().position(|word| *word == 0).filter(|_| used < WORDS)?;
    Some(number * WORDS as u32 + at as u32)
}

/// Puts words into `buckets`, of which there may be more than where they come from. A word whose key nobody knows is
/// nobody's; false when one has no room.
pub fn distribute(
    words: impl IntoIterator<Item = IndexWord>,
    key: impl Fn(u32) -> Option<FrontendKey>,
    buckets: &mut [Bucket],
) -> bool {
    let mut all = true;
    for word in words.into_iter().filter(|word| *word != 0) {
        let Some(key) = key(Word::of(word).id) else { continue };
        let hash = Hash::of(&key);
        let choice = hash.buckets(buckets.len() as u32).map(|number| (number, &buckets[number as usize]));
        match vacancy_in(choice, hash) {
            Some(place) => *word_at(buckets, place) = word,
            None => all = false,
        }
    }
    all
}

/// The word at a place, which is one of `buckets`.
pub const fn word_at(buckets: &mut [Bucket], place: u32) -> &mut IndexWord {
    &mut buckets.as_flattened_mut()[place as usize]
}

/// Whether a word for `key` may be at `place`.
pub fn may_be_at(buckets: u32, key: &FrontendKey, place: u32) -> bool {
    Hash::of(key).buckets(buckets).contains(&(place / WORDS as u32))
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::addr::Be16;

    struct Image {
        buckets: Vec<Bucket>,
        frontends: Vec<Frontend>,
    }

    impl Directory for Image {
        fn buckets(&self) -> u32 {
            self.buckets.len() as u32
        }

        fn bucket(&self, number: u32) -> Option<&Bucket> {
            self.buckets.get(number as usize)
        }

        fn frontend(&self, id: u32) -> Option<Frontend> {
            self.frontends.get(id as usize).copied()
        }
    }

    impl Image {
        fn of(entries: u32) -> Self {
            Self { buckets: vec![[0; WORDS]; buckets(entries) as usize], frontends: Vec::new() }
        }

        fn add(&mut self, key: FrontendKey) -> Option<u32> {
            let id = self.frontends.len() as u32;
            let frontend = Frontend { key, service: id % 7, kind: Frontend::KIND_CLUSTER_IP };
            let place = vacancy(self, &key)?;
            *word_at(&mut self.buckets, place) = Word::leading_to(id, &frontend).word();
            self.frontends.push(frontend);
            Some(place)
        }
    }

    fn v4(number: u32, port: u16) -> FrontendKey {
        let addr = Addr::v4((0x0a60_0000 + number).to_be_bytes());
        FrontendKey { addr, port: Be16::new(port), proto: 6, pad: 0 }
    }

    fn v6(number: u32, port: u16) -> FrontendKey {
        let addr = Addr::new((0xfd00_0010_u128 << 96 | u128::from(number)).to_be_bytes());
        FrontendKey { addr, port: Be16::new(port), proto: 17, pad: 0 }
    }

    #[test]
    fn every_key_of_a_full_table_is_found_and_no_other_is() {
        for key in [v4, v6] {
            let mut image = Image::of(40_000);
            for number in 0..20_000 {
                image.add(key(number, 80)).expect("half of the words are free");
                image.add(FrontendKey::of_address(key(number, 0).addr)).expect("half of the words are free");
            }
            for id in 0..40_000 {
                let frontend = image.frontends[id as usize];
                assert_eq!(find(&image, &frontend.key), Some((id, frontend)));
            }
            assert!((0..20_000).all(|number| find(&image, &key(number, 81)).is_none()));
        }
    }

    #[test]
    fn most_keys_are_in_their_first_bucket() {
        let mut image = Image::of(40_000);
        let is_first = |image: &mut Image, key: FrontendKey| {
            let place = image.add(key).unwrap();
            Hash::of(&key).buckets(image.buckets())[0] == place / WORDS as u32
        };
        let first = (0..40_000).filter(|number| is_first(&mut image, v4(*number, 443))).count();
        assert!(first > 35_000, "{first} of 40,000");
    }

    #[test]
    fn a_word_that_leads_to_another_key_hides_nobody() {
        let mut image = Image::of(64);
        image.add(v4(1, 80)).unwrap();
        image.add(v4(2, 80)).unwrap();
        let key = v4(1, 80);
        let [first, second] = Hash::of(&key).buckets(image.buckets());
        assert_ne!(first, second, "choose another key");
        // The word of the key moves to its second bucket; in the first one is a word with its tag for somebody else.
        let word = Word::leading_to(0, &image.frontends[0]);
        image.buckets[first as usize] = [0; WORDS];
        image.buckets[first as usize][3] = Word { id: 1, ..word }.word();
        image.buckets[second as usize][7] = word.word();
        assert_eq!(find(&image, &key).map(|(id, _)| id), Some(0));
    }

    #[test]
    fn a_key_whose_buckets_are_full_has_no_place_and_one_whose_tag_is_taken_goes_to_the_other() {
        let mut image = Image::of(64);
        let key = v4(1, 80);
        let [first, second] = Hash::of(&key).buckets(image.buckets());
        assert_ne!(first, second, "choose another key");
        image.buckets[first as usize][0] = Word { id: 9, service: 0, tag: Hash::of(&key).tag }.word();
        assert_eq!(vacancy(&image, &key).map(|place| place / WORDS as u32), Some(second));
        image.buckets[second as usize] = [u64::MAX; WORDS];
        assert_eq!(vacancy(&image, &key), None);
    }

    #[test]
    fn words_find_their_place_in_more_buckets_and_those_of_nobody_are_left_behind() {
        let mut image = Image::of(1000);
        (0..1000).for_each(|number| _ = image.add(v4(number, 80)));
        let mut more = vec![[0; WORDS]; 1000];
        let key = |id: u32| image.frontends.get(id as usize).filter(|_| id != 7).map(|frontend| frontend.key);
        assert!(distribute(image.buckets.iter().flatten().copied(), key, &mut more));
        let larger = Image { buckets: more, frontends: image.frontends.clone() };
        let is_found = |number: u32| find(&larger, &v4(number, 80)).is_some();
        assert_eq!((0..1000).filter(|number| !is_found(*number)).collect::<Vec<_>>(), [7]);
        let mut few = [[0; WORDS]; 2];
        assert!(!distribute(image.buckets.iter().flatten().copied(), key, &mut few), "there is no room for 1000");
    }

    #[test]
    fn words_say_what_was_put_into_them() {
        let frontend = Frontend { key: v6(3, 53), service: LARGEST - 1, kind: Frontend::KIND_NODE_PORT };
        let word = Word::leading_to(LARGEST - 2, &frontend);
        assert_eq!((word.id, word.service, Word::of(word.word())), (LARGEST - 2, LARGEST - 1, word));
        assert_eq!([0, 1, 4, 5].map(buckets), [1, 1, 1, 2]);
    }

    #[test]
    fn addresses_are_told_from_what_is_dialled_there() {
        let mut image = Image::of(64);
        let addr = v4(1, 0).addr;
        image.add(v4(1, 80)).unwrap();
        assert_eq!(address(&image, &addr), None);
        image.add(FrontendKey::of_address(addr)).unwrap();
        assert_eq!(address(&image, &addr), Some(1));
    }
}
