//! Who gets which backend, and whom that one sees: the truth tables of specification B5 and B9, with detectors (B6), node-port
//! addresses (B7) and affinity (B8), for clients outside, pods that sockets serve and pods that devices serve, and the node
//! itself (issue 5, line 4).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::node_object;
use proxy_tests::edge::{Edge, counters, outside_address};
use proxy_tests::frontends::{self, Frontend, node_port, web, web_endpoints};
use proxy_tests::hooks::refused;
use proxy_tests::manifest::{Documents, Endpoints, Service};
use proxy_tests::node::Pod;
use proxy_tests::probe::{Answer, Client, Kind};
use proxy_tests::stage::eventually;
use serde_json::json;

/// In the order of the columns of a [`Row`].
const POLICIES: [&str; 3] = ["default policies", "external Local", "internal Local"];
/// Which pods serve: `L` is on the node, `R` elsewhere.
const PLACEMENTS: [&str; 4] = ["LR", "L", "R", ""];
const FAMILIES: [bool; 2] = [false, true];
const KINDS: [Kind; 2] = [Kind::Tcp, Kind::Udp];

/// Service number `number`: policies and placement.
fn number(policies: usize, placement: usize) -> u8 {
    (16 * (policies + 1) + placement) as u8
}

fn with_policies(service: Service, policies: usize) -> Service {
    match policies {
        0 => service,
        1 => service.external_policy_local(),
        _ => service.internal_policy_local(),
    }
}

fn slices(stage: &Edge, number: u8, placement: &str) -> Endpoints {
    let pod = |which| if which == 'L' { &stage.near.pod } else { &stage.far.pod };
    placement.chars().fold(web_endpoints(number), |slices, which| slices.pod(pod(which)))
}

/// Who dials, and what specification B5 says of each column: which pods (`a` is on the node, `b` elsewhere), and whether
/// they see the client's own address or one of the node's. Declared differences: pods on the node always see the client,
/// and so do those that a socket was steered to.
struct Row {
    who: &'static str,
    cluster_ip: [&'static [(&'static str, Seen)]; 3],
    external: [&'static [(&'static str, Seen)]; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Own,
    Node,
}
use Seen::{Node, Own};

const OWN: &[(&str, Seen)] = &[("a", Own), ("b", Own)];
const NODE: &[(&str, Seen)] = &[("a", Node), ("b", Node)];
const MASQUERADED: &[(&str, Seen)] = &[("a", Own), ("b", Node)];
const HERE: &[(&str, Seen)] = &[("a", Own)];

const WITH_DETECTOR: [Row; 4] = [
    Row { who: "pod", cluster_ip: [OWN, OWN, HERE], external: [MASQUERADED, OWN, MASQUERADED] },
    Row { who: "steered pod", cluster_ip: [OWN, OWN, HERE], external: [OWN, OWN, OWN] },
    Row { who: "node", cluster_ip: [NODE, NODE, &[("a", Node)]], external: [NODE, NODE, NODE] },
    Row { who: "outside", cluster_ip: [MASQUERADED, MASQUERADED, HERE], external: [MASQUERADED, HERE, MASQUERADED] },
];
const WITHOUT_DETECTOR: [Row; 4] = [
    Row { who: "pod", cluster_ip: [OWN, OWN, HERE], external: [MASQUERADED, HERE, MASQUERADED] },
    Row { who: "steered pod", cluster_ip: [OWN, OWN, HERE], external: [OWN, HERE, OWN] },
    Row { who: "node", cluster_ip: [NODE, NODE, &[("a", Node)]], external: [NODE, NODE, NODE] },
    Row { who: "outside", cluster_ip: [OWN, OWN, HERE], external: [MASQUERADED, HERE, MASQUERADED] },
];
const ALL_MASQUERADED: [Row; 2] = [
    Row { who: "pod", cluster_ip: [NODE, NODE, &[("a", Node)]], external: [MASQUERADED, OWN, MASQUERADED] },
    Row { who: "outside", cluster_ip: [NODE, NODE, &[("a", Node)]], external: [MASQUERADED, HERE, MASQUERADED] },
];

/// Everybody who dials.
struct Cast {
    stage: Edge,
    pod: Pod,
    steered: Pod,
    clients: BTreeMap<&'static str, Client>,
}

