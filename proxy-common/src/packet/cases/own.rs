//! The node itself as a client, where no hook sees its socket: its packets are met first as they leave.

use std::format;

use super::build::{ping, sctp, syn, tcp, too_big, udp, unreachable};
use super::names::addr;
use super::world::{On, Setup, TestNode};
use super::{Case, PROTOCOLS, about, cases, family, in_both_families, source_port};
use crate::abi::{Backend, PacketSettings, Version};
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, FIN, RST, SYN};

pub(super) const CASES: &[Case] = cases![
    the_node_reaches_backends_and_is_answered_by_the_service,
    the_node_reaches_itself_by_turning_round_at_the_device,
    policies_take_the_node_for_the_node,
    a_connection_of_the_node_lives_and_ends_like_any_other,
    what_the_node_may_not_have_is_refused,
    what_others_send_and_what_is_no_services_leaves_as_it_came,
    nobody_outside_speaks_for_the_node,
    errors_about_flows_of_the_node_reach_both_ends,
    errors_about_what_the_node_asks_itself_turn_round_too,
    fragments_of_the_node_follow_their_first_one,
    a_datagram_of_the_node_leaves_a_backend_that_stopped_serving,
    what_the_node_dialled_outlives_its_service,
];

const UP: On = On::Uplink;
const CLUSTER_IP: &str = "vip:80";
const FRONTENDS: [&str; 4] = [CLUSTER_IP, "external:80", "lb:80", "node:30080"];

fn elsewhere<A: Ip>() {
    for (backend, far, seen) in [("local", On::PodDevice, "bridge"), ("remote", UP, "node")] {
        for frontend in FRONTENDS {
            for (ask, answer, asks, answers) in PROTOCOLS {
                about::<A>(&format!("{frontend}, {asks}, {backend}"));
                let mut node = Setup::with(if backend == "local" { "L" } else { "R" }).node::<A>();
                let out = node.leave(UP, &ask(&format!("node:4000 > {frontend}")));
                let port = source_port(&out);
                assert_eq!(out, format!("out: node:{port} > {backend}:8080 {asks}"));
                assert!(port.starts_with("61"), "nobody else has this port: {out}");
                let sent = node.leave(far, &ask(&format!("node:{port} > {backend}:8080")));
                assert_eq!(sent, format!("{seen}:{port} > {backend}:8080 {asks}"));
                let home = node.enter(far, &answer(&format!("{backend}:8080 > {seen}:{port}")));
                assert_eq!(home, format!("home: {frontend} > node:4000 {answers}"));
                assert_eq!(node.enter(UP, &answer(&format!("{frontend} > node:4000"))), "pass", "where it comes in");
                assert_eq!(node.count(), (0, 1), "{}", family::<A>());
            }
        }
    }
}

#[cfg_attr(test, test)]
fn the_node_reaches_backends_and_is_answered_by_the_service() {
    in_both_families!(elsewhere());
}

fn itself<A: Ip>() {
    for frontend in FRONTENDS {
        for (ask, answer, asks, answers) in PROTOCOLS {
            about::<A>(&format!("{frontend}, {asks}"));
            let mut node = Setup::with("N").node::<A>();
            let name = frontend.split(':').next().unwrap();
            let turned = node.leave(UP, &ask(&format!("node:4000 > {frontend}")));
            let port = source_port(&turned);
            // The stack would not take a packet from itself: what was dialled stands for it.
            assert_eq!(turned, format!("back: {name}:{port} > node:8080 {asks}"));
            assert_eq!(node.enter(UP, &ask(&format!("{name}:{port} > node:8080"))), "pass", "where it comes in");
            let turned = node.leave(UP, &answer(&format!("node:8080 > {name}:{port}")));
            assert_eq!(turned, format!("back: {frontend} > node:4000 {answers}"));
            assert_eq!(node.count(), (0, 1), "{}", family::<A>());
        }
    }
    about::<A>("without link header");
    let mut node = Setup::with("N").node::<A>();
    let turned = node.leave(UP, &syn("node:4000 > vip:80").without_link_header());
    assert_eq!(turned, format!("back: vip:{} > node:8080 tcp S", source_port(&turned)));
}

