//! ICMP errors about translated flows, from either side, at all four points.

use std::format;
use std::string::String;

use super::build::{Build, expired, ping, redirect, sctp, syn, tcp, too_big, udp, unreachable};
use super::world::{On, Setup, TestNode};
use super::{Case, about, cases, in_both_families};
use crate::packet::ip::Ip;

pub(super) const CASES: &[Case] = cases![
    an_error_about_a_request_reaches_the_client_in_its_own_terms,
    an_error_about_a_reply_reaches_the_backend_in_its_own_terms,
    errors_about_flows_that_keep_their_address_are_translated_where_the_client_is,
    errors_about_flows_of_pods_are_translated_at_the_devices_of_pods_whatever_the_protocol,
    errors_about_what_is_not_ours_pass,
    redirects_about_packets_of_flows_do_not_leave_the_node,
    an_error_is_no_sign_of_life,
];

const UP: On = On::Uplink;

/// A masqueraded flow of TCP and one of UDP, both to "remote"; the ports that they got.
fn masqueraded<A: Ip>() -> (TestNode<A>, String, String) {
    let mut node = Setup::with("R").node::<A>();
    let mut port = |packet: Build, begun: fn(String) -> Build| {
        let inside = node.enter(UP, &packet);
        let port: String = inside.split([':', ' ']).nth(1).unwrap().into();
        node.leave(UP, &begun(format!("client:{port} > remote:8080")));
        port
    };
    let tcp_port = port(syn("client:4000 > lb:80"), syn);
    let udp_port = port(udp("client:5000 > lb:80"), udp);
    (node, tcp_port, udp_port)
}

fn from_the_backends_side<A: Ip>() {
    let (mut node, t, u) = masqueraded::<A>();
    let sent = |port: &str| tcp(format!("node:{port} > remote:8080"));
    for (sentence, error, inside, outside) in [
        (
            "a router: too big",
            too_big("router > node", sent(&t)),
            format!("router > client too big (client:{t} > remote:8080 tcp A)"),
            "router > client too big (client:4000 > lb:80 tcp A)",
        ),
        (
            "a router: too big, of a large segment",
            too_big("router > node", sent(&t).payload(1400)),
            format!("router > client too big (client:{t} > remote:8080 tcp A)"),
            "router > client too big (client:4000 > lb:80 tcp A)",
        ),
        (
            "a router: expired, UDP",
            expired("router > node", udp(format!("node:{u} > remote:8080"))),
            format!("router > client expired (client:{u} > remote:8080 udp)"),
            "router > client expired (client:5000 > lb:80 udp)",
        ),
        (
            "a router: expired, UDP without checksum",
            expired("router > node", udp(format!("node:{u} > remote:8080")).without_sum()),
            format!("router > client expired (client:{u} > remote:8080 udp without checksum)"),
            "router > client expired (client:5000 > lb:80 udp without checksum)",
        ),
        (
            "the backend itself: unreachable",
            unreachable("remote > node", udp(format!("node:{u} > remote:8080"))),
            format!("remote > client unreachable (client:{u} > remote:8080 udp)"),
            "lb > client unreachable (client:5000 > lb:80 udp)",
        ),
    ] {
        about::<A>(sentence);
        assert_eq!(node.enter(UP, &error), inside, "{sentence}");
        // The error as the stack forwards it: what came out goes in again.
        let (from, ports) = (if inside.starts_with("remote") { "remote" } else { "router" }, inside.clone());
        let about = ports.split(['(', ')']).nth(1).unwrap();
        let (route, rest) = about.split_at(about.find(" remote:8080 ").unwrap() + " remote:8080".len());
        let about = match rest {
            " tcp A" => tcp(route),
            " udp" => udp(route),
            _ => udp(route).without_sum(),
        };
        let route = format!("{from} > client");
        let forwarded = match outside {
            _ if outside.contains("too big") => too_big(route, about),
            _ if outside.contains("expired") => expired(route, about),
            _ => unreachable(route, about),
        };
        assert_eq!(node.leave(UP, &forwarded), outside, "{sentence}");
    }
    assert_eq!(node.count(), (0, 2), "errors begin no flow and establish none");
}

