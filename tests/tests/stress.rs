//! One CPU changes services as fast as it can, another one chooses 10^8 times: the agent's own planning and writing
//! against the kernel's own choosing.
//!
//! The writing side is the agent's: a [`Converger`] over the pinned tables. The choosing side is the program `stress` of
//! proxy-ebpf, run by `BPF_PROG_TEST_RUN`; it judges every choice where it is made. A writer that takes its steps in
//! another order must be found out.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proxy_common::abi::{Bucket, Frontend};
use proxy_common::stress::{Epochs, FRONTENDS, Finding, endpoint, frontend, port};
use proxy_common::tables::Capacity;
use proxy_tests::hooks::test_object;
use proxy_tests::world::{PINS, World};
use proxy_userspace::bell::Rope;
use proxy_userspace::converge::Converger;
use proxy_userspace::desired::ThisNode;
use proxy_userspace::maps::kernel::KernelStore;
use proxy_userspace::maps::pinned::{Entries, Pinned, layouts};
use proxy_userspace::maps::{ApplyError, MapError, MapStore, Published, Snapshot};
use proxy_userspace::model::build::{Service, Slice, service, slice};
use proxy_userspace::model::{Change, Event};
use proxy_userspace::plan::Op;

const CHOICES: u64 = 100_000_000;
/// Fewer put no stress on anything; how long one takes depends on who else is on the machine.
const CHANGES: u64 = 10_000;
/// Choices per system call. No grace period ends during one, unless somebody else wants the CPU: with more, an idle machine
/// would be the slowest.
const RUN: u32 = 100_000;
/// Each test is a race between two CPUs: three of them at once on two CPUs take twice as long as one after the other, and
/// a writer that hardly runs stresses nobody.
static ALONE: Mutex<()> = Mutex::new(());
/// How many changes share a grace period, which takes much longer than they do.
const SHARING: u64 = 8;
const MOST_MEMBERS: u32 = 8;

/// So small that every id is soon somebody else's.
const CAPACITY: Capacity = Capacity { versions: 256, slots: 4096, backends: 2048, sockets: 1024, ..Capacity::DEFAULT };

#[test]
fn a_hundred_million_choices_among_changing_services_are_all_valid() {
    let enough = |changes, findings: &Findings| findings.right() >= CHOICES && changes >= CHANGES;
    let (changes, findings) = stress(SHARING, |store| store, enough);
    println!("{changes} changes of services met {findings:?}");
    assert!(findings.are_sound(), "{findings:?}");
    assert!(changes >= CHANGES && findings.right() >= CHOICES, "the writer stopped early");
}

#[test]
fn a_writer_that_switches_before_it_has_written_the_slots_is_found_out() {
    is_found_out(|ops| {
        let is_switch = |op: &Op| matches!(op, Op::Version { .. } | Op::Service { .. });
        let (switches, others): (Vec<Op>, Vec<Op>) = ops.iter().cloned().partition(is_switch);
        [switches, others].concat()
    });
}

#[test]
fn a_writer_that_gives_ids_away_without_a_grace_period_is_found_out() {
    is_found_out(|ops| ops.iter().filter(|op| !matches!(op, Op::Grace)).cloned().collect());
}

fn is_found_out(reorder: fn(&[Op]) -> Vec<Op>) {
    let enough = |_, findings: &Findings| !findings.are_sound() || findings.right() >= CHOICES;
    let (changes, findings) = stress(1, |store| Broken { store, reorder }, enough);
    println!("{changes} changes of services met {findings:?}");
    assert!(!findings.are_sound(), "{findings:?}");
}

/// A store that takes the steps of a change in another order than it should.
struct Broken {
    store: KernelStore,
    reorder: fn(&[Op]) -> Vec<Op>,
}

impl MapStore for Broken {
    fn capacity(&self) -> Capacity {
        self.store.capacity()
    }

    fn read(&self) -> Result<Snapshot, MapError> {
        self.store.read()
    }

    fn published(&self) -> Result<Published, MapError> {
        self.store.published()
    }

    fn bucket(&self, number: u32) -> Result<Bucket, MapError> {
        self.store.bucket(number)
    }

    fn frontend(&self, id: u32) -> Result<Frontend, MapError> {
        self.store.frontend(id)
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        self.store.apply(&(self.reorder)(ops))
    }
}