#[cfg_attr(test, test)]
fn the_node_reaches_itself_by_turning_round_at_the_device() {
    in_both_families!(itself());
}

fn policies<A: Ip>() {
    let (external, internal) = (Version::EXTERNAL_LOCAL, Version::INTERNAL_LOCAL);
    for (sentence, frontend, policies, expected) in [
        ("a ClusterIP, iTP Local", "vip:80", internal, "drop: no_local_endpoints"),
        ("a ClusterIP, eTP Local", "vip:80", external, "remote"),
        ("a node port, eTP Local: the short way to the whole cluster", "node:30080", external, "remote"),
        ("a load-balancer address, eTP Local", "lb:80", external, "remote"),
    ] {
        about::<A>(sentence);
        for detector in [true, false] {
            let policies = Version::HAS_ANY | policies;
            let mut node = Setup { policies, detector, ..Setup::with("R") }.node::<A>();
            let out = node.leave(UP, &syn(format!("node:4000 > {frontend}")));
            let remote = format!("out: node:{} > remote:8080 tcp S", source_port(&out));
            let expected = if expected == "remote" { &remote } else { expected };
            assert_eq!(out, expected, "{sentence}, {}", family::<A>());
        }
    }
}

#[cfg_attr(test, test)]
fn policies_take_the_node_for_the_node() {
    in_both_families!(policies());
}

fn life<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let port = source_port(&node.leave(UP, &syn("node:4000 > vip:80")));
    let (request, reply) = (tcp("node:4000 > vip:80"), tcp(format!("remote:8080 > node:{port}")));
    node.leave(UP, &syn(format!("node:{port} > remote:8080")));
    about::<A>("the same client, straight to the backend");
    assert_eq!(node.leave(UP, &syn("node:4000 > remote:8080")), "pass");
    assert_eq!(node.enter(UP, &tcp("remote:8080 > node:4000")), "pass");
    about::<A>("its handshake");
    assert_eq!(node.enter(UP, &reply.clone().flags(SYN | ACK)), "home: vip:80 > node:4000 tcp SA");
    let asked = format!("out: node:{port} > remote:8080 tcp A");
    assert_eq!(node.leave(UP, &request), asked);
    assert_eq!(node.count(), (1, 0), "established");
    about::<A>("an hour later");
    node.pass(3_600);
    assert_eq!(node.enter(UP, &reply), "home: vip:80 > node:4000 tcp A");
    assert_eq!(node.leave(UP, &request), asked);
    about::<A>("its end");
    assert_eq!(node.leave(UP, &request.flags(FIN | ACK)), format!("out: node:{port} > remote:8080 tcp AF"));
    assert_eq!(node.enter(UP, &reply.clone().flags(RST)), "home: vip:80 > node:4000 tcp R");
    about::<A>("another one from its port");
    let again = node.leave(UP, &syn("node:4000 > vip:80"));
    assert_eq!(again, format!("out: node:{} > remote:8080 tcp S", source_port(&again)));
    assert_eq!(node.count(), (0, 1), "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn a_connection_of_the_node_lives_and_ends_like_any_other() {
    in_both_families!(life());
}

fn refused<A: Ip>() {
    let answer =
        |name: &str, about: &str, reason: &str| format!("answer: {name} > node port unreachable ({about}), {reason}");
    for (sentence, packet, expected) in [
        (
            "an undefined port of a ClusterIP",
            udp("node:4000 > vip:81"),
            answer("vip", "node:4000 > vip:81 udp", "undefined_port"),
        ),
        ("a ClusterIP, ICMP", ping("node > vip"), answer("vip", "node > vip echo request", "undefined_port")),
        ("an address without a Service", syn("node:4000 > nobody:80"), "drop: unallocated_address".into()),
        ("SCTP, whose checksum allows no other port", sctp("node:4000 > vip:8080"), "drop: sctp_port".into()),
        ("TCP in mid-flow", tcp("node:4000 > vip:80"), "pass: tcp_without_flow".into()),
        (
            "a fragment before its first one",
            udp("node > vip").fragment(7, 16, false),
            "drop: fragment_before_first".into(),
        ),
    ] {
        about::<A>(sentence);
        let mut node = Setup::default().node::<A>();
        assert_eq!(node.leave(UP, &packet), expected, "{sentence}, {}", family::<A>());
        assert_eq!(node.count(), (0, 0), "{sentence}: no flow is made");
    }
    about::<A>("nobody serves");
    let mut node = Setup { policies: 0, ..Setup::with("") }.node::<A>();
    let expected = answer("lb", "node:4000 > lb:80 udp", "no_endpoints");
    assert_eq!(node.leave(UP, &udp("node:4000 > lb:80")), expected, "{}", family::<A>());
    about::<A>("an echo that is answered");
    let mut node = Setup { settings: PacketSettings::ANSWER_ECHO, ..Setup::default() }.node::<A>();
    assert_eq!(node.leave(UP, &ping("node > vip")), "answer: vip > node echo reply, echo_answered");
}

