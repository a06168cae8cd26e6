//! An agent is ended (SIGKILL, before the kernel does it) at every call that changes something; whoever was served stays
//! so, and the next start ends in the wanted state.
//!
//! Calls that change nothing which outlives the process are not tried one by one: ending at one is ending at the next
//! call that does. So the points are counted by how many lasting calls were made. A first run without a disturbance tells
//! which calls there are. Of the tables that are made one after the other in a folder that nobody looks into before all
//! are there, the first, the middle and the last one stand for all: in which order aya makes them is different each time.
//! A run that was ended elsewhere than planned still counts for where it was ended, and the point that was missed is tried
//! again.

use std::collections::BTreeSet;
use std::env;
use std::ops::RangeInclusive;

use crate::lanes::{Lane, in_lanes};
use crate::scene::{Clients, Scene, Told};
use crate::strace::{Call, LOOK, Watcher, calls, calls_of_the_first_thread};

/// Names the one point to try, for whoever looks for the cause of a failure.
const ONLY: &str = "CRASH_POINT";

/// The points where an agent is to be ended, as many as one lane takes.
struct Points {
    title: String,
    /// The lasting calls of an undisturbed run.
    calls: Vec<Call>,
    left: BTreeSet<usize>,
    runs: usize,
    /// How often in a row the run was ended elsewhere.
    misses: usize,
}

impl Points {
    fn of(title: &str, calls: &[Call], lane: Lane, among: Among) -> Self {
        let calls: Vec<Call> = calls.iter().filter(|call| call.has_lasted()).cloned().collect();
        assert!(!calls.is_empty(), "{title}: a run that changes nothing");
        println!("{title}: {} points", calls.len());
        let only: Option<usize> = env::var(ONLY).ok().map(|only| only.parse().expect("a number"));
        let points = match only {
            Some(only) => vec![only],
            None => points(&calls).into_iter().filter(|number| among.range(&calls).contains(number)).collect(),
        };
        let in_this_lane = points.into_iter().enumerate().filter(|(place, _)| lane.takes(*place));
        let left = in_this_lane.map(|(_, number)| number).collect();
        Self { title: title.to_owned(), calls, left, runs: 0, misses: 0 }
    }

    /// What makes the next run end, and what to say of it.
    fn next(&mut self) -> Option<(String, String)> {
        let number = *self.left.first()?;
        self.runs += 1;
        let Self { title, calls, runs, .. } = self;
        assert!(*runs <= 3 * calls.len(), "{title}: {:?} were never met in {runs} runs", self.left);
        let what = format!("{title}, {ONLY}={number}: ended at {}", calls[number]);
        println!("{what}");
        // What differs is whether aya had made the one table that is not pinned, which takes three calls like any other.
        let away = [0, 3, -3][self.misses % 3];
        Some((calls[number].kill(away), what))
    }

    /// The agent was ended after the lasting ones of these calls.
    fn met(&mut self, calls: &[Call]) {
        let lasted = calls.iter().filter(|call| call.has_lasted()).count();
        println!(
            "{}: after {lasted} of them, at {}",
            self.title,
            calls.last().map_or_else(String::new, ToString::to_string)
        );
        let hit = self.left.first() == Some(&lasted);
        self.misses = if hit { 0 } else { self.misses + 1 };
        self.left.remove(&lasted);
    }
}

/// Which lasting calls are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    All,
    /// From the one that keeps programs for devices to the last of those that put them there.
    Devices,
    /// And the one after it.
    DevicesAndNext,
}

impl Among {
    fn range(self, calls: &[Call]) -> RangeInclusive<usize> {
        let all = 0..=calls.len() - 1;
        match self {
            Self::All => all,
            Self::Devices | Self::DevicesAndNext => {
                let first = calls.iter().position(Call::keeps_a_program).expect("a program for devices");
                let last = calls.iter().rposition(Call::puts_programs).expect("a device");
                first..=if self == Self::Devices { last } else { (last + 1).min(*all.end()) }
            }
        }
    }
}

/// Where to end: at each of these calls, but only at some of those that do the same.
fn points(calls: &[Call]) -> Vec<usize> {
    let (tables, mut points): (Vec<usize>, Vec<usize>) =
        (0..calls.len()).partition(|number| calls[*number].pins_a_table_in_staging());
    points.extend(tables.first());
    points.extend(tables.get(tables.len() / 2));
    points.extend(tables.last());
    points.sort_unstable();
    points.dedup();
    points
}

/// Which thread of a start is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    /// Opens what is pinned, or makes it. (A number that `strace` waits for comes first in this thread: the one that writes
    /// begins when it has ended, and those that load programs make one call each.)
    Opening,
    /// Fills the tables.
    Writing,
}

impl Thread {
    fn options(self) -> &'static [&'static str] {
        if self == Self::Opening { &["--follow-forks"] } else { &[] }
    }

    fn calls(self) -> Vec<Call> {
        if self == Self::Opening { calls_of_the_first_thread() } else { calls() }
    }
}