impl Cast {
    /// With an agent so that devices of pods are served.
    fn new(more: &[&str]) -> (Self, Agent) {
        let stage = Edge::new().unwrap();
        let steered = stage.node.pod("steered").unwrap();
        let all = (0..POLICIES.len()).flat_map(|policies| (0..PLACEMENTS.len()).map(move |at| (policies, at)));
        let addresses: Vec<_> =
            all.clone().flat_map(|(policies, at)| frontends::addresses(number(policies, at))).collect();
        stage.route_here(&addresses).unwrap();
        let objects: Vec<(Service, Endpoints)> = all
            .map(|(policies, at)| {
                let number = number(policies, at);
                (with_policies(web(number), policies), slices(&stage, number, PLACEMENTS[at]))
            })
            .collect();
        let mut node = node_object(&stage.node);
        node["spec"] = json!({ "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"] });
        let mut documents: Vec<&dyn Documents> = vec![&node];
        documents.extend(objects.iter().flat_map(|(service, slices)| [service as &dyn Documents, slices]));
        stage.manifests.write("manifest", &documents).unwrap();
        let agent = stage.agent(more);
        let (pod, client) = stage.unseen_client("sandbox").unwrap();
        let clients = BTreeMap::from([
            ("pod", client),
            ("steered pod", Client::start(&steered.place).unwrap()),
            ("node", Client::start(&stage.node.host().unwrap()).unwrap()),
            ("outside", Client::start(&stage.outside).unwrap()),
        ]);
        (Self { stage, pod, steered, clients }, agent)
    }

    fn to(&self, frontend: Frontend, number: u8, v6: bool) -> SocketAddr {
        frontend.of(number, &self.stage.node)[usize::from(v6)]
    }

    /// Whose address a server saw.
    fn seen(&self, who: &str, answer: &Answer) -> Seen {
        let seen = answer.seen_as.ip();
        let own = match who {
            "pod" => self.pod.address_like(seen),
            "steered pod" => self.steered.address_like(seen),
            "outside" => outside_address(seen),
            _ => return Node,
        };
        if seen == own {
            return Own;
        }
        let bridge: [IpAddr; 2] = ["10.244.1.1".parse().unwrap(), "fd00:244:1::1".parse().unwrap()];
        let node = [self.stage.node.v4.into(), self.stage.node.v6.into()];
        assert!(node.contains(&seen) || bridge.contains(&seen), "{who} is seen as {seen}");
        Node
    }

    /// Whether that is so for every placement of backends, family and protocol. Returns how many packets are dropped silently.
    fn hold(&self, row: &Row) -> u64 {
        let mut dropped = 0;
        for (policies, at, frontend) in (0..3)
            .flat_map(|policies| (0..4).flat_map(move |at| Frontend::ALL.map(|frontend| (policies, at, frontend))))
        {
            let column = if frontend == Frontend::ClusterIp { row.cluster_ip } else { row.external }[policies];
            let is_there = |by: &str| PLACEMENTS[at].contains(if by == "a" { 'L' } else { 'R' });
            let wanted: Vec<_> = column.iter().filter(|(by, _)| is_there(by)).copied().collect();
            for (v6, kind) in FAMILIES.into_iter().flat_map(|v6| KINDS.map(|kind| (v6, kind))) {
                let to = self.to(frontend, number(policies, at), v6);
                let what = format!(
                    "{} dials {frontend:?} {to}, {kind:?}, {}, backends {:?}",
                    row.who, POLICIES[policies], PLACEMENTS[at]
                );
                if PLACEMENTS[at].is_empty() {
                    self.is_refused(row.who, kind, to, &what);
                } else if wanted.is_empty() {
                    dropped += self.is_dropped(row.who, kind, to, &what);
                } else {
                    self.is_served(row.who, kind, to, &wanted, &what);
                }
            }
        }
        dropped
    }

    fn is_served(&self, who: &str, kind: Kind, to: SocketAddr, wanted: &[(&str, Seen)], what: &str) {
        let mut found = BTreeMap::new();
        // By chance, each new flow anew: one of two is missed with a probability of 2^-64.
        for dial in 0..64 {
            let answer = self.clients[who].dial(kind, to).unwrap_or_else(|error| panic!("{what}: {error}"));
            found.insert(answer.by.clone(), self.seen(who, &answer));
            if found.len() == 2 || (wanted.len() == 1 && dial == 5) {
                break;
            }
        }
        let wanted: BTreeMap<_, _> = wanted.iter().map(|(by, seen)| ((*by).to_owned(), *seen)).collect();
        assert_eq!(found, wanted, "{what}");
    }

    /// A refused connection in IPv6 takes its client a second: there datagrams stand for both.
    fn is_refused(&self, who: &str, kind: Kind, to: SocketAddr, what: &str) {
        let wanted = if is_steered(who) { refused(Errno::ECONNREFUSED) } else { Err("ECONNREFUSED".to_owned()) };
        if kind == Kind::Udp || is_steered(who) {
            assert_eq!(self.clients[who].dial(kind, to), wanted, "{what}");
        }
    }

    /// How many packets are dropped for it.
    fn is_dropped(&self, who: &str, kind: Kind, to: SocketAddr, what: &str) -> u64 {
        let client = &self.clients[who];
        if is_steered(who) {
            assert_eq!(client.dial(kind, to), refused(Errno::EHOSTUNREACH), "{what}");
            return 1;
        }
        is_silent(client, kind, to, what);
        1
    }

    fn hold_all(&self, rows: &[Row]) {
        let dropped = || counters(&self.stage.node).unwrap()["no_local_endpoints"];
        let before = dropped();
        let wanted: u64 = rows.iter().map(|row| self.hold(row)).sum();
        assert!(wanted > 0 && dropped() - before >= wanted, "{} of {wanted} were dropped", dropped() - before);
    }
}