/// Changes services in the store that `broken` makes of the agent's own, and chooses, until `enough`; says how many
/// changes there were and what choices turned out to be. After `sharing` changes, what they took out of use is used again.
fn stress<S: MapStore + Send>(
    sharing: u64,
    broken: impl FnOnce(KernelStore) -> S,
    enough: impl Fn(u64, &Findings) -> bool,
) -> (u64, Findings) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _world = World::new().unwrap();
    let mut ebpf = load();
    let store = KernelStore::new(Pinned::open(PINS.as_ref()).unwrap(), Rope::new(PINS.as_ref())).unwrap();
    let mut writer = Writer::new(table(&mut ebpf, "EPOCHS"), broken(store));
    let findings: PerCpuArray<MapData, u64> = table(&mut ebpf, "FINDINGS");
    let program: &mut Xdp = ebpf.program_mut("stress").unwrap().try_into().unwrap();
    program.load().unwrap();

    let (end, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writing = scope.spawn(|| writer.change_until(&end, sharing, &changes));
        stay_on_cpu(0);
        while !enough(changes.load(Ordering::Relaxed), &Findings::read(&findings)) && !writing.is_finished() {
            choose(program);
        }
        end.store(true, Ordering::Relaxed);
        writing.join().unwrap();
    });
    (changes.into_inner(), Findings::read(&findings))
}

/// The test programs over tables that are pinned as the agent's are.
fn load() -> Ebpf {
    let mut loader = EbpfLoader::new();
    for layout in layouts() {
        loader.map_pin_path(layout.name, Path::new(PINS).join(layout.name));
        if let Entries::Chosen(entries) = layout.entries {
            loader.map_max_entries(layout.name, entries(&CAPACITY));
        }
    }
    loader.load(&test_object().unwrap()).unwrap()
}

fn table<T: TryFrom<Map, Error: std::fmt::Debug>>(ebpf: &mut Ebpf, name: &str) -> T {
    ebpf.take_map(name).unwrap_or_else(|| panic!("no table {name}")).try_into().unwrap()
}

fn choose(program: &Xdp) {
    let options = TestRunOptions { data_in: Some(&[0; 64]), repeat: RUN, ..TestRunOptions::default() };
    program.test_run(options).unwrap();
}

