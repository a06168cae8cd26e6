//! One CPU changes services as fast as it can, another one chooses 10^8 times (issue section 3.8).
//!
//! The kernel side is the program `stress` of proxy-ebpf, run by `BPF_PROG_TEST_RUN`; it judges every choice where it is
//! made. This side writes as the agent does: backends, slots, version, flags of what leaves, the one word, tombstones;
//! what is superseded is reused after a grace period.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proxy_common::abi::{Backend, Frontend, FrontendKey, Range, SLOTS_PER_PAIR, SlotPair, Version};
use proxy_common::stress::{Epochs, FRONTENDS, Finding, encode, frontend};
use proxy_common::tables::{Capacity, name};
use proxy_tests::grace_period;
use proxy_tests::hooks::test_object;

const CHOICES: u64 = 100_000_000;
/// Choices per system call.
const RUN: u32 = 1_000_000;
/// Slots are given away in blocks of this many.
const MOST_MEMBERS: u32 = 8;

#[test]
fn a_hundred_million_choices_among_changing_services_are_all_valid() {
    let mut ebpf = Ebpf::load(&test_object().unwrap()).unwrap();
    let mut writer = Writer::new(&mut ebpf);
    for number in 0..FRONTENDS {
        writer.replace(number);
    }
    let findings: PerCpuArray<MapData, u64> = table(&mut ebpf, "FINDINGS");
    let program: &mut Xdp = ebpf.program_mut("stress").unwrap().try_into().unwrap();
    program.load().unwrap();

    let enough = AtomicBool::new(false);
    let changes = thread::scope(|scope| {
        let writing = scope.spawn(|| writer.change_until(&enough));
        stay_on_cpu(0);
        while count(&findings, Finding::Right) < CHOICES {
            choose(program);
        }
        enough.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });

    let counts = Finding::ALL.map(|finding| (finding, count(&findings, finding)));
    println!("{changes} changes of services met {counts:?}");
    for finding in [Finding::Refused, Finding::Foreign, Finding::Mixed, Finding::Outdated] {
        assert_eq!(count(&findings, finding), 0, "{finding:?}; {counts:?}");
    }
    // Three contradictions in a row: the price of looking again instead of locking. One in a million is rare enough.
    assert!(count(&findings, Finding::Changing) < CHOICES / 1_000_000, "{counts:?}");
    assert!(changes > 10_000, "{changes} changes put no stress on anything");
}

fn table<T: TryFrom<Map, Error: std::fmt::Debug>>(ebpf: &mut Ebpf, name: &str) -> T {
    ebpf.take_map(name).unwrap_or_else(|| panic!("no table {name}")).try_into().unwrap()
}

fn choose(program: &Xdp) {
    let options = TestRunOptions { data_in: Some(&[0; 64]), repeat: RUN, ..TestRunOptions::default() };
    program.test_run(options).unwrap();
}

fn count(findings: &PerCpuArray<MapData, u64>, finding: Finding) -> u64 {
    findings.get(&(finding as u32), 0).unwrap().iter().sum()
}

