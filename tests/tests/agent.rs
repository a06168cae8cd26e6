//! The agent's life: it follows files, dies, comes back, meets others and what they left, while clients are served.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::Signal;
use proxy_tests::agent::{Agent, list};
use proxy_tests::crowd::{ANSWERS, Crowd};
use proxy_tests::manifest::{Folder, text};
use proxy_tests::node::Node;
use proxy_tests::probe::{Client, Kind, Load, Report, Traffic};
use proxy_tests::stage::{self, Stage, VIP4, dialled, eventually, web, web_endpoints};
use proxy_userspace::sys::bpf::cgroup_programs;

/// Who answers a few dials.
fn who(client: &Client) -> String {
    stage::who(client, Kind::Tcp, dialled(VIP4))
}

#[test]
fn files_are_followed_however_they_change() {
    let stage = Stage::new().unwrap();
    let (a, b) = (web_endpoints().pod(&stage.a.pod), web_endpoints().pod(&stage.b.pod));
    let _agent = stage.serve(&[&web(), &a]).unwrap();
    let client = stage.pod_client().unwrap();
    assert_eq!(who(&client), "a");

    fs::write(stage.manifests.file("manifest"), text(&[&web(), &b])).unwrap();
    eventually("an edit in place", || who(&client) == "b");
    stage.manifests.write("manifest", &[&web(), &a]).unwrap();
    eventually("an atomic replacement", || who(&client) == "a");
    stage.manifests.remove("manifest").unwrap();
    eventually("a removal", || who(&client) != "a");
    stage.manifests.write("service", &[&web()]).unwrap();
    stage.manifests.write("slices", &[&stage.both()]).unwrap();
    eventually("new files, one for each object", || who(&client) == "a,b");
}

#[test]
fn a_swapped_symlink_is_followed() {
    let stage = Stage::new().unwrap();
    let versions = Folder::new().unwrap();
    for (name, backend) in [("old", &stage.a), ("new", &stage.b)] {
        fs::create_dir(versions.path().join(name)).unwrap();
        let manifest = text(&[&web(), &web_endpoints().pod(&backend.pod)]);
        fs::write(versions.path().join(name).join("web.yaml"), manifest).unwrap();
    }
    // As the kubelet lays out a ConfigMap: the file points into `..data`, which is switched by a rename.
    let folder = stage.manifests.path();
    symlink(versions.path().join("old"), folder.join("..data")).unwrap();
    symlink("..data/web.yaml", folder.join("web.yaml")).unwrap();
    let _agent = Agent::start(&stage.node, &stage.manifests).unwrap();
    let client = stage.pod_client().unwrap();
    assert_eq!(who(&client), "a");

    symlink(versions.path().join("new"), folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    eventually("the swap is followed", || who(&client) == "b");
}

#[test]
fn a_broken_file_is_named_and_its_last_good_state_keeps_serving() {
    let stage = Stage::new().unwrap();
    let agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    let client = stage.pod_client().unwrap();
    stage.manifests.write_text("manifest", "kind: Service\nmetadata:\n  name: [\n").unwrap();
    agent.logged("manifest.yaml:3: ").unwrap();
    assert_eq!(who(&client), "a");
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    eventually("the file is mended", || who(&client) == "a,b");
}

#[test]
fn killed_by_any_signal_and_started_again_nobody_notices() {
    let stage = Stage::new().unwrap();
    let mut agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let mut crowd = Crowd::start(&stage);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT, Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGBUS] {
        crowd.goes_on();
        agent.end_with(signal).unwrap();
        crowd.goes_on();
        agent = agent.restart().unwrap();
    }
    crowd.goes_on();
    crowd.was_never_refused();
}

#[test]
fn without_an_agent_the_kernel_still_serves_new_pods() {
    let stage = Stage::new().unwrap();
    let mut agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
    let pod = stage.node.pod("late").unwrap();
    assert_eq!(who(&Client::start(&pod.place).unwrap()), "a,b");
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let stage = Stage::new().unwrap();
    let first = stage.serve(&[&web(), &stage.both()]).unwrap();
    let mut second = first.start_another().unwrap();
    second
        .logged(&format!("already runs on pin folder {}, as process {}", stage.node.pin_dir().display(), first.pid()))
        .unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert_eq!(who(&stage.pod_client().unwrap()), "a,b");
}

