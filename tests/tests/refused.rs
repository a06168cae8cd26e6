//! The kernel refuses what it grants a moment later: what serves goes on, and nothing that is there is made anew.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_common::tables::{Capacity, name};
use proxy_tests::agent::{self, AT_SOCKETS, Agent, SMALL_TABLES, list};
use proxy_tests::crowd::Crowd;
use proxy_tests::map_for_no_program;
use proxy_tests::pins;
use proxy_tests::stage::{Stage, eventually, web};
use proxy_tests::world::PINS;
use proxy_userspace::attach::object::{Constants, Object};
use proxy_userspace::maps::carry;
use proxy_userspace::maps::pinned::{Pinned, layouts};
use proxy_userspace::plan::growth;
use proxy_userspace::sys::bpf::{Pin, map_info, pin};
use serde_json::Value;

/// What passes by itself, as `strace` calls it.
const PASSING: [&str; 4] = ["ENOMEM", "EMFILE", "ENOSPC", "EAGAIN"];

/// How many calls of a start are refused, spread over all of them; each in a start of its own.
const REFUSED: usize = 12;

fn start_under(stage: &Stage, strace: &[&str]) -> Agent {
    let options = [&["--follow-forks", "-e", "trace=bpf"][..], strace].concat();
    Agent::start_under(&stage.node, &stage.manifests, &options, &agent::small()).unwrap()
}

/// The numbers of the calls of bpf(2) that the thread makes which opens the datapath; others only load programs or fill tables.
/// Without those by which aya asks once in a process what the kernel has: where one of them is refused the agent begins again,
/// and strace, which counts anew then, would refuse it again and again.
fn calls_of_a_start(stage: &Stage) -> Vec<usize> {
    let mut agent = start_under(stage, &["-o", "/run/trace"]);
    agent.logged("programmed ").unwrap();
    agent.end_under().unwrap();
    let mut calls: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in fs::read_to_string("/run/trace").unwrap().lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        if call.trim_start().starts_with("bpf(") {
            calls.entry(thread.to_owned()).or_default().push(call.to_owned());
        }
    }
    let calls = calls.into_values().max_by_key(Vec::len).unwrap();
    let number = |what: &str| calls.iter().position(|call| call.contains(what)).unwrap();
    let questions = number("BPF_BTF_LOAD")..=number("BPF_MAP_TYPE_DEVMAP");
    (0..calls.len()).filter(|number| !questions.contains(number)).map(|number| number + 1).collect()
}

fn tables(stage: &Stage) -> Vec<(&'static str, u32)> {
    pins::tables(&stage.node).unwrap()
}

#[test]
fn a_start_that_is_refused_something_for_a_moment_takes_over_what_is_pinned() {
    let stage = Stage::new().unwrap();
    let mut first = stage.serve(&[&web(), &stage.both()]).unwrap();
    first.end_with(Signal::SIGKILL).unwrap();
    let (before, calls, mut crowd) = (tables(&stage), calls_of_a_start(&stage), Crowd::start(&stage));
    let mut tried_again = 0;
    for (step, error) in (0..REFUSED).zip(PASSING.iter().cycle()) {
        let call = calls[step * (calls.len() - 1) / (REFUSED - 1)];
        let refuse = format!("inject=bpf:error={error}:when={call}");
        let mut agent = start_under(&stage, &["-o", "/dev/null", "-e", &refuse]);
        agent.logged("programmed ").unwrap();
        let later = agent.log().contains("what is pinned keeps serving and cannot be taken over now: ");
        println!("{error} at call {call} of {}: {}", calls.len(), if later { "tried again" } else { "went on" });
        tried_again += usize::from(later);
        agent.end_under().unwrap();
        assert_eq!(tables(&stage), before, "{error} at call {call}");
        crowd.goes_on();
    }
    crowd.was_never_refused();
    assert!(tried_again > REFUSED / 3, "{tried_again} of {REFUSED}");
}

/// Makes maps of which no program may use any, each like the pinned table of its name and with all its rows; they are
/// pinned in the folder that comes back.
fn closed_tables(stage: &Stage) -> PathBuf {
    let (tables, closed) = (stage.node.pin_dir().join("v1"), Path::new(PINS).join("closed"));
    fs::create_dir(&closed).unwrap();
    for layout in layouts() {
        let info = map_info(Pin::open(&tables.join(layout.name)).unwrap().fd.as_fd()).unwrap();
        let closed_table = map_for_no_program(layout, info.max_entries).unwrap();
        pin(closed_table.as_fd(), &closed.join(layout.name)).unwrap();
    }
    carry::copy(&Pinned::open(&tables).unwrap(), &Pinned::open(&closed).unwrap()).unwrap();
    closed
}

