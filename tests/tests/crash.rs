//! The agent is ended at its calls into the kernel while clients are served: nobody notices, and the next start brings
//! everything to where it should be.
//!
//! A first run under `strace` tells which calls a start makes. Then a start is ended at such a call (SIGKILL, before the
//! kernel does it), and another one must put things right. What serves before a start must serve all the time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use proxy_tests::agent::{Agent, list};
use proxy_tests::manifest::Endpoints;
use proxy_tests::probe::{Load, Traffic};
use proxy_tests::stage::{Stage, VIP4, dialled, web, web_endpoints};
use serde_json::Value;

/// Calls that change what outlives the process. All others leave the state that the one before them left.
const TELLING: [&str; 9] = [
    "BPF_OBJ_PIN",
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_UPDATE_BATCH",
    "BPF_MAP_DELETE_ELEM",
    "BPF_LINK_CREATE",
    "BPF_LINK_UPDATE",
    "rename",
    "mkdir",
    "unlink",
];

/// What `strace` looks at.
const CALLS: &str = "bpf,rename,mkdir,unlink,unlinkat,rmdir";

/// How many calls of one kind a start is ended at, spread over all of them.
const OF_A_KIND: usize = 2;

/// What a start finds, and what it is told.
struct Scene {
    stage: Stage,
    /// The start before the one that is ended.
    prepare: fn(&Stage),
    /// Clients are served all the time.
    serves: bool,
}

impl Scene {
    fn wanted(&self) -> Endpoints {
        self.stage.both()
    }

    /// Nothing was ever there.
    fn fresh() -> Self {
        let prepare = |stage: &Stage| fs::remove_dir_all(stage.node.pin_dir()).unwrap_or_default();
        Self { stage: Stage::new().unwrap(), prepare, serves: false }
    }

    /// Tables of another ABI version serve.
    fn another_version() -> Self {
        let prepare = |stage: &Stage| {
            settle(stage, &stage.both());
            let pins = stage.node.pin_dir();
            fs::rename(pins.join("v1"), pins.join("v0")).unwrap();
        };
        Self { stage: Stage::new().unwrap(), prepare, serves: true }
    }

    /// The endpoints changed while no agent was there.
    fn changed() -> Self {
        let prepare = |stage: &Stage| settle(stage, &web_endpoints().pod(&stage.a.pod));
        Self { stage: Stage::new().unwrap(), prepare, serves: true }
    }

    fn prepare(&self) {
        (self.prepare)(&self.stage);
        self.stage.manifests.write("manifest", &[&web(), &self.wanted()]).unwrap();
    }

    fn start_under(&self, strace: &[&str]) -> Agent {
        Agent::start_under(&self.stage.node, &self.stage.manifests, strace).unwrap()
    }

    fn load(&self) -> Option<Load> {
        self.serves.then(|| Load::start(&self.stage.pod.place, Traffic::Tcp, dialled(VIP4)).unwrap())
    }

    /// A start that nothing disturbs ends where it should: what is listed, what is pinned, who was served meanwhile.
    fn recovers(&self, load: Option<Load>, what: &str) {
        settle(&self.stage, &self.wanted());
        assert_eq!(listed(&self.stage), self.all_listed(), "{what}");
        let pins = self.stage.node.pin_dir();
        assert_eq!(names(&pins), ["links", "v1"], "{what}");
        assert_eq!(names(&pins.join("links")).len(), proxy_userspace::attach::object::HOOKS.len(), "{what}");
        if let Some(mut load) = load {
            load.after(10).unwrap();
            let report = load.stop().unwrap();
            assert_eq!(report.failed, 0, "{what}: {report:?}");
        }
    }

    /// Two frontends of two families, each with both pods.
    fn all_listed(&self) -> Vec<String> {
        let (a, b) = (&self.stage.a.pod, &self.stage.b.pod);
        let of = |vip: &str, pods: [String; 2]| format!("{vip} {}", pods.join(" "));
        let v4 = of("10.96.0.10:80", [a, b].map(|pod| format!("{}:8080", pod.v4)));
        let v6 = of("[fd00:10:96::10]:80", [a, b].map(|pod| format!("[{}]:8080", pod.v6)));
        let mut all = vec![v4.clone(), v4, v6.clone(), v6];
        all.sort();
        all
    }
}

/// Lets an agent bring the tables to these endpoints and ends it.
fn settle(stage: &Stage, endpoints: &Endpoints) {
    let mut agent = stage.serve(&[&web(), endpoints]).unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
}

