//! INDEX and FRONTEND as far as a plan needs them: who has each key, and where its word is.
//!
//! The tables themselves are the only place where all of this is kept. A plan for everything reads them whole; one for a few
//! keys reads their buckets and the entries that may be theirs. What is planned changes this copy, and with the last
//! write it is let go.

use std::fmt;

use proxy_common::abi::{Bucket, Frontend, FrontendKey, IndexWord};
use proxy_common::addr::Addr;
use proxy_common::index::{self, Directory, Hash, WORDS, Word};

use super::{Op, UNUSED_FRONTEND};
use crate::hash::HashMap;
use crate::maps::{MapError, MapStore};

pub(super) struct Index {
    /// How many buckets there are.
    buckets: u32,
    copy: Copied,
    /// Keys came together that this many buckets cannot hold: there must be room for so many entries, whatever else is
    /// needed.
    crowded: u32,
    /// Places of words that lead nowhere. Here they are free.
    damaged: Vec<u32>,
}

enum Copied {
    /// Frontends by id; what no word leads to is unused.
    Whole { buckets: Vec<Bucket>, frontends: Vec<Frontend> },
    /// Buckets by number, frontends by id.
    Part { buckets: HashMap<u32, Bucket>, frontends: HashMap<u32, Frontend> },
}

/// With fewer buckets for each key that is asked about, all of them are read at once: a thousand of a call.
const BUCKETS_PER_KEY: u32 = 8;

/// Who has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) id: u32,
    /// Flags where an address is meant.
    pub(super) service: u32,
    pub(super) kind: u32,
}

impl Index {
    /// Empty, with room for so many entries.
    pub(super) fn new(entries: u32) -> Self {
        Self::of(vec![[0; WORDS]; index::buckets(entries) as usize])
    }

    fn of(buckets: Vec<Bucket>) -> Self {
        let number = buckets.len() as u32;
        Self {
            buckets: number,
            copy: Copied::Whole { buckets, frontends: Vec::new() },
            crowded: 0,
            damaged: Vec::new(),
        }
    }