#[cfg_attr(test, test)]
fn an_error_about_a_request_reaches_the_client_in_its_own_terms() {
    in_both_families!(from_the_backends_side());
}

fn from_the_clients_side<A: Ip>() {
    let (mut node, t, _) = masqueraded::<A>();
    for (sentence, from, leaves_from) in [("a router", "router", "router"), ("the client itself", "client", "node")] {
        about::<A>(sentence);
        let error = too_big(format!("{from} > lb"), tcp("lb:80 > client:4000").payload(1400));
        let inside = format!("{from} > remote too big (remote:8080 > client:{t} tcp A)");
        assert_eq!(node.enter(UP, &error), inside, "{sentence}");
        let forwarded = too_big(format!("{from} > remote"), tcp(format!("remote:8080 > client:{t}")).payload(1400));
        let outside = format!("{leaves_from} > remote too big (remote:8080 > node:{t} tcp A)");
        assert_eq!(node.leave(UP, &forwarded), outside, "{sentence}");
    }
}

#[cfg_attr(test, test)]
fn an_error_about_a_reply_reaches_the_backend_in_its_own_terms() {
    in_both_families!(from_the_clients_side());
}

fn local<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.enter(UP, &udp("client:5000 > lb:80"));
    for (sentence, error, expected) in [
        (
            "the backend refuses",
            unreachable("local > client", udp("client:5000 > local:8080")),
            "lb > client unreachable (client:5000 > lb:80 udp)",
        ),
        (
            "the node cannot forward",
            too_big("node > client", udp("client:5000 > local:8080").payload(1400)),
            "node > client too big (client:5000 > lb:80 udp)",
        ),
        (
            "only 8 bytes are quoted",
            unreachable("local > client", udp("client:5000 > local:8080").payload(100)).quoting(A::HEADER + 8),
            "lb > client unreachable (client:5000 > lb:80 udp)",
        ),
        (
            "the quoted packet has options or extension headers",
            unreachable("local > client", udp("client:5000 > local:8080").options(2).extensions(&[60])),
            "lb > client unreachable (client:5000 > lb:80 udp)",
        ),
        (
            "the first fragment is quoted",
            unreachable("local > client", udp("client:5000 > local:8080").fragment(9, 0, true)),
            "lb > client unreachable (client:5000 > lb:80 udp first fragment)",
        ),
    ] {
        about::<A>(sentence);
        assert_eq!(node.leave(UP, &error), expected, "{sentence}");
    }
    let error = unreachable("client > lb", udp("lb:80 > client:5000"));
    assert_eq!(node.enter(UP, &error), "client > local unreachable (local:8080 > client:5000 udp)");
}

#[cfg_attr(test, test)]
fn errors_about_flows_that_keep_their_address_are_translated_where_the_client_is() {
    in_both_families!(local());
}

fn at_pod_devices<A: Ip>() {
    const PODS: On = On::PodDevice;
    for (sentence, port, begin, known, last) in [
        ("TCP", 80, syn as fn(String) -> Build, tcp as fn(String) -> Build, "tcp A"),
        ("UDP", 80, udp, udp, "udp"),
        ("SCTP", 8080, sctp, sctp, "sctp"),
    ] {
        about::<A>(sentence);
        let mut node = Setup::with("L").node::<A>();
        node.enter(PODS, &begin(format!("pod:4000 > vip:{port}")));
        let request = known("pod:4000 > local:8080".into()).payload(100);
        for (what, error, expected) in [
            ("unreachable", unreachable("local > pod", request.clone()), "vip > pod"),
            ("too big", too_big("bridge > pod", request.clone()), "bridge > pod"),
            ("expired", expired("bridge > pod", request.clone()), "bridge > pod"),
        ] {
            let expected = format!("{expected} {what} (pod:4000 > vip:{port} {last})");
            assert_eq!(node.leave(PODS, &error), expected, "{sentence}");
        }
        let reply = known(format!("vip:{port} > pod:4000"));
        let expected = format!("pod > local unreachable (local:8080 > pod:4000 {last})");
        assert_eq!(node.enter(PODS, &unreachable("pod > vip", reply)), expected, "{sentence}");
        assert_eq!(node.count(), (0, 1), "{sentence}: errors begin no flow and establish none");
    }
}

