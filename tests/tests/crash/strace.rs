//! What `strace` is told and what it tells.
//!
//! In: its output. Out: [`Call`]s. It counts calls by thread and by the name of the call, and so do we: a call has the
//! same number in every run in which the thread made the same ones before.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_tests::agent::Agent;
use proxy_userspace::attach::object::DEVICE_HOOKS;

/// Where a trace is written, in the world of the test.
pub(crate) const FILE: &str = "/run/trace";

/// What is looked at.
pub(crate) const LOOK: [&str; 4] = ["-o", FILE, "-e", "trace=bpf,rename,mkdir,symlink,unlink,unlinkat,rmdir"];

/// Commands of bpf(2) that change what outlives the process. All others (look-ups, also programs, maps and links, which
/// go with the process until they are pinned) leave what the call before them left, so that ending at one of them is the
/// same as ending at the next one of these.
const LASTING: [&str; 5] =
    ["BPF_OBJ_PIN", "BPF_MAP_UPDATE_ELEM", "BPF_MAP_UPDATE_BATCH", "BPF_MAP_DELETE_ELEM", "BPF_LINK_UPDATE"];

/// aya hands over the whole `union bpf_attr`; the only elements it writes are constants of the programs, in a map without
/// a pin.
const BY_AYA: &str = "}, 152)";

/// One call of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    thread: u32,
    name: String,
    /// Which of the calls of this name and thread it is, from 1.
    number: usize,
    text: String,
}

impl Call {
    /// It was made, with success, and changed what outlives the process.
    pub(crate) fn has_lasted(&self) -> bool {
        let result = self.text.rsplit_once(" = ").map_or("", |(_, result)| result);
        let lasting = |command: &&str| self.text.contains(&format!("bpf({command},"));
        let lasts = match self.name.as_str() {
            "bpf" => LASTING.iter().any(lasting),
            // A folder that nobody uses any more loses its pins one by one, and then goes: one step.
            "unlink" | "unlinkat" => self.text.contains("AT_REMOVEDIR"),
            _ => true,
        };
        let own_map = !(self.text.contains("BPF_MAP_UPDATE_ELEM,") && self.text.contains(BY_AYA));
        lasts && own_map && result.starts_with(|first: char| first.is_ascii_digit())
    }

    /// It keeps a program for devices beside the tables.
    pub(crate) fn keeps_a_program(&self) -> bool {
        DEVICE_HOOKS.iter().any(|hook| self.text.contains(&format!("/{hook}\"")))
    }

    /// It puts programs to devices, takes them away, or has others take their place; those for sockets come before.
    pub(crate) fn puts_programs(&self) -> bool {
        self.text.contains("links/devices") || self.text.contains("bpf(BPF_LINK_UPDATE,")
    }

    /// Of these there are as many as there are tables, one like the other.
    pub(crate) fn pins_a_table_in_staging(&self) -> bool {
        self.text.contains("bpf(BPF_OBJ_PIN,") && self.text.contains("-new/")
    }

    /// Ends whoever makes this call, or one so many earlier or later, before the kernel does it. Of other calls than bpf(2)
    /// there are few, always in the same order.
    pub(crate) fn kill(&self, away: isize) -> String {
        let away = if self.name == "bpf" { away } else { 0 };
        let number = self.number.saturating_add_signed(away).max(1);
        format!("inject={}:signal=SIGKILL:when={number}", self.name)
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} number {}: {}", self.name, self.number, self.text)
    }
}

/// The calls in [`FILE`], in order.
pub(crate) fn calls() -> Vec<Call> {
    let trace = fs::read_to_string(FILE).unwrap();
    let mut calls: Vec<Call> = Vec::new();
    let mut counts: BTreeMap<(u32, String), usize> = BTreeMap::new();
    for line in trace.lines() {
        // Without --follow-forks there is one thread and no number.
        let (thread, text) = line.split_once(' ').map_or((0, line), |(first, rest)| match first.parse() {
            Ok(thread) => (thread, rest.trim_start()),
            Err(_) => (0, line),
        });
        if let Some((_, rest)) = text.split_once(" resumed>") {
            let begun = calls.iter_mut().rfind(|call| call.thread == thread).expect("it was begun");
            begun.text.push_str(rest);
        } else if let Some((name, _)) = text.split_once('(').filter(|(name, _)| name.chars().all(char::is_alphanumeric))
        {
            let number = counts.entry((thread, name.to_owned())).and_modify(|count| *count += 1).or_insert(1);
            calls.push(Call { thread, name: name.to_owned(), number: *number, text: text.to_owned() });
        }
    }
    calls
}

/// The calls of the thread that is the first to change something.
pub(crate) fn calls_of_the_first_thread() -> Vec<Call> {
    let mut calls = calls();
    let first = calls.iter().find(|call| call.has_lasted()).map(|call| call.thread);
    calls.retain(|call| Some(call.thread) == first);
    calls
}

/// `strace` on an agent that runs; it goes when the agent ends, or with the handle.
pub(crate) struct Watcher(Child);

impl Watcher {
    /// Looks at the thread that writes tables.
    pub(crate) fn attach(agent: &Agent, options: &[&str]) -> Self {
        Self(agent.trace(&[&LOOK[..], options].concat()).unwrap())
    }

    /// Lets the agent go on by itself.
    pub(crate) fn detach(self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT).unwrap();
        self.ended();
    }

    /// Waits until it has written everything.
    pub(crate) fn ended(mut self) {
        self.0.wait().unwrap();
    }
}