#[cfg_attr(test, test)]
fn what_the_node_may_not_have_is_refused() {
    in_both_families!(refused());
}

fn untouched<A: Ip>() {
    for (sentence, packet) in [
        ("forwarded to a Service", syn("client:4000 > vip:80")),
        ("a pod's, to a Service", udp("pod:4000 > lb:80")),
        ("of nobody", udp("any:68 > vip:80")),
        ("of a Service's own address", syn("external:4000 > vip:80")),
        ("the node's, to nobody we know", syn("node:4000 > web:80")),
        ("the node's, to a pod", udp("bridge:4000 > local:8080")),
        ("the node's, to a port of its own that no Service has", syn("node:4000 > node:22")),
        ("the node's, to a node port of an address that serves none", syn("node:4000 > second:30080")),
        ("to loopback", udp("loopback:4000 > loopback:30080")),
        ("from an address of the node to loopback", syn("node:4000 > loopback:30080")),
        ("the node's, ICMP to an external address", ping("node > external")),
    ] {
        about::<A>(sentence);
        let mut node = Setup::default().node::<A>();
        assert_eq!(node.leave(UP, &packet), "pass", "{sentence}, {}", family::<A>());
        assert_eq!(node.count(), (0, 0), "{sentence}: no flow is made");
    }
}

#[cfg_attr(test, test)]
fn what_others_send_and_what_is_no_services_leaves_as_it_came() {
    in_both_families!(untouched());
}

fn impostor<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let port = source_port(&node.leave(UP, &udp("node:4000 > vip:80")));
    node.leave(UP, &udp(format!("node:{port} > remote:8080")));
    about::<A>("a datagram of the flow that comes in");
    assert_eq!(node.enter(UP, &udp("node:4000 > vip:80")), "drop: spoofed_source");
    about::<A>("an error about a reply that comes in");
    let error = unreachable("node > vip", udp("vip:80 > node:4000"));
    assert_eq!(node.enter(UP, &error), "drop: spoofed_source");
    about::<A>("an answer of somebody else");
    assert_eq!(node.enter(UP, &udp(format!("stranger:8080 > node:{port}"))), "pass");
    about::<A>("an answer to another address of the node");
    assert_eq!(node.enter(UP, &udp(format!("remote:8080 > second:{port}"))), "pass");
}

#[cfg_attr(test, test)]
fn nobody_outside_speaks_for_the_node() {
    in_both_families!(impostor());
}

fn errors<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let port = source_port(&node.leave(UP, &udp("node:4000 > vip:80")));
    let sent = || udp(format!("node:{port} > remote:8080"));
    node.leave(UP, &sent());
    for (sentence, error, expected) in [
        (
            "a router, about a request: it stays where it came in",
            too_big("router > node", sent()),
            "router > node too big (node:4000 > vip:80 udp)",
        ),
        (
            "the backend, about a request",
            unreachable("remote > node", sent()),
            "home: vip > node unreachable (node:4000 > vip:80 udp)",
        ),
    ] {
        about::<A>(sentence);
        assert_eq!(node.enter(UP, &error), expected, "{sentence}");
    }
    about::<A>("the node, about a reply");
    let out = node.leave(UP, &unreachable("node > vip", udp("vip:80 > node:4000")));
    assert_eq!(out, format!("out: node > remote unreachable (remote:8080 > node:{port} udp)"));
    about::<A>("the same, where it leaves");
    let error = unreachable("node > remote", udp(format!("remote:8080 > node:{port}")));
    assert_eq!(node.leave(UP, &error), format!("node > remote unreachable (remote:8080 > node:{port} udp)"));
    assert_eq!(node.count(), (0, 1), "errors begin no flow");
}

