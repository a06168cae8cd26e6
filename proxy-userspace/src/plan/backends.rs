//! Backends as the kernel holds them, by id: where they are, their flags, and how often their id was given away. Ids are
//! dense, so one table holds all, and a service port only says which are its own.

use proxy_common::addr::{Addr, Be16};

use super::change::HeldBackend;
use super::make_room;

#[derive(Debug, Default)]
pub(super) struct Backends(Vec<Entry>);

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    addr: Addr,
    port: Be16,
    flags: u16,
    /// The last one; it outlives who had the id.
    generation: u32,
}

impl Backends {
    pub(super) fn get(&self, id: u32) -> HeldBackend {
        let Entry { addr, port, flags, .. } = self.0[id as usize];
        HeldBackend { addr, port, flags, id }
    }

    pub(super) fn all(&self, ids: &[u32]) -> Vec<HeldBackend> {
        ids.iter().map(|id| self.get(*id)).collect()
    }

    pub(super) fn set(&mut self, backend: HeldBackend) {
        let HeldBackend { addr, port, flags, id } = backend;
        let entry = self.entry(id);
        *entry = Entry { addr, port, flags, generation: entry.generation };
    }

    /// 0 when the id was never given away.
    pub(super) fn generation(&self, id: u32) -> u32 {
        self.0.get(id as usize).map_or(0, |entry| entry.generation)
    }

    pub(super) fn set_generation(&mut self, id: u32, generation: u32) {
        self.entry(id).generation = generation;
    }

    fn entry(&mut self, id: u32) -> &mut Entry {
        let index = id as usize;
        if self.0.len() <= index {
            make_room(&mut self.0, index + 1);
            self.0.resize(index + 1, Entry::default());
        }
        &mut self.0[index]
    }
}
