//! The packet path over what CNIs and networks are like, with strict `rp_filter`, a firewall that drops what conntrack calls
//! invalid and counts what is forwarded, in both families (issue 5, lines 2, 3 and 10).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use proxy_common::packet::cases::build::udp;
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_tests::agent::{Agent, sluice};
use proxy_tests::edge::outside_address;
use proxy_tests::frames::{Wire, is_from};
use proxy_tests::netns::Netns;
use proxy_tests::node::Place;
use proxy_tests::packets::sums::Sums;
use proxy_tests::probe::{Client, IcmpError, Kind, PATIENCE, Socket};
use proxy_tests::stage::eventually;
use proxy_tests::topology::{Counted, Shape, Topology, Whom};
use proxy_userspace::attach::object::has_fast_path;

/// Dials of each case, protocol and family.
const DIALS: u32 = 10;
/// Many windows, and with offloads segments of 64 KiB.
const MUCH: u64 = 2 << 20;

const OFFLOADS_OFF: &str = "tx off sg off tso off gso off gro off";

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
        ("offloads off", everywhere(), OFFLOADS_OFF),
    ]
}

fn serves_everybody(shape: Shape) {
    serves(shape, &["--socket-lb=host"], |_| true);
}

/// Dials everybody once, so that the node knows its neighbours: the stack looks for those that it does not.
fn introduce(topology: &Topology, clients: [&Client; 2]) {
    for whom in Whom::ALL {
        for to in topology.node_ports(whom).into_iter().chain(whom.cluster_ips()) {
            for client in clients {
                client.dial(Kind::Udp, to).unwrap_or_else(|error| panic!("{whom:?} {to}: {error}\n{}", look(topology)));
            }
        }
    }
}

/// `is_forwarded` says to whom netfilter sees packets forwarded.
fn serves(shape: Shape, arguments: &[&str], is_forwarded: fn(Whom) -> bool) {
    let topology = Topology::new(shape).unwrap();
    let _agent = topology.agent(arguments).unwrap();
    let outside = client(&topology.outside);
    let pod = client(&topology.client.pod.place);
    introduce(&topology, [&outside, &pod]);
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
        for whom in Whom::ALL {
            exchanges(&outside, whom, topology.node_ports(whom), &format!("{shape:?}: {lane}, outside"));
            exchanges(&pod, whom, whom.cluster_ips(), &format!("{shape:?}: {lane}, pod"));
        }
        assert_eq!(topology.counted().unwrap().invalid, 0, "{lane}");
        has_large_packets(&topology, lane, &outside, topology.node_ports(Whom::Myself));
    }
}

/// Much over TCP, and a datagram.
fn exchanges(client: &Client, whom: Whom, to: [SocketAddr; 2], what: &str) {
    for to in to {
        client.exchange(to, MUCH).unwrap_or_else(|error| panic!("{what} to {to}: {error}"));
        let answer = client.dial(Kind::Udp, to).unwrap_or_else(|error| panic!("{what} to {to}: {error}"));
        assert_eq!((answer.by.as_str(), answer.from), (whom.name(), Some(to)), "{what}");
    }
}

