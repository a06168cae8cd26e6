//! Every tenth bpf(2) call fails, from each of the first ten on, with one errno or another: whoever is served stays so,
//! the agent says what failed, and once nothing fails any more the wanted state is reached without anybody's help.

use crate::lanes::{Lane, in_lanes};
use crate::scene::{Clients, Scene, Told};
use crate::strace::{LOOK, Watcher};

/// What calls fail with: names, and how an error message tells them.
const ERRNOS: [(&str, &str); 5] = [
    ("ENOMEM", "Cannot allocate memory"),
    ("EAGAIN", "Resource temporarily unavailable"),
    ("EBUSY", "Device or resource busy"),
    ("E2BIG", "Argument list too long"),
    ("EPERM", "Operation not permitted"),
];

/// Which call fails first, and with what.
struct Fault {
    first: usize,
    errno: &'static str,
    text: &'static str,
}

impl Fault {
    fn inject(&self) -> String {
        format!("inject=bpf:error={}:when={}+10", self.errno, self.first)
    }

    /// Every first call, with two errnos each in turn, so that each errno comes four times; what `lane` takes of them.
    fn all(lane: Lane) -> impl Iterator<Item = Self> {
        let all = (0..2).flat_map(|turn| (0..10).map(move |at| (at + 1, ERRNOS[(at + turn) % ERRNOS.len()])));
        all.enumerate().filter(move |(number, _)| lane.takes(*number)).map(|(_, fault)| fault).map(
            |(first, (errno, text))| {
                println!("every tenth call from number {first} on fails with {errno}");
                Self { first, errno, text }
            },
        )
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "every tenth call from number {} on fails with {}", self.first, self.errno)
    }
}

/// A start comes up, or says what failed; the next one is as if nothing had happened.
fn a_start_stands_failing_calls(scene: &Scene, lane: Lane, prepare: impl Fn(&Scene), serves: bool) {
    for fault in Fault::all(lane) {
        let what = fault.to_string();
        prepare(scene);
        scene.tell(Told::After);
        let mut clients = serves.then(|| Clients::start(scene));
        let mut agent = scene.start_under(&[&["--follow-forks"], &LOOK[..], &["-e", &fault.inject()]].concat());
        let mut answer = agent.logs_after(0, &ANSWERS).unwrap();
        if answer.starts_with(LAST_WORDS) {
            assert_eq!(agent.ended().unwrap().code(), Some(1), "{what}");
            // What the verifier says has many lines.
            answer = agent.log();
        }
        says_what_failed(&answer, &fault);
        if let Some(clients) = &mut clients {
            clients.go_on(&what);
        }
        agent.end_under().unwrap();
        scene.settle(Told::After, &what);
        clients.unwrap_or_else(|| Clients::start(scene)).follow(scene, Told::After, &what);
        scene.dials(&what);
    }
}

/// How a start ends: well, in another try, or with its last words.
const ANSWERS: [&str; 3] = ["programmed ", " ERROR ", LAST_WORDS];
const LAST_WORDS: &str = "Error: ";

fn says_what_failed(answer: &str, fault: &Fault) {
    println!("  {answer}");
    if answer.contains("programmed ") {
        return;
    }
    let bare = answer.contains(&format!("{LAST_WORDS}{}", fault.text));
    assert!(!bare, "{fault}: the message does not say what failed: {answer}");
    let way_out = ["the next try", "start it again"].iter().any(|words| answer.contains(words));
    assert!(way_out, "{fault}: the message does not say what comes or what to do: {answer}");
}

#[test]
fn a_first_start_stands_every_tenth_call_failing() {
    in_lanes(|lane| a_start_stands_failing_calls(&Scene::new(), lane, Scene::clear, false));
}

#[test]
fn a_start_over_pins_that_finds_changes_stands_every_tenth_call_failing() {
    let prepare = |scene: &Scene| scene.settle(Told::Before, "preparing");
    in_lanes(|lane| a_start_stands_failing_calls(&Scene::new(), lane, prepare, true));
}

/// A running agent goes on, and does what it was told as soon as it can.
fn a_change_stands_failing_calls(scene: &Scene, lane: Lane) {
    let mut last = None;
    for fault in Fault::all(lane) {
        let what = fault.to_string();
        let (mut agent, mut clients) = scene.before(last);
        let known = agent.log_length();
        let watcher = Watcher::attach(&agent, &["-e", &fault.inject()]);
        scene.tell(Told::After);
        let answer = agent.logs_after(known, &[" ERROR "]).unwrap();
        clients.go_on(&what);
        watcher.detach();
        says_what_failed(&answer, &fault);
        assert!(answer.contains(fault.text), "{what}: the log does not say why: {answer}");
        scene.becomes(Told::After, &what);
        assert!(agent.is_running().unwrap(), "{what}");
        clients.follow(scene, Told::After, &what);
        scene.dials(&what);
        last = Some((agent, clients));
    }
}

#[test]
fn a_running_agent_stands_every_tenth_call_of_a_change_failing() {
    in_lanes(|lane| a_change_stands_failing_calls(&Scene::new(), lane));
}

/// What a flow needs to leave its backend is written again until it is there.
#[test]
fn a_udp_flow_leaves_its_backend_when_every_tenth_call_of_the_change_fails() {
    in_lanes(|lane| a_change_stands_failing_calls(&Scene::with_flow(), lane));
}

#[test]
fn a_running_agent_stands_every_tenth_call_failing_while_its_tables_grow() {
    in_lanes(|lane| a_change_stands_failing_calls(&Scene::nearly_full(), lane));
}
