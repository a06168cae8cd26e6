//! Nodes, pods and Services: everybody who is measured, each in a place of its own.
//!
//! Agents and kube-proxies are ended once everything is programmed: what is measured is what they leave in the kernel.

use std::cell::RefCell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use proxy_tests::agent::AT_SOCKETS;

use proxy_tests::bench::sockets::Server;
use proxy_tests::bench::{Api, Inside, Kind, pod, services_text};
use proxy_tests::cluster::{self, PORT};
use proxy_tests::kube_proxy::Mode;
use proxy_tests::netns::Netns;

use proxy_tests::world::World;
use serde_json::{Value, json};

use crate::floors::{FLOORS, Floors};
use crate::lane::{Lane, Standpoint, enter_cgroup};
use crate::{Samples, Sizes};

/// Addresses of the client pod, of the server pod (the first of many), and of a server beside its client.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 250, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 251, 10);
const BESIDE: Ipv4Addr = Ipv4Addr::new(10, 244, 252, 2);
const ENDPOINTS: u32 = 10;
/// Where servers listen: a port for each cluster.
const FIRST_PORT: u16 = 8100;
/// Somebody else's rule that makes the kernel track connections.
const FOREIGN_RULE: &str =
    "table inet foreign { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }";

/// Everybody who is measured.
pub(crate) struct Scene {
    lanes: RefCell<Vec<Lane>>,
    /// Where the lanes are.
    _pods: Vec<Pods>,
    _floors: Floors,
    _home: Home,
    /// Last, so that it goes last.
    _world: World,
}

impl Scene {
    pub(crate) fn build(sizes: Sizes, beside: bool) -> Result<Self> {
        let world = World::new()?;
        let home = Home::here()?;
        let mut floors = Floors::load()?;
        let (lanes, pods) = Builder::new(&world, sizes)?.lanes(beside, &mut floors)?;
        Ok(Self { lanes: RefCell::new(lanes), _pods: pods, _floors: floors, _home: home, _world: world })
    }

    pub(crate) fn measure(&self, rounds: usize) -> Result<Samples> {
        crate::rounds(&mut self.lanes.borrow_mut(), rounds)
    }

    pub(crate) fn measure_inside(&self, rounds: usize) -> Result<Vec<Vec<f64>>> {
        crate::rounds_inside(&mut self.lanes.borrow_mut(), rounds)
    }

    pub(crate) fn lanes(&self) -> Vec<(String, Kind)> {
        self.lanes.borrow().iter().map(|lane| (lane.name.clone(), lane.kind)).collect()
    }
}

/// Where this process was: a cgroup is removed together with who is in it.
struct Home(PathBuf);

impl Home {
    fn here() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounted = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mounted.into_iter().find(|fields| fields[2] == "cgroup2").context("no cgroup2 is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process has no cgroup2")?;
        Ok(Self(Path::new(root[1]).join(own)))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        enter_cgroup(&self.0).expect("home is still there");
    }
}

/// Services as one API server shows them, and what an agent needs to follow it.
struct Cluster {
    services: u32,
    /// Where its endpoints listen.
    port: u16,
    api: Api,
}

/// Every Service with its TCP port, and the hot one, in the middle, with UDP too.
impl Cluster {
    fn start(world: &World, number: u16, services: u32) -> Result<Self> {
        let port = FIRST_PORT + number;
        let addresses: Vec<Ipv4Addr> = (0..ENDPOINTS).map(|number| add(SERVER, number)).collect();
        let cluster = Self { services, port, api: Api::start(world, number)? };
        for number in 0..services {
            cluster.publish(&cluster::service_name(number), cluster::cluster_ip(number), &addresses);
        }
        cluster.publish("beside", cluster.beside(), &[BESIDE]);
        Ok(cluster)
    }

    fn publish(&self, name: &str, address: Ipv4Addr, endpoints: &[Ipv4Addr]) {
        let mut service = cluster::service(name, address);
        let mut slice = cluster::slice(name, 0, endpoints);
        slice["ports"][0]["port"] = json!(self.port);
        if address == self.hot() || address == self.beside() {
            add_port(&mut service["spec"]["ports"], &json!({ "name": "dns", "protocol": "UDP", "port": PORT }));
            add_port(&mut slice["ports"], &json!({ "name": "dns", "protocol": "UDP", "port": self.port }));
        }
        self.api.apply(&service);
        self.api.apply(&slice);
    }

    fn hot(&self) -> Ipv4Addr {
        cluster::cluster_ip(self.services / 2)
    }

    /// The Service of the server that is in the same namespace as its client.
    fn beside(&self) -> Ipv4Addr {
        cluster::cluster_ip(self.services)
    }

