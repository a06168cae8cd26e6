//! ICMP errors, path MTU, refusals, echoes and fragments of clients outside, with the real kernel on every side (issue 5,
//! line 7).
//!
//! ```text
//! away --- outside --- node one, with the agent --- pod a
//!    small hop   `---- node two ------------------- pod b
//!                                         small hop
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use proxy_common::packet::cases::build::{Build, ping, udp};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_tests::edge::{Edge, counters, outside_address};
use proxy_tests::frames::{Wire, is_from};
use proxy_tests::manifest::{Documents, endpoints, service};
use proxy_tests::netns::Netns;
use proxy_tests::node::Pod;
use proxy_tests::probe::{Client, IcmpError, Kind, Outcome, PATIENCE, Server};
use proxy_tests::stage::{EXTERNAL4, EXTERNAL6, PORT, TARGET, eventually, on};

/// Node ports in front of the pod on node one and of the one on node two, of ports of theirs that nobody serves, and of no
/// pod at all.
const NEAR: u16 = 30_080;
const FAR: u16 = 30_081;
const NEAR_CLOSED: u16 = 30_082;
const FAR_CLOSED: u16 = 30_083;
const NOBODY: u16 = 30_084;
/// In front of a process of node two.
const FAR_HOST: u16 = 30_085;
const CLOSED: u16 = 8081;
/// The smallest that IPv6 allows.
const SMALL: u32 = 1280;

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10));

/// Both of the kind that the families have: IPv4 and IPv6, type and code.
const UNREACHABLE: [(u8, u8); 2] = [(3, 3), (1, 4)];
const EXPIRED: [(u8, u8); 2] = [(11, 0), (3, 0)];
const TOO_BIG: [(u8, u8); 2] = [(3, 4), (2, 0)];

fn serve(stage: &Edge, more: &[&str]) -> proxy_tests::agent::Agent {
    let web = |name: &str, number: u8, node_port: u16| {
        service(name).cluster_ips(&cluster_ips(number).map(|address| address.ip())).node_ports(PORT, node_port)
    };
    let slices = |name: &str, port: u16, pod: &Pod| endpoints(name).ports(PORT, port).pod(pod);
    let (near, far) = (&stage.near.pod, &stage.far.pod);
    let objects: [&dyn Documents; 11] = [
        &web("near", 10, NEAR),
        &slices("near", TARGET, near),
        &web("far", 11, FAR).external_ips(&[EXTERNAL4, EXTERNAL6]),
        &slices("far", TARGET, far),
        &web("near-closed", 12, NEAR_CLOSED),
        &slices("near-closed", CLOSED, near),
        &web("far-closed", 13, FAR_CLOSED),
        &slices("far-closed", CLOSED, far),
        &web("nobody", 14, NOBODY),
        &web("host", 15, FAR_HOST),
        &endpoints("host").ports(PORT, TARGET).host(&stage.other),
    ];
    stage.route_here(&[EXTERNAL4, EXTERNAL6, VIP4, VIP6]).unwrap();
    stage.serve(&objects, more).unwrap()
}

/// The number is the last one of each address.
fn cluster_ips(number: u8) -> [SocketAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into());
    [IpAddr::from(Ipv4Addr::new(10, 96, 0, number)), v6.into()].map(|ip| SocketAddr::new(ip, PORT))
}

const FAST: [&str; 1] = ["--fast-path"];

/// As `ip` takes it.
fn family(to: SocketAddr) -> &'static str {
    if to.is_ipv4() { "-4" } else { "-6" }
}

/// Who tells of an error, in the family of what was dialled.
type By = fn(&Edge, SocketAddr) -> IpAddr;

/// The node that was dialled, also where its backend says so.
fn dialled(_: &Edge, to: SocketAddr) -> IpAddr {
    to.ip()
}

fn next(stage: &Edge, to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { stage.other.v4.into() } else { stage.other.v6.into() }
}

#[test]
fn icmp_errors_about_a_flow_reach_the_socket_of_its_client_in_its_own_terms() {
    errors_reach_the_client(&[]);
}

#[test]
fn and_so_they_do_where_packets_go_past_the_stack() {
    errors_reach_the_client(&FAST);
}

