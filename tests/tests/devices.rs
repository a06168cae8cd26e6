//! Programs at devices: chosen, followed, kept and removed, beside those of others (issue 5, line 1).
//!
//! Each test has a network namespace and a BPF filesystem of its own. What is attached here counts packets and does nothing
//! else; that the product's programs leave alone what is not theirs is shown where they are tested.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proxy_common::abi::Device;
use proxy_tests::netns::Netns;
use proxy_tests::stage::eventually;
use proxy_tests::world::{PINS, World};
use proxy_tests::{counter, counting_classifier, hash};
use proxy_userspace::attach::devices::follow::{self, Hooks};
use proxy_userspace::attach::devices::{DeviceHooks, Hook, Order, Programs, Standing, Way, remove_all, standing};
use proxy_userspace::devices::{Choice, Scope, Settings, choose};
use proxy_userspace::netdev::{self, Host};
use proxy_userspace::sys::bpf::{self, Map, program_id, tcx, tcx_attach};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const WAYS: [Way; 2] = [Way::Tcx, Way::Clsact];

/// How soon a change must be known.
const SOON: Duration = Duration::from_millis(250);

/// A program that counts what it sees.
struct Counting {
    program: OwnedFd,
    seen: Map<u32, u64>,
}

impl Counting {
    fn new() -> Self {
        let seen = counter().unwrap();
        let program = counting_classifier(seen.as_fd()).unwrap();
        Self { program, seen: Map::new(seen).unwrap() }
    }

    fn seen(&self) -> u64 {
        self.seen.get(&0).unwrap().unwrap()
    }

    fn id(&self) -> u32 {
        program_id(self.program.as_fd()).unwrap()
    }

    fn fd(&self) -> OwnedFd {
        self.program.try_clone().unwrap()
    }
}

/// A node whose programs are stand-ins.
struct Stage {
    node: Netns,
    outside: Netns,
    links: PathBuf,
    ours: Counting,
    devices: Map<u32, Device>,
    _world: World,
}

impl Stage {
    /// The calling thread is in the node's namespace from now on.
    fn new() -> Self {
        let world = World::new().unwrap();
        let (node, outside) = (Netns::new().unwrap(), Netns::new().unwrap());
        node.enter().unwrap();
        let links = Path::new(PINS).join("links");
        let devices = Map::new(hash(4, size_of::<Device>() as u32, 4096).unwrap()).unwrap();
        Self { node, outside, links, ours: Counting::new(), devices, _world: world }
    }

    fn veth(&self, name: &str) {
        self.node
            .ip(&[format!("link add {name} up type veth peer name p-{name} netns {}", self.outside.path())])
            .unwrap();
    }

    /// A link between the node (10.0.0.1) and the outside (10.0.0.2).
    fn uplink(&self) {
        self.veth("uplink");
        self.node.ip(&["addr add 10.0.0.1/24 dev uplink"]).unwrap();
        self.outside.ip(&["addr add 10.0.0.2/24 dev p-uplink", "link set p-uplink up"]).unwrap();
    }

    fn programs_of(&self, program: &Counting) -> Programs {
        let devices = Map::new(self.devices.as_fd().try_clone_to_owned().unwrap()).unwrap();
        Programs { ingress: program.fd(), egress: program.fd(), devices }
    }

    fn agent(&self, way: Way) -> Agent {
        self.agent_with(way, Order::default(), Settings::default())
    }

    /// Follows the namespace of this thread, as the agent does.
    fn agent_with(&self, way: Way, order: Order, settings: Settings) -> Agent {
        let mut hooks = DeviceHooks::new(&self.links, way, order);
        hooks.serve_by(self.programs_of(&self.ours)).unwrap();
        let hooks = Arc::new(Mutex::new(hooks));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let host = runtime.block_on(follow::start(None, settings, hooks.clone())).unwrap();
        Agent { hooks, host, _runtime: runtime }
    }

    fn index(&self, device: &str) -> u32 {
        let text = self.node.output("ip", &["-o", "link", "show", device]).unwrap();
        text.split_once(':').unwrap().0.parse().unwrap()
    }

