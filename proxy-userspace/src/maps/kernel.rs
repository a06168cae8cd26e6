//! The kernel's tables as a [`MapStore`].
//!
//! In: [`Op`]s and pinned maps. Out: a [`Snapshot`] by batched look-ups, and errors that name table, key and the way out.
//! Ops are written in order; only neighbours of one kind, which cannot depend on each other, share a call.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Release;

use aya::Pod;
use proxy_common::abi::{Backend, BackendStats, Bucket, Frontend, IndexWord, SLOTS_PER_PAIR, SlotPair};
use proxy_common::index::WORDS;
use proxy_common::tables::{Capacity, name};

use super::pinned::Pinned;
use super::{ApplyError, MapError, MapStore, Published, Snapshot};
use crate::bell::Rope;
use crate::plan::Op;
use crate::sys::bpf::{BatchError, Grace, Map};
use crate::sys::mapped::Mapped;

/// The pinned tables of this node.
#[derive(Debug)]
pub struct KernelStore {
    maps: Pinned,
    grace: Grace,
    rope: Rope,
}

impl KernelStore {
    /// `rope` is pulled whenever backends changed.
    pub fn new(maps: Pinned, rope: Rope) -> io::Result<Self> {
        Ok(Self { maps, grace: Grace::find()?, rope })
    }

    /// The tables themselves, for those who count and watch.
    pub fn maps(&self) -> &Pinned {
        &self.maps
    }

    /// Returns when every program that runs now has ended.
    pub fn wait_for_programs(&self) -> Result<(), MapError> {
        self.grace.wait().map_err(|source| MapError {
            table: name::SERVICE,
            action: "waiting for the programs that may read old values",
            source,
        })
    }

    fn apply_runs(&self, ops: &[Op]) -> Result<(), ApplyError> {
        let mut applied = 0;
        while applied < ops.len() {
            applied += self
                .apply_run(&ops[applied..])
                .map_err(|error| ApplyError { applied: applied + error.applied, error: error.error })?;
        }
        Ok(())
    }

    /// Applies the ops of one kind that `ops` starts with; says how many those were.
    fn apply_run(&self, ops: &[Op]) -> Result<usize, ApplyError> {
        let run = &ops[..run_length(ops)];
        match &run[0] {
            Op::Backend { .. } => self.write_backends(run)?,
            Op::Slots { .. } => self.write_slots(run)?,
            Op::Version { .. } => write(name::VERSION, &self.maps.version, run, |op| match op {
                Op::Version { number, value } => Some((*number, *value)),
                _ => None,
            })?,
            Op::Service { .. } => write(name::SERVICE, &self.maps.service, run, |op| match op {
                Op::Service { id, word } => Some((*id, *word)),
                _ => None,
            })?,
            Op::Frontend { .. } => write(name::FRONTEND, &self.maps.frontend, run, |op| match op {
                Op::Frontend { id, value } => Some((*id, *value)),
                _ => None,
            })?,
            Op::Index { .. } => self.write_index(run).map_err(|error| ApplyError { applied: 0, error })?,
            Op::Absent { .. } => write(name::ABSENT, &self.maps.absent, run, |op| match op {
                Op::Absent { index, word } => Some((*index, *word)),
                _ => None,
            })?,
            Op::AllowSource { .. } => write(name::SOURCES, &self.maps.sources, run, |op| match op {
                Op::AllowSource { key } => Some((*key, 1)),
                _ => None,
            })?,
            single => self.apply_single(single).map_err(|error| ApplyError { applied: 0, error })?,
        }
        Ok(run.len())
    }

    fn apply_single(&self, op: &Op) -> Result<(), MapError> {
        let maps = &self.maps;
        match op {
            Op::ForgetSource { key } => maps.sources.remove(key).map_err(failed(name::SOURCES, "removing", key)),
            Op::Packets { value } => maps.packets.set(&0, value.as_ref()).map_err(failed(name::PACKETS, "writing", &0)),
            Op::Config { value } => maps.config.set(&0, value.as_ref()).map_err(failed(name::CONFIG, "writing", &0)),
            Op::Grace => self.wait_for_programs(),
            batched => unreachable!("{batched:?} is written in runs"),
        }
    }

    /// STATS first: whoever meets the backend counts from zero.
    fn write_backends(&self, run: &[Op]) -> Result<(), ApplyError> {
        let fresh = run.iter().filter_map(|op| match op {
            Op::Backend { id, fresh: true, .. } => Some(*id),
            _ => None,
        });
        let ids: Vec<u32> = fresh.collect();
        let zeros = vec![BackendStats::default(); ids.len()];
        self.maps.stats.set_all(&ids, &zeros).map_err(|error| ApplyError {
            applied: 0,
            error: write_error(name::STATS, &self.maps.stats, &ids, &error),
        })?;
        write::<u32, Backend>(name::BACKENDS, &self.maps.backends, run, |op| match op {
            Op::Backend { id, value, .. } => Some((*id, *value)),
            _ => None,
        })
    }

    /// In place: a call would write whole buckets. Mapped only meanwhile, since mapped memory counts as the agent's own.
    fn write_index(&self, run: &[Op]) -> Result<(), MapError> {
        let fail = |source| MapError { table: name::INDEX, action: "mapping", source };
        let index = Mapped::new(&self.maps.index).map_err(fail)?;
        for op in run {
            let Op::Index { place, word } = op else { break };
            let (bucket, at) = (place / WORDS as u32, *place as usize % WORDS);
            let outside = || fail(io::Error::other(format!("word {place} is past its end")));
            // What the word leads to was written before.
            index.word::<AtomicU64>(bucket, at * size_of::<IndexWord>()).ok_or_else(outside)?.store(*word, Release);
        }
        Ok(())
    }