#[test]
fn the_lock_file_of_a_killed_agent_stops_nobody_whoever_has_its_pid_now() {
    let stage = Stage::new().unwrap();
    let mut agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
    let locks: Vec<_> = fs::read_dir("/run/sluice").unwrap().map(|entry| entry.unwrap().path()).collect();
    let [lock] = &locks[..] else { panic!("one lock file: {locks:?}") };
    // A process that lives, and is none of ours.
    fs::write(lock, "1").unwrap();
    let agent = agent.restart().unwrap();
    assert_eq!(fs::read_to_string(lock).unwrap(), agent.pid().to_string());
    assert_eq!(who(&stage.pod_client().unwrap()), "a,b");
}

#[test]
fn a_restart_swaps_the_programs_in_place() {
    let stage = Stage::new().unwrap();
    let mut agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let mut crowd = Crowd::start(&stage);
    let before = attached(&stage.node);
    assert_eq!(before.len(), HOOKS.len());
    agent.end_with(Signal::SIGKILL).unwrap();
    let _agent = agent.restart().unwrap();
    let after = attached(&stage.node);
    assert_eq!(after.len(), before.len(), "one program at each hook, before and after");
    assert!(after.iter().all(|id| !before.contains(id)), "new programs: {before:?}, {after:?}");
    crowd.goes_on();
    crowd.was_never_refused();
}

/// Where programs stand at a cgroup (`enum bpf_attach_type`): connect, sendmsg, recvmsg and getpeername, IPv4 and IPv6 each,
/// and the end of a socket.
const HOOKS: [u32; 9] = [10, 11, 14, 15, 19, 20, 29, 30, 34];

/// Ids of the programs at the node's cgroup. `bpftool cgroup show` asks for flags of each, which kernel 5.10 refuses.
fn attached(node: &Node) -> Vec<u32> {
    let cgroup = File::open(&node.cgroup).unwrap();
    HOOKS.iter().flat_map(|hook| cgroup_programs(cgroup.as_fd(), *hook).unwrap()).collect()
}

#[test]
fn what_changed_while_it_was_away_is_caught_up() {
    let stage = Stage::new().unwrap();
    let mut agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    let client = stage.pod_client().unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
    stage.manifests.write("manifest", &[&web(), &web_endpoints().pod(&stage.b.pod)]).unwrap();
    assert_eq!(who(&client), "a");
    let _agent = agent.restart().unwrap();
    assert_eq!(who(&client), "b");
}

/// What somebody may find in a pin folder instead of a complete state of this version.
type Damage = fn(&Node, &Path);

const DAMAGES: &[(&str, Damage)] = &[
    ("only another ABI version", |_, pins| fs::rename(pins.join("v1"), pins.join("v0")).unwrap()),
    ("a table is missing", |_, pins| fs::remove_file(pins.join("v1/BACKENDS")).unwrap()),
    ("a table of another shape", |node, pins| {
        let path = pins.join("v1/SERVICE");
        fs::remove_file(&path).unwrap();
        let path = path.display().to_string();
        let shape =
            ["map", "create", &path, "type", "array", "key", "4", "value", "4", "entries", "8", "name", "SERVICE"];
        node.netns.output("bpftool", &shape).unwrap();
    }),
    ("half of an interrupted start", |_, pins| fs::create_dir(pins.join("v1-new")).unwrap()),
];

