//! A node with Services before and after a change, clients that count, and what the tables should hold.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_common::tables::Capacity;
use proxy_tests::agent::{AT_SOCKETS, Agent, SMALL_TABLES, small};
use proxy_tests::manifest::{Documents, Proto, Service, endpoints, service, text};
use proxy_tests::node::{Node, Place};
use proxy_tests::other;
use proxy_tests::pins::names;
use proxy_tests::probe::{Client, Kind, Load, Traffic};
use proxy_tests::stage::{Backend, PORT, Stage, TARGET, VIP4, VIP6, dialled, eventually};
use proxy_userspace::facts::facts;
use proxy_userspace::maps::pinned::Pinned;
use proxy_userspace::plan::Ledger;

/// What a Service is that stays as it is.
const OTHER: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x20));

/// Answers that each client gets between two events.
const ANSWERS: u64 = 5;

/// Longer than an agent waits before it tries again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Services of two ports each that fill the smallest SERVICE to its last entries.
const NEARLY_FULL: u32 = 124;

/// What the agent is told: `web` goes from pod a to pod b, `old` goes, `new` comes, `other` stays. Where tables are nearly
/// full, more Services come and that is all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Before,
    After,
}

/// What the tables hold up to ids, and what is pinned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    facts: Vec<String>,
    /// Entries in use, by table.
    used: Vec<(&'static str, u32)>,
    damage: Vec<String>,
    /// ABSENT does not say yet of all that is absent that it is. Where packets are served it says so of nothing that flows may
    /// dial.
    untidy: bool,
    pins: Vec<String>,
    links: Vec<String>,
}