/// Nothing comes back.
fn is_silent(client: &Client, kind: Kind, to: SocketAddr, what: &str) {
    let socket = client.open(kind, to);
    socket.set_patience(1).unwrap();
    let asked = socket.connect(to).and_then(|()| socket.ask());
    let waits = asked.as_ref().is_err_and(|error| error == "EAGAIN" || error == "EINPROGRESS");
    assert!(waits, "{what}: {asked:?}");
}

/// Sockets of the host and of most pods go to backends where they dial.
fn is_steered(who: &str) -> bool {
    matches!(who, "steered pod" | "node")
}

const BY_CLUSTER: &str = "--cluster-cidr=10.244.0.0/16,fd00:244::/32";

#[test]
fn everybody_is_served_as_the_truth_table_says_where_pods_can_be_told() {
    let (cast, _agent) = Cast::new(&[BY_CLUSTER]);
    cast.hold_all(&WITH_DETECTOR);
}

#[test]
fn everybody_is_served_as_the_truth_table_says_where_pods_cannot_be_told_and_where_all_is_masqueraded() {
    let (cast, mut agent) = Cast::new(&[]);
    // Where nobody's address is replaced, answers to clients outside must find the way by themselves.
    let Edge { node, other, .. } = &cast.stage;
    let back = [format!("route add 192.0.2.1 via {}", node.v4), format!("route add 2001:db8::1 via {}", node.v6)];
    other.netns.ip(&back).unwrap();
    cast.hold_all(&WITHOUT_DETECTOR);
    agent.end_with(nix::sys::signal::Signal::SIGTERM).unwrap();
    let _agent = cast.stage.agent(&[BY_CLUSTER, "--masquerade-all"]);
    cast.hold_all(&ALL_MASQUERADED);
}

/// A pod of another node comes with its own address, by the network's device.
#[test]
fn each_detector_tells_pods_of_the_node_and_only_that_by_cluster_range_those_of_others() {
    let (cast, mut agent) = Cast::new(&[BY_CLUSTER]);
    let far = Client::start(&cast.stage.far.pod.place).unwrap();
    // External Local, served by the pod elsewhere only.
    let number = number(1, 2);
    for (detector, far_is_a_pod) in [
        (vec![BY_CLUSTER], true),
        (vec!["--detect-local-mode=NodeCIDR"], false),
        (vec!["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=pods"], false),
        (vec!["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=pod"], false),
    ] {
        agent.end_with(nix::sys::signal::Signal::SIGTERM).unwrap();
        agent = cast.stage.agent(&detector);
        for (v6, kind) in FAMILIES.into_iter().flat_map(|v6| KINDS.map(|kind| (v6, kind))) {
            let to = cast.to(Frontend::NodePort, number, v6);
            let what = format!("{detector:?}, {to}, {kind:?}");
            cast.is_served("pod", kind, to, &[("b", Own)], &what);
            cast.is_served("steered pod", kind, to, &[("b", Own)], &what);
            cast.is_dropped("outside", kind, to, &what);
            let socket = far.open(kind, to);
            socket.set_patience(if far_is_a_pod { 3000 } else { 1 }).unwrap();
            let answer =
                socket.connect(to).and_then(|()| if kind == Kind::Udp { socket.ask() } else { socket.receive() });
            assert_eq!(answer.is_ok(), far_is_a_pod, "a pod of another node, {what}: {answer:?}");
            // Who is a pod keeps its address towards a ClusterIP.
            let cluster_ip = cast.to(Frontend::ClusterIp, self::number(0, 2), v6);
            cast.is_served("pod", kind, cluster_ip, &[("b", Own)], &what);
            cast.is_served("outside", kind, cluster_ip, &[("b", Node)], &what);
        }
    }
}