    fn all(&self) -> Vec<SocketAddrV4> {
        (0..self.services).map(|number| at(cluster::cluster_ip(number))).collect()
    }
}

fn add_port(ports: &mut Value, port: &Value) {
    ports.as_array_mut().expect("a list of ports").push(port.clone());
}

fn at(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, PORT)
}

/// The endpoints themselves. As through a Service every connection goes to another one: which port it gets, and what is
/// cached, depends on that.
fn pods(port: u16) -> Vec<SocketAddrV4> {
    (0..ENDPOINTS).map(|number| SocketAddrV4::new(add(SERVER, number), port)).collect()
}

fn add(address: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) + number)
}

/// A client pod and a server pod, each at a veth of the node between them.
#[derive(Clone)]
struct Pods {
    /// A namespace lives as long as it is held.
    _node: Netns,
    client: Netns,
    server: Netns,
}

impl Pods {
    fn join(node: &Netns) -> Result<Self> {
        let addresses: Vec<Ipv4Addr> = (0..ENDPOINTS).map(|number| add(SERVER, number)).collect();
        let client = pod(node, "client", Ipv4Addr::new(10, 244, 250, 1), &[CLIENT])?;
        let server = pod(node, "server", Ipv4Addr::new(10, 244, 251, 1), &addresses)?;
        Ok(Self { _node: node.clone(), client, server })
    }
}

struct Builder<'a> {
    world: &'a World,
    sizes: Sizes,
    /// A node without any rule, and one with somebody else's.
    clean: Pods,
    tracked: Pods,
    /// Client and server in one namespace.
    alone: Netns,
    clusters: Vec<Cluster>,
    lanes: Vec<Lane>,
    /// Of kube-proxies.
    others: Vec<Pods>,
}

impl<'a> Builder<'a> {
    fn new(world: &'a World, sizes: Sizes) -> Result<Self> {
        let clean = Pods::join(&world.node("clean")?.netns)?;
        let tracking = world.node("tracked")?;
        let tracked = Pods::join(&tracking.netns)?;
        tracking.netns.nft(FOREIGN_RULE)?;
        let alone = Netns::new()?;
        alone.ip(&[format!("addr add {BESIDE}/32 dev lo")])?;
        let all = [sizes.one, sizes.some, sizes.many, sizes.most];
        let clusters = (0..).zip(all).map(|(number, services)| Cluster::start(world, number, services));
        let clusters = clusters.collect::<Result<_>>()?;
        Ok(Self { world, sizes, clean, tracked, alone, clusters, lanes: Vec::new(), others: Vec::new() })
    }

    fn lanes(mut self, beside: bool, floors: &mut Floors) -> Result<(Vec<Lane>, Vec<Pods>)> {
        self.direct("direct to the pod", 0)?;
        self.floors(floors)?;
        for number in 0..self.clusters.len() {
            self.sluice(number)?;
        }
        if beside {
            let (nft, legacy, rewritten) = (Mode::Nftables, Mode::IptablesLegacy, Mode::IptablesNft);
            for (mode, number) in [(nft, 0), (nft, 1), (nft, 2), (legacy, 0), (legacy, 1), (legacy, 2), (rewritten, 1)]
            {
                self.kube_proxy(mode, number)?;
            }
        }
        self.direct("direct to the pod, once more", 10)?;
        self.others.extend([self.clean, self.tracked]);
        Ok((self.lanes, self.others))
    }

    /// No program and no rule anywhere.
    fn direct(&mut self, name: &str, number: u16) -> Result<()> {
        let port = FIRST_PORT - 50 + number;
        let cgroup = self.cgroup(&format!("direct-{number}"))?;
        let clean = (self.clean.client.clone(), self.clean.server.clone());
        self.straight(name.to_owned(), Kind::Baseline, &cgroup, clean, SocketAddrV4::new(SERVER, port))?;
        let alone = (self.alone.clone(), self.alone.clone());
        let name = format!("loopback, {name}");
        self.straight(name, Kind::Baseline, &cgroup, alone, SocketAddrV4::new(BESIDE, port))?;
        if number == 0 {
            let tracked = (self.tracked.client.clone(), self.tracked.server.clone());
            let name = "direct to the pod, foreign conntrack rule".to_owned();
            self.straight(name, Kind::Baseline, &cgroup, tracked, SocketAddrV4::new(SERVER, port))?;
        }
        Ok(())
    }

    /// Straight to the pod, past programs that do less than any hook.
    fn floors(&mut self, floors: &mut Floors) -> Result<()> {
        for (port, (title, name)) in (FIRST_PORT - 90..).zip(FLOORS) {
            let cgroup = self.cgroup(name)?;
            let hook = floors.attach(name, &cgroup)?;
            let clean = (self.clean.client.clone(), self.clean.server.clone());
            self.straight(title.to_owned(), Kind::Baseline, &cgroup, clean, SocketAddrV4::new(SERVER, port))?;
            self.hooked(hook);
        }
        Ok(())
    }