    /// Whether our program stands at both hooks.
    fn stands_at(&self, device: u32) -> bool {
        Hook::BOTH.iter().all(|hook| match standing(&self.links, device, *hook).unwrap() {
            Standing::Nothing => false,
            Standing::Tcx(own, _) | Standing::Clsact(own) => own == self.ours.id(),
        })
    }

    fn is_known(&self, device: u32) -> bool {
        self.devices.get(&device).unwrap().is_some()
    }

    fn pins(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.links.join("devices")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn exchange(&self, count: usize) {
        exchange(&self.outside, count);
    }
}

/// Sends datagrams from the outside to the node, where this thread is, and back; all arrive.
fn exchange(outside: &Netns, count: usize) {
    let server = UdpSocket::bind("10.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    let client = outside.inside(|| Ok(UdpSocket::bind("10.0.0.2:0")?)).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    for _ in 0..count {
        client.send_to(b"ping", to).unwrap();
        let (length, from) = server.recv_from(&mut [0; 8]).unwrap();
        server.send_to(&b"pong"[..length], from).unwrap();
        client.recv_from(&mut [0; 8]).unwrap();
    }
}

/// Ends as an agent that is killed: what stands stays.
struct Agent {
    hooks: Hooks,
    host: watch::Receiver<Host>,
    _runtime: Runtime,
}

impl Agent {
    fn end(self) {
        let Self { hooks, host, .. } = self;
        drop(host);
        let left = Arc::downgrade(&hooks);
        drop(hooks);
        eventually("the thread of the agent ends", || left.strong_count() == 0);
    }
}

/// Runs a program in the node's namespace, where this thread is.
fn run(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}: {status}");
}

#[test]
fn a_device_that_comes_is_followed_and_one_that_goes_is_forgotten() {
    for way in WAYS {
        let stage = Stage::new();
        stage.uplink();
        let agent = stage.agent(way);
        let up = stage.index("uplink");
        assert!(stage.stands_at(up), "what is there at the start is served before the agent goes on ({way:?})");
        stage.veth("pod1");
        let pod = stage.index("pod1");
        eventually("the pod's device is served", || stage.stands_at(pod) && stage.is_known(pod));
        run("ip link del pod1");
        let gone = || !stage.is_known(pod) && !stage.pins().iter().any(|pin| pin.starts_with(&format!("{pod}-")));
        eventually("nothing of the pod's device is left", gone);
        assert!(agent.hooks.lock().unwrap().failed().is_empty());
    }
}

#[test]
fn a_device_that_comes_back_under_its_old_number_is_served_again() {
    for way in WAYS {
        let stage = Stage::new();
        let agent = stage.agent(way);
        stage.veth("pod1");
        let pod = stage.index("pod1");
        eventually("the device is served", || stage.stands_at(pod));
        let again = format!(
            "link del pod1\nlink add pod1 index {pod} up type veth peer name p-pod1 netns {}",
            stage.outside.path()
        );
        stage.node.ip(&again.lines().collect::<Vec<_>>()).unwrap();
        eventually("its successor is served", || stage.stands_at(pod));
        agent.end();
    }
}

#[test]
fn five_hundred_veths_a_minute_are_each_known_within_a_quarter_of_a_second() {
    let stage = Stage::new();
    let crowd: Vec<String> = (0..200)
        .map(|number| {
            format!("link add old{number} up type veth peer name p-old{number} netns {}", stage.outside.path())
        })
        .collect();
    stage.node.ip(&crowd).unwrap();
    let _agent = stage.agent(Way::Tcx);
    let pace = Duration::from_mins(1) / 500;
    let (mut late, mut due) = (Vec::new(), Instant::now());
    for number in 0..100 {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += pace;
        let name = format!("new{number}");
        stage.veth(&name);
        let added = Instant::now();
        let device = stage.index(&name);
        eventually("a new device is served", || stage.stands_at(device));
        late.extend((added.elapsed() > SOON).then(|| format!("{name} came, {:?}", added.elapsed())));
        if number >= 10 {
            let name = format!("new{}", number - 10);
            let device = stage.index(&name);
            stage.node.ip(&[format!("link del {name}")]).unwrap();
            let removed = Instant::now();
            eventually("a device is forgotten", || !stage.is_known(device));
            late.extend((removed.elapsed() > SOON).then(|| format!("{name} went, {:?}", removed.elapsed())));
        }
    }
    // 99 of 100: a machine that runs other tests beside this one pauses.
    assert!(late.len() <= 190 / 100, "of 190 changes {} were known too late: {late:?}", late.len());
}