#[test]
fn a_client_keeps_its_backend_by_whatever_address_it_dials_until_it_stays_away_for_too_long() {
    let (cast, agent) = Cast::new(&[BY_CLUSTER, "-v2"]);
    let number = number(0, 0);
    let keep_for = |timeout: Duration| {
        let service = web(number).affinity(timeout.as_secs() as u32);
        let slices = slices(&cast.stage, number, "LR");
        agent.programs(|| cast.stage.manifests.write("manifest", &[&service, &slices])).unwrap();
    };
    // Longer than any of these dials may be held up.
    keep_for(Duration::from_mins(1));
    for (who, v6) in ["outside", "pod"].into_iter().flat_map(|who| FAMILIES.map(|v6| (who, v6))) {
        let client = &cast.clients[who];
        for kind in KINDS {
            let dial = |frontend| client.dial(kind, cast.to(frontend, number, v6)).unwrap().by;
            let by = dial(Frontend::NodePort);
            for frontend in Frontend::ALL.into_iter().cycle().take(12) {
                assert_eq!(dial(frontend), by, "{who}, {frontend:?}, {kind:?}, IPv6: {v6}");
            }
        }
    }
    // Nothing but time ends it: who has stayed away for long enough is a new client, of whom half get another backend.
    let timeout = Duration::from_secs(1);
    keep_for(timeout);
    let dial = || cast.clients["outside"].dial(Kind::Tcp, cast.to(Frontend::NodePort, number, false)).unwrap().by;
    let first = dial();
    let mut last = Instant::now();
    eventually("another backend is chosen", || {
        if last.elapsed() <= timeout {
            return false;
        }
        let other = dial() != first;
        last = Instant::now();
        other
    });
}

/// An address that comes and goes, and one that stays away.
const NEW: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];
/// How soon node ports are served on an address that was added, and not on one that was removed.
const SERVED: Duration = Duration::from_millis(500);
const NOT_SERVED: Duration = Duration::from_secs(1);

/// Four dials, each from a port of its own: no flow of before serves them.
struct Dials<'a> {
    client: &'a Client,
    ways: Vec<(Kind, SocketAddr)>,
    port: Cell<u16>,
}

impl<'a> Dials<'a> {
    fn to(client: &'a Client, port: u16) -> Self {
        let addresses = NEW.map(|address| SocketAddr::new(address.parse().unwrap(), port));
        Self {
            client,
            ways: KINDS.into_iter().flat_map(|kind| addresses.map(|to| (kind, to))).collect(),
            port: Cell::new(10_000),
        }
    }

    /// Who has the address and no node port refuses at once, so that an answer may take its time on a busy machine; where nobody
    /// has it there is silence.
    const REFUSED: u32 = 300;
    const SILENT: u32 = 10;

    fn is_served(&self, (kind, to): (Kind, SocketAddr), patience: u32) -> bool {
        let socket = self.client.open(kind, to);
        socket.set_patience(patience).unwrap();
        self.port.update(|port| port + 1);
        socket.bind(SocketAddr::new(outside_address(to.ip()), self.port.get())).unwrap();
        let answer = socket.connect(to).and_then(|()| if kind == Kind::Udp { socket.ask() } else { socket.receive() });
        answer.is_ok_and(|answer| answer.by == "a")
    }

    /// When all of them had been served, after `start`.
    fn are_served(&self, start: Instant) -> Duration {
        for way in &self.ways {
            eventually(&format!("{way:?} is served"), || self.is_served(*way, Self::REFUSED));
        }
        start.elapsed()
    }

    /// When one of them was served for the last time, after `start`: not once in three dials since then.
    fn are_not_served(&self, start: Instant) -> Duration {
        let mut last = Duration::ZERO;
        for way in &self.ways {
            let mut in_vain = 0;
            eventually(&format!("{way:?} is not served"), || {
                let is_served = self.is_served(*way, Self::SILENT);
                (last, in_vain) = if is_served { (start.elapsed(), 0) } else { (last, in_vain + 1) };
                in_vain == 3
            });
        }
        last
    }
}