#[cfg_attr(test, test)]
fn errors_about_flows_of_pods_are_translated_at_the_devices_of_pods_whatever_the_protocol() {
    in_both_families!(at_pod_devices());
}

fn redirected<A: Ip>() {
    const DROPPED: &str = "drop: redirect_dropped";
    let (mut node, t, u) = masqueraded::<A>();
    let datagram = udp(format!("client:{u} > remote:8080"));
    for (sentence, packet, expected) in [
        ("a segment of a flow", tcp(format!("client:{t} > remote:8080")), DROPPED),
        ("a datagram of one", datagram.clone(), DROPPED),
        ("a datagram of one, with options or extension headers", datagram.options(2).extensions(&[60]), DROPPED),
        ("a reply, as it is forwarded", tcp(format!("remote:8080 > client:{t}")), DROPPED),
        ("a segment from another port", tcp("client:4001 > remote:8080"), "pass"),
        ("a segment of another client", tcp(format!("stranger:{t} > remote:8080")), "pass"),
        ("a reply to another client", tcp(format!("remote:8080 > stranger:{t}")), "pass"),
        ("a ping", ping("client > remote"), "pass"),
    ] {
        about::<A>(sentence);
        for link_address in [true, false] {
            let to = match sentence {
                "a segment of another client" => "stranger",
                _ if sentence.contains("reply") => "remote",
                _ => "client",
            };
            let redirect = redirect(format!("node > {to}"), packet.clone(), link_address);
            assert_eq!(node.leave(UP, &redirect), expected, "{sentence}, with a link-layer address: {link_address}");
            assert_eq!(node.enter(UP, &redirect), "pass", "{sentence}, from another node");
        }
    }
}

#[cfg_attr(test, test)]
fn redirects_about_packets_of_flows_do_not_leave_the_node() {
    in_both_families!(redirected());
}

fn not_ours<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.enter(UP, &udp("client:5000 > lb:80"));
    for (sentence, error) in [
        ("about a flow that we do not know", unreachable("router > lb", udp("lb:80 > client:5001"))),
        ("about another protocol", unreachable("router > lb", tcp("lb:80 > client:5000"))),
        ("about a later fragment", unreachable("router > lb", udp("lb:80 > client:5000").fragment(3, 8, false))),
        ("about an error", unreachable("router > lb", unreachable("lb > client", udp("client:5000 > lb:80")))),
        ("about the node's own traffic", unreachable("router > node", udp("node:5000 > web:53"))),
        ("about one of our ports that no flow has", unreachable("router > node", udp("node:61001 > web:53"))),
    ] {
        about::<A>(sentence);
        assert_eq!(node.enter(UP, &error), "pass", "{sentence}");
        assert_eq!(node.leave(UP, &error), "pass", "{sentence}, on the way out");
    }
    assert_eq!(node.count(), (0, 1), "no error begins a flow");
}

#[cfg_attr(test, test)]
fn errors_about_what_is_not_ours_pass() {
    in_both_families!(not_ours());
}

fn no_sign_of_life<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    let question = udp("client:5000 > lb:80");
    node.enter(UP, &question);
    node.pass(20);
    node.enter(UP, &unreachable("client > lb", udp("lb:80 > client:5000")));
    node.leave(UP, &unreachable("local > client", udp("client:5000 > local:8080")));
    node.choose_from(1, 0);
    node.pass(11);
    assert!(node.enter(UP, &question).ends_with("no_local_endpoints"), "it is 31 seconds old");
}

#[cfg_attr(test, test)]
fn an_error_is_no_sign_of_life() {
    in_both_families!(no_sign_of_life());
}
