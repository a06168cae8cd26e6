//! The same cluster behind Sluice and behind the real kube-proxy: whoever dials gets the same from both, but for what is
//! declared here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use proxy_common::addr::Family;
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::node_object;
use proxy_tests::edge::{Edge, PODS};
use proxy_tests::frontends::{self, Frontend, web, web_endpoints};
use proxy_tests::kube_proxy::{KubeProxy, Mode};
use proxy_tests::manifest::{Documents, service_cidrs};
use proxy_tests::node::{Place, Pod};
use proxy_tests::probe::{Client, Kind, PATIENCE};
use proxy_tests::replay::{Lists, Replay};
use proxy_tests::stage::{eventually, mapped};

/// Where both proxies look for the API server: outside, beside the client.
const API: &str = "192.0.2.1:8001";
/// Silence is an answer: everybody is on one machine.
const UNANSWERED_MILLISECONDS: u32 = 1000;
/// Each dial has a port of its own. From one port to two Services with the same backend, kube-proxy's second connection
/// looks to that one like the first, which has just ended: it takes a second.
const FIRST_PORT: u16 = 20_000;
const KINDS: [Kind; 2] = [Kind::Tcp, Kind::Udp];

/// loadBalancerSourceRanges, and what they are called here.
const RANGES: [(&str, &[&str]); 5] = [
    ("everybody", &["10.244.0.0/16", "192.0.2.0/24", "fd00:244::/32", "2001:db8::/64"]),
    ("nobody", &["192.0.2.250/32", "2001:db8::fa/128"]),
    ("nobody, IPv4 alone", &["192.0.2.250/32"]),
    ("the node", &["192.0.2.11/32", "2001:db8::b/128"]),
    ("who is outside", &["192.0.2.1/32", "2001:db8::1/128"]),
];