/// One in twenty may wait longer for a processor.
fn nearly_all_within(limit: Duration, mut took: Vec<Duration>, what: &str) {
    took.sort_unstable();
    println!("{what}: {:?} to {:?}", took[0], took[took.len() - 1]);
    assert!(took[took.len() * 19 / 20] <= limit, "{what}: {took:?}");
}

#[test]
fn node_ports_are_served_on_an_address_half_a_second_after_it_came_and_no_more_a_second_after_it_went() {
    const ROUNDS: usize = 7;
    let (cast, mut agent) = Cast::new(&[]);
    let (node, port) = (&cast.stage.node.netns, node_port(number(0, 1)));
    cast.stage.route_here(&NEW.map(|address| address.parse().unwrap())).unwrap();
    let dials = Dials::to(&cast.clients["outside"], port);
    let [v4, v6] = NEW;
    let change = |what: &str| {
        node.ip(&[format!("addr {what} {v4}/32 dev eth0"), format!("addr {what} {v6}/128 dev eth0 nodad")]).unwrap();
        Instant::now()
    };
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for (arguments, others_are_served) in [
        (&["--nodeport-addresses=198.51.100.0/24,2001:db8:51::/64"][..], false),
        // There node ports are served on all addresses unless ranges are given.
        (&["--proxy-mode=iptables"], true),
        (&["--nodeport-addresses=primary"], false),
    ] {
        agent.end_with(nix::sys::signal::Signal::SIGTERM).unwrap();
        if arguments.iter().any(|argument| argument.ends_with("primary")) {
            let mut object = node_object(&cast.stage.node);
            object["status"]["addresses"] =
                json!(NEW.map(|address| json!({ "type": "InternalIP", "address": address })));
            let number = number(0, 1);
            let objects: [&dyn Documents; 3] = [&object, &web(number), &slices(&cast.stage, number, "L")];
            cast.stage.manifests.write("manifest", &objects).unwrap();
        }
        agent = cast.stage.agent(&[&[BY_CLUSTER], arguments].concat());
        for _ in 0..ROUNDS {
            assert!(
                !dials.ways.iter().any(|way| dials.is_served(*way, Dials::SILENT)),
                "{arguments:?}: nobody has the address"
            );
            came.push(dials.are_served(change("add")));
            for to in cast.stage.on_node(port) {
                let others = cast.clients["outside"].dial(Kind::Tcp, to);
                let wanted = if others_are_served { Ok("a".to_owned()) } else { Err("ECONNREFUSED".to_owned()) };
                assert_eq!(others.map(|answer| answer.by), wanted, "{arguments:?}: {to}");
            }
            went.push(dials.are_not_served(change("del")));
        }
    }
    nearly_all_within(SERVED, came, "served after an address was added");
    nearly_all_within(NOT_SERVED, went, "still served after an address was removed");
}

/// Also for pods that sockets serve: at a socket nobody knows their address.
#[test]
fn source_ranges_are_held_against_everybody_who_dials_a_load_balancer_address_and_against_no_other() {
    let (cast, agent) = Cast::new(&[BY_CLUSTER, "-v2"]);
    let [within, without, of_ipv4] = [number(0, 0), number(0, 1), number(1, 0)];
    let pod = |pod: &Pod| [format!("{}/32", pod.v4), format!("{}/128", pod.v6)];
    let others = ["192.0.2.1/32", "192.0.2.11/32", "2001:db8::1/128", "2001:db8::b/128"].map(str::to_owned);
    let allowed = [&pod(&cast.pod)[..], &pod(&cast.steered), &others].concat();
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    let ranges: [(u8, &[&str]); 3] =
        [(within, &allowed), (without, &["192.0.2.250/32", "2001:db8::fa/128"]), (of_ipv4, &["192.0.2.250/32"])];
    let objects = ranges.map(|(number, ranges)| (web(number).source_ranges(ranges), slices(&cast.stage, number, "L")));
    let documents: Vec<_> = objects.iter().flat_map(|(service, slices)| [service as &dyn Documents, slices]).collect();
    agent.programs(|| cast.stage.manifests.write("manifest", &documents)).unwrap();

    let denied = || counters(&cast.stage.node).unwrap()["source_not_allowed"];
    let (before, mut wanted) = (denied(), 0);
    for (who, client) in &cast.clients {
        for (v6, kind) in FAMILIES.into_iter().flat_map(|v6| KINDS.map(|kind| (v6, kind))) {
            let at = |frontend, number| cast.to(frontend, number, v6);
            let served = |what: &str, to| {
                let answer =
                    client.dial(kind, to).unwrap_or_else(|error| panic!("{who}, {what} {to}, {kind:?}: {error}"));
                assert_eq!((answer.by.as_str(), answer.from), ("a", Some(to)), "{who}, {what}, {kind:?}");
            };
            served("in range", at(Frontend::LoadBalancer, within));
            for other in [Frontend::ClusterIp, Frontend::NodePort, Frontend::ExternalIp] {
                served("out of range, but not for this address", at(other, without));
            }
            let (to, what) =
                (at(Frontend::LoadBalancer, without), format!("{who}, out of range, {kind:?}, IPv6: {v6}"));
            wanted += 1;
            match *who {
                "node" => assert_eq!(client.dial(kind, to), Err("EHOSTUNREACH".to_owned()), "{what}"),
                _ => is_silent(client, kind, to, &what),
            }
            if v6 {
                served("ranges of IPv4 alone", at(Frontend::LoadBalancer, of_ipv4));
            }
        }
    }
    assert!(denied() - before >= wanted, "{} of {wanted}", denied() - before);
    assert_eq!(counters(&cast.stage.node).unwrap()["source_unknown"], 0);
}

