//! A client outside of the node dials a node port, through Sluice and through the real kube-proxy.
//!
//! ```text
//! outside --- uplink --- node --- server pod        a node and a pod for everybody who is measured, and one without rules
//! ```
//!
//! One process on one CPU is client and server: each socket is made in its network namespace, so packets go all the way inside
//! of the system call and no scheduler is in between. Endpoints are said to be on another node, so that everybody replaces the
//! client's address; where it leads is the same for all. With Sluice's `--fast-path` it leads past the node's stack. Lanes take turns; the first one comes once more under another name: how
//! much these differ is the noise.

mod figures;
mod inside;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::socket::SockaddrIn;
use proxy_tests::bench::sockets::{Server, Session, address, reset_at_close, tcp, timed_connect};
use proxy_tests::bench::{Api, Kind, Report, in_turn, pod, services_text};
use proxy_tests::cluster::{self, TARGET};
use proxy_tests::kube_proxy::Mode;
use proxy_tests::netns::Netns;
use proxy_tests::node::Node;
use proxy_tests::world::World;
use serde_json::{Value, json};

const ROUNDS: usize = 300;
const QUICK_ROUNDS: usize = 3;
/// Of those in which the kernel counts the time in programs.
const INSIDE_ROUNDS: usize = 100;
const SIZES: [u32; 3] = [1, 1_000, 10_000];
const QUICK_SIZES: [u32; 1] = [20];
/// Operations in a row, and those before them that are not counted: who was there before has filled the caches.
const CONNECTS: usize = 20;
const REQUESTS: usize = 50;
const WARM_UP: usize = 3;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 251, 1);
/// The first of the server pod's addresses.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 251, 10);
const ENDPOINTS: u32 = 10;
const NODE_PORT: u16 = 30_080;
/// The packet half of the agent, on every device.
const FLAGS: [&str; 1] = ["--cluster-cidr=10.244.0.0/16"];

/// What is timed, each operation by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    /// The system call `connect()`.
    Connect,
    /// Socket, connect, accept, close of both ends.
    Cycle,
    /// One byte there and one back, over an open connection.
    Request,
}

impl Metric {
    const ALL: [Self; 3] = [Self::Connect, Self::Cycle, Self::Request];

    const fn title(self) -> &'static str {
        match self {
            Self::Connect => "TCP connect()",
            Self::Cycle => "TCP connection, there and closed again",
            Self::Request => "TCP request and reply of one byte",
        }
    }
}

/// Nanoseconds of each operation, by metric.
type Samples = [Vec<f64>; Metric::ALL.len()];

/// One way from outside to a server.
struct Lane {
    name: String,
    kind: Kind,
    server: Server,
    /// Dialled in turn.
    to: Vec<SockaddrIn>,
    /// The pin folder of the node's agent.
    node: Option<PathBuf>,
    samples: Samples,
}

/// Fills `report`.
pub(crate) fn measure(report: &mut Report, world: &World, quick: bool, beside: bool) -> Result<()> {
    let (rounds, sizes) = if quick { (QUICK_ROUNDS, &QUICK_SIZES[..]) } else { (ROUNDS, &SIZES[..]) };
    let (mut lanes, nodes) = lanes(world, sizes, beside)?;
    world.uplink.enter()?;
    in_turn(lanes.len(), rounds, |lane| lanes[lane].batch())?;
    let inside = inside::measure(&lanes, nodes.last().context("there is a clean node")?, rounds.min(INSIDE_ROUNDS))?;
    report.note(format!(
        "From outside: one process on one CPU, {rounds} rounds; in each, every lane opens {CONNECTS} connections one after \
         another and asks {REQUESTS} times over one. Every Service has ten endpoints, one of them a node port: one pod that has \
         as many addresses."
    ));
    figures::tell(report, &lanes, sizes, beside);
    figures::tell_inside(report, &inside);
    Ok(())
}