#[test]
fn damaged_pins_are_rebuilt_while_clients_are_served() {
    for (what, damage) in DAMAGES {
        let stage = Stage::new().unwrap();
        let mut agent = stage.serve(&[&web(), &stage.both()]).unwrap();
        let mut crowd = Crowd::start(&stage);
        crowd.goes_on();
        agent.end_with(Signal::SIGKILL).unwrap();
        damage(&stage.node, &stage.node.pin_dir());
        eprintln!("{what}");
        let agent = agent.restart().unwrap();
        crowd.goes_on();
        crowd.was_never_refused();

        stage.manifests.write("manifest", &[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
        let client = stage.pod_client().unwrap();
        eventually("changes arrive in the tables that serve", || who(&client) == "a");
        drop(agent);
    }
}

#[test]
fn random_bytes_in_the_tables_are_repaired_by_a_start() {
    let stage = Stage::new().unwrap();
    let mut agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
    for (table, width) in [("SERVICE", 8), ("VERSION", 32), ("SLOTS", 8), ("BACKENDS", 32), ("FRONTEND", 28)] {
        for id in 0..16_u8 {
            overwrite(&stage.node, table, id, width);
        }
    }
    let _agent = agent.restart().unwrap();
    assert_eq!(who(&stage.pod_client().unwrap()), "a,b");
    assert_eq!(who(&stage.host_client().unwrap()), "a,b");
}

/// Fills one entry of an array with bytes that make no sense.
fn overwrite(node: &Node, table: &str, id: u8, width: usize) {
    let path = node.pin_dir().join("v1").join(table).display().to_string();
    let key = [id, 0, 0, 0].map(|byte| byte.to_string());
    let value: Vec<String> = (0..width).map(|at| (id.wrapping_mul(31) ^ at as u8 ^ 0xa5).to_string()).collect();
    let mut arguments = vec!["map", "update", "pinned", &path, "key"];
    arguments.extend(key.iter().map(String::as_str));
    arguments.push("value");
    arguments.extend(value.iter().map(String::as_str));
    node.netns.output("bpftool", &arguments).unwrap();
}

#[test]
fn a_removed_backend_gets_nothing_after_the_write() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let mut crowd = Crowd::start(&stage);
    for (slices, gone) in [
        (web_endpoints().pod(&stage.a.pod), Some("b")),
        (stage.both(), None),
        (web_endpoints().pod(&stage.b.pod), Some("a")),
    ] {
        stage.manifests.write("manifest", &[&web(), &slices]).unwrap();
        let wanted: Vec<_> =
            [&stage.a, &stage.b].into_iter().filter(|backend| Some(backend.pod.name.as_str()) != gone).collect();
        let addresses: Vec<IpAddr> =
            wanted.iter().flat_map(|backend| [backend.pod.v4.into(), backend.pod.v6.into()]).collect();
        eventually("the tables hold what the file says", || listed_backends(&stage.node) == sorted(addresses.clone()));
        for (traffic, _, load) in &mut crowd.0 {
            stays_away(*traffic, load, gone);
        }
    }
    crowd.was_never_refused();
}

/// New connections never reach `gone`; datagrams of one old socket stay only with what still serves.
fn stays_away(traffic: Traffic, load: &mut Load, gone: Option<&str>) {
    // What was under way when the tables changed.
    let before = load.after(2).unwrap();
    let after = load.after(ANSWERS).unwrap();
    if let Some(gone) = gone {
        let reached = |report: &Report| report.by.get(gone).copied();
        assert_eq!(reached(&before), reached(&after), "{traffic:?} still reaches {gone}");
    }
}

fn listed_backends(node: &Node) -> Vec<IpAddr> {
    let list = list(node).unwrap();
    let frontends = list.as_array().expect("a list of frontends");
    let backends = frontends.iter().flat_map(|frontend| frontend["backends"].as_array().unwrap());
    let addresses = backends.map(|backend| backend["backend"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip());
    sorted(addresses.collect())
}

fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses.dedup();
    addresses
}

#[test]
fn cluster_ips_that_a_former_ipvs_proxy_left_on_its_device_are_served() {
    let stage = Stage::new().unwrap();
    stage.node.netns.ip(&["link add kube-ipvs0 type bridge", "addr add 10.96.0.10/32 dev kube-ipvs0"]).unwrap();
    let agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    agent.logged("1 addresses of kube-ipvs0 are left over from kube-proxy in IPVS mode").unwrap();
    assert_eq!(who(&stage.host_client().unwrap()), "a,b");
}
