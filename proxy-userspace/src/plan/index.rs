//! INDEX and FRONTEND as the kernel holds them: who has each key, and where its word is.

use std::fmt;

use proxy_common::abi::{Bucket, Frontend, FrontendKey, IndexWord};
use proxy_common::addr::Addr;
use proxy_common::index::{self, Directory, WORDS, Word};

use super::Op;

pub(super) struct Index {
    buckets: Vec<Bucket>,
    /// By id; what no word leads to is unused.
    frontends: Vec<Frontend>,
    /// How many keys there are.
    len: usize,
    /// Keys came together that this many buckets cannot hold: there must be more, whatever else is needed.
    crowded: bool,
    /// Places of words that lead nowhere. Here they are free.
    damaged: Vec<u32>,
}

/// Who has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) id: u32,
    /// Flags where an address is meant.
    pub(super) service: u32,
    pub(super) kind: u32,
}

impl Index {
    /// With room for so many entries.
    pub(super) fn new(entries: u32) -> Self {
        let buckets = vec![[0; WORDS]; index::buckets(entries) as usize];
        Self { buckets, frontends: Vec::new(), len: 0, crowded: false, damaged: Vec::new() }
    }

    /// What the tables hold. `entry` is the entry with this number, if it is sound.
    pub(super) fn restore(buckets: &[Bucket], entry: impl Fn(u32) -> Option<Frontend>) -> Self {
        let empty = vec![[0; WORDS]; buckets.len()];
        let mut index = Self { buckets: empty, frontends: Vec::new(), len: 0, crowded: false, damaged: Vec::new() };
        for (place, &word) in (0..).zip(buckets.iter().flatten()).filter(|(_, word)| **word != 0) {
            let id = Word::of(word).id;
            let frontend = entry(id).filter(|frontend| index.is_right(place, word, id, frontend));
            match frontend {
                Some(frontend) => index.put(place, id, frontend),
                None => index.damaged.push(place),
            }
        }
        index
    }

    fn is_right(&self, place: u32, word: IndexWord, id: u32, frontend: &Frontend) -> bool {
        let same = Word::of(word) == Word::leading_to(id, frontend);
        same && index::may_be_at(self.buckets(), &frontend.key, place) && self.get(&frontend.key).is_none()
    }

    pub(super) fn damaged(&self) -> &[u32] {
        &self.damaged
    }

    /// Clears what was found damaged and has not been written anew.
    pub(super) fn repair(&mut self) -> Vec<Op> {
        let damaged = std::mem::take(&mut self.damaged);
        let unused = damaged.into_iter().filter(|place| *self.word(*place) == 0);
        unused.map(|place| Op::Index { place, word: 0 }).collect()
    }

    pub(super) fn get(&self, key: &FrontendKey) -> Option<Holding> {
        let (id, Frontend { service, kind, .. }) = index::find(self, key)?;
        Some(Holding { id, service, kind })
    }

    /// Every entry with its id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Frontend)> {
        let words = self.buckets.iter().flatten().filter(|word| **word != 0);
        words.map(|word| Word::of(*word).id).map(|id| (id, &self.frontends[id as usize]))
    }

    /// Those that are dialled.
    pub(super) fn dialled(&self) -> impl Iterator<Item = (u32, &Frontend)> {
        self.iter().filter(|(_, entry)| entry.kind != Frontend::KIND_ADDRESS)
    }

    /// Addresses with their flags.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (Addr, u32)> {
        let addresses = self.iter().filter(|(_, entry)| entry.kind == Frontend::KIND_ADDRESS);
        addresses.map(|(_, entry)| (entry.key.addr, entry.service))
    }

    /// Places for `keys`: where they have a word, that is the one. `None` when there is no room below `limit` entries.
    pub(super) fn places(&mut self, keys: &[FrontendKey], limit: u32) -> Option<Vec<u32>> {
        loop {
            if let Some(places) = self.try_places(keys) {
                return Some(places);
            }
            if !self.enlarge(limit) {
                return None;
            }
        }
    }

    fn try_places(&mut self, keys: &[FrontendKey]) -> Option<Vec<u32>> {
        let mut places = Vec::with_capacity(keys.len());
        let mut fresh = Vec::new();
        for key in keys {
            let place = self.place(key).or_else(|| {
                let place = index::vacancy(&self.buckets, key)?;
                // Nobody else gets it meanwhile, and its tag counts.
                *self.word(place) = Word::leading_to(0, &unnamed(key)).word();
                fresh.push(place);
                Some(place)
            });
            places.extend(place);
        }
        for place in fresh {
            *self.word(place) = 0;
        }
        (places.len() == keys.len()).then_some(places)
    }

    /// Where the word of `key` is.
    fn place(&self, key: &FrontendKey) -> Option<u32> {
        let holding = self.get(key)?;
        let of_key = |(_, word): &(u32, &IndexWord)| **word != 0 && Word::of(**word).id == holding.id;
        let mut words = index::Hash::of(key).buckets(self.buckets()).into_iter().flat_map(|number| {
            let first = number * WORDS as u32;
            (first..).zip(&self.buckets[number as usize])
        });
        words.find(of_key).map(|(place, _)| place)
    }

    /// Puts an entry where [`Self::places`] found room.
    pub(super) fn publish(&mut self, place: u32, id: u32, frontend: Frontend) -> Op {
        self.len -= usize::from(*self.word(place) != 0);
        self.put(place, id, frontend);
        Op::Index { place, word: *self.word(place) }
    }

    /// Takes away the word of a key, which has one.
    pub(super) fn withdraw(&mut self, key: &FrontendKey) -> Op {
        let place = self.place(key).expect("the caller found it");
        *self.word(place) = 0;
        self.len -= 1;
        Op::Index { place, word: 0 }
    }

    fn put(&mut self, place: u32, id: u32, frontend: Frontend) {
        if self.frontends.len() <= id as usize {
            self.frontends.resize(id as usize + 1, super::UNUSED_FRONTEND);
        }
        self.frontends[id as usize] = frontend;
        *self.word(place) = Word::leading_to(id, &frontend).word();
        self.len += 1;
    }

    fn word(&mut self, place: u32) -> &mut IndexWord {
        let place = place as usize;
        &mut self.buckets[place / WORDS][place % WORDS]
    }

    /// As in larger tables: what was planned for these goes nowhere, see [`super::Ledger::required`].
    fn enlarge(&mut self, limit: u32) -> bool {
        let is_for = index::entries(self.buckets());
        let larger = index::buckets(is_for.saturating_mul(2).min(limit));
        if larger <= self.buckets() {
            return false;
        }
        let mut larger = vec![[0; WORDS]; larger as usize];
        for (id, frontend) in self.iter() {
            let Some(place) = index::vacancy(&larger, &frontend.key) else { return false };
            larger[place as usize / WORDS][place as usize % WORDS] = Word::leading_to(id, frontend).word();
        }
        self.crowded |= self.len < is_for as usize;
        self.buckets = larger;
        true
    }

    /// Entries that the tables must have room for, beside those that have ids.
    pub(super) fn required(&self) -> u32 {
        if self.crowded { index::entries(self.buckets()) } else { 0 }
    }
}

/// An entry of `key` that leads nowhere.
fn unnamed(key: &FrontendKey) -> Frontend {
    Frontend { key: *key, service: 0, kind: Frontend::KIND_UNUSED }
}

impl Directory for Index {
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

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