/// Everybody who is measured, and their nodes: a namespace lives as long as it is held.
fn lanes(world: &World, sizes: &[u32], beside: bool) -> Result<(Vec<Lane>, Vec<Node>)> {
    let clean = world.node("clean")?;
    let pod = join(&clean)?;
    world.uplink.ip(&[format!("route add 10.244.251.0/24 via {}", clean.v4)])?;
    let direct = |name: &str, port: u16| {
        let to = endpoints().map(|endpoint| SocketAddrV4::new(endpoint, port)).collect();
        Lane::open(name.to_owned(), Kind::Baseline, &pod, port, to)
    };
    let (mut lanes, mut nodes) = (vec![direct(figures::DIRECT, TARGET)?], Vec::new());
    for (number, services) in (0..).zip(sizes) {
        let api = Api::start(world, number)?;
        objects(*services).for_each(|object| api.apply(&object));
        let mut lane = |name: &str, kind, short: &str, program: &dyn Fn(&Node) -> Result<()>| -> Result<()> {
            let node = world.node(&format!("{short}-{services}"))?;
            let pod = join(&node)?;
            program(&node)?;
            let to = vec![SocketAddrV4::new(node.v4, NODE_PORT)];
            let lane = Lane::open(services_text(name, *services), kind, &pod, TARGET, to)?;
            lanes.push(Lane { node: Some(node.pin_dir()), ..lane });
            nodes.push(node);
            Ok(())
        };
        lane(figures::SLUICE, Kind::Sluice, "sluice", &|node| api.program_by_sluice(node, &FLAGS))?;
        lane(figures::PAST, Kind::Sluice, "past", &|node| api.program_by_sluice(node, &[FLAGS[0], "--fast-path"]))?;
        for (mode, short) in [(Mode::Nftables, "nft"), (Mode::IptablesLegacy, "legacy")] {
            if beside {
                lane(&figures::kube_proxy(mode), mode.into(), short, &|node| api.program_by_kube_proxy(node, mode))?;
            }
        }
    }
    lanes.push(direct(figures::AGAIN, TARGET + 1)?);
    nodes.push(clean);
    Ok((lanes, nodes))
}

/// A pod with all endpoints' addresses behind a device of the node.
fn join(node: &Node) -> Result<Netns> {
    pod(&node.netns, "server", GATEWAY, &endpoints().collect::<Vec<_>>())
}

fn endpoints() -> impl Iterator<Item = Ipv4Addr> {
    (0..ENDPOINTS).map(|number| Ipv4Addr::from(u32::from(SERVER) + number))
}

/// So many Services; the one in the middle has a node port.
fn objects(services: u32) -> impl Iterator<Item = Value> {
    let addresses: Vec<Ipv4Addr> = endpoints().collect();
    (0..services).flat_map(move |number| {
        let name = cluster::service_name(number);
        let mut service = cluster::service(&name, cluster::cluster_ip(number));
        if number == services / 2 {
            service["spec"]["type"] = json!("NodePort");
            service["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
        }
        [service, cluster::slice(&name, 0, &addresses)]
    })
}

impl Lane {
    /// The server listens in `pod`.
    fn open(name: String, kind: Kind, pod: &Netns, port: u16, to: Vec<SocketAddrV4>) -> Result<Self> {
        let server = pod.inside(|| Server::bind(port))?;
        Ok(Self {
            name,
            kind,
            server,
            to: to.into_iter().map(address).collect(),
            node: None,
            samples: Samples::default(),
        })
    }

    fn batch(&mut self) -> Result<()> {
        self.all().with_context(|| self.name.clone())
    }

    fn all(&mut self) -> Result<()> {
        for number in 0..WARM_UP + CONNECTS {
            // Another one for every connection, as through a Service.
            self.to.rotate_left(1);
            let (connect, cycle) = self.cycle()?;
            if number >= WARM_UP {
                self.samples[Metric::Connect as usize].push(connect);
                self.samples[Metric::Cycle as usize].push(cycle);
            }
        }
        let session = self.session()?;
        for _ in 0..REQUESTS {
            let start = Instant::now();
            session.ask()?;
            self.samples[Metric::Request as usize].push(nanoseconds(start));
        }
        Ok(())
    }

    /// A connection over which somebody has asked before.
    fn session(&self) -> Result<Session> {
        let session = Session::open(&self.to[0], &self.server)?;
        (0..WARM_UP).try_for_each(|_| session.ask())?;
        Ok(session)
    }

    /// The time of `connect()` alone, and of everything.
    fn cycle(&self) -> Result<(f64, f64)> {
        let start = Instant::now();
        let client = tcp()?;
        let connect = timed_connect(&client, &self.to[0])?;
        let accepted = self.server.accept()?;
        reset_at_close(&client)?;
        drop(client);
        drop(accepted);
        Ok((connect.as_secs_f64() * 1e9, nanoseconds(start)))
    }
}

fn nanoseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e9
}