/// Loads the programs over each table of `closed` by itself, beside new ones, and sees them refused.
fn every_table_is_refused(closed: &Path) {
    let one = Path::new(PINS).join("one-closed");
    for layout in layouts() {
        fs::create_dir(&one).unwrap();
        pin(Pin::open(&closed.join(layout.name)).unwrap().fd.as_fd(), &one.join(layout.name)).unwrap();
        let for_packets =
            [&name::OF_FLOWS[..], &[name::PACKETS, name::DEVICES, name::DIRECT]].concat().contains(&layout.name);
        let object = Object::load(&one, &growth::smallest(&Capacity::LIMIT), &Constants::default(), for_packets);
        let refused = if for_packets {
            object.expect("sockets do not need this table").device_programs(&one).map(drop)
        } else {
            object.map(drop)
        };
        let refusal = refused.unwrap_err().to_string();
        assert!(refusal.starts_with("the kernel refused program "), "{}: {refusal}", layout.name);
        fs::remove_dir_all(&one).unwrap();
    }
}

#[test]
fn a_start_whose_programs_load_over_no_pinned_table_serves_from_new_ones_and_says_so() {
    let stage = Stage::new().unwrap();
    let mut first = stage.serve(&[&web(), &stage.both()]).unwrap();
    first.end_with(Signal::SIGKILL).unwrap();
    let closed = closed_tables(&stage);
    every_table_is_refused(&closed);
    let (pinned, served) = (stage.node.pin_dir().join("v1"), list(&stage.node).unwrap());
    let mut crowd = Crowd::start(&stage);
    crowd.goes_on();
    fs::remove_dir_all(&pinned).unwrap();
    fs::rename(&closed, &pinned).unwrap();
    let before = tables(&stage);

    let mut second = first.restart().unwrap();
    crowd.goes_on();
    for said in [OTHER_TABLES, OTHER_SOCKETS, "took over the pinned tables"] {
        second.logged(said).unwrap();
    }
    let made = tables(&stage);
    assert!(made.iter().zip(&before).all(|(now, then)| now.1 != then.1), "{before:?}, then {made:?}");
    let addresses =
        |rows: &Value| rows.as_array().unwrap().iter().map(|row| row["frontend"].clone()).collect::<Vec<_>>();
    assert_eq!(addresses(&list(&stage.node).unwrap()), addresses(&served));

    second.end_with(Signal::SIGKILL).unwrap();
    let third = second.restart().unwrap();
    assert!(!third.log().contains(OTHER_TABLES), "{}", third.log());
    assert_eq!(tables(&stage), made);
    crowd.goes_on();
    crowd.was_never_refused();
}

#[test]
fn programs_for_devices_that_are_refused_leave_sockets_served_and_are_tried_again() {
    let stage = Stage::new().unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    let mut first = Agent::start_with(&stage.node, &stage.manifests, &SMALL_TABLES).unwrap();
    first.end_with(Signal::SIGKILL).unwrap();
    let (layout, pinned) =
        (layouts().find(|layout| layout.name == name::FLOWS4).unwrap(), stage.node.pin_dir().join("v1/FLOWS4"));
    let entries = map_info(Pin::open(&pinned).unwrap().fd.as_fd()).unwrap().max_entries;
    fs::remove_file(&pinned).unwrap();
    pin(map_for_no_program(layout, entries).unwrap().as_fd(), &pinned).unwrap();
    let (before, mut crowd) = (tables(&stage), Crowd::start(&stage));

    let second = first.restart().unwrap();
    for wait in [1, 2] {
        let said = format!("only sockets are served: no programs for devices, the next try is in {wait} s: ");
        let said = second.logged(&said).unwrap();
        assert!(said.contains("the kernel refused program tc_"), "{said}");
    }
    assert_eq!(tables(&stage), before, "no table is made anew for it");
    crowd.goes_on();
    crowd.was_never_refused();
}

/// What a start says that may use no pinned table, and not even those of sockets.
const OTHER_TABLES: &str = "the programs do not load over the pinned tables, making new ones with all they hold";
const OTHER_SOCKETS: &str =
    "sockets with several Services, and those that dial meanwhile, are told their backend's address";

/// More service ports than the first tables have room for.
const MANY: u32 = 400;

/// A node whose agent serves in the smallest tables.
fn small() -> (Stage, Agent) {
    let stage = Stage::new().unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    let agent = Agent::start_with(&stage.node, &stage.manifests, &AT_SOCKETS).unwrap();
    (stage, agent)
}

#[test]
fn tables_that_may_not_grow_serve_on_and_grow_when_there_is_memory_again() {
    let (stage, agent) = small();
    let (before, mut crowd) = (tables(&stage), Crowd::start(&stage));
    let mut strace = agent.disturb(&["-o", "/dev/null", "-e", "inject=bpf:error=ENOMEM:when=20"]).unwrap();
    stage.add_services(MANY);
    let said = agent.logged("the tables cannot grow, the next try is in 1 s: ").unwrap();
    assert!(said.contains("Cannot allocate memory"), "{said}");
    assert_eq!(tables(&stage), before);
    crowd.goes_on();
    let served = || list(&stage.node).unwrap().as_array().unwrap().len();
    eventually("there is room for some", || served() > 4);
    agent.logged("made larger tables").unwrap();
    // `web` is two ports in two families.
    eventually("every Service is served", || served() == MANY as usize + 4);
    crowd.goes_on();
    crowd.was_never_refused();
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGTERM).unwrap();
    strace.wait().unwrap();
}
