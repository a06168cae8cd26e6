//! A node whose programs count, an outside, and the thread of an agent.

use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use proxy_common::abi::{Device, NearDevice, near};
use proxy_tests::netns::Netns;
use proxy_tests::stage::eventually;
use proxy_tests::world::{PINS, World};
use proxy_tests::{array, counter, counting_classifier, hash};
use proxy_userspace::attach::devices::follow::{self, Hooks};
use proxy_userspace::attach::devices::{DeviceHooks, Devices, FOLDER, Hook, Order, Programs, Standing, Way, standing};
use proxy_userspace::devices::Settings;
use proxy_userspace::netdev::Host;
use proxy_userspace::sys::bpf::{Map, program_id};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The ways that this kernel has.
pub(crate) fn ways() -> &'static [Way] {
    match Way::of_this_kernel() {
        Way::Tcx => &[Way::Tcx, Way::Clsact],
        Way::Clsact => &[Way::Clsact],
    }
}

/// A program that counts what it sees.
pub(crate) struct Counting {
    pub(crate) program: OwnedFd,
    seen: Map<u32, u64>,
}

impl Counting {
    pub(crate) fn new() -> Self {
        let seen = counter().unwrap();
        let program = counting_classifier(seen.as_fd()).unwrap();
        Self { program, seen: Map::new(seen).unwrap() }
    }

    pub(crate) fn seen(&self) -> u64 {
        self.seen.get(&0).unwrap().unwrap()
    }

    pub(crate) fn id(&self) -> u32 {
        program_id(self.program.as_fd()).unwrap()
    }

    fn fd(&self) -> OwnedFd {
        self.program.try_clone().unwrap()
    }
}

/// A node whose programs are stand-ins.
pub(crate) struct Stage {
    pub(crate) node: Netns,
    pub(crate) outside: Netns,
    pub(crate) links: PathBuf,
    pub(crate) ours: Counting,
    devices: Devices,
    _world: World,
}

impl Stage {
    /// The calling thread is in the node's namespace from now on.
    pub(crate) fn new() -> Self {
        let world = World::new().unwrap();
        let (node, outside) = (Netns::new().unwrap(), Netns::new().unwrap());
        node.enter().unwrap();
        let links = Path::new(PINS).join("links");
        let all = Map::new(hash(4, size_of::<Device>() as u32, 4096).unwrap()).unwrap();
        let near = Map::new(array(size_of::<NearDevice>() as u32, near::PLACES).unwrap()).unwrap();
        let devices = Devices { all, near };
        Self { node, outside, links, ours: Counting::new(), devices, _world: world }
    }

    pub(crate) fn veth(&self, name: &str) {
        self.node
            .ip(&[format!("link add {name} up type veth peer name p-{name} netns {}", self.outside.path())])
            .unwrap();
    }

    /// A link between the node (10.0.0.1) and the outside (10.0.0.2).
    pub(crate) fn uplink(&self) {
        self.veth("uplink");
        self.node.ip(&["addr add 10.0.0.1/24 dev uplink"]).unwrap();
        self.outside.ip(&["addr add 10.0.0.2/24 dev p-uplink", "link set p-uplink up"]).unwrap();
    }

    pub(crate) fn programs_of(&self, program: &Counting) -> Programs {
        let again = |map: BorrowedFd<'_>| map.try_clone_to_owned().unwrap();
        let all = Map::new(again(self.devices.all.as_fd())).unwrap();
        let near = Map::new(again(self.devices.near.as_fd())).unwrap();
        let devices = Devices { all, near };
        Programs { ingress: program.fd(), egress: program.fd(), devices }
    }

    pub(crate) fn agent(&self, way: Way) -> Agent {
        self.agent_with(way, Order::default(), Settings::default())
    }

    /// Follows the namespace of this thread, as the agent does.
    pub(crate) fn agent_with(&self, way: Way, order: Order, settings: Settings) -> Agent {
        let mut hooks = DeviceHooks::new(&self.links, Some(way), order);
        hooks.serve_by(self.programs_of(&self.ours)).unwrap();
        let hooks = Arc::new(Mutex::new(hooks));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let host = runtime.block_on(follow::start(None, settings, hooks.clone())).unwrap();
        Agent { hooks, host, _runtime: runtime }
    }

