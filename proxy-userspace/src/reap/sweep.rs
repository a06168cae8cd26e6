//! Slots of SOCKETS whose socket is gone, and what they did to the count of open connections.
//!
//! The release hook frees a slot, but the kernel does not run it for its own sockets and for subflows of Multipath TCP,
//! and it was not there while the programs were detached. So from time to time:
//!
//! ```text
//! SOCKETS, then the sockets of every network namespace -> records whose socket nobody has
//!     the same records twice in a row                  -> free them, as the release hook does
//! SOCKETS, STATS                                       -> how far `open` is off; twice the same -> put right
//! ```
//!
//! Two looks, because a socket that is just connecting is not yet listed, and a list is not made in one moment. What no
//! list ever shows is neither bound nor connected: a TCP socket that is closed, a UDP socket that was disconnected. Its
//! record answers no question any more, and the next dial writes a new one.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use proxy_common::abi::{BackendStats, SocketFlow};

use super::diag::{self, Identity};
use super::owners::{Namespaces, may_look_into};
use crate::attach::cgroup::{self, Cgroup};
use crate::attach::pins::Folder;
use crate::maps::pinned::Pinned;
use crate::sys::bpf::{Pin, link_info};
use crate::sys::mapped::Mapped;
use crate::sys::net::in_namespace;

/// A taken slot. What is dialled again is another record: `used` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    slot: u32,
    cookie: u64,
    used: u64,
    backend: u32,
    generation: u32,
}

/// What one look freed and put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    pub slots: usize,
    pub gauges: usize,
}

/// Remembers what the last look suspected.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    missing: HashSet<Record>,
    drift: HashMap<u32, i32>,
}

impl Sweeper {
    /// Looks once; what the look before found too is acted upon.
    pub(super) fn look(&mut self, folder: &Folder, maps: &Pinned) -> anyhow::Result<Swept> {
        let sockets = Mapped::new(&maps.sockets).context("map SOCKETS")?;
        let stats = Mapped::new(&maps.stats).context("map STATS")?;
        let before = counters(&stats);
        let taken = records(&sockets);
        let after = counters(&stats);

        let drift = drift(&open_flows(maps, &taken, &before)?, &before, &after);
        let settled = same(&self.drift, &drift);
        for (backend, by) in &settled {
            add(&stats, *backend, *by);
        }

        let missing = without_socket(folder, taken)?;
        let gone: HashSet<Record> = self.missing.intersection(&missing).copied().collect();
        let freed = gone.iter().filter(|record| free(maps, &sockets, &stats, record)).count();

        self.missing = missing.difference(&gone).copied().collect();
        self.drift = drift.into_iter().filter(|(backend, _)| !settled.contains_key(backend)).collect();
        Ok(Swept { slots: freed, gauges: settled.len() })
    }
}

fn records(sockets: &Mapped<SocketFlow>) -> Vec<Record> {
    let record = |(slot, flow): (u32, SocketFlow)| {
        let SocketFlow { cookie, used, backend, generation, .. } = flow;
        Record { slot, cookie, used, backend, generation }
    };
    sockets.used(offset_of!(SocketFlow, cookie)).map(record).collect()
}

/// Those of `taken` whose socket is in no network namespace.
///
/// When something is missing in those that have a name, the others are looked for: a socket keeps its namespace alive, and
/// somebody has the socket open. That somebody is below the cgroup of the hooks, or there would be no record.
fn without_socket(folder: &Folder, taken: Vec<Record>) -> anyhow::Result<HashSet<Record>> {
    if taken.is_empty() {
        return Ok(HashSet::new());
    }
    let namespaces = Namespaces::find();
    let mut seen = HashSet::new();
    for namespace in namespaces.iter() {
        seen.extend(sockets_in(&namespace.file)?);
    }
    let mut missing = missing(taken, &seen);
    if !missing.is_empty() {
        let (pids, known) = (hooked_processes(folder)?, seen.iter().map(|socket| socket.inode).collect());
        for namespace in namespaces.held_by_sockets(&pids, &known).context("find out whose open sockets are")? {
            let found = sockets_in(&namespace)?.into_iter().collect();
            missing = self::missing(missing, &found);
        }
    }
    Ok(missing.into_iter().collect())
}