#[test]
fn programs_of_others_before_and_after_still_see_every_packet() {
    for order in [Order::Outermost, Order::Innermost] {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        let (early, agent) = (Counting::new(), stage.agent_with(Way::Tcx, order, Settings::default()));
        let late = Counting::new();
        let _links: Vec<OwnedFd> = [tcx::INGRESS, tcx::EGRESS]
            .into_iter()
            .flat_map(|hook| {
                [(&early, tcx::FIRST), (&late, tcx::LAST)]
                    .map(|(program, place)| tcx_attach(program.program.as_fd(), up, hook, place).unwrap())
            })
            .collect();
        let in_order = vec![early.id(), stage.ours.id(), late.id()];
        assert_eq!(standing(&stage.links, up, Hook::Ingress).unwrap(), Standing::Tcx(stage.ours.id(), in_order));
        stage.exchange(20);
        for (who, program) in [("before", &early), ("ours", &stage.ours), ("after", &late)] {
            assert!(program.seen() >= 40, "{who}: {} of 40 packets", program.seen());
        }
        agent.end();
    }
}

#[test]
fn the_order_says_on_which_side_of_the_others_a_new_program_stands() {
    for (order, ingress_first) in [(Order::Outermost, true), (Order::Innermost, false)] {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        let other = Counting::new();
        let _links = [tcx::INGRESS, tcx::EGRESS].map(|hook| tcx_attach(other.program.as_fd(), up, hook, 0).unwrap());
        let _agent = stage.agent_with(Way::Tcx, order, Settings::default());
        for hook in Hook::BOTH {
            let first = ingress_first == (hook == Hook::Ingress);
            let (ours, other) = (stage.ours.id(), other.id());
            let expected = if first { vec![ours, other] } else { vec![other, ours] };
            assert_eq!(standing(&stage.links, up, hook).unwrap(), Standing::Tcx(ours, expected), "{order:?} {hook:?}");
        }
    }
}

#[test]
fn filters_of_others_before_and_after_still_see_every_packet() {
    for order in [Order::Outermost, Order::Innermost] {
        let stage = Stage::new();
        stage.uplink();
        let _agent = stage.agent_with(Way::Clsact, order, Settings::default());
        let other = Counting::new();
        let pin = Path::new(PINS).join("other");
        bpf::pin(other.program.as_fd(), &pin).unwrap();
        for hook in ["ingress", "egress"] {
            run(&format!("tc filter add dev uplink {hook} pref 10 bpf da object-pinned {}", pin.display()));
        }
        stage.exchange(20);
        // One of the two hooks has it before ours, the other one after.
        for (who, program) in [("ours", &stage.ours), ("the other's", &other)] {
            assert!(program.seen() >= 40, "{who}: {} of 40 packets", program.seen());
        }
    }
}

#[test]
fn what_somebody_detaches_is_attached_again_without_a_trigger() {
    let stage = Stage::new();
    stage.uplink();
    let up = stage.index("uplink");
    let _agent = stage.agent(Way::Tcx);
    let pin = stage.links.join(format!("devices/{up}-ingress"));
    for harm in ["bpftool link detach pinned", "rm"] {
        run(&format!("{harm} {}", pin.display()));
        eventually(&format!("after {harm} it stands again"), || stage.stands_at(up));
        assert_eq!(
            bpf::tcx_programs(up, tcx::INGRESS).unwrap(),
            [stage.ours.id()],
            "exactly one of ours, after {harm}"
        );
    }
}