    pub(crate) fn index(&self, device: &str) -> u32 {
        let text = self.node.output("ip", &["-o", "link", "show", device]).unwrap();
        text.split_once(':').unwrap().0.parse().unwrap()
    }

    /// Whether our program stands at both hooks.
    pub(crate) fn stands_at(&self, device: u32) -> bool {
        Hook::BOTH.iter().all(|hook| match standing(&self.links, device, *hook).unwrap() {
            Standing::Nothing => false,
            Standing::Tcx(own, _) | Standing::Clsact(own) => own == self.ours.id(),
        })
    }

    pub(crate) fn is_known(&self, device: u32) -> bool {
        self.devices.all.get(&device).unwrap().is_some()
    }

    /// What programs are told of a device.
    pub(crate) fn told(&self, device: u32) -> Device {
        self.devices.all.get(&device).unwrap().unwrap()
    }

    /// The device at the place that this one would have, 0 for none.
    pub(crate) fn near(&self, device: u32) -> u32 {
        near::index(self.devices.near.get(&near::place(device)).unwrap().unwrap())
    }

    pub(crate) fn pins(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.links.join(FOLDER)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// When the last program of a device was pinned, by the kernel's clock: how late a busy machine lets this thread look is
    /// not the agent's.
    pub(crate) fn pinned_at(&self, device: u32) -> SystemTime {
        modified(&self.links.join(FOLDER).join(format!("{device}-{}", Hook::Egress.name())))
    }

    /// When the last change of pins was.
    pub(crate) fn unpinned_at(&self) -> SystemTime {
        modified(&self.links.join(FOLDER))
    }

    pub(crate) fn exchange(&self, count: usize) {
        exchange(&self.outside, count);
    }
}

/// How many packets have passed a device of this namespace, in either direction.
pub(crate) fn passed(netns: &Netns, device: &str) -> u64 {
    let text = netns.output("ip", &["-s", "-j", "link", "show", device]).unwrap();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    ["rx", "tx"].map(|way| told[0]["stats64"][way]["packets"].as_u64().unwrap()).iter().sum()
}

/// What passes a device and what programs there see, from a moment on at which neither is on its way to the other.
pub(crate) struct Tally<P, S> {
    passed: P,
    seen: S,
    before: (u64, u64),
}

impl<P: Fn() -> u64, S: Fn() -> u64> Tally<P, S> {
    pub(crate) fn new(passed: P, seen: S) -> Self {
        // Neighbours talk as well, right after a link is up more than later: no packet comes between these two.
        let before = loop {
            let (seen_before, passed) = (seen(), passed());
            if seen() == seen_before {
                break (passed, seen_before);
            }
        };
        Self { passed, seen, before }
    }

    /// Packets that passed since, and how often programs saw one.
    pub(crate) fn since(&self) -> (u64, u64) {
        let passed = (self.passed)() - self.before.0;
        (passed, (self.seen)() - self.before.1)
    }
}

/// None when the agent was sooner than the command.
pub(crate) fn since(change: SystemTime, known: SystemTime) -> Duration {
    known.duration_since(change).unwrap_or_default()
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

/// Sends datagrams from the outside to the node, where this thread is, and back; all arrive.
pub(crate) fn exchange(outside: &Netns, count: usize) {
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
pub(crate) struct Agent {
    pub(crate) hooks: Hooks,
    host: watch::Receiver<Host>,
    _runtime: Runtime,
}

impl Agent {
    pub(crate) fn end(self) {
        let Self { hooks, host, .. } = self;
        drop(host);
        let left = Arc::downgrade(&hooks);
        drop(hooks);
        eventually("the thread of the agent ends", || left.strong_count() == 0);
    }
}

/// Runs a program in the node's namespace, where this thread is.
pub(crate) fn run(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}: {status}");
}