/// The processes whose sockets meet the hooks; an error when one of them is out of sight.
fn hooked_processes(folder: &Folder) -> anyhow::Result<Vec<u32>> {
    let link = Pin::open(&folder.links().join("sock_release"))?;
    let id = link_info(link.fd.as_fd()).context("ask for the cgroup of the hooks")?.cgroup_id;
    let cgroup = Cgroup::with_id(id)?.with_context(|| format!("no cgroup2 mount shows cgroup {id} of the hooks"))?;
    // A folder that went has no processes, and one of threads lists them further up.
    let lists = cgroup::tree(cgroup).filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok());
    let pids: Vec<u32> = lists.flat_map(|list| pids(&list)).collect();
    // The kernel gives those of other PID namespaces the number 0.
    ensure!(!pids.contains(&0), "processes of the node are out of sight: run in its PID namespace (hostPID)");
    if let Some(pid) = pids.iter().find(|pid| !may_look_into(**pid)) {
        bail!("process {pid} is closed to us: grant CAP_SYS_PTRACE");
    }
    Ok(pids)
}

fn pids(list: &str) -> Vec<u32> {
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

fn sockets_in(namespace: &File) -> anyhow::Result<Vec<Identity>> {
    in_namespace(namespace, diag::sockets).context("enter a network namespace")?.context("list its sockets")
}

fn missing(taken: Vec<Record>, found: &HashSet<Identity>) -> Vec<Record> {
    let cookies: HashSet<u64> = found.iter().map(|socket| socket.cookie).collect();
    taken.into_iter().filter(|record| !cookies.contains(&record.cookie)).collect()
}

/// Frees the slot as the release hook does, unless it holds another record by now.
///
/// Only the cookie is changed: a whole value could undo what a program writes. A closed socket that dials again between the
/// two looks at its slot in here loses its record; then its peer is named by the backend's address.
fn free(maps: &Pinned, sockets: &Mapped<SocketFlow>, stats: &Mapped<BackendStats>, record: &Record) -> bool {
    let same = sockets.get(record.slot).is_some_and(|flow| flow.used == record.used);
    let cookie = sockets.word::<AtomicU64>(record.slot, offset_of!(SocketFlow, cookie)).filter(|_| same);
    // The cookie is what makes a slot somebody's: whoever takes it meanwhile wins.
    let freed = cookie
        .is_some_and(|cookie| cookie.compare_exchange(record.cookie, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    if freed && generation_of(maps, record.backend).is_ok_and(|now| now == Some(record.generation)) {
        add(stats, record.backend, -1);
    }
    freed
}

fn generation_of(maps: &Pinned, backend: u32) -> std::io::Result<Option<u32>> {
    Ok(maps.backends.get(&backend)?.map(|backend| backend.generation))
}

fn counters(stats: &Mapped<BackendStats>) -> HashMap<u32, BackendStats> {
    stats.values().filter(|(_, stats)| *stats != BackendStats::default()).collect()
}

/// Moves a gauge; a connection that is opened or closed meanwhile is counted all the same.
fn add(stats: &Mapped<BackendStats>, backend: u32, by: i32) {
    if let Some(open) = stats.word::<AtomicU32>(backend, offset_of!(BackendStats, open)) {
        open.fetch_add(by.cast_unsigned(), Ordering::Relaxed);
    }
}

/// How many slots each backend in use has; a slot of an id that was given away since belongs to no backend.
fn open_flows(
    maps: &Pinned,
    taken: &[Record],
    stats: &HashMap<u32, BackendStats>,
) -> anyhow::Result<HashMap<u32, i32>> {
    let ids: HashSet<u32> = taken.iter().map(|record| record.backend).chain(stats.keys().copied()).collect();
    let mut generations = HashMap::new();
    for id in ids {
        let generation = generation_of(maps, id).context("read BACKENDS")?;
        generations.extend(generation.filter(|generation| *generation != 0).map(|generation| (id, generation)));
    }
    let mut open: HashMap<u32, i32> = generations.keys().map(|id| (*id, 0)).collect();
    for record in taken.iter().filter(|record| generations.get(&record.backend) == Some(&record.generation)) {
        *open.entry(record.backend).or_default() += 1;
    }
    Ok(open)
}

/// How far each gauge is off, of those backends that nobody came to or left while slots were counted.
fn drift(
    open: &HashMap<u32, i32>,
    before: &HashMap<u32, BackendStats>,
    after: &HashMap<u32, BackendStats>,
) -> HashMap<u32, i32> {
    let off = |(id, open): (&u32, &i32)| {
        let at_rest = before.get(id).filter(|stats| Some(*stats) == after.get(id));
        let by = open.wrapping_sub(at_rest?.open.cast_signed());
        (by != 0).then_some((*id, by))
    };
    open.iter().filter_map(off).collect()
}

/// What two looks agree on. A gauge that was read while a hook was about to move it is not off by as much a second time.
fn same(last: &HashMap<u32, i32>, now: &HashMap<u32, i32>) -> HashMap<u32, i32> {
    now.iter().filter(|(id, by)| last.get(id) == Some(by)).map(|(id, by)| (*id, *by)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record = Record { slot: 7, cookie: 71, used: 1000, backend: 3, generation: 2 };

    fn found(cookies: &[u64]) -> HashSet<Identity> {
        cookies.iter().map(|cookie| Identity { cookie: *cookie, inode: 0 }).collect()
    }

    #[test]
    fn a_record_is_missing_while_no_namespace_has_its_socket() {
        let other = Record { slot: 8, cookie: 72, ..RECORD };
        assert_eq!(missing(vec![RECORD, other], &found(&[72, 5])), [RECORD]);
        assert_eq!(missing(vec![RECORD, other], &found(&[])), [RECORD, other]);
        assert_eq!(missing(vec![RECORD], &found(&[71])), []);
    }

    #[test]
    fn a_socket_that_dialled_again_or_another_one_in_the_slot_is_a_new_suspect() {
        let last = HashSet::from([RECORD]);
        for now in [Record { used: 1001, ..RECORD }, Record { cookie: 65_607, ..RECORD }] {
            assert_eq!(last.intersection(&HashSet::from([now])).count(), 0, "{now:?}");
        }
        assert_eq!(last.intersection(&HashSet::from([RECORD])).count(), 1);
    }

    fn stats(open: u32) -> HashMap<u32, BackendStats> {
        HashMap::from([(3, BackendStats { total: 10, open })])
    }

    #[test]
    fn a_gauge_is_off_by_what_the_slots_say() {
        let open = HashMap::from([(3, 2)]);
        assert_eq!(drift(&open, &stats(5), &stats(5)), HashMap::from([(3, -3)]));
        assert_eq!(drift(&open, &stats(2), &stats(2)), HashMap::new());
        let below_zero = u32::MAX;
        assert_eq!(drift(&open, &stats(below_zero), &stats(below_zero)), HashMap::from([(3, 3)]));
    }

    #[test]
    fn a_backend_that_was_dialled_or_left_meanwhile_is_not_judged() {
        let open = HashMap::from([(3, 2)]);
        assert_eq!(drift(&open, &stats(5), &stats(4)), HashMap::new());
        let dialled_and_left = HashMap::from([(3, BackendStats { total: 11, open: 5 })]);
        assert_eq!(drift(&open, &stats(5), &dialled_and_left), HashMap::new());
    }

    #[test]
    fn only_what_two_looks_agree_on_is_put_right() {
        let (one, two) = (HashMap::from([(3, -1), (4, 2)]), HashMap::from([(3, -2), (4, 2), (5, 1)]));
        assert_eq!(same(&one, &two), HashMap::from([(4, 2)]));
        assert_eq!(same(&HashMap::new(), &two), HashMap::new());
    }
}
