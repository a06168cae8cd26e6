//! The packet path over what CNIs and networks are like, with strict `rp_filter`, a firewall that drops what conntrack calls
//! invalid and counts what is forwarded, in both families (issue 5, lines 2, 3 and 10).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use proxy_tests::agent::sluice;
use proxy_tests::netns::Netns;
use proxy_tests::node::Place;
use proxy_tests::probe::{Client, Kind};
use proxy_tests::topology::{Counted, Shape, Topology, Whom};

/// Dials of each case, protocol and family.
const DIALS: u32 = 10;
/// Many windows, and with offloads segments of 64 KiB.
const MUCH: u64 = 2 << 20;

/// Whom the backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Client,
    Node,
    /// The Service itself.
    Dialled,
}

/// Somebody dials.
struct Case<'a> {
    what: &'a str,
    client: &'a Client,
    /// The client's addresses.
    from: [IpAddr; 2],
    to: [SocketAddr; 2],
    whom: Whom,
    seen: Seen,
    /// Whether netfilter sees that node one forwards the packets; `None` where they end there.
    is_forwarded: Option<bool>,
}

impl Case<'_> {
    fn check(&self, topology: &Topology) {
        for (kind, family) in [(Kind::Tcp, 0), (Kind::Tcp, 1), (Kind::Udp, 0), (Kind::Udp, 1)] {
            let (to, from) = (self.to[family], self.from[family]);
            let case = format!("{:?}: {}, {kind:?} {to}", topology.shape, self.what);
            let (mut seen, before) = (BTreeSet::new(), topology.counted().unwrap());
            for dial in 0..DIALS {
                let answer = self.client.dial(kind, to);
                let answer = answer.unwrap_or_else(|error| panic!("{case}, dial {dial}: {error}\n{}", look(topology)));
                assert_eq!((answer.by.as_str(), answer.from), (self.whom.name(), Some(to)), "{case}");
                seen.insert(answer.seen_as.ip());
            }
            match self.seen {
                Seen::Client => assert_eq!(seen, [from].into(), "{case}: a client is seen as it is"),
                Seen::Node => assert!(seen.iter().all(|ip| topology.is_of_the_node(*ip).unwrap()), "{case}: {seen:?}"),
                Seen::Dialled => assert_eq!(seen, [to.ip()].into(), "{case}"),
            }
            let Counted { requests, replies, invalid } = topology.counted().unwrap();
            assert_eq!(invalid, before.invalid, "{case}: conntrack calls nothing invalid\n{}", look(topology));
            let forwarded = [requests - before.requests, replies - before.replies];
            let fits =
                |count: u64| self.is_forwarded.is_none_or(|is| if is { count >= u64::from(DIALS) } else { count == 0 });
            assert!(forwarded.iter().all(|count| fits(*count)), "{case}: forwarded {forwarded:?}");
        }
    }
}

/// What a failure leaves behind.
fn look(topology: &Topology) -> String {
    let netns = &topology.node.netns;
    let show = |program, arguments: &[&str]| netns.output(program, arguments).unwrap_or_default();
    [show("nft", &["list", "counters"]), show("ip", &["addr"]), show("ip", &["route"]), show("ip", &["-6", "route"])]
        .join("\n")
}

fn client(place: &Place) -> Client {
    Client::start(place).unwrap()
}

/// What devices do themselves, in turn.
fn lanes(topology: &Topology) -> [(&'static str, Vec<&Netns>, &'static str); 3] {
    let everywhere = || topology.places().to_vec();
    [
        ("offloads on", everywhere(), "tx on sg on tso on gso on gro on"),
        ("off where packets leave node one", vec![&topology.node.netns], "tx off"),
        ("offloads off", everywhere(), "tx off sg off tso off gso off gro off"),
    ]
}

fn serves_everybody(shape: Shape) {
    serves(shape, &["--socket-lb=host"], |_| true);
}

