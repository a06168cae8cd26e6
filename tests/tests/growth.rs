//! Tables grow with the cluster while clients are served, whatever happens meanwhile, and cost what was calculated.

use std::fmt::Write;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use nix::sys::signal::Signal;
use proxy_common::abi::{Affinity, AffinityKey};
use proxy_common::tables::Capacity;
use proxy_tests::agent::{AT_SOCKETS, Agent, list};
use proxy_tests::crowd::Crowd;
use proxy_tests::node::Node;
use proxy_tests::pins::{names, options, tables};
use proxy_tests::probe::{Kind, Load, Traffic};
use proxy_tests::stage::{Stage, VIP4, VIP6, dialled, eventually, web};
use proxy_tests::world::World;
use proxy_userspace::attach::Datapath;
use proxy_userspace::attach::object::HOOKS;
use proxy_userspace::maps::pinned::{Pinned, layouts};
use proxy_userspace::maps::{MapStore, footprint};
use proxy_userspace::plan::growth;
use proxy_userspace::sys::bpf::Pin;
use serde_json::Value;

/// More service ports than tables have room for that were made for fewer.
const MANY: u32 = 400;

/// The agent with the Service `web` alone, in the smallest tables.
fn start(stage: &Stage) -> Agent {
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    Agent::start_with(&stage.node, &stage.manifests, &AT_SOCKETS).unwrap()
}

/// Waits until `web` and so many others are served.
fn served(stage: &Stage, others: u32) {
    // `web` is two ports in two families.
    eventually("every Service is served", || rows(&stage.node).len() == others as usize + 4);
}

fn rows(node: &Node) -> Vec<Value> {
    list(node).unwrap().as_array().unwrap().clone()
}

fn ids(node: &Node) -> Vec<(&'static str, u32)> {
    tables(node).unwrap()
}

#[test]
fn a_first_start_makes_tables_as_large_as_the_lists_need_and_loads_the_programs_once() {
    let stage = Stage::new().unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    stage.add_services(MANY);
    let strace = ["--follow-forks", "-o", "/run/trace", "-e", "trace=bpf"];
    let mut agent = Agent::start_under(&stage.node, &stage.manifests, &strace, &AT_SOCKETS).unwrap();
    agent.logged("programmed ").unwrap();
    agent.end_under().unwrap();
    served(&stage, MANY);
    let trace = fs::read_to_string("/run/trace").unwrap();
    let loads = HOOKS.map(|hook| trace.matches(&format!("prog_name=\"{hook}\"")).count());
    assert_eq!(loads, [1; HOOKS.len()]);
}

#[test]
fn tables_grow_twice_while_clients_are_served() {
    let stage = Stage::new().unwrap();
    let agent = start(&stage);
    let (before, mut crowd) = (ids(&stage.node), Crowd::start(&stage));
    let client = stage.pod_client().unwrap();
    let sockets = [(Kind::Tcp, VIP4), (Kind::Udp, VIP4), (Kind::Udp, VIP6)].map(|(kind, vip)| {
        let socket = client.open(kind, dialled(vip));
        socket.connect(dialled(vip)).unwrap();
        (vip, socket.ask().unwrap().by, socket)
    });
    crowd.goes_on();
    for count in [MANY, 2 * MANY] {
        stage.add_services(count);
        served(&stage, count);
        crowd.goes_on();
        for (vip, by, socket) in &sockets {
            assert_eq!(&socket.ask().unwrap().by, by);
            assert_eq!(socket.peer_name().unwrap(), dialled(*vip));
        }
    }
    crowd.was_never_refused();
    assert_eq!(agent.log().matches("made larger tables").count(), 2);
    assert_eq!(names(&stage.node.pin_dir()), ["links", "v1"]);
    for ((table, old), (_, new)) in before.iter().zip(ids(&stage.node)) {
        let grown = ["INDEX", "FRONTEND", "SERVICE"].contains(table);
        assert_eq!(*old != new, grown, "{table}");
    }
}