#[test]
fn a_filter_that_somebody_removes_is_back_at_once() {
    let stage = Stage::new();
    stage.uplink();
    let up = stage.index("uplink");
    let _agent = stage.agent(Way::Clsact);
    for harm in
        ["tc filter del dev uplink ingress", "tc filter del dev uplink egress", "tc qdisc del dev uplink clsact"]
    {
        run(harm);
        eventually(&format!("after {harm} it stands again"), || stage.stands_at(up));
        let filters = stage.node.output("tc", &["filter", "show", "dev", "uplink", "ingress"]).unwrap();
        assert_eq!(filters.matches("sluice").count(), 1, "exactly one of ours, after {harm}: {filters}");
    }
}

#[test]
fn a_new_agent_takes_over_what_stands_and_swaps_programs_in_place() {
    for way in WAYS {
        let mut stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        stage.agent(way).end();
        let link = |stage: &Stage| {
            let pin = bpf::Pin::open(&stage.links.join(format!("devices/{up}-ingress"))).unwrap();
            bpf::tcx_link_info(pin.fd.as_fd()).map(|info| info.id).ok()
        };
        let before = link(&stage);
        assert!(stage.stands_at(up), "without an agent it serves on ({way:?})");
        let old = std::mem::replace(&mut stage.ours, Counting::new());
        let _agent = stage.agent(way);
        assert!(stage.stands_at(up), "the new program has taken its place ({way:?})");
        if way == Way::Tcx {
            assert_eq!(link(&stage), before, "it is the same link");
        }
        let until_now = old.seen();
        stage.exchange(5);
        assert_eq!(old.seen(), until_now, "the old program is not called any more ({way:?})");
    }
}

#[test]
fn every_packet_meets_exactly_one_program_while_they_are_swapped() {
    for way in WAYS {
        let stage = Stage::new();
        stage.uplink();
        let agent = stage.agent(way);
        let other = Counting::new();
        let passed = || {
            let text = stage.node.output("ip", &["-s", "-j", "link", "show", "uplink"]).unwrap();
            let told: serde_json::Value = serde_json::from_str(&text).unwrap();
            ["rx", "tx"].map(|way| told[0]["stats64"][way]["packets"].as_u64().unwrap()).iter().sum::<u64>()
        };
        let seen = || stage.ours.seen() + other.seen();
        let (passed_before, seen_before) = (passed(), seen());
        let outside = &stage.outside;
        let swaps = thread::scope(|scope| {
            let traffic = scope.spawn(|| exchange(outside, 2000));
            let mut swaps = 0;
            while !traffic.is_finished() {
                for program in [&other, &stage.ours] {
                    agent.hooks.lock().unwrap().serve_by(stage.programs_of(program)).unwrap();
                    swaps += 1;
                }
            }
            swaps
        });
        assert!(other.seen() > 0 && stage.ours.seen() > 0, "both had their turn");
        assert!(passed() - passed_before >= 4000);
        // Neighbours may still be talking; a packet that was missed or seen twice stays so.
        let once = || passed() - passed_before == seen() - seen_before;
        eventually(&format!("each packet was seen once, {way:?}, {swaps} swaps"), once);
    }
}

#[test]
fn with_another_way_of_attaching_nothing_of_the_first_one_is_left() {
    for (first, second) in [(Way::Tcx, Way::Clsact), (Way::Clsact, Way::Tcx)] {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        stage.agent(first).end();
        let _agent = stage.agent(second);
        let filters = stage.node.output("tc", &["filter", "show", "dev", "uplink", "ingress"]).unwrap();
        let (links, filters) = (bpf::tcx_programs(up, tcx::INGRESS).unwrap().len(), filters.matches("sluice").count());
        let expected = if second == Way::Tcx { (1, 0) } else { (0, 1) };
        assert_eq!((links, filters), expected, "from {first:?} to {second:?}");
    }
}