fn listed(stage: &Stage) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let line = |frontend: &Value| {
        let mut backends: Vec<String> =
            frontend["backends"].as_array().unwrap().iter().map(|backend| text(&backend["backend"])).collect();
        backends.sort();
        format!("{} {}", text(&frontend["frontend"]), backends.join(" "))
    };
    let mut lines: Vec<String> = list(&stage.node).unwrap().as_array().unwrap().iter().map(line).collect();
    lines.sort();
    lines
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// One call of a start.
#[derive(Debug)]
struct Call {
    #[expect(dead_code, reason = "for whoever reads the message of a failure")]
    kind: String,
    /// The how many-th of the calls that are looked at. `strace` counts by thread.
    number: usize,
    /// Of the thread that opens the datapath; else of the one that fills the tables. Others only load programs.
    opening: bool,
}

impl Call {
    /// What `strace` is told to look at the thread that makes this call.
    fn follow(opening: bool) -> &'static [&'static str] {
        if opening { &["--follow-forks"] } else { &[] }
    }
}

/// The calls of an undisturbed start that change something, [`OF_A_KIND`] of each kind and thread: the first, the last
/// and some between.
fn telling_calls(scene: &Scene) -> Vec<Call> {
    [true, false].into_iter().flat_map(|opening| telling_calls_of(scene, opening)).collect()
}

fn telling_calls_of(scene: &Scene, opening: bool) -> Vec<Call> {
    scene.prepare();
    let trace = format!("trace={CALLS}");
    let mut agent = scene.start_under(&[Call::follow(opening), &["-o", "/run/trace", "-e", &trace]].concat());
    agent.logged("programmed ").unwrap();
    agent.end_under().unwrap();
    let trace = fs::read_to_string("/run/trace").unwrap();
    let mut threads: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in trace.lines() {
        let (thread, call) = if opening { line.split_once(' ').unwrap() } else { ("", line) };
        let call = call.trim_start();
        if CALLS.split(',').any(|name| call.starts_with(&format!("{name}("))) {
            threads.entry(thread).or_default().push(call);
        }
    }
    let calls = threads.into_values().max_by_key(Vec::len).unwrap();
    let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, call) in calls.iter().enumerate() {
        let kind = TELLING.iter().find(|kind| call.starts_with(&format!("bpf({kind},")) || call.starts_with(**kind));
        if let Some(kind) = kind {
            kinds.entry(kind).or_default().push(at + 1);
        }
    }
    println!("{} calls: {kinds:?}", calls.len());
    kinds.into_iter().flat_map(|(kind, numbers)| spread(kind, &numbers, opening)).collect()
}

fn spread(kind: &str, numbers: &[usize], opening: bool) -> Vec<Call> {
    let count = OF_A_KIND.min(numbers.len());
    let at = |step: usize| if count == 1 { 0 } else { step * (numbers.len() - 1) / (count - 1) };
    (0..count).map(|step| Call { kind: kind.to_owned(), number: numbers[at(step)], opening }).collect()
}

fn survives_its_end_anywhere(scene: &Scene) {
    let (calls, mut unmet) = (telling_calls(scene), 0);
    for call in &calls {
        scene.prepare();
        let load = scene.load();
        let (trace, kill) = (format!("trace={CALLS}"), format!("inject={CALLS}:signal=SIGKILL:when={}", call.number));
        let options = ["-o", "/dev/null", "-e", &trace, "-e", &kill];
        let mut agent = scene.start_under(&[Call::follow(call.opening), &options].concat());
        let survived = agent.logged("programmed ").is_ok();
        agent.end_under().unwrap();
        println!("{call:?}: {}", if survived { "not met" } else { "ended" });
        unmet += usize::from(survived);
        scene.recovers(load, &format!("ended at {call:?}"));
    }
    // Neighbouring writes share a call in one start and not in another: the last calls of one may not come in the next.
    assert!(unmet < calls.len() / 2, "{unmet} of {} calls were not met", calls.len());
}

#[test]
fn a_first_start_may_end_at_any_call() {
    survives_its_end_anywhere(&Scene::fresh());
}

#[test]
fn a_start_over_tables_of_another_version_may_end_at_any_call() {
    survives_its_end_anywhere(&Scene::another_version());
}

#[test]
fn a_change_may_end_at_any_call() {
    survives_its_end_anywhere(&Scene::changed());
}