/// Where the node has a load-balancer address itself, that is the address with which it dials it (specification B9, the node's
/// own allowance). Ranges without the node hold against it all the same.
#[test]
fn the_node_may_dial_a_load_balancer_address_that_it_has_itself_where_ranges_hold_the_node() {
    let (cast, mut agent) = Cast::new(&[]);
    let stage = &cast.stage;
    let (node4, node6) = (format!("{}/32", stage.node.v4), format!("{}/128", stage.node.v6));
    let ranges: [[&str; 2]; 2] = [[&node4, &node6], ["192.0.2.250/32", "2001:db8::fa/128"]];
    // Backends on the node, and elsewhere.
    let [within, without] = [[number(0, 1), number(0, 2)], [number(1, 1), number(2, 2)]];
    let mut objects: Vec<Box<dyn Documents>> = vec![Box::new(node_object(&stage.node))];
    for (numbers, ranges) in [within, without].iter().zip(&ranges) {
        for (number, placement) in numbers.iter().zip(["L", "R"]) {
            objects.push(Box::new(web(*number).source_ranges(ranges)));
            objects.push(Box::new(slices(stage, *number, placement)));
        }
    }
    let documents: Vec<&dyn Documents> = objects.iter().map(AsRef::as_ref).collect();
    stage.manifests.write("manifest", &documents).unwrap();
    for has_address in [false, true] {
        agent.end_with(nix::sys::signal::Signal::SIGTERM).unwrap();
        if has_address {
            let all = [within, without].concat();
            let addresses = all.iter().flat_map(|number| Frontend::LoadBalancer.of(*number, &stage.node));
            let nodad = |to: SocketAddr| if to.is_ipv6() { " nodad" } else { "" };
            let lines: Vec<_> = addresses.map(|to| format!("addr add {} dev lo{}", to.ip(), nodad(to))).collect();
            stage.node.netns.ip(&lines).unwrap();
        }
        agent = stage.agent(&[BY_CLUSTER, "--socket-lb=off"]);
        let denied = || counters(&stage.node).unwrap()["source_not_allowed"];
        let (before, mut wanted) = (denied(), 0);
        for (v6, kind) in FAMILIES.into_iter().flat_map(|v6| KINDS.map(|kind| (v6, kind))) {
            for (place, by) in ["a", "b"].into_iter().enumerate() {
                let at = |numbers: [u8; 2]| cast.to(Frontend::LoadBalancer, numbers[place], v6);
                let what = format!("{kind:?}, backend {by}, the node has the address: {has_address}");
                let answer =
                    cast.clients["node"].dial(kind, at(within)).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!((answer.by.as_str(), answer.from), (by, Some(at(within))), "{what}");
                assert_eq!(cast.seen("node", &answer), Node, "{what}");
                is_silent(&cast.clients["node"], kind, at(without), &format!("the node, out of range, {what}"));
                for who in ["pod", "steered pod", "outside"] {
                    for to in [within, without] {
                        is_silent(&cast.clients[who], kind, at(to), &format!("{who}, out of range, {what}"));
                    }
                }
                wanted += 7;
            }
        }
        assert!(denied() - before >= wanted, "{} of {wanted}", denied() - before);
    }
}