fn errors_reach_the_client(more: &[&str]) {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, more);
    let away = stage.world.away(1500).unwrap();
    let client = Client::start(&away).unwrap();
    for netns in [&stage.node.netns, &stage.other.netns] {
        netns.ip(&[format!("link set pods mtu {SMALL}")]).unwrap();
    }
    for (what, port, hops, bytes, kinds, mtu, by) in [
        ("nobody listens, near", NEAR_CLOSED, 64, 4, UNREACHABLE, 0, dialled as By),
        ("nobody listens, far", FAR_CLOSED, 64, 4, UNREACHABLE, 0, dialled),
        ("it lives too short, near", NEAR, 2, 4, EXPIRED, 0, dialled),
        ("it lives too short, far", FAR, 3, 4, EXPIRED, 0, next),
        ("it is too large, near", NEAR, 64, 1400, TOO_BIG, SMALL, dialled),
        ("it is too large, far", FAR, 64, 1400, TOO_BIG, SMALL, next),
    ] {
        for to in stage.on_node(port) {
            let (kind, code) = kinds[usize::from(to.is_ipv6())];
            let wanted = IcmpError { kind, code, mtu, about: to, by: by(&stage, to) };
            assert_eq!(error_about(&client, &away.netns, to, hops, bytes), Ok(wanted), "{what}, {to}");
        }
    }
}

/// Where no hook sees its sockets.
#[test]
fn what_the_node_asks_itself_is_told_of_errors_and_answered_in_fragments() {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, &["--socket-lb=off"]);
    let host = Client::start(&stage.node.host().unwrap()).unwrap();
    for (what, number, hops, kinds, by) in [
        ("nobody listens, near", 12, 64, UNREACHABLE, dialled as By),
        ("nobody listens, far", 13, 64, UNREACHABLE, dialled),
        ("it lives too short, far", 11, 1, EXPIRED, next),
    ] {
        for to in cluster_ips(number) {
            let socket = host.open(Kind::Udp, to);
            socket.connect(to).unwrap();
            socket.watch_errors().unwrap();
            socket.set_hops(hops).unwrap();
            socket.send_large(None, 4, 0).unwrap();
            let (kind, code) = kinds[usize::from(to.is_ipv6())];
            let wanted = IcmpError { kind, code, mtu: 0, about: to, by: by(&stage, to) };
            assert_eq!(socket.icmp_error(), Ok(wanted), "{what}, {to}");
        }
    }
    for (number, by) in [(10, "a"), (11, "b")] {
        for to in cluster_ips(number) {
            let socket = host.open(Kind::Udp, to);
            for length in [2000, 9000, 60_000] {
                let answer = socket.ask_large(Some(to), length, length).unwrap_or_else(|error| panic!("{to}: {error}"));
                assert_eq!((answer.by.as_str(), answer.from), (by, Some(to)), "{length} bytes");
            }
        }
    }
}

/// What a client is told who sends so many bytes with so many hops to live, from a namespace that knows of no path to there.
fn error_about(client: &Client, netns: &Netns, to: SocketAddr, hops: u8, bytes: u16) -> Outcome<IcmpError> {
    // What was learned of a path to the same address.
    netns.output("ip", &[family(to), "route", "flush", "cache"]).unwrap();
    let socket = client.open(Kind::Udp, to);
    socket.connect(to).unwrap();
    socket.watch_errors().unwrap();
    socket.set_hops(hops).unwrap();
    socket.send_large(None, bytes, 0).unwrap();
    socket.icmp_error()
}

fn bridge(_: &Edge, to: SocketAddr) -> IpAddr {
    let [v4, v6] = ["10.244.1.1", "fd00:244:1::1"];
    if to.is_ipv4() { v4 } else { v6 }.parse().unwrap()
}

/// Its flows are known at its own device alone, where errors about them come from all sides.
#[test]
fn a_pod_that_no_socket_hook_sees_is_told_of_errors_about_its_flows_to_cluster_ips() {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, &[]);
    let (pod, client) = stage.unseen_client("sandbox").unwrap();
    // What goes on to a pod of the same bridge would be told, in the place of an error.
    stage.node.netns.sysctl(&[("ipv4/conf/pods/send_redirects", "0")]).unwrap();
    stage.other.netns.ip(&[format!("link set pods mtu {SMALL}")]).unwrap();
    for (what, number, hops, bytes, kinds, mtu, by) in [
        ("nobody listens, near", 12, 64, 4, UNREACHABLE, 0, dialled as By),
        ("nobody listens, far", 13, 64, 4, UNREACHABLE, 0, dialled),
        ("it lives too short, near", 10, 1, 4, EXPIRED, 0, bridge),
        ("it lives too short, far", 11, 2, 4, EXPIRED, 0, next),
        ("it is too large, far", 11, 64, 1400, TOO_BIG, SMALL, next),
    ] {
        for to in cluster_ips(number) {
            let (kind, code) = kinds[usize::from(to.is_ipv6())];
            let wanted = IcmpError { kind, code, mtu, about: to, by: by(&stage, to) };
            assert_eq!(error_about(&client, &pod.place.netns, to, hops, bytes), Ok(wanted), "{what}, {to}");
        }
    }
}