fn stay_on_cpu(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu % thread::available_parallelism().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// How often a choice turned out to be what.
#[derive(Debug)]
struct Findings([(Finding, u64); Finding::ALL.len()]);

impl Findings {
    fn read(counters: &PerCpuArray<MapData, u64>) -> Self {
        let count = |finding| counters.get(&(finding as u32), 0).unwrap().iter().sum();
        Self(Finding::ALL.map(|finding| (finding, count(finding))))
    }

    fn of(&self, finding: Finding) -> u64 {
        self.0[finding as usize].1
    }

    fn right(&self) -> u64 {
        self.of(Finding::Right)
    }

    /// Nobody was led astray, and nobody turned away because tables change.
    fn are_sound(&self) -> bool {
        let never = [Finding::Refused, Finding::Foreign, Finding::Mixed, Finding::Outdated, Finding::Changing];
        never.iter().all(|finding| self.of(*finding) == 0)
    }
}

/// The writing side: what the agent is told, and the notes by which choices are judged.
struct Writer<S> {
    converger: Converger<S>,
    epochs: Array<MapData, Epochs>,
    frontends: Vec<Current>,
    random: u32,
}

/// What is behind one frontend.
#[derive(Clone, Copy, Default)]
struct Current {
    /// The latest set of endpoints.
    epoch: u32,
    /// How many Services had this frontend before.
    successor: u32,
}

impl<S: MapStore> Writer<S> {
    fn new(epochs: Array<MapData, Epochs>, store: S) -> Self {
        let frontends = vec![Current::default(); FRONTENDS as usize];
        let mut converger = Converger::new(store, ThisNode::default());
        converger.apply(Change::Service(Event::Reset(Vec::new())));
        converger.apply(Change::EndpointSlice(Event::Reset(Vec::new())));
        let mut writer = Self { converger, epochs, frontends, random: 1 };
        let all: Vec<u32> = (0..FRONTENDS).collect();
        writer.change(&all, |writer| all.iter().for_each(|number| writer.appear(*number)));
        writer
    }

    /// Changes services until told to stop, and counts how often.
    fn change_until(&mut self, end: &AtomicBool, sharing: u64, count: &AtomicU64) {
        stay_on_cpu(1);
        while !end.load(Ordering::Relaxed) {
            let changes = count.load(Ordering::Relaxed);
            let number = self.next_random() % FRONTENDS;
            match changes % 8 {
                0 => self.cross(number, (number + 1) % FRONTENDS),
                1 => self.change(&[number], |writer| {
                    writer.vanish(number);
                    writer.appear(number);
                }),
                _ => self.change(&[number], |writer| writer.roll(number)),
            }
            if (changes + 1).is_multiple_of(sharing) {
                self.converger.tidy().unwrap();
            }
            count.store(changes + 1, Ordering::Relaxed);
        }
    }

    /// Two services go and two others come in the other order: words of INDEX and entries of FRONTEND are taken crosswise.
    fn cross(&mut self, one: u32, other: u32) {
        self.change(&[one, other], |writer| {
            writer.vanish(one);
            writer.vanish(other);
            writer.write();
            writer.appear(other);
            writer.appear(one);
        });
    }

    /// Makes `numbers` go on to their next epoch by `telling` the agent, which then writes. From the start of it to its
    /// end both epochs may be met.
    fn change(&mut self, numbers: &[u32], telling: impl FnOnce(&mut Self)) {
        for &number in numbers {
            self.frontends[number as usize].epoch += 1;
            let begun = self.frontends[number as usize].epoch;
            self.note(number, Epochs { begun, in_place: begun - 1 });
        }
        telling(self);
        self.write();
        for &number in numbers {
            let epoch = self.frontends[number as usize].epoch;
            self.note(number, Epochs { begun: epoch, in_place: epoch });
        }
    }

    fn write(&mut self) {
        let report = self.converger.converge().unwrap();
        assert_eq!((report.full, report.damage), (Vec::new(), Vec::new()));
    }

    fn note(&mut self, number: u32, epochs: Epochs) {
        self.epochs.set(number, epochs, 0).unwrap();
    }

    /// A new set of endpoints: who came with the one before stays, older ones leave.
    fn roll(&mut self, number: u32) {
        let current = self.frontends[number as usize];
        self.converger.apply(endpoints(number, current, current.epoch).apply());
    }

    /// A Service that was never there takes the frontend.
    fn appear(&mut self, number: u32) {
        let current = &mut self.frontends[number as usize];
        current.successor += 1;
        let current = *current;
        self.converger.apply(service_of(number, current).apply());
        self.converger.apply(endpoints(number, current, current.epoch - 1).apply());
        self.converger.apply(endpoints(number, current, current.epoch).apply());
    }

    fn vanish(&mut self, number: u32) {
        let current = self.frontends[number as usize];
        self.converger.apply(service_of(number, current).delete());
        self.converger.apply(endpoints(number, current, 0).delete());
        self.converger.apply(endpoints(number, current, 1).delete());
    }

    /// A linear congruential generator: repeatable, and good enough to pick services.
    fn next_random(&mut self) -> u32 {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.random >> 8
    }
}

fn name_of(number: u32, current: Current) -> String {
    format!("stress/service-{number}-{}", current.successor)
}

/// Every other Service keeps its clients with their backend for a second.
fn service_of(number: u32, current: Current) -> Service {
    let key = frontend(number);
    let service = service(&name_of(number, current)).cluster_ip(&key.addr.to_string()).port(key.port.get().into());
    if number.is_multiple_of(2) { service } else { service.affinity(Some(1)) }
}

/// The slice of who came with `epoch`; it succeeds that of the epoch before the last.
fn endpoints(number: u32, current: Current, epoch: u32) -> Slice {
    let members = 1 + (epoch ^ number) % MOST_MEMBERS;
    let slice = slice(&name_of(number, current))
        .named(&format!("{number}-{}-{}", current.successor, epoch % 2))
        .port(port(epoch).get().into());
    (0..members).fold(slice, |slice, member| slice.endpoint(&endpoint(number, epoch, member).to_string()))
}