/// `is_forwarded` says to whom netfilter sees packets forwarded.
fn serves(shape: Shape, arguments: &[&str], is_forwarded: fn(Whom) -> bool) {
    let topology = Topology::new(shape).unwrap();
    let _agent = topology.agent(arguments).unwrap();
    let outside = client(&topology.outside);
    let pod = client(&topology.client.pod.place);
    let pod_addresses = [topology.client.pod.v4.into(), topology.client.pod.v6.into()];
    for whom in Whom::ALL {
        let seen = if whom.is_on_this_node() { Seen::Client } else { Seen::Node };
        // A pod's own answers must not stay in the pod, and rules of a CNI hide pods from who is not in the cluster's network.
        let is_hidden = whom == Whom::Myself || whom == Whom::FarHost && topology.masquerades();
        let seen_by_cluster_ip = if is_hidden { Seen::Node } else { Seen::Client };
        let seen_by_node_port = if whom == Whom::Myself { Seen::Node } else { seen };
        let is_forwarded = if whom == Whom::Host { None } else { Some(is_forwarded(whom)) };
        let case = |what, to, seen| {
            let (client, from) = (&outside, topology.origin);
            Case { what, client, from, to, whom, seen, is_forwarded }
        };
        case("outside to node port", topology.node_ports(whom), seen).check(&topology);
        case("outside to ClusterIP", whom.cluster_ips(), seen).check(&topology);
        let of_pod = |case: Case<'_>| Case { client: &pod, from: pod_addresses, ..case }.check(&topology);
        // A host is no pod, so that rules may have to hide who dials it: never past the stack.
        let by_stack = if whom == Whom::FarHost { Some(true) } else { is_forwarded };
        of_pod(Case { is_forwarded: by_stack, ..case("pod to ClusterIP", whom.cluster_ips(), seen_by_cluster_ip) });
        of_pod(case("pod to node port", topology.node_ports(whom), seen_by_node_port));
    }
    for (lane, places, features) in lanes(&topology) {
        topology.turn(&places, features).unwrap();
        for whom in [Whom::Near, Whom::Far, Whom::Host] {
            for to in topology.node_ports(whom) {
                outside
                    .exchange(to, MUCH)
                    .unwrap_or_else(|error| panic!("{shape:?}: {lane}, outside to {to}: {error}"));
            }
            for to in whom.cluster_ips() {
                pod.exchange(to, MUCH).unwrap_or_else(|error| panic!("{shape:?}: {lane}, pod to {to}: {error}"));
            }
        }
        assert_eq!(topology.counted().unwrap().invalid, 0, "{lane}");
    }
}

/// With no hook at any socket, packets of the node's own processes are served where they leave. None of them is forwarded,
/// to netfilter.
fn serves_the_node(shape: Shape) {
    let topology = Topology::new(shape).unwrap();
    let _agent = topology.agent(&["--socket-lb=off"]).unwrap();
    let host = client(&topology.node.host().unwrap());
    let before = topology.counted().unwrap();
    for whom in [Whom::Near, Whom::Far, Whom::Host, Whom::FarHost] {
        let case = |what, to, seen| {
            let (client, from) = (&host, topology.entry);
            Case { what, client, from, to, whom, seen, is_forwarded: Some(false) }
        };
        let seen = if whom == Whom::Host { Seen::Dialled } else { Seen::Node };
        case("the node to ClusterIP", whom.cluster_ips(), seen).check(&topology);
        case("the node to its own node port", topology.node_ports(whom), seen).check(&topology);
    }
    for (lane, places, features) in lanes(&topology) {
        topology.turn(&places, features).unwrap();
        for whom in [Whom::Near, Whom::Far, Whom::Host] {
            for to in whom.cluster_ips().into_iter().chain(topology.node_ports(whom)) {
                host.exchange(to, MUCH).unwrap_or_else(|error| panic!("{shape:?}: {lane}, the node to {to}: {error}"));
            }
        }
    }
    assert_eq!(topology.counted().unwrap(), before, "what the node sends and gets is not forwarded, and never invalid");
}

#[test]
fn the_node_itself_is_served_over_bridges_and_routes() {
    serves_the_node(Shape::Bridged);
}

#[test]
fn the_node_itself_is_served_over_routed_veths() {
    serves_the_node(Shape::Routed);
}

#[test]
fn the_node_itself_is_served_over_vxlan_with_rules_that_masquerade() {
    serves_the_node(Shape::Overlay);
}

#[test]
fn the_node_itself_is_served_over_devices_without_link_headers() {
    serves_the_node(Shape::Layer3);
}

#[test]
fn answers_to_the_node_go_from_devices_without_link_headers_to_those_with_one_and_back() {
    let topology = Topology::new(Shape::Layer3).unwrap();
    topology.leave_by_the_first_device().unwrap();
    let _agent = topology.agent(&["--socket-lb=off"]).unwrap();
    let host = client(&topology.node.host().unwrap());
    for whom in [Whom::Near, Whom::Far, Whom::FarHost] {
        let (client, from, to) = (&host, topology.entry, whom.cluster_ips());
        Case { what: "the node", client, from, to, whom, seen: Seen::Node, is_forwarded: Some(false) }.check(&topology);
        for to in whom.cluster_ips() {
            host.exchange(to, MUCH).unwrap_or_else(|error| panic!("{whom:?}, the node to {to}: {error}"));
        }
    }
}