#[test]
fn small_hops_on_both_sides_are_found_by_who_sends_too_large_packets() {
    small_hops_are_found(&[]);
}

#[test]
fn small_hops_are_found_where_packets_go_past_the_stack() {
    small_hops_are_found(&FAST);
}

fn small_hops_are_found(more: &[&str]) {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, more);
    let away = stage.world.away(SMALL).unwrap();
    for netns in [&stage.node.netns, &stage.other.netns] {
        netns.ip(&[format!("link set pods mtu {SMALL}")]).unwrap();
    }
    let client = Client::start(&away).unwrap();
    let forget = |to: SocketAddr| {
        for netns in [&away.netns, &stage.near.pod.place.netns, &stage.far.pod.place.netns] {
            netns.output("ip", &[family(to), "route", "flush", "cache"]).unwrap();
        }
    };
    let client_knows = |to: SocketAddr| {
        let route = away.netns.output("ip", &[family(to), "route", "get", &to.ip().to_string()]).unwrap();
        route.contains(&format!("mtu {SMALL}"))
    };
    for port in [NEAR, FAR] {
        for to in stage.on_node(port) {
            for (what, question, answer) in
                [("the request is too large", 1400, 0), ("the answer is too large", 0, 1400)]
            {
                let socket = client.open(Kind::Udp, to);
                socket.connect(to).unwrap();
                socket.set_patience(100).unwrap();
                // The first one is lost: it tells its sender of the hop.
                let answered = (0..20).any(|_| socket.ask_large(None, question, answer).is_ok());
                assert!(answered, "{what}, {to}");
            }
            assert!(client_knows(to), "{to}: by the error about its datagram");
            forget(to);
            assert!(!client_knows(to));
            client.exchange(to, 200_000).unwrap_or_else(|error| panic!("200 kB there and back, {to}: {error}"));
            assert!(client_knows(to), "{to}: by the error about its segment");
            forget(to);
        }
    }
}

#[test]
fn who_dials_a_service_without_endpoints_is_refused_however_often() {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, &[]);
    let client = Client::start(&stage.outside).unwrap();
    let refused = Err("ECONNREFUSED".to_owned());
    // The kernel of the node would answer six times, and then once a second.
    for to in stage.on_node(NOBODY) {
        for number in 0..50 {
            assert_eq!(client.dial(Kind::Udp, to), refused, "datagram {number} to {to}");
        }
        assert_eq!(client.dial(Kind::Tcp, to), refused, "{to}");
    }
}

/// An ICMP redirect of either family.
fn is_redirect(frame: &[u8]) -> bool {
    let at = |place: usize| frame.get(place).copied().unwrap_or_default();
    match (at(12), at(13)) {
        (0x08, 0x00) => (at(23), at(34)) == (1, 5),
        (0x86, 0xdd) => (at(20), at(54)) == (58, 137),
        _ => false,
    }
}

#[test]
fn clients_are_not_redirected_to_backends_that_they_do_not_know() {
    let stage = Edge::new().unwrap();
    stage.node.send_redirects(true).unwrap();
    let host = on(&stage.other, TARGET);
    let _host = Server::start(&stage.other.host().unwrap(), "host", &host).unwrap();
    let _agent = serve(&stage, &[]);
    let wire = Wire::of(&stage.node.netns, "eth0").unwrap();
    let client = Client::start(&stage.outside).unwrap();
    let dropped = || counters(&stage.node).unwrap()["redirect_dropped"];
    for to in stage.on_node(FAR_HOST) {
        let before = dropped();
        eventually("the kernel would redirect the client of a Service", || {
            assert_eq!(client.dial(Kind::Udp, to).unwrap().by, "host", "{to}");
            dropped() > before
        });
    }
    assert!(wire.until(Duration::ZERO, is_redirect).is_err(), "none has left the node");
    // Others are told. In IPv6 of who is on the link alone, as long as gateways are not link-local.
    for to in host {
        let (ip, by) = (to.ip(), stage.on_node(0)[usize::from(to.is_ipv6())].ip());
        stage.outside.netns.ip(&[format!("route replace {ip} via {by}")]).unwrap();
        eventually("the kernel redirects who does not dial a Service", || {
            client.dial(Kind::Udp, to).unwrap();
            wire.until(Duration::from_millis(20), is_redirect).is_ok()
        });
    }
}

/// What comes back from `from` to this client, once it does.
fn answer_of(wire: &Wire, from: IpAddr) -> Vec<u8> {
    wire.until(PATIENCE, |frame| is_from(frame, from)).unwrap()
}