/// The backends of a ClusterIP over TCP, as `sluice list` tells them.
fn backends(node: &Node, frontend: &str) -> Vec<Value> {
    let row = rows(node).into_iter().find(|row| row["frontend"] == frontend && row["protocol"] == "TCP");
    row.map_or_else(Vec::new, |row| row["backends"].as_array().unwrap().clone())
}

/// The endpoints of another Service, at addresses where nobody is.
fn add_endpoints(stage: &Stage, count: u32) {
    let mut text =
        "kind: Service\nmetadata: {name: large}\nspec: {clusterIP: 10.98.0.1, ports: [{port: 80}]}\n".to_owned();
    for slice in 0..count.div_ceil(1000) {
        let addresses = (slice * 1000..count.min((slice + 1) * 1000)).map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            format!("{{addresses: [10.9.{high}.{low}]}}")
        });
        let endpoints = addresses.collect::<Vec<_>>().join(", ");
        let labels = format!("{{name: large-{slice}, labels: {{kubernetes.io/service-name: large}}}}");
        write!(text, "---\nkind: EndpointSlice\nmetadata: {labels}\naddressType: IPv4\n").unwrap();
        write!(text, "ports: [{{port: 8080}}]\nendpoints: [{endpoints}]\n").unwrap();
    }
    stage.manifests.write_text("large", text).unwrap();
}

#[test]
fn no_connection_is_lost_in_the_counters() {
    let stage = Stage::new().unwrap();
    let _agent = start(&stage);
    let before = ids(&stage.node);
    let loads = [(); 2].map(|()| Load::start(&stage.pod.place, Traffic::Tcp, dialled(VIP4)).unwrap());
    for count in [1500, 3000] {
        add_endpoints(&stage, count);
        eventually("every endpoint is served", || backends(&stage.node, "10.98.0.1:80").len() == count as usize);
    }
    let reports = loads.map(|load| load.stop().unwrap());
    assert!(reports.iter().all(|report| report.failed == 0), "{reports:?}");
    let answered: u64 = reports.iter().map(|report| report.answered).sum();
    let counted = backends(&stage.node, "10.96.0.10:80");
    let sum = |field: &str| counted.iter().map(|backend| backend[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("active"), sum("total")), (0, answered));
    assert!(before.iter().zip(ids(&stage.node)).any(|(old, new)| old.0 == "STATS" && *old != new), "STATS has grown");
}

#[test]
fn clients_with_affinity_stay_where_they_are_when_more_can_be_remembered() {
    let stage = Stage::new().unwrap();
    let agent = start(&stage);
    stage.manifests.write("manifest", &[&web().affinity(600), &stage.both()]).unwrap();
    agent.logged("made larger tables").unwrap();
    let maps = || Pinned::open(&stage.node.pin_dir().join("v1")).unwrap();
    assert_eq!(maps().affinity.max_entries(), 16_384);
    let client = stage.pod_client().unwrap();
    let by = client.dial(Kind::Tcp, dialled(VIP4)).unwrap().by;
    let (key, value): (AffinityKey, Affinity) = maps().affinity.entries().unwrap()[0];
    stage.add_services(MANY);
    served(&stage, MANY);
    assert_eq!(maps().affinity.get(&key).unwrap().map(|now| now.backend), Some(value.backend));
    assert_eq!(client.spread(Kind::Tcp, dialled(VIP4), 20).unwrap().into_keys().collect::<Vec<_>>(), [by]);
}