#[cfg_attr(test, test)]
fn errors_about_flows_of_the_node_reach_both_ends() {
    in_both_families!(errors());
}

fn errors_at_home<A: Ip>() {
    let mut node = Setup::with("N").node::<A>();
    let port = source_port(&node.leave(UP, &udp("node:4000 > vip:80")));
    about::<A>("about a request");
    let error = unreachable("node > vip", udp(format!("vip:{port} > node:8080")));
    assert_eq!(node.leave(UP, &error), "back: vip > node unreachable (node:4000 > vip:80 udp)");
    about::<A>("about a reply");
    let error = unreachable("node > vip", udp("vip:80 > node:4000"));
    assert_eq!(node.leave(UP, &error), format!("back: vip > node unreachable (node:8080 > vip:{port} udp)"));
}

#[cfg_attr(test, test)]
fn errors_about_what_the_node_asks_itself_turn_round_too() {
    in_both_families!(errors_at_home());
}

fn fragments<A: Ip>() {
    let first = |route: &str, id| udp(route).payload(8).fragment(id, 0, true);
    let later = |route: &str, id| udp(route).payload(100).fragment(id, 16, false);
    let mut node = Setup::with("R").node::<A>();
    let out = node.leave(UP, &first("node:4000 > vip:80", 7));
    let port = source_port(&out);
    assert_eq!(out, format!("out: node:{port} > remote:8080 udp first fragment"));
    assert_eq!(node.leave(UP, &later("node > vip", 7)), "out: node > remote fragment at 16");
    let inside = format!("node:{port} > remote:8080");
    assert_eq!(node.leave(UP, &first(&inside, 7)), format!("node:{port} > remote:8080 udp first fragment"));
    assert_eq!(node.leave(UP, &later("node > remote", 7)), "node > remote fragment at 16");
    let back = format!("remote:8080 > node:{port}");
    assert_eq!(node.enter(UP, &first(&back, 8)), "home: vip:80 > node:4000 udp first fragment");
    assert_eq!(node.enter(UP, &later("remote > node", 8)), "home: vip > node fragment at 16");
}

#[cfg_attr(test, test)]
fn fragments_of_the_node_follow_their_first_one() {
    in_both_families!(fragments());
}

fn moved<A: Ip>() {
    let mut node: TestNode<A> = Setup::with("RL").node();
    node.choose_from(0, 1);
    let port = source_port(&node.leave(UP, &udp("node:4000 > vip:80")));
    assert_eq!(node.leave(UP, &udp("node:4000 > vip:80")), format!("out: node:{port} > remote:8080 udp"));
    node.set_backend("remote", Backend::TERMINATING);
    node.choose_from(1, 1);
    let out = node.leave(UP, &udp("node:4000 > vip:80"));
    assert_eq!(out, format!("out: node:{} > local:8080 udp, flow_moved", source_port(&out)));
    assert_eq!(node.count(), (0, 1));
}

#[cfg_attr(test, test)]
fn a_datagram_of_the_node_leaves_a_backend_that_stopped_serving() {
    in_both_families!(moved());
}

fn outlives<A: Ip>() {
    for name in ["vip", "lb"] {
        about::<A>(name);
        let to = format!("{name}:80");
        let mut node = Setup::with("R").node::<A>();
        let port = source_port(&node.leave(UP, &syn(format!("node:4000 > {to}"))));
        node.leave(UP, &udp(format!("node:5000 > {to}")));
        node.without_endpoints();
        node.tables.withdraw(|entry| entry.key.addr == addr(name, A::FAMILY));
        let sent = node.leave(UP, &tcp(format!("node:4000 > {to}")));
        assert_eq!(sent, format!("out: node:{port} > remote:8080 tcp A"), "a connection stays");
        let told = node.leave(UP, &udp(format!("node:5000 > {to}")));
        assert!(told.starts_with("answer: "), "a datagram has nowhere to go: {told}");
    }
}

#[cfg_attr(test, test)]
fn what_the_node_dialled_outlives_its_service() {
    in_both_families!(outlives());
}