/// A node without a route to a backend, or without a backend, says so at once or never, and cleanup leaves no trace of it.
#[test]
fn the_node_is_refused_like_anybody_and_its_loopback_device_is_left_as_it_was() {
    const ACCEPTS: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";
    let topology = Topology::new(Shape::Bridged).unwrap();
    let mut agent = topology.agent(&["--socket-lb=off"]).unwrap();
    let host = client(&topology.node.host().unwrap());
    let accepts = || topology.node.netns.output("cat", &[ACCEPTS]).unwrap();
    assert_eq!(accepts().trim(), "1");
    for to in Whom::Near.cluster_ips() {
        let undefined = SocketAddr::new(to.ip(), 81);
        for kind in [Kind::Tcp, Kind::Udp] {
            assert_eq!(host.dial(kind, undefined), Err("ECONNREFUSED".to_owned()), "{kind:?} {undefined}");
        }
    }
    for address in topology.entry {
        let nobody = SocketAddr::new(address, 30_099);
        assert_eq!(host.dial(Kind::Tcp, nobody), Err("ECONNREFUSED".to_owned()), "{nobody}, where nobody listens");
    }
    agent.end_with(Signal::SIGTERM).unwrap();
    let pins = topology.node.pin_dir().display().to_string();
    let cleaned = sluice(&topology.node, &["cleanup", "--pin-dir", &pins]).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(accepts().trim(), "0");
}

#[test]
fn everybody_is_served_over_bridges_and_routes() {
    serves_everybody(Shape::Bridged);
}

#[test]
fn everybody_is_served_over_routed_veths() {
    serves_everybody(Shape::Routed);
}

#[test]
fn everybody_is_served_over_vxlan_with_rules_that_masquerade() {
    serves_everybody(Shape::Overlay);
}

#[test]
fn everybody_is_served_over_devices_without_link_headers() {
    serves_everybody(Shape::Layer3);
}

const FAST: [&str; 2] = ["--socket-lb=host", "--fast-path"];

#[test]
fn nothing_is_forwarded_by_the_stack_over_bridges_and_routes_where_that_is_asked() {
    serves(Shape::Bridged, &FAST, |_| false);
}

#[test]
fn nothing_is_forwarded_by_the_stack_over_routed_veths_where_that_is_asked() {
    serves(Shape::Routed, &FAST, |_| false);
}

#[test]
fn nothing_is_forwarded_by_the_stack_over_vxlan_where_that_is_asked() {
    serves(Shape::Overlay, &FAST, |_| false);
}

/// Clients outside come by a device without link headers, and so do far pods.
#[test]
fn everybody_is_served_over_devices_without_link_headers_with_the_fast_path_too() {
    let topology = Topology::new(Shape::Layer3).unwrap();
    let _agent = topology.agent(&FAST).unwrap();
    let (outside, pod) = (client(&topology.outside), client(&topology.client.pod.place));
    for whom in Whom::ALL {
        for (client, to) in [(&outside, topology.node_ports(whom)), (&pod, whom.cluster_ips())] {
            for to in to {
                for kind in [Kind::Tcp, Kind::Udp] {
                    assert_eq!(client.dial(kind, to).unwrap().by, whom.name(), "{kind:?} {to}");
                }
                client.exchange(to, MUCH).unwrap_or_else(|error| panic!("{whom:?} at {to}: {error}"));
            }
        }
    }
    assert_eq!(topology.counted().unwrap().invalid, 0);
}

#[test]
fn replies_may_leave_by_another_device_than_their_requests_came_by() {
    let topology = Topology::new(Shape::Bridged).unwrap();
    topology.join_again().unwrap();
    let _agent = topology.agent(&[]).unwrap();
    let outside = client(&topology.outside);
    for whom in [Whom::Near, Whom::Far] {
        for (family, from) in Topology::REMOTE.into_iter().enumerate() {
            let (from, to) = (SocketAddr::new(from, 0), topology.node_ports(whom)[family]);
            for kind in [Kind::Tcp, Kind::Udp] {
                let sent = || ["eth0", "eth1"].map(|device| topology.sent_by(device).unwrap());
                let before = sent();
                // Of 20 that have two ways, all take the same one once in half a million times.
                for dial in 0..2 * DIALS {
                    let answer = outside.dial_from(kind, from, to);
                    let answer = answer
                        .unwrap_or_else(|error| panic!("{kind:?} {to}, dial {dial}: {error}\n{}", look(&topology)));
                    assert_eq!((answer.by.as_str(), answer.from), (whom.name(), Some(to)), "{kind:?}");
                }
                let after = sent();
                assert!((0..2).all(|way| after[way] > before[way]), "{kind:?} {to}: {before:?} to {after:?}");
            }
        }
    }
    assert_eq!(topology.counted().unwrap().invalid, 0);
}