    /// The lane made last goes through this hook.
    fn hooked(&mut self, hook: Inside) {
        let lane = self.lanes.pop().expect("a lane was made");
        self.lanes.push(lane.through(hook));
    }

    fn straight(
        &mut self,
        name: String,
        kind: Kind,
        cgroup: &Path,
        (client, server): (Netns, Netns),
        to: SocketAddrV4,
    ) -> Result<()> {
        let server = serve(cgroup, server, to.port())?;
        let endpoints = if *to.ip() == SERVER { pods(to.port()) } else { Vec::new() };
        self.lane(name, kind, cgroup, client, &server, to, &endpoints)
    }

    fn sluice(&mut self, number: usize) -> Result<()> {
        let cluster = &self.clusters[number];
        let (services, port, hot, beside) = (cluster.services, cluster.port, at(cluster.hot()), at(cluster.beside()));
        let node = self.world.node(&format!("sluice-{services}"))?;
        cluster.api.program_by_sluice(&node, &AT_SOCKETS)?;
        let all = cluster.all();
        let cgroup = node.host()?.cgroup;
        let name = services_text("Sluice", services);
        let server = serve(&cgroup, self.clean.server.clone(), port)?;
        let client = self.clean.client.clone();
        let link = node.pin_dir().join("links/connect4");
        self.lane(name.clone(), Kind::Sluice, &cgroup, client.clone(), &server, hot, &[])?;
        self.hooked(Inside::of_link(&link)?);
        if all.len() > 1 {
            let random = format!("{name}, random");
            self.lane(random, Kind::SluiceHarder, &cgroup, client.clone(), &server, hot, &all)?;
            self.hooked(Inside::of_link(&link)?);
        }
        if services == self.sizes.many {
            let miss = "no Service, through Sluice".to_owned();
            self.lane(miss, Kind::Sluice, &cgroup, client, &server, SocketAddrV4::new(SERVER, port), &pods(port))?;
            self.hooked(Inside::of_link(&link)?);
            let server = serve(&cgroup, self.alone.clone(), port)?;
            let name = format!("loopback, {name}");
            self.lane(name, Kind::Sluice, &cgroup, self.alone.clone(), &server, beside, &[])?;
        }
        if services == self.sizes.some {
            let server = serve(&cgroup, self.tracked.server.clone(), port)?;
            let name = format!("{name}, foreign conntrack rule");
            self.lane(name, Kind::SluiceHarder, &cgroup, self.tracked.client.clone(), &server, hot, &[])?;
        }
        Ok(())
    }

    fn kube_proxy(&mut self, mode: Mode, number: usize) -> Result<()> {
        let cluster = &self.clusters[number];
        let (services, port, hot) = (cluster.services, cluster.port, at(cluster.hot()));
        let short = match mode {
            Mode::Nftables => "nft",
            Mode::IptablesLegacy => "legacy",
            Mode::IptablesNft => "ipnft",
        };
        let node = self.world.node(&format!("{short}-{services}"))?;
        let pods = Pods::join(&node.netns)?;
        self.others.push(pods.clone());
        cluster.api.program_by_kube_proxy(&node, mode)?;
        let all = cluster.all();
        let cgroup = node.host()?.cgroup;
        let server = serve(&cgroup, pods.server, port)?;
        let name = services_text(&format!("kube-proxy {}", mode.name()), services);
        self.lane(name.clone(), mode.into(), &cgroup, pods.client.clone(), &server, hot, &[])?;
        if services == self.sizes.many {
            let name = format!("{name}, random");
            self.lane(name, mode.into(), &cgroup, pods.client, &server, hot, &all)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "all of a lane, once")]
    fn lane(
        &mut self,
        name: String,
        kind: Kind,
        cgroup: &Path,
        client: Netns,
        server: &Rc<Server>,
        hot: SocketAddrV4,
        targets: &[SocketAddrV4],
    ) -> Result<()> {
        let client = Standpoint { cgroup: cgroup.to_owned(), netns: client };
        self.lanes.push(Lane::open(name, kind, client, server, hot, targets)?);
        Ok(())
    }

    /// As deep as those of nodes.
    fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let cgroup = self.world.cgroup().join(name).join("host");
        fs::create_dir_all(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        Ok(cgroup)
    }
}

/// A server whose sockets belong to `cgroup` and `netns`.
fn serve(cgroup: &Path, netns: Netns, port: u16) -> Result<Rc<Server>> {
    Standpoint { cgroup: cgroup.to_owned(), netns }.enter()?;
    Ok(Rc::new(Server::bind(port)?))
}