    fn write_slots(&self, run: &[Op]) -> Result<(), ApplyError> {
        let mut keys = Vec::new();
        let mut values: Vec<SlotPair> = Vec::new();
        let mut ends = Vec::with_capacity(run.len());
        for op in run {
            let Op::Slots { start, backends } = op else { break };
            assert!(start.is_multiple_of(SLOTS_PER_PAIR), "a run that begins amid a pair would change another one");
            values.extend(backends.chunks(SLOTS_PER_PAIR as usize).map(|pair| [pair[0], *pair.get(1).unwrap_or(&0)]));
            keys.extend((start / SLOTS_PER_PAIR..).take(values.len() - keys.len()));
            ends.push(keys.len());
        }
        self.maps.slots.set_all(&keys, &values).map_err(|error| ApplyError {
            applied: ends.partition_point(|end| *end <= error.index),
            error: write_error(name::SLOTS, &self.maps.slots, &keys, &error),
        })
    }
}

impl MapStore for KernelStore {
    fn capacity(&self) -> Capacity {
        self.maps.capacity()
    }

    fn read(&self) -> Result<Snapshot, MapError> {
        self.maps.read()
    }

    fn published(&self) -> Result<Published, MapError> {
        self.maps.published()
    }

    fn bucket(&self, number: u32) -> Result<Bucket, MapError> {
        element(name::INDEX, &self.maps.index, number)
    }

    fn frontend(&self, id: u32) -> Result<Frontend, MapError> {
        element(name::FRONTEND, &self.maps.frontend, id)
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        let result = self.apply_runs(ops);
        if ops.iter().any(|op| matches!(op, Op::Backend { .. })) {
            self.rope.ring();
        }
        result
    }
}

/// An element of an array, which has no gaps.
fn element<V: Pod>(table: &'static str, map: &Map<u32, V>, index: u32) -> Result<V, MapError> {
    let fail = |source| failed(table, "reading", &index)(source);
    map.get(&index).map_err(fail)?.ok_or_else(|| fail(io::Error::other("is past its end")))
}

/// How many of the leading ops may share a call: those of one kind, none of which depends on another.
fn run_length(ops: &[Op]) -> usize {
    let kind = std::mem::discriminant(&ops[0]);
    if !is_batched(&ops[0]) {
        return 1;
    }
    ops.iter().take_while(|op| std::mem::discriminant(*op) == kind).count()
}

fn is_batched(op: &Op) -> bool {
    !matches!(op, Op::ForgetSource { .. } | Op::Config { .. } | Op::Packets { .. } | Op::Grace)
}

/// Writes what `element` finds in each op of `run`.
fn write<K: Pod + std::fmt::Debug, V: Pod>(
    table: &'static str,
    map: &Map<K, V>,
    run: &[Op],
    element: impl Fn(&Op) -> Option<(K, V)>,
) -> Result<(), ApplyError> {
    let (keys, values): (Vec<K>, Vec<V>) = run.iter().filter_map(element).unzip();
    map.set_all(&keys, &values)
        .map_err(|error| ApplyError { applied: error.index, error: write_error(table, map, &keys, &error) })
}

/// The failed write of one of `keys`, with the option that helps when the table is full.
fn write_error<K: Pod + std::fmt::Debug, V: Pod>(
    table: &'static str,
    map: &Map<K, V>,
    keys: &[K],
    error: &BatchError,
) -> MapError {
    let full = matches!(error.source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC));
    let key = keys.get(error.index).map_or_else(String::new, |key| format!("key {key:?}: "));
    let entries = map.max_entries();
    let source = match option(table) {
        Some(option) if full => io::Error::new(
            error.source.kind(),
            format!("{key}the table is full ({entries} entries): raise {option} ({})", error.source),
        ),
        None if full => io::Error::new(
            error.source.kind(),
            format!("{key}the table is full ({entries} entries, no option makes it larger): {}", error.source),
        ),
        _ => io::Error::new(error.source.kind(), format!("{key}{}", error.source)),
    };
    MapError { table, action: "writing", source }
}

/// The option of `sluice run` that makes a table larger; some sizes are fixed.
pub fn option(table: &str) -> Option<&'static str> {
    Some(match table {
        name::INDEX | name::FRONTEND => "--max-frontends",
        name::SERVICE | name::VERSION => "--max-services",
        name::SLOTS | name::BACKENDS | name::STATS => "--max-backends",
        name::AFFINITY => "--max-affinity",
        name::SOCKETS => "--max-sockets",
        name::FLOWS4 | name::FLOWS6 | name::EMBRYONIC4 | name::EMBRYONIC6 => "--max-flows",
        _ => return None,
    })
}

fn failed<'a, K: std::fmt::Debug>(
    table: &'static str,
    action: &'static str,
    key: &'a K,
) -> impl FnOnce(io::Error) -> MapError + 'a {
    move |source| {
        let source = io::Error::new(source.kind(), format!("key {key:?}: {source}"));
        MapError { table, action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(id: u32) -> Op {
        Op::Service { id, word: 1 }
    }

    #[test]
    fn only_neighbours_of_one_kind_share_a_call() {
        assert_eq!(run_length(&[service(1), service(2), Op::Grace, service(3)]), 2);
        assert_eq!(run_length(&[Op::Grace, Op::Grace]), 1);
    }
}