/// Ends a start at every call that one of these threads makes. `prepare` makes what it finds.
fn a_start_ends_anywhere(title: &str, threads: &[Thread], prepare: impl Fn(&Scene) + Sync, serves: bool) {
    in_lanes(|lane| {
        let scene = Scene::new();
        for thread in threads {
            a_start_ends(title, &scene, lane, (*thread, Among::All), &prepare, serves);
        }
    });
}

fn a_start_ends(
    title: &str,
    scene: &Scene,
    lane: Lane,
    (thread, among): (Thread, Among),
    prepare: impl Fn(&Scene),
    serves: bool,
) {
    let run = |more: &[&str]| {
        prepare(scene);
        scene.tell(Told::After);
        let mut clients = serves.then(|| Clients::start(scene));
        let mut agent = scene.start_under(&[thread.options(), &LOOK, more].concat());
        let survived = agent.logged("programmed ").is_ok();
        agent.end_under().unwrap();
        if let Some(clients) = &mut clients {
            clients.go_on(title);
        }
        (survived, clients)
    };
    run(&[]);
    let undisturbed = thread.calls();
    let mut points = Points::of(&format!("{title}, {thread:?}"), &undisturbed, lane, among);
    while let Some((kill, what)) = points.next() {
        let (survived, clients) = run(&["-e", &kill]);
        assert!(!survived, "{what}: was not met");
        points.met(&thread.calls());
        scene.settle(Told::After, &what);
        let mut clients = clients.unwrap_or_else(|| Clients::start(scene));
        clients.follow(scene, Told::After, &what);
        scene.dials(&what);
    }
}

#[test]
fn a_first_start_may_end_at_any_call() {
    a_start_ends_anywhere("first start", &[Thread::Opening, Thread::Writing], Scene::clear, false);
}

#[test]
fn a_start_over_pins_that_finds_changes_may_end_at_any_call() {
    let prepare = |scene: &Scene| scene.settle(Told::Before, "preparing");
    a_start_ends_anywhere("restart", &[Thread::Opening, Thread::Writing], prepare, true);
}

#[test]
fn a_start_over_tables_of_another_version_may_end_at_any_call() {
    let prepare = |scene: &Scene| {
        scene.settle(Told::Before, "preparing");
        let pins = scene.stage.node.pin_dir();
        std::fs::rename(pins.join("v1"), pins.join("v0")).unwrap();
    };
    // It opens nothing: tables are made as at a first start.
    a_start_ends_anywhere("upgrade", &[Thread::Writing], prepare, true);
}

#[test]
fn a_start_that_succeeds_programs_of_another_version_may_end_at_any_call_about_devices() {
    in_lanes(|lane| {
        let scene = Scene::at_devices();
        // Then flows are brought, more or fewer of them.
        let succession = (Thread::Writing, Among::Devices);
        a_start_ends("succession", &scene, lane, succession, Scene::clear_for_another_version, true);
    });
}

#[test]
fn a_start_may_end_at_any_call_about_devices() {
    in_lanes(|lane| {
        let scene = Scene::at_devices();
        let first = (Thread::Writing, Among::DevicesAndNext);
        a_start_ends("first start at devices", &scene, lane, first, Scene::clear, false);
        let again = (Thread::Opening, Among::DevicesAndNext);
        let prepare = |scene: &Scene| scene.settle(Told::Before, "preparing");
        a_start_ends("restart at devices", &scene, lane, again, prepare, true);
    });
}

/// Ends a running agent at every call that a change makes; a whole change ends with `last_word` in the log.
fn a_change_ends_anywhere(title: &str, last_word: &str, scene: fn() -> Scene) {
    in_lanes(|lane| a_change_ends(title, last_word, &scene(), lane, Among::All));
}

fn a_change_ends(title: &str, last_word: &str, scene: &Scene, lane: Lane, among: Among) {
    let (agent, clients) = scene.before(None);
    let watcher = Watcher::attach(&agent, &[]);
    scene.tell(Told::After);
    agent.logged(last_word).unwrap();
    scene.becomes(Told::After, title);
    watcher.detach();
    let mut points = Points::of(title, &calls(), lane, among);
    let (mut agent, mut clients) = scene.before(Some((agent, clients)));
    while let Some((kill, what)) = points.next() {
        let watcher = Watcher::attach(&agent, &["-e", &kill]);
        scene.tell(Told::After);
        let ended = agent.ended().expect(&what);
        assert!(!ended.success(), "{what}");
        watcher.ended();
        points.met(&calls());
        clients.go_on(&what);
        agent = scene.start();
        scene.becomes(Told::After, &what);
        clients.follow(scene, Told::After, &what);
        scene.dials(&what);
        (agent, clients) = scene.before(Some((agent, clients)));
    }
}

#[test]
fn a_running_agent_may_end_at_any_call_of_a_change_and_of_tidying_up() {
    a_change_ends_anywhere("change", "gave back what went out of use", Scene::new);
}

#[test]
fn a_running_agent_may_end_at_any_call_while_its_tables_grow() {
    a_change_ends_anywhere("growth", "made larger tables", Scene::nearly_full);
}