#[test]
fn cleanup_removes_everything_of_ours_and_nothing_of_others() {
    for way in WAYS {
        let stage = Stage::new();
        stage.uplink();
        stage.veth("pod1");
        let up = stage.index("uplink");
        let other = Counting::new();
        let pin = Path::new(PINS).join("other");
        bpf::pin(other.program.as_fd(), &pin).unwrap();
        let _link = tcx_attach(other.program.as_fd(), up, tcx::INGRESS, 0).unwrap();
        stage.agent(way).end();
        if way == Way::Clsact {
            run(&format!("tc filter add dev uplink ingress pref 10 bpf da object-pinned {}", pin.display()));
        }
        remove_all(&stage.links).unwrap();
        assert!(stage.pins().is_empty(), "{:?}", stage.pins());
        let left = |hook| bpf::tcx_programs(up, hook).unwrap();
        assert_eq!((left(tcx::INGRESS), left(tcx::EGRESS)), (vec![other.id()], vec![]), "{way:?}");
        let qdiscs = stage.node.output("tc", &["qdisc", "show"]).unwrap();
        let left: Vec<&str> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
        let expected = usize::from(way == Way::Clsact);
        assert_eq!(left.len(), expected, "clsact stays where another uses it: {left:?}");
    }
}

#[test]
fn clsact_of_somebody_else_is_used_and_left() {
    let stage = Stage::new();
    stage.uplink();
    run("tc qdisc add dev uplink clsact");
    stage.agent(Way::Clsact).end();
    assert!(stage.stands_at(stage.index("uplink")));
    remove_all(&stage.links).unwrap();
    assert!(stage.node.output("tc", &["qdisc", "show", "dev", "uplink"]).unwrap().contains("clsact"));
}

#[test]
fn real_devices_are_chosen_by_what_they_are() {
    let stage = Stage::new();
    stage.uplink();
    stage.veth("pod1");
    stage
        .node
        .ip(&[
            "link add cni0 type bridge",
            "addr add 10.244.1.1/24 dev cni0",
            "link set pod1 master cni0",
            "link add vx0 up type vxlan id 1 dstport 4789 dev uplink",
            "link add vx1 type vxlan id 2 dstport 4790 dev uplink",
            "link add link uplink name mac0 type macvlan mode bridge",
            "link add left type veth peer name right",
            "link add ifb7 type ifb",
            "tuntap add tap0 mode tap",
            "tuntap add tun0 mode tun",
            "route add default via 10.0.0.2",
        ])
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let snapshot = runtime.block_on(netdev::look(None)).unwrap();
    let choices = choose(&snapshot, &Settings::default());
    let told = |choice: &Choice| (choice.name.clone(), format!("{:?}: {}", choice.role(), choice.reason));
    let told: BTreeMap<String, String> = choices.iter().map(told).collect();
    for (device, expected) in [
        ("lo", "LeftAlone: traffic of the node with itself is translated at its sockets"),
        ("uplink", "Network: a default route leads there"),
        ("pod1", "Pod: veth, its other end is in another network namespace"),
        ("cni0", "LeftAlone: bridge: its packets pass its ports"),
        ("vx0", "Network: tunnel (vxlan)"),
        ("vx1", "LeftAlone: tunnel (vxlan) that is down"),
        ("mac0", "LeftAlone: its packets pass uplink"),
        ("left", "LeftAlone: its other end is right, in the same network namespace"),
        ("ifb7", "LeftAlone: ifb: no packet leaves the node by it"),
        ("tap0", "Pod: tap: its other end is a process"),
        ("tun0", "Network: tunnel (tun)"),
    ] {
        assert_eq!(told[device], expected, "{device}");
    }
}

#[test]
fn devices_that_users_leave_out_have_no_program() {
    let stage = Stage::new();
    stage.uplink();
    stage.veth("pod1");
    let settings = Settings { pods: Scope::None, ..Settings::default() };
    let _agent = stage.agent_with(Way::Tcx, Order::default(), settings);
    assert!(stage.stands_at(stage.index("uplink")));
    assert_eq!(standing(&stage.links, stage.index("pod1"), Hook::Ingress).unwrap(), Standing::Nothing);
}