pub(crate) struct Scene {
    pub(crate) stage: Stage,
    c: Backend,
    /// Who dials: a pod, or somebody whom only devices serve.
    dials_from: Place,
    /// Services that nothing happens to.
    fillers: u32,
    /// `web` is served over UDP, too, and somebody keeps asking with one socket.
    has_flow: bool,
    arguments: Vec<&'static str>,
    wanted: [Image; 2],
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(0, false, &small())
    }

    /// Clients are outside, where packets are served that come in by devices. Two of these stand for any number.
    pub(crate) fn at_devices() -> Self {
        Self::of_clients_outside(false)
    }

    /// As [`Self::at_devices`], with a client of whom nothing but its flow is known.
    pub(crate) fn with_flow() -> Self {
        Self::of_clients_outside(true)
    }

    fn of_clients_outside(has_flow: bool) -> Self {
        let mut scene = Self::with(0, has_flow, &[&SMALL_TABLES[..], &["--pod-devices=pod1"]].concat());
        let outside = scene.stage.world.outside().unwrap();
        let [services4, services6] = ["10.96.0.0/16", "fd00:10:96::/112"];
        let Node { v4, v6, .. } = &scene.stage.node;
        outside
            .netns
            .ip(&[format!("route add {services4} via {v4}"), format!("route add {services6} via {v6}")])
            .unwrap();
        scene.dials_from = outside;
        scene
    }

    /// The tables have to grow for what comes.
    pub(crate) fn nearly_full() -> Self {
        Self::with(NEARLY_FULL, false, &AT_SOCKETS)
    }

    fn with(fillers: u32, has_flow: bool, arguments: &[&'static str]) -> Self {
        let stage = Stage::new().unwrap();
        let c = Backend::start(&stage.node, "c").unwrap();
        let arguments = arguments.to_vec();
        let dials_from = stage.pod.place.clone();
        let wanted = [const { Image::nothing() }; 2];
        let mut scene = Self { stage, c, dials_from, fillers, has_flow, arguments, wanted };
        scene.wanted = [Told::Before, Told::After].map(|told| {
            scene.clear();
            scene.tell(told);
            let _agent = scene.start();
            eventually("everything is tidied up", || !scene.image().untidy);
            scene.image()
        });
        scene.clear();
        scene
    }

    /// Removes all that is pinned: nothing is served.
    pub(crate) fn clear(&self) {
        fs::remove_dir_all(self.stage.node.pin_dir()).unwrap_or_default();
    }

    pub(crate) fn tell(&self, told: Told) {
        self.stage.manifests.write_text("manifest", self.manifest(told)).unwrap();
    }

    fn manifest(&self, told: Told) -> String {
        let (mut web, other) = (tcp("web").cluster_ips(&[VIP4, VIP6]), service("other").cluster_ips(&[OTHER]));
        if self.has_flow {
            web = web.port(Proto::Udp, PORT);
        }
        let other = other.port(Proto::Udp, PORT);
        let other_ends = endpoints("other").port(Proto::Udp, PORT, TARGET).pod(&self.c.pod);
        let serve = |pod: &Backend| {
            let slices = endpoints("web").port(Proto::Tcp, PORT, TARGET);
            let slices = if self.has_flow { slices.port(Proto::Udp, PORT, TARGET) } else { slices };
            slices.pod(&pod.pod)
        };
        let filler = |number: u32| {
            let filler = tcp(&format!("fill-{number}")).port(Proto::Udp, PORT);
            filler.cluster_ips(&[address([10, 97, 0, 0], number)])
        };
        let coming = |name: &str, number: u32| {
            let balanced = tcp(name).cluster_ips(&[address([10, 96, 1, 0], number)]);
            let ends = endpoints(name).port(Proto::Tcp, PORT, TARGET).pod(&self.c.pod);
            let balanced = balanced.load_balancer(address([203, 0, 113, 0], number)).source_ranges(&["192.0.2.0/24"]);
            [Box::new(balanced) as Box<dyn Documents>, Box::new(ends)]
        };
        let mut all: Vec<Box<dyn Documents>> = vec![Box::new(web), Box::new(other), Box::new(other_ends)];
        if self.has_changed(told) {
            all.push(Box::new(serve(&self.stage.b)));
            all.extend(coming("new", 2));
        } else {
            all.push(Box::new(serve(&self.stage.a)));
            all.extend(coming("old", 1));
        }
        let more = if told == Told::After { self.fillers.min(4) } else { 0 };
        let fillers = self.fillers + more;
        all.extend((0..fillers).map(|number| Box::new(filler(number)) as Box<dyn Documents>));
        text(&all.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    /// Whether `web`, `old` and `new` are as they are at last.
    fn has_changed(&self, told: Told) -> bool {
        told == Told::After && self.fillers == 0
    }

    /// An agent that has done what it was told.
    pub(crate) fn start(&self) -> Agent {
        let arguments = [&self.arguments[..], &["--v=2"]].concat();
        Agent::start_with(&self.stage.node, &self.stage.manifests, &arguments).unwrap()
    }

    /// An agent under `strace`.
    pub(crate) fn start_under(&self, strace: &[&str]) -> Agent {
        Agent::start_under(&self.stage.node, &self.stage.manifests, strace, &self.arguments).unwrap()
    }

    /// An agent and clients that know of no change yet, by way of those that heard of the last one.
    pub(crate) fn before(&self, last: Option<(Agent, Clients)>) -> (Agent, Clients) {
        self.tell(Told::Before);
        // Tables do not shrink: where they grow, it begins with new ones.
        let last = last.filter(|_| self.fillers == 0);
        let (agent, clients) = last.unwrap_or_else(|| {
            self.clear();
            (self.start(), Clients::start(self))
        });
        self.becomes(Told::Before, "back to before");
        (agent, clients)
    }

    /// Lets an agent that nothing disturbs do what it is told, and ends it.
    pub(crate) fn settle(&self, told: Told, what: &str) {
        self.tell(told);
        let mut agent = self.start();
        self.becomes(told, what);
        agent.end_with(Signal::SIGKILL).unwrap();
    }

    /// Has an agent of another version serve what there is before the change, and ends it.
    pub(crate) fn clear_for_another_version(&self) {
        self.clear();
        self.tell(Told::Before);
        let mut agent = other::start(&self.stage.node, &self.stage.manifests, &self.arguments).unwrap();
        agent.end_with(Signal::SIGKILL).unwrap();
    }

    /// Waits until tables and pins are what an undisturbed agent makes of what it is told.
    pub(crate) fn becomes(&self, told: Told, what: &str) {
        let (start, wanted) = (Instant::now(), &self.wanted[told as usize]);
        let mut image = self.image();
        while image != *wanted && start.elapsed() < PATIENCE {
            // All tables are read: more often would take the CPU from those who write them.
            thread::sleep(Duration::from_millis(8));
            image = self.image();
        }
        assert_eq!(&image, wanted, "{what}");
    }

    fn serves_packets(&self) -> bool {
        !AT_SOCKETS.iter().all(|argument| self.arguments.contains(argument))
    }

    fn image(&self) -> Image {
        let pins = self.stage.node.pin_dir();
        let Ok(tables) = Pinned::open(&pins.join("v1")) else { return Image::nothing() };
        let snapshot = tables.read().unwrap();
        let (ledger, damage) = Ledger::restore(&snapshot, Capacity::LIMIT);
        Image {
            facts: facts(&snapshot),
            used: ledger.pressure().iter().map(|pressure| (pressure.table, pressure.used)).collect(),
            damage: damage.iter().map(ToString::to_string).collect(),
            untidy: if self.serves_packets() {
                snapshot.absent.iter().all(|word| *word == 0)
            } else {
                ledger.has_retired()
            },
            links: [names(&pins.join("links")), names(&pins.join("links/devices"))].concat(),
            pins: names(&pins),
        }
    }

    /// After all, `new` is served and `old` is not.
    pub(crate) fn dials(&self, what: &str) {
        let client = Client::start(&self.dials_from).unwrap();
        let dial = |number| client.dial(Kind::Tcp, dialled(address([10, 96, 1, 0], number)));
        let (there, not) = if self.has_changed(Told::After) { (2, 1) } else { (1, 2) };
        assert_eq!(dial(there).map(|answer| answer.by), Ok("c".to_owned()), "{what}");
        assert!(dial(not).is_err(), "{what}: a Service that is not there answers");
    }
}

impl Image {
    const fn nothing() -> Self {
        Self {
            facts: Vec::new(),
            used: Vec::new(),
            damage: Vec::new(),
            untidy: false,
            pins: Vec::new(),
            links: Vec::new(),
        }
    }
}

fn tcp(name: &str) -> Service {
    service(name).port(Proto::Tcp, PORT)
}

fn address([a, b, c, d]: [u8; 4], number: u32) -> IpAddr {
    (u32::from_be_bytes([a, b, c, d]) + number).to_be_bytes().into()
}

/// Clients of `web` and `other` that dial all the time.
pub(crate) struct Clients {
    web: Load,
    other: Load,
    /// Of one socket.
    flow: Option<Load>,
}

impl Clients {
    pub(crate) fn start(scene: &Scene) -> Self {
        let start = |traffic, vip| Load::start(&scene.dials_from, traffic, dialled(vip)).unwrap();
        let flow = scene.has_flow.then(|| start(Traffic::Datagrams, VIP4));
        Self { web: start(Traffic::Tcp, VIP4), other: start(Traffic::Udp, OTHER), flow }
    }

    /// Everybody gets more answers, from backends of the Service that they dial, and nobody ever got anything else.
    pub(crate) fn go_on(&mut self, what: &str) {
        let of_web = [&mut self.web].into_iter().chain(&mut self.flow).map(|load| (load, &["a", "b"][..]));
        for (load, own) in of_web.chain([(&mut self.other, &["c"][..])]) {
            let report = load.after(ANSWERS).unwrap();
            let foreign = report.by.keys().find(|name| !own.contains(&name.as_str()));
            assert!(report.failed == 0 && foreign.is_none(), "{what}: {report:?}");
        }
    }

    /// Only who serves what was told answers from now on.
    pub(crate) fn follow(&mut self, scene: &Scene, told: Told, what: &str) {
        self.go_on(what);
        let gone = if scene.has_changed(told) { "a" } else { "b" };
        for load in [&mut self.web].into_iter().chain(&mut self.flow) {
            let mut by_gone = || load.after(ANSWERS).unwrap().by.get(gone).copied().unwrap_or(0);
            assert_eq!(by_gone(), by_gone(), "{what}: {gone} still serves");
        }
    }
}