/// Whether devices of node one are given packets that are larger than any frame is as `lane` says, by what `client` exchanges
/// with the pod that dials elsewhere.
fn has_large_packets(topology: &Topology, lane: &str, client: &Client, to: [SocketAddr; 2]) {
    const LARGEST: usize = 14 + 1500;
    // A device without link headers takes no more than a frame from who writes to it.
    let up = (topology.shape != Shape::Layer3).then_some("eth0");
    for device in up.into_iter().chain([&*topology.client.pod.device]) {
        for to in to {
            let wire = Wire::of(&topology.node.netns, device).unwrap();
            client.exchange(to, MUCH).unwrap();
            let largest = wire.largest().unwrap();
            let what = format!("{:?}: {lane}, {to} at {device}: {largest} bytes", topology.shape);
            assert!(largest > 1000, "{what}");
            match lane {
                "offloads on" => assert!(largest > LARGEST, "{what}"),
                "offloads off" => assert!(largest <= LARGEST, "{what}"),
                _ => {}
            }
        }
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
        for whom in Whom::ALL {
            for to in [whom.cluster_ips(), topology.node_ports(whom)] {
                exchanges(&host, whom, to, &format!("{shape:?}: {lane}, the node"));
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
fn everybody_is_served_over_bridges_and_routes_by_filters() {
    serves(Shape::Bridged, &["--socket-lb=host", "--device-hooks=clsact"], |_| true);
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

#[test]
fn what_the_kernel_has_summed_up_of_a_packet_stays_right() {
    let topology = Topology::new(Shape::Overlay).unwrap();
    let _agent = topology.agent(&["--socket-lb=host"]).unwrap();
    // Nothing is said to be right without a look: what a tunnel brings is summed up before its packets are (CHECKSUM_COMPLETE).
    topology.turn(&topology.places(), OFFLOADS_OFF).unwrap();
    // Who masquerades is not netfilter. Pods of node two reach ClusterIPs by way of node one.
    topology.node.netns.nft("delete table inet cni").unwrap();
    topology.reach_services_from_the_other_node().unwrap();
    let sums = Sums::watch(&topology.node.netns, "flannel.1").unwrap();
    let mut before = 0;
    let mut meet = |what: &str, client: &Client, to: [SocketAddr; 2]| {
        for (kind, to) in [Kind::Tcp, Kind::Udp].into_iter().flat_map(|kind| to.map(|to| (kind, to))) {
            client.dial(kind, to).unwrap_or_else(|error| panic!("{what}, {kind:?} {to}: {error}"));
            let (summed, wrong) = sums.seen().unwrap();
            assert!(summed > before, "{what}, {kind:?} {to}: the kernel has the sum of one packet at least");
            assert_eq!(wrong, 0, "{what}, {kind:?} {to}: of {summed}");
            before = summed;
        }
    };
    let (outside, far) = (client(&topology.outside), client(&topology.far.pod.place));
    meet("a reply", &outside, topology.node_ports(Whom::Far));
    meet("a request to a pod", &far, Whom::Near.cluster_ips());
    meet("a request to the host", &far, Whom::Host.cluster_ips());
}

/// Netfilter draws any port above 1023, and knows no flow of ours: here it draws from the same few, and hardly a dial could be
/// without a port that the other one has too.
fn shares_ports(shape: Shape) {
    const PORTS: &str = "61000-61255";
    const DIALS: u32 = 20;
    let topology = Topology::new(shape).unwrap();
    topology.masquerade_from(PORTS).unwrap();
    let _agent = topology.agent(&["--socket-lb=host", &format!("--source-ports={PORTS}")]).unwrap();
    let (outside, pod) = (client(&topology.outside), client(&topology.client.pod.place));
    let dial = |client: &Client, kind, to| client.dial(kind, to).map(|answer| answer.by);
    let serves_at = |client: &Client, whom: Whom, to: [SocketAddr; 2]| {
        for (kind, to) in [Kind::Udp, Kind::Tcp].into_iter().flat_map(|kind| to.map(|to| (kind, to))) {
            assert_eq!(
                dial(client, kind, to).as_deref(),
                Ok(whom.name()),
                "{shape:?}, {kind:?} {to}\n{}",
                look(&topology)
            );
        }
    };
    for _ in 0..DIALS {
        // Ours, then netfilter's.
        serves_at(&outside, Whom::FarHost, topology.node_ports(Whom::FarHost));
        serves_at(&pod, Whom::FarHost, Whom::FarHost.cluster_ips());
        // Where pods of other nodes are reached by a tunnel, the first one is netfilter's and the second ours.
        serves_at(&outside, Whom::Far, topology.node_ports(Whom::Far));
        serves_at(&pod, Whom::Far, topology.node_ports(Whom::Far));
    }
    assert!(topology.foreign_flows().unwrap() > 0, "what netfilter drew is known");
    let before = topology.counted().unwrap().invalid;
    for (client, whom, to) in [
        (&outside, Whom::FarHost, topology.node_ports(Whom::FarHost)),
        (&pod, Whom::FarHost, Whom::FarHost.cluster_ips()),
    ] {
        for to in to {
            client.exchange(to, MUCH).unwrap_or_else(|error| panic!("{shape:?}, {whom:?} {to}: {error}"));
        }
    }
    assert_eq!(topology.counted().unwrap().invalid, before);
}

/// What leaves by a device on top of another passes that one too, from a port of ours.
#[test]
fn a_flow_that_leaves_by_one_device_on_top_of_another_is_ours_at_both() {
    let topology = Topology::new(Shape::Bridged).unwrap();
    topology.reach_by_upper_device().unwrap();
    let _agent = topology.agent(&["--socket-lb=host", "--network-devices=eth0,above"]).unwrap();
    let outside = client(&topology.outside);
    let before = topology.sent_by("above").unwrap();
    Case {
        what: "outside to node port, by both devices",
        client: &outside,
        from: topology.origin,
        to: topology.node_ports(Whom::FarHost),
        whom: Whom::FarHost,
        seen: Seen::Node,
        is_forwarded: Some(true),
    }
    .check(&topology);
    assert!(topology.sent_by("above").unwrap() >= before + u64::from(4 * DIALS));
    assert_eq!(topology.foreign_flows().unwrap(), 0);
}

#[test]
fn netfilter_may_draw_our_ports_over_vxlan() {
    shares_ports(Shape::Overlay);
}

#[test]
fn netfilter_may_draw_our_ports_over_devices_without_link_headers() {
    shares_ports(Shape::Layer3);
}

const FAST: [&str; 2] = ["--socket-lb=host", "--fast-path"];

/// Older kernels have no way past their stack.
fn by_old_kernels(_: Whom) -> bool {
    !has_fast_path()
}

#[test]
fn nothing_is_forwarded_by_the_stack_over_bridges_and_routes_where_that_is_asked() {
    serves(Shape::Bridged, &FAST, by_old_kernels);
}

#[test]
fn nothing_is_forwarded_by_the_stack_over_routed_veths_where_that_is_asked() {
    serves(Shape::Routed, &FAST, by_old_kernels);
}

#[test]
fn nothing_is_forwarded_by_the_stack_over_vxlan_where_that_is_asked() {
    serves(Shape::Overlay, &FAST, by_old_kernels);
}

/// Node one with the fast path, a client outside, and neighbours that know each other.
struct Fast {
    outside: Client,
    _agent: Agent,
    topology: Topology,
    /// The client's device.
    wire: Wire,
}

impl Fast {
    fn new() -> Self {
        let topology = Topology::new(Shape::Bridged).unwrap();
        // The kernel tells of shorter ways and of errors from one allowance (as of 6.18).
        topology.node.send_redirects(false).unwrap();
        let wire = Wire::between(&topology.outside.netns, "uplink", (&topology.node.netns, "eth0")).unwrap();
        let agent = topology.agent(&FAST).unwrap();
        let (outside, pod) = (client(&topology.outside), client(&topology.client.pod.place));
        introduce(&topology, [&outside, &pod]);
        Self { outside, _agent: agent, topology, wire }
    }
}

/// Whether netfilter sees what `act` does pass by.
fn is_seen(topology: &Topology, act: impl FnOnce()) -> bool {
    let [request, reply] = seen(topology, act);
    assert_eq!(request, reply, "both directions or neither");
    request
}

/// As [`is_seen`], of requests and of replies: they differ where a flow changes its way between the two.
fn seen(topology: &Topology, act: impl FnOnce()) -> [bool; 2] {
    let before = topology.counted().unwrap();
    act();
    let Counted { requests, replies, invalid } = topology.counted().unwrap();
    assert_eq!(invalid, before.invalid);
    [requests > before.requests, replies > before.replies]
}

#[test]
fn a_flow_to_whom_the_node_does_not_know_yet_goes_through_the_stack_and_stays_there() {
    let Fast { topology, outside, .. } = &Fast::new();
    for whom in [Whom::Near, Whom::Far] {
        for to in topology.node_ports(whom) {
            let ask = |socket: &Socket<'_>| assert_eq!(socket.ask_at(to).unwrap().by, whom.name(), "{to}");
            ask(&outside.open(Kind::Udp, to));
            let early = outside.open(Kind::Udp, to);
            assert_eq!(is_seen(topology, || ask(&early)), !has_fast_path(), "{to}");
            let forget_neighbours = || {
                for family in ["-4", "-6"] {
                    topology.node.netns.output("ip", &[family, "neigh", "flush", "all"]).unwrap();
                }
            };
            forget_neighbours();
            let late = outside.open(Kind::Udp, to);
            assert!(is_seen(topology, || ask(&late)), "{to}, of no neighbour");
            assert!(is_seen(topology, || ask(&late)), "{to}, in the same flow");
            assert_eq!(is_seen(topology, || ask(&outside.open(Kind::Udp, to))), !has_fast_path(), "{to}, another one");
            forget_neighbours();
            assert_eq!(is_seen(topology, || ask(&early)), !has_fast_path(), "{to}, where it was before");
        }
    }
}

#[test]
fn what_does_not_fit_or_has_no_life_left_is_told_by_the_stack_to_who_sends_it() {
    const SMALL: u32 = 1280;
    let Fast { topology, outside, .. } = &Fast::new();
    topology.node.netns.ip(&[format!("link set pods mtu {SMALL}")]).unwrap();
    for (to, [expired, too_big]) in
        topology.node_ports(Whom::Near).into_iter().zip([[(11, 0), (3, 4)], [(3, 0), (2, 0)]])
    {
        let socket = outside.open(Kind::Udp, to);
        socket.connect(to).unwrap();
        let is_asked_past = || is_seen(topology, || assert_eq!(socket.ask().unwrap().by, "near", "{to}"));
        assert_eq!(is_asked_past(), !has_fast_path(), "{to}");
        socket.watch_errors().unwrap();
        for (hops, bytes, (kind, code), mtu) in [(1, 4, expired, 0), (64, 1400, too_big, SMALL)] {
            socket.set_hops(hops).unwrap();
            socket.send_large(None, bytes, 0).unwrap();
            let wanted = IcmpError { kind, code, mtu, about: to, by: to.ip() };
            assert_eq!(socket.icmp_error(), Ok(wanted), "{to}");
        }
        assert_eq!(is_asked_past(), !has_fast_path(), "{to}, again");
        // Segments of many packets; the client has learned how large these may be, and forgets that.
        let family = if to.is_ipv4() { "-4" } else { "-6" };
        topology.outside.netns.output("ip", &[family, "route", "flush", "cache"]).unwrap();
        outside.exchange(to, MUCH).unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}

/// How many hops a packet in a frame may still make.
fn hops(frame: &[u8]) -> u8 {
    if frame[12..14] == [0x08, 0] { frame[22] } else { frame[21] }
}

#[test]
fn what_goes_past_the_stack_arrives_with_a_hop_less() {
    const HOPS: u8 = 37;
    /// Of who answers.
    const DEFAULT: u8 = 64;
    let Fast { topology, outside, wire, .. } = &Fast::new();
    for (to, from) in topology.node_ports(Whom::Myself).into_iter().zip(topology.origin) {
        let pod = Wire::of(&topology.client.pod.place.netns, "eth0").unwrap();
        let socket = outside.open(Kind::Udp, to);
        socket.connect(to).unwrap();
        socket.set_hops(HOPS).unwrap();
        let is_by_stack = is_seen(topology, || assert_eq!(socket.ask().unwrap().by, "myself", "{to}"));
        assert_eq!(is_by_stack, !has_fast_path(), "{to}");
        let own = socket.local_name().unwrap().port().to_be_bytes();
        let ports = if to.is_ipv4() { 34 } else { 54 };
        let has_own = |frame: &[u8], at: usize| frame.get(ports + at..ports + at + 2) == Some(&own);
        let asked = pod.until(PATIENCE, |frame| is_from(frame, from) && has_own(frame, 0)).unwrap();
        let answered = wire.until(PATIENCE, |frame| is_from(frame, to.ip()) && has_own(frame, 2)).unwrap();
        assert_eq!([hops(&asked), hops(&answered)], [HOPS - 1, DEFAULT - 1], "{to}");
    }
}

/// The node would have to make another packet of it: here one that the device takes as it is, so that it arrives.
#[test]
fn what_its_route_wraps_up_goes_through_the_stack() {
    let Fast { topology, outside, .. } = &Fast::new();
    let (netns, far, other) = (&topology.node.netns, &topology.far.pod, &topology.other);
    let routes = [
        (format!("{}/32", far.v4), format!("encap ip id 7 dst {} via {} dev eth0", other.v4, other.v4)),
        (format!("{}/128", far.v6), format!("encap ip6 id 7 dst {} via {} dev eth0", other.v6, other.v6)),
    ];
    for (to, (pod, way)) in topology.node_ports(Whom::Far).into_iter().zip(routes) {
        let ask = |socket: &Socket<'_>| assert_eq!(socket.ask_at(to).unwrap().by, "far", "{to}");
        let early = outside.open(Kind::Udp, to);
        assert_eq!(is_seen(topology, || ask(&early)), !has_fast_path(), "{to}");
        netns.ip(&[format!("route add {pod} {way}")]).unwrap();
        let late = outside.open(Kind::Udp, to);
        assert!(is_seen(topology, || ask(&late)), "{to}, a new flow");
        assert_eq!(seen(topology, || ask(&early)), [true, !has_fast_path()], "{to}, requests of a flow of before");
        netns.ip(&[format!("route del {pod}")]).unwrap();
        assert_eq!(is_seen(topology, || ask(&outside.open(Kind::Udp, to))), !has_fast_path(), "{to}, afterwards");
        assert!(is_seen(topology, || ask(&late)), "{to}, where it was before");
    }
}

/// Netfilter, which has seen nothing of the flow, would call the error invalid.
#[test]
fn a_small_hop_on_the_way_of_answers_that_go_past_the_stack_is_told_to_the_pod_that_answers() {
    const SMALL: u32 = 1280;
    let Fast { topology, .. } = &Fast::new();
    let away = client(&topology.world.away(SMALL).unwrap());
    for to in topology.node_ports(Whom::Near) {
        let is_by_stack = is_seen(topology, || {
            let socket = away.open(Kind::Udp, to);
            socket.connect(to).unwrap();
            socket.set_patience(100).unwrap();
            // The first answer is lost: it tells the pod of the hop.
            assert!((0..20).any(|_| socket.ask_large(None, 0, 1400).is_ok()), "{to}\n{}", look(topology));
        });
        assert_eq!(is_by_stack, !has_fast_path(), "{to}");
    }
}

#[test]
fn nothing_goes_past_the_stack_while_the_node_has_ipsec_policies() {
    const ADD: &str =
        "add dir out src 198.18.0.0/16 dst 198.19.0.0/16 tmpl src 198.18.0.1 dst 198.19.0.1 proto esp mode tunnel";
    const DELETE: &str = "delete dir out src 198.18.0.0/16 dst 198.19.0.0/16";
    let Fast { topology, outside, .. } = &Fast::new();
    let policy = |what: &str| topology.node.netns.ip(&[format!("xfrm policy {what}")]);
    let mut changes = vec![(ADD, DELETE)];
    // What is for the node itself is refused; older kernels know no such thing.
    if policy("setdefault in accept").is_ok() {
        changes.push(("setdefault in block", "setdefault in accept"));
    }
    for to in topology.node_ports(Whom::Near) {
        let early = outside.open(Kind::Udp, to);
        let ask = || assert_eq!(early.ask_at(to).unwrap().by, "near", "{to}");
        assert_eq!(is_seen(topology, ask), !has_fast_path(), "{to}");
        for (change, back) in &changes {
            policy(change).unwrap();
            eventually("flows of before go through the stack", || seen(topology, ask) == [true; 2]);
            let late = outside.open(Kind::Udp, to);
            let ask_late = || assert_eq!(late.ask_at(to).unwrap().by, "near", "{to}");
            assert!(is_seen(topology, ask_late), "and so do new ones: {change}");
            policy(back).unwrap();
            eventually("they go past it again", || seen(topology, ask) == [!has_fast_path(); 2]);
        }
    }
}

/// Ports that frames of a test come from.
const QUESTIONS: std::ops::Range<u16> = 5001..5004;

/// From `from` to a node port in front of a pod of node one.
fn question<A: Ip>(from: u16, to: IpAddr) -> Vec<u8> {
    let client = outside_address(to);
    let packet = udp(format!("{client}:{from} > {to}:{}", Whom::Near.node_port()));
    packet.bytes::<A>().0
}

/// The port that the next answer of the node port goes to.
fn answered(wire: &Wire, node: IpAddr) -> u16 {
    let ports = if node.is_ipv4() { 34 } else { 54 };
    let answers = Whom::Near.node_port().to_be_bytes();
    let port = |frame: &[u8]| u16::from_be_bytes([frame[ports + 2], frame[ports + 3]]);
    let is_answer = |frame: &[u8]| {
        is_from(frame, node) && frame.get(ports..ports + 2) == Some(&answers) && QUESTIONS.contains(&port(frame))
    };
    port(&wire.until(PATIENCE, is_answer).unwrap())
}

fn only_frames_for_the_node<A: Ip>(topology: &Topology, wire: &Wire, node: IpAddr) {
    let for_another = |port| {
        let mut frame = question::<A>(port, node);
        frame[5] ^= 0x80;
        frame
    };
    let tagged = |port| {
        let mut frame = question::<A>(port, node);
        frame.splice(12..12, [0x81, 0, 0, 0]);
        frame
    };
    let is_by_stack = is_seen(topology, || {
        wire.send_bytes(&for_another(5001)).unwrap();
        wire.send_bytes(&question::<A>(5002, node)).unwrap();
        assert_eq!(answered(wire, node), 5002, "a frame for another node is none of ours");
    });
    assert_eq!(is_by_stack, !has_fast_path());
    assert!(is_seen(topology, || {
        wire.send_bytes(&tagged(5003)).unwrap();
        assert_eq!(answered(wire, node), 5003, "a frame with a priority");
    }));
}

#[test]
fn frames_for_others_end_here_and_those_with_a_tag_go_through_the_stack() {
    let Fast { topology, wire, .. } = &Fast::new();
    let [v4, v6] = topology.entry;
    only_frames_for_the_node::<V4>(topology, wire, v4);
    only_frames_for_the_node::<V6>(topology, wire, v6);
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
