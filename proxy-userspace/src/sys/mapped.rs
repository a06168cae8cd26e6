//! An array table as memory: looked at without copies, changed word by word while programs run.
//!
//! `BPF_MAP_UPDATE_ELEM` writes whole values, which could undo what a program writes at that moment.
#![expect(unsafe_code, reason = "memory that the kernel shares")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::Pod;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::bpf::Map;

/// What can be changed in place.
///
/// # Safety
/// An atomic integer: any bytes are a value, as aligned as it is large.
pub unsafe trait Word {}

// SAFETY: atomic integers.
unsafe impl Word for AtomicU32 {}
// SAFETY: atomic integers.
unsafe impl Word for AtomicU64 {}

/// The memory of an array made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub struct Mapped<V> {
    values: NonNull<V>,
    bytes: NonZeroUsize,
    entries: u32,
}

impl<V: Pod> Mapped<V> {
    pub fn new(map: &Map<u32, V>) -> io::Result<Self> {
        const { assert!(size_of::<V>().is_multiple_of(8), "the kernel lets each value begin a whole word") };
        let entries = map.max_entries();
        let bytes = NonZeroUsize::new(entries as usize * size_of::<V>()).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice; it refuses more bytes than the array has.
        let values = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, map.as_fd(), 0) }?.cast();
        Ok(Self { values, bytes, entries })
    }

    /// A copy of a value; a program may write to it meanwhile.
    pub fn get(&self, index: u32) -> Option<V> {
        let value = self.value(index)?;
        // SAFETY: in bounds, aligned, and any bytes are a value.
        Some(unsafe { value.read_volatile() })
    }

    /// Copies of all values.
    pub fn values(&self) -> impl Iterator<Item = (u32, V)> {
        (0..self.entries).filter_map(|index| Some((index, self.get(index)?)))
    }

    /// Copies of the values in use: those whose word at `offset` (`offset_of!`) is not zero. Of the others, which are most,
    /// only that word is read.
    pub fn used(&self, offset: usize) -> impl Iterator<Item = (u32, V)> {
        let used =
            move |index: &u32| self.word::<AtomicU64>(*index, offset).is_some_and(|word| word.load(Relaxed) != 0);
        (0..self.entries).filter(used).filter_map(|index| Some((index, self.get(index)?)))
    }

    /// The word at `offset` (`offset_of!`) of a value.
    pub fn word<W: Word>(&self, index: u32, offset: usize) -> Option<&W> {
        assert!(offset.is_multiple_of(size_of::<W>()) && offset < size_of::<V>(), "a word of the value");
        let value = self.value(index)?;
        // SAFETY: in bounds and aligned; programs write to such words in one piece.
        Some(unsafe { value.byte_add(offset).cast().as_ref() })
    }

    fn value(&self, index: u32) -> Option<NonNull<V>> {
        // SAFETY: the mapping holds `entries` values.
        (index < self.entries).then(|| unsafe { self.values.add(index as usize) })
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; references to it have ended.
        let _ = unsafe { munmap(self.values.cast(), self.bytes.get()) };
    }
}