fn stay_on_cpu(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu % thread::available_parallelism().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Ids of one table: free ones, and superseded ones that wait.
struct Ids {
    free: VecDeque<u32>,
    superseded: Vec<u32>,
}

impl Ids {
    /// Ids from 1, since 0 often means none.
    fn new(count: u32) -> Self {
        Self { free: (1..count).collect(), superseded: Vec::new() }
    }

    fn take(&mut self) -> u32 {
        self.free.pop_front().expect("ids are collected before they run out")
    }

    fn collect(&mut self) {
        self.free.extend(self.superseded.drain(..));
    }
}

/// What is published under one frontend.
#[derive(Clone, Default)]
struct Current {
    frontend: u32,
    service: u32,
    version: u32,
    block: u32,
    backends: Vec<(u32, Backend)>,
    epochs: Epochs,
}

/// The writing side: tables, ids and what is where.
struct Writer {
    frontends: HashMap<MapData, FrontendKey, u32>,
    frontend: Array<MapData, Frontend>,
    service: Array<MapData, u64>,
    version: Array<MapData, Version>,
    slots: Array<MapData, SlotPair>,
    backends: Array<MapData, Backend>,
    epochs: Array<MapData, Epochs>,
    frontend_ids: Ids,
    service_ids: Ids,
    version_ids: Ids,
    block_ids: Ids,
    backend_ids: Ids,
    generation: u32,
    current: Vec<Current>,
    random: u32,
}

impl Writer {
    fn new(ebpf: &mut Ebpf) -> Self {
        let capacity = Capacity::DEFAULT;
        Self {
            frontends: table(ebpf, name::FRONTENDS),
            frontend: table(ebpf, name::FRONTEND),
            service: table(ebpf, name::SERVICE),
            version: table(ebpf, name::VERSION),
            slots: table(ebpf, name::SLOTS),
            backends: table(ebpf, name::BACKENDS),
            epochs: table(ebpf, "EPOCHS"),
            frontend_ids: Ids::new(1024),
            service_ids: Ids::new(1024),
            version_ids: Ids::new(8192),
            block_ids: Ids::new(8192),
            backend_ids: Ids::new(8192 * MOST_MEMBERS.min(capacity.backends / 8192)),
            generation: 0,
            current: vec![Current::default(); FRONTENDS as usize],
            random: 1,
        }
    }

    /// Changes services until told to stop; says how often.
    fn change_until(&mut self, enough: &AtomicBool) -> u64 {
        stay_on_cpu(1);
        let mut changes = 0;
        while !enough.load(Ordering::Relaxed) {
            let number = self.next_random() % FRONTENDS;
            if changes % 8 == 0 {
                self.replace_both(number, (number + 1) % FRONTENDS);
            } else {
                self.switch(number);
            }
            changes += 1;
            if self.block_ids.free.len() < 8 || self.service_ids.free.len() < 8 {
                self.collect();
            }
        }
        changes
    }

    /// New endpoints for the service that is there: one word.
    fn switch(&mut self, number: u32) {
        let old = self.current[number as usize].clone();
        let new = self.prepare(number, old.service, old.frontend);
        self.leave_set(&old);
        set(&mut self.service, new.service, u64::from(new.version));
        self.in_place(number, new);
        self.supersede(&old);
    }

    /// Two services go and two others come, under the same frontends: elements of FRONTENDS are recycled crosswise.
    fn replace_both(&mut self, one: u32, other: u32) {
        self.frontends.remove(&frontend(one)).unwrap();
        self.frontends.remove(&frontend(other)).unwrap();
        self.replace(other);
        self.replace(one);
    }

    /// Another service under the same frontend, with other ids for everything.
    fn replace(&mut self, number: u32) {
        let old = self.current[number as usize].clone();
        let (service, id) = (self.service_ids.take(), self.frontend_ids.take());
        let new = self.prepare(number, service, id);
        self.leave_set(&old);
        set(&mut self.service, service, u64::from(new.version));
        let key = frontend(number);
        set(&mut self.frontend, id, Frontend { key, service, kind: Frontend::KIND_CLUSTER_IP });
        self.frontends.insert(key, id, 0).unwrap();
        self.in_place(number, new);
        self.service_ids.superseded.extend(Some(old.service).filter(|id| *id != 0));
        self.frontend_ids.superseded.extend(Some(old.frontend).filter(|id| *id != 0));
        self.supersede(&old);
    }

    /// Backends, slots and a version that nobody sees yet; from now on the epoch may be met.
    fn prepare(&mut self, number: u32, service: u32, frontend: u32) -> Current {
        let begun = self.current[number as usize].epochs.begun + 1;
        let epochs = Epochs { begun, in_place: begun - 1 };
        let (version, block) = (self.version_ids.take(), self.block_ids.take());
        let members = 1 + self.next_random() % MOST_MEMBERS;
        let backends: Vec<_> = (0..members).map(|member| self.backend(number, service, begun, member)).collect();
        let start = block * MOST_MEMBERS;
        for (pair, ids) in (start / SLOTS_PER_PAIR..).zip(backends.chunks(SLOTS_PER_PAIR as usize)) {
            set(&mut self.slots, pair, [ids[0].0, ids.get(1).map_or(0, |(id, _)| *id)]);
        }
        set(&mut self.version, version, versions(service, Range { start, len: members }, number % 2));
        set(&mut self.epochs, number, epochs);
        Current { frontend, service, version, block, backends, epochs }
    }

    fn backend(&mut self, number: u32, service: u32, epoch: u32, member: u32) -> (u32, Backend) {
        let (addr, port) = encode(number, epoch, member);
        self.generation += 1;
        let flags = Backend::IN_CLUSTER_SET | Backend::SERVING;
        let backend = Backend { addr, port, flags, service, generation: self.generation, zone: 0 };
        let id = self.backend_ids.take();
        set(&mut self.backends, id, backend);
        (id, backend)
    }

    /// Before the switch, so that affinity never returns to a backend that has left.
    fn leave_set(&mut self, old: &Current) {
        for (id, backend) in &old.backends {
            set(&mut self.backends, *id, Backend { flags: Backend::SERVING, ..*backend });
        }
    }

    fn in_place(&mut self, number: u32, mut new: Current) {
        new.epochs.in_place = new.epochs.begun;
        set(&mut self.epochs, number, new.epochs);
        self.current[number as usize] = new;
    }

    fn supersede(&mut self, old: &Current) {
        if old.version != 0 {
            self.version_ids.superseded.push(old.version);
            self.block_ids.superseded.push(old.block);
            for (id, backend) in &old.backends {
                set(&mut self.backends, *id, Backend { flags: 0, generation: 0, ..*backend });
                self.backend_ids.superseded.push(*id);
            }
        }
    }

    /// Frees what is superseded: nobody reads it any more.
    fn collect(&mut self) {
        grace_period().unwrap();
        for id in &self.service_ids.superseded {
            set(&mut self.service, *id, 0);
        }
        let Self { frontend_ids, service_ids, version_ids, block_ids, backend_ids, .. } = self;
        [frontend_ids, service_ids, version_ids, block_ids, backend_ids].into_iter().for_each(Ids::collect);
    }

    /// A linear congruential generator: repeatable, and good enough to pick services.
    fn next_random(&mut self) -> u32 {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random >> 8
    }
}

fn versions(service: u32, cluster: Range, affinity_seconds: u32) -> Version {
    let (local, scheduler) = (Range::default(), Version::SCHEDULER_RANDOM);
    Version { cluster, local, affinity_seconds, flags: Version::HAS_ANY, service, scheduler }
}

fn set<V: Pod>(table: &mut Array<MapData, V>, index: u32, value: V) {
    table.set(index, value, 0).unwrap();
}