#[test]
fn an_agent_killed_while_tables_grow_leaves_what_serves_and_the_next_one_finishes() {
    let stage = Stage::new().unwrap();
    let mut agent = start(&stage);
    let mut crowd = Crowd::start(&stage);
    let client = stage.pod_client().unwrap();
    let socket = client.open(Kind::Udp, dialled(VIP4));
    socket.connect(dialled(VIP4)).unwrap();
    let by = socket.ask().unwrap().by;
    for (round, call) in (1..).zip([1, 20, 40, 60, 80, 100, 120]) {
        let kill = format!("inject=bpf:signal=SIGKILL:when={call}");
        let mut strace = agent.disturb(&["-o", "/dev/null", "-e", &kill]).unwrap();
        stage.add_services(round * MANY);
        let ended = agent.wait().unwrap();
        strace.wait().unwrap();
        assert!(!ended.success(), "call {call}");
        crowd.goes_on();
        agent = agent.restart().unwrap();
        served(&stage, round * MANY);
        assert_eq!(socket.ask().unwrap().by, by, "call {call}");
        assert_eq!(socket.peer_name().unwrap(), dialled(VIP4), "call {call}");
        crowd.goes_on();
        assert_eq!(names(&stage.node.pin_dir()), ["links", "v1"], "call {call}");
    }
    crowd.was_never_refused();
}

#[test]
fn tables_that_had_stepped_aside_come_back() {
    let stage = Stage::new().unwrap();
    let mut agent = start(&stage);
    let client = stage.pod_client().unwrap();
    let socket = client.open(Kind::Udp, dialled(VIP4));
    socket.connect(dialled(VIP4)).unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
    let (before, pins) = (ids(&stage.node), stage.node.pin_dir());
    fs::rename(pins.join("v1"), pins.join("v1-old")).unwrap();
    fs::create_dir(pins.join("v1-new")).unwrap();
    let _agent = agent.restart().unwrap();
    assert_eq!((ids(&stage.node), names(&pins)), (before, vec!["links".to_owned(), "v1".to_owned()]));
    assert_eq!(socket.peer_name().unwrap(), dialled(VIP4));
}

#[test]
fn past_the_limit_only_what_does_not_fit_is_not_served() {
    let stage = Stage::new().unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    let arguments = [&AT_SOCKETS[..], &["--max-services=300"]].concat();
    let agent = Agent::start_with(&stage.node, &stage.manifests, &arguments).unwrap();
    let mut crowd = Crowd::start(&stage);
    stage.add_services(320);
    agent
        .logged("table SERVICE is full (299 entries); delete Services, or start again with a larger --max-services")
        .unwrap();
    crowd.goes_on();
    crowd.was_never_refused();
    assert_eq!(rows(&stage.node).len(), 299);
    drop(agent);
    let _agent = Agent::start_with(&stage.node, &stage.manifests, &AT_SOCKETS).unwrap();
    served(&stage, 320);
}

/// What the kernel says that the table pinned at `path` takes.
fn locked(path: &Path) -> u64 {
    let pin = Pin::open(path).unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pin.fd.as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap().trim().parse().unwrap()
}

#[test]
fn ten_thousand_services_take_what_was_calculated_and_less_than_eight_megabytes() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let needs = Capacity {
        frontends: 20_001,
        services: 10_001,
        versions: 10_001,
        slots: 100_000,
        backends: 100_001,
        ..Capacity::default()
    };
    // As the agent has it where no programs are wanted at devices.
    let limit = Capacity { flows: 0, ..Capacity::LIMIT };
    let sizes = growth::sizes(&needs, &growth::smallest(&limit), &limit).unwrap();
    let mut datapath = Datapath::open(&options(&node, limit)).unwrap();
    datapath.grow(&sizes).unwrap();
    datapath.go_live().unwrap();

    let cpus = thread::available_parallelism().unwrap().get() as u64;
    let mut sum = 0;
    for layout in layouts() {
        let calculated = footprint::bytes(layout, &datapath.capacity(), 0, cpus);
        let found = locked(&node.pin_dir().join("v1").join(layout.name));
        println!("{}: calculated {calculated}, in the kernel {found}", layout.name);
        assert!(calculated.abs_diff(found) <= 8192 + calculated / 100, "{}: {calculated}, {found}", layout.name);
        sum += if layout.name == "SOCKETS" { 0 } else { found };
    }
    println!("all but SOCKETS: {sum}");
    assert!(sum <= 8_000_000, "{sum}");
}