/// Services by their numbers, one for each of [`RANGES`].
fn numbered() -> impl Iterator<Item = (u8, (&'static str, &'static [&'static str]))> {
    (1..).zip(RANGES)
}

/// What came of dialling.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// By whom.
    Served(String),
    Refused,
    /// Silence outside, an error at a socket.
    Denied,
}

/// Who dials what, and what comes of it.
type Outcomes = BTreeMap<String, Outcome>;

fn dial(client: &Client, kind: Kind, to: SocketAddr, port: u16) -> Outcome {
    let socket = client.open(kind, to);
    let anywhere: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    socket.bind(SocketAddr::new(anywhere, port)).unwrap();
    socket.set_patience(UNANSWERED_MILLISECONDS).unwrap();
    let answer = socket.connect(to).and_then(|()| if kind == Kind::Udp { socket.ask() } else { socket.receive() });
    match answer {
        Ok(answer) => Outcome::Served(answer.by),
        Err(error) if error == "ECONNREFUSED" => Outcome::Refused,
        Err(_) => Outcome::Denied,
    }
}

/// A node, what is around it, and the cluster that it is told of.
struct Scene {
    api: Replay,
    /// There before any proxy: no packet of it passes a device that is not served yet.
    pod: Pod,
    stage: Edge,
}

impl Scene {
    fn new() -> Self {
        let stage = Edge::new().unwrap();
        let addresses: Vec<IpAddr> = numbered().flat_map(|(number, _)| frontends::addresses(number)).collect();
        stage.route_here(&addresses).unwrap();
        let api = Replay::start(&stage.world.uplink, API.parse().unwrap(), Lists::Streamed).unwrap();
        api.apply(&node_object(&stage.node));
        api.apply(&service_cidrs(&["10.96.0.0/16", "fd00:10:96::/112"]));
        for (number, (_, ranges)) in numbered() {
            let (service, slices) = (web(number).source_ranges(ranges), web_endpoints(number).pod(&stage.near.pod));
            for object in [service.documents(), slices.documents()].concat() {
                api.apply(&object);
            }
        }
        Self { api, pod: stage.node.pod("plain").unwrap(), stage }
    }

    /// All that can be dialled, and what it is.
    fn dials(&self) -> Vec<(String, Kind, SocketAddr)> {
        let mut dials = Vec::new();
        for (number, (ranges, _)) in numbered() {
            for frontend in Frontend::ALL {
                let [v4, v6] = frontend.of(number, &self.stage.node);
                for (form, to) in [("IPv4", v4), ("IPv6", v6), ("IPv4 in IPv6", mapped(v4))] {
                    let what = |kind| format!("{frontend:?} by {form}, {kind:?}, for {ranges}");
                    dials.extend(KINDS.map(|kind| (what(kind), kind, to)));
                }
            }
        }
        dials
    }

    /// Everybody dials everything.
    fn outcomes(&self, clients: Vec<(&str, Client)>) -> Outcomes {
        let dials = self.dials();
        let all = |who: &str, client: &Client| -> Vec<(String, Outcome)> {
            let dial = |(port, (what, kind, to)): (u16, &(String, Kind, SocketAddr))| {
                (format!("{who} dials {what}"), dial(client, *kind, *to, port))
            };
            (FIRST_PORT..).zip(&dials).map(dial).collect()
        };
        thread::scope(|scope| {
            let all = &all;
            let dial = |(who, client)| scope.spawn(move || all(who, &client));
            let dialling: Vec<_> = clients.into_iter().map(dial).collect();
            dialling.into_iter().flat_map(|dialling| dialling.join().unwrap()).collect()
        })
    }

    /// Clients who are served by whatever the node has, at sockets or at devices.
    fn clients(&self, sandbox: Place) -> Vec<(&'static str, Client)> {
        let Edge { node, outside, .. } = &self.stage;
        let places = [
            ("a pod", self.pod.place.clone()),
            ("a sandboxed pod", sandbox),
            ("the node", node.host().unwrap()),
            ("who is outside", outside.clone()),
        ];
        places.into_iter().map(|(who, place)| (who, Client::start(&place).unwrap())).collect()
    }
}

fn behind_sluice() -> Outcomes {
    let scene = Scene::new();
    let kubeconfig = scene.api.kubeconfig().unwrap();
    let agent = Agent::start_following(&scene.stage.node, &kubeconfig, &PODS).unwrap();
    agent.ready_at().unwrap();
    let (_pod, sandbox) = scene.stage.unseen_place("sandbox").unwrap();
    scene.outcomes(scene.clients(sandbox))
}

fn behind_kube_proxy() -> Outcomes {
    let scene = Scene::new();
    let kubeconfig = scene.api.kubeconfig().unwrap();
    let mut proxy = KubeProxy::start(&scene.stage.node, Mode::Nftables, &kubeconfig).unwrap();
    proxy.wait_until_programmed(PATIENCE).unwrap();
    eventually("kube-proxy has written rules of IPv6", || proxy.synced_at(Family::V6).is_ok_and(|at| at.is_some()));
    let sandbox = scene.stage.node.pod("sandbox").unwrap();
    scene.outcomes(scene.clients(sandbox.place.clone()))
}

/// S10 of the threat model.
#[test]
fn source_ranges_let_the_same_clients_in_as_with_kube_proxy() {
    let [ours, theirs] = thread::scope(|scope| {
        [scope.spawn(behind_sluice), scope.spawn(behind_kube_proxy)].map(|outcomes| outcomes.join().unwrap())
    });
    let count = |outcome: &Outcome| theirs.values().filter(|other| *other == outcome).count();
    let (served, denied) = (count(&Outcome::Served("a".to_owned())), count(&Outcome::Denied));
    println!("{} cells, of which kube-proxy serves {served} and denies {denied}", theirs.len());
    assert!(served > 0 && denied > 0 && served + denied == theirs.len());
    let differing: Vec<_> = ours.iter().filter(|(cell, outcome)| theirs[*cell] != **outcome).collect();
    let text: Vec<_> =
        differing.iter().map(|(cell, ours)| format!("{cell}: {ours:?}, kube-proxy {:?}", theirs[*cell])).collect();
    assert!(text.is_empty(), "{} of {} cells differ:\n{}", text.len(), theirs.len(), text.join("\n"));
}