#[test]
fn an_echo_to_an_address_of_a_service_is_answered_where_that_is_wanted() {
    let stage = Edge::new().unwrap();
    let wire = Wire::between(&stage.outside.netns, "uplink", (&stage.node.netns, "eth0")).unwrap();
    let echo = |to: IpAddr| ping(format!("{}:0 > {to}:0", outside_address(to)));
    {
        let _agent = serve(&stage, &["--answer-echo"]);
        for to in [VIP4, EXTERNAL4] {
            wire.send::<V4>(&echo(to)).unwrap();
            assert_eq!(answer_of(&wire, to)[34], 0, "an echo reply of {to}");
        }
        for to in [VIP6, EXTERNAL6] {
            wire.send::<V6>(&echo(to)).unwrap();
            assert_eq!(answer_of(&wire, to)[54], 129, "an echo reply of {to}");
        }
    }
    let before = counters(&stage.node).unwrap()["echo_answered"];
    assert_eq!(before, 4);
    let _agent = serve(&stage, &[]);
    wire.send::<V4>(&echo(VIP4)).unwrap();
    assert_eq!(answer_of(&wire, VIP4)[34], 3, "a refusal, as in nftables mode");
    assert_eq!(counters(&stage.node).unwrap()["echo_answered"], before);
}

#[test]
fn fragments_follow_their_first_one_both_ways() {
    fragments_follow(&[]);
}

#[test]
fn fragments_follow_their_first_one_past_the_stack() {
    fragments_follow(&FAST);
}

fn fragments_follow(more: &[&str]) {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, more);
    let client = Client::start(&stage.outside).unwrap();
    for (port, by) in [(NEAR, "a"), (FAR, "b")] {
        for to in stage.on_node(port) {
            let socket = client.open(Kind::Udp, to);
            for length in [2000, 9000, 60_000] {
                let answer = socket.ask_large(Some(to), length, length).unwrap_or_else(|error| panic!("{to}: {error}"));
                assert_eq!((answer.by.as_str(), answer.from), (by, Some(to)), "{length} bytes");
            }
        }
    }
}

/// A datagram in two fragments, `id` apart from others.
fn halves(route: &str, id: u32) -> [Build; 2] {
    [udp(route).payload(24).fragment(id, 0, true), udp(route).payload(16).fragment(id, 32, false)]
}

fn out_of_order<A: Ip>(stage: &Edge, wire: &Wire, external: IpAddr) {
    let ahead = || counters(&stage.node).unwrap()["fragment_before_first"];
    let before = ahead();
    let route = |port: u16| format!("{}:{port} > {external}:{PORT}", outside_address(external));
    let [first, later] = halves(&route(4001), 7);
    wire.send::<A>(&later).unwrap();
    wire.send::<A>(&first).unwrap();
    // Nothing was made of it: the next datagram is the first to be answered.
    let [first, later] = halves(&route(4002), 8);
    wire.send::<A>(&first).unwrap();
    wire.send::<A>(&later).unwrap();
    let answer = answer_of(wire, external);
    let ports = if external.is_ipv4() { 34 } else { 54 };
    assert_eq!(answer[ports..ports + 4], [0, 80, 15, 162], "from port {PORT} to 4002");
    assert_eq!(ahead() - before, 1);
}

#[test]
fn a_fragment_ahead_of_its_first_one_is_dropped_and_counted_and_the_datagram_gets_through_when_it_is_sent_again() {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, &[]);
    let wire = Wire::between(&stage.outside.netns, "uplink", (&stage.node.netns, "eth0")).unwrap();
    out_of_order::<V4>(&stage, &wire, EXTERNAL4);
    out_of_order::<V6>(&stage, &wire, EXTERNAL6);
}

#[test]
fn datagrams_without_checksum_or_with_options_and_extension_headers_are_answered() {
    let stage = Edge::new().unwrap();
    let _agent = serve(&stage, &[]);
    let wire = Wire::between(&stage.outside.netns, "uplink", (&stage.node.netns, "eth0")).unwrap();
    let to = |external: IpAddr, port: u16| udp(format!("{}:{port} > {external}:{PORT}", outside_address(external)));
    for (port, packet) in [to(EXTERNAL4, 5001).without_sum(), to(EXTERNAL4, 5002).options(3)].iter().enumerate() {
        wire.send::<V4>(packet).unwrap();
        assert_eq!(answer_of(&wire, EXTERNAL4)[36..38], [19, 137 + port as u8], "{packet:?}");
    }
    let packet = to(EXTERNAL6, 5003).extensions(&[0, 60]);
    wire.send::<V6>(&packet).unwrap();
    assert_eq!(answer_of(&wire, EXTERNAL6)[56..58], [19, 139], "{packet:?}");
}