    /// What the tables hold. `entry` is the entry with this number, if it is sound.
    pub(super) fn restore(buckets: &[Bucket], entry: impl Fn(u32) -> Option<Frontend>) -> Self {
        let mut index = Self::of(vec![[0; WORDS]; buckets.len()]);
        for (place, &word) in (0..).zip(buckets.as_flattened()).filter(|(_, word)| **word != 0) {
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
        same && index::may_be_at(self.buckets, &frontend.key, place) && self.get(&frontend.key).is_none()
    }

    /// Forgets what the tables hold anyway, once all that was planned is written.
    pub(super) fn rest(&mut self) {
        self.copy = Copied::Part { buckets: HashMap::default(), frontends: HashMap::default() };
    }

    /// Reads what may be asked about `keys`; nothing where everything is known, and everything for many.
    pub(super) fn read(&mut self, keys: &[FrontendKey], tables: &impl MapStore) -> Result<(), MapError> {
        if keys.len() as u32 >= self.buckets.div_ceil(BUCKETS_PER_KEY) {
            return self.read_all(tables);
        }
        let Copied::Part { buckets, frontends } = &mut self.copy else { return Ok(()) };
        for key in keys {
            let hash = Hash::of(key);
            for number in hash.buckets(self.buckets) {
                let bucket = match buckets.get(&number) {
                    Some(bucket) => *bucket,
                    None => *buckets.entry(number).or_insert(tables.bucket(number)?),
                };
                let id = Word::of(hash.word_in(&bucket)).id;
                if id != 0 && !frontends.contains_key(&id) {
                    frontends.insert(id, tables.frontend(id)?);
                }
            }
        }
        Ok(())
    }

    /// Reads everything, unless it is known.
    pub(super) fn read_all(&mut self, tables: &impl MapStore) -> Result<(), MapError> {
        if matches!(self.copy, Copied::Part { .. }) {
            let (buckets, entries) = tables.published()?;
            let mut frontends = vec![UNUSED_FRONTEND; entries.last().map_or(0, |(id, _)| *id as usize + 1)];
            for (id, frontend) in entries {
                frontends[id as usize] = frontend;
            }
            self.copy = Copied::Whole { buckets, frontends };
        }
        Ok(())
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
        let Copied::Whole { buckets, frontends } = &self.copy else { panic!("who asks for all has read all") };
        let ids = buckets.as_flattened().iter().filter(|word| **word != 0).map(|word| Word::of(*word).id);
        ids.filter_map(|id| Some((id, frontends.get(id as usize)?)))
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
        self.try_places(keys).or_else(|| {
            let larger = index::entries(self.buckets).saturating_mul(2).min(limit);
            if index::buckets(larger) <= self.buckets {
                return None;
            }
            // Any will do: what is planned for tables that become larger goes nowhere, see [`super::Ledger::required`].
            self.crowded = self.crowded.max(larger);
            Some(keys.iter().map(|key| Hash::of(key).buckets(self.buckets)[0] * WORDS as u32).collect())
        })
    }

    fn try_places(&mut self, keys: &[FrontendKey]) -> Option<Vec<u32>> {
        let mut places = Vec::with_capacity(keys.len());
        let mut fresh = Vec::new();
        for key in keys {
            let place = self.place(key).or_else(|| {
                let place = index::vacancy(self, key)?;
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
        let mut words = Hash::of(key).buckets(self.buckets).into_iter().flat_map(|number| {
            let first = number * WORDS as u32;
            (first..).zip(self.bucket(number).into_iter().flatten())
        });
        words.find(of_key).map(|(place, _)| place)
    }

    /// Puts an entry where [`Self::places`] found room.
    pub(super) fn publish(&mut self, place: u32, id: u32, frontend: Frontend) -> Op {
        self.put(place, id, frontend);
        Op::Index { place, word: *self.word(place) }
    }

    /// Takes away the word of a key, which has one.
    pub(super) fn withdraw(&mut self, key: &FrontendKey) -> Op {
        let place = self.place(key).expect("the caller found it");
        *self.word(place) = 0;
        Op::Index { place, word: 0 }
    }

    fn put(&mut self, place: u32, id: u32, frontend: Frontend) {
        match &mut self.copy {
            Copied::Whole { frontends, .. } => {
                if frontends.len() <= id as usize {
                    frontends.resize(id as usize + 1, UNUSED_FRONTEND);
                }
                frontends[id as usize] = frontend;
            }
            Copied::Part { frontends, .. } => _ = frontends.insert(id, frontend),
        }
        *self.word(place) = Word::leading_to(id, &frontend).word();
    }

    fn word(&mut self, place: u32) -> &mut IndexWord {
        match &mut self.copy {
            Copied::Whole { buckets, .. } => index::word_at(buckets, place),
            Copied::Part { buckets, .. } => {
                let bucket = buckets.get_mut(&(place / WORDS as u32)).expect(READ);
                &mut bucket[place as usize % WORDS]
            }
        }
    }

    /// Entries that the tables must have room for, beside those that have ids.
    pub(super) fn required(&self) -> u32 {
        self.crowded
    }
}

const READ: &str = "who plans for a key has read its buckets";

/// An entry of `key` that leads nowhere.
fn unnamed(key: &FrontendKey) -> Frontend {
    Frontend { key: *key, service: 0, kind: Frontend::KIND_UNUSED }
}

impl Directory for Index {
    fn buckets(&self) -> u32 {
        self.buckets
    }

    fn bucket(&self, number: u32) -> Option<&Bucket> {
        match &self.copy {
            Copied::Whole { buckets, .. } => buckets.get(number as usize),
            Copied::Part { buckets, .. } => Some(buckets.get(&number).expect(READ)),
        }
    }

    fn frontend(&self, id: u32) -> Option<Frontend> {
        match &self.copy {
            Copied::Whole { frontends, .. } => frontends.get(id as usize).copied(),
            Copied::Part { frontends, .. } => frontends.get(&id).copied(),
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.copy {
            Copied::Whole { .. } => f.debug_map().entries(self.iter()).finish(),
            Copied::Part { .. } => write!(f, "Index of {} buckets", self.buckets),
        }
    }
}
