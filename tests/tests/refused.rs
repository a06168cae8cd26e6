//! The kernel refuses what it grants a moment later: what serves goes on, and nothing that is there is made anew.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_tests::agent::{Agent, list};
use proxy_tests::crowd::Crowd;
use proxy_tests::stage::{Stage, eventually, web};
use proxy_userspace::maps::pinned::layouts;
use proxy_userspace::sys::bpf::{Pin, map_info};

/// What passes by itself, as `strace` calls it.
const PASSING: [&str; 4] = ["ENOMEM", "EMFILE", "ENOSPC", "EAGAIN"];

/// How many calls of a start are refused, spread over all of them; each in a start of its own.
const REFUSED: usize = 12;

fn start_under(stage: &Stage, strace: &[&str]) -> Agent {
    let options = [&["--follow-forks", "-e", "trace=bpf"][..], strace].concat();
    Agent::start_under(&stage.node, &stage.manifests, &options).unwrap()
}

/// How many calls of bpf(2) the thread makes that opens the datapath. Others only load programs or fill tables.
fn calls_of_a_start(stage: &Stage) -> usize {
    let mut agent = start_under(stage, &["-o", "/run/trace"]);
    agent.logged("programmed ").unwrap();
    agent.end_under().unwrap();
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for line in fs::read_to_string("/run/trace").unwrap().lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        *calls.entry(thread.to_owned()).or_default() += usize::from(call.trim_start().starts_with("bpf("));
    }
    calls.into_values().max().unwrap()
}

/// The kernel's ids of the pinned tables.
fn tables(stage: &Stage) -> Vec<(&'static str, u32)> {
    let folder = stage.node.pin_dir().join("v1");
    let id = |name| map_info(Pin::open(&folder.join(name)).unwrap().fd.as_fd()).unwrap().id;
    layouts().map(|layout| (layout.name, id(layout.name))).collect()
}

#[test]
fn a_start_that_is_refused_something_for_a_moment_takes_over_what_is_pinned() {
    let stage = Stage::new().unwrap();
    let mut first = stage.serve(&[&web(), &stage.both()]).unwrap();
    first.end_with(Signal::SIGKILL).unwrap();
    let (before, calls, mut crowd) = (tables(&stage), calls_of_a_start(&stage), Crowd::start(&stage));
    let mut tried_again = 0;
    for (step, error) in (0..REFUSED).zip(PASSING.iter().cycle()) {
        let call = 1 + step * (calls - 1) / (REFUSED - 1);
        let refuse = format!("inject=bpf:error={error}:when={call}");
        let mut agent = start_under(&stage, &["-o", "/dev/null", "-e", &refuse]);
        agent.logged("programmed ").unwrap();
        let later = agent.log().contains("what is pinned keeps serving and cannot be taken over now: ");
        println!("{error} at call {call} of {calls}: {}", if later { "tried again" } else { "went on" });
        tried_again += usize::from(later);
        agent.end_under().unwrap();
        assert_eq!(tables(&stage), before, "{error} at call {call}");
        crowd.goes_on();
    }
    crowd.was_never_refused();
    assert!(tried_again > REFUSED / 3, "{tried_again} of {REFUSED}");
}

/// More service ports than the first tables have room for.
const MANY: u32 = 400;

/// A node whose agent serves in the smallest tables.
fn small() -> (Stage, Agent) {
    let stage = Stage::new().unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    let agent = Agent::start_with(&stage.node, &stage.manifests, &[]).unwrap();
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
