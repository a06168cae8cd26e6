//! What is not translated: left alone, refused, dropped, answered.

use super::build::{Build, icmp, ping, raw, sctp, syn, tcp, udp};
use super::world::{On, Setup, TestNode};
use super::{Case, about, cases, family, in_both_families};
use crate::abi::{PacketSettings, Version, address};
use crate::addr::Addr;
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, FIN, RST, SYN};

pub(super) const CASES: &[Case] = cases![
    what_is_for_nobody_we_know_passes_untouched,
    packets_of_a_vlan_are_for_its_own_device_but_at_the_ports_of_bridges,
    traffic_in_the_clusters_own_range_is_refused_or_dropped,
    a_service_without_endpoints_is_refused_whatever_its_protocol_and_policies,
    who_finds_no_local_endpoint_is_dropped_silently,
    source_ranges_are_decided_for_every_client_of_a_load_balancer_address,
    tcp_in_mid_flow_without_a_flow_goes_to_the_stack,
    who_claims_an_impossible_source_is_dropped,
    loopback_on_the_wire_is_dropped_whoever_it_is_for,
    an_echo_to_a_service_is_answered_where_that_is_wanted_and_refused_elsewhere,
    neighbours_and_routers_are_never_answered,
    a_cluster_ip_that_the_node_owns_is_left_to_who_listens_there,
    sctp_is_translated_only_where_its_checksum_allows_it,
];

type Row = (&'static str, Build, &'static str);

fn hold<A: Ip>(setup: &Setup, on: On, cases: &[Row]) {
    for (sentence, packet, expected) in cases {
        about::<A>(sentence);
        let mut node = setup.node::<A>();
        assert_eq!(node.enter(on, packet), *expected, "{sentence}, {}", family::<A>());
        assert_eq!(node.count(), (0, 0), "{sentence}: no flow is made");
    }
}

#[cfg_attr(test, test)]
fn what_is_for_nobody_we_know_passes_untouched() {
    let cases = [
        ("an address that is no Service's", syn("client:4000 > web:80")),
        ("a pod, straight", syn("client:4000 > local:8080")),
        ("a pod, straight, UDP", udp("pod:4000 > remote:8080")),
        ("a port of the node that no Service has", syn("client:4000 > node:22")),
        ("a node port on an address that serves none", syn("client:4000 > second:30080")),
        ("a node port's number on a foreign address", syn("client:4000 > web:30080")),
        ("an undefined port of an external address", syn("client:4000 > external:81")),
        ("an undefined port of a load-balancer address", udp("client:4000 > lb:81")),
        ("the node itself, ICMP", ping("client > node")),
        ("somebody else, ICMP", ping("client > web")),
        ("an external address, ICMP", ping("client > external")),
        ("somebody else, an unknown protocol", raw("client > web", 47)),
        ("a multicast group", udp("router:5353 > multicast:5353")),
        ("everybody", udp("any:68 > broadcast:67")),
        ("somebody else, from loopback's neighbour", syn("stranger:1 > web:1")),
        ("a reply to one of our ports that no flow has", tcp("remote:8080 > node:61005")),
        ("a datagram to one of our ports that no flow has", udp("remote:8080 > node:61005")),
        ("a Service, in a VLAN that is another device's", syn("client:4000 > vip:80").of_vlan(7)),
    ];
    let cases = cases.map(|(sentence, packet)| (sentence, packet, "pass"));
    in_both_families!(hold(&Setup::default(), On::Uplink, &cases));
}

fn vlans<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    let (asked, answered) = ("client:4000 > lb:80", "local:8080 > client:4000");
    about::<A>("of a VLAN, at a port of a bridge");
    assert_eq!(node.enter(On::Port, &syn(asked).of_vlan(7)), "client:4000 > local:8080 tcp S");
    about::<A>("of a VLAN, elsewhere");
    assert_eq!(node.enter(On::Uplink, &tcp(asked).of_vlan(7)), "pass");
    let answer = tcp(answered).flags(SYN | ACK);
    assert_eq!(node.leave(On::Uplink, &answer.clone().of_vlan(7)), "pass");
    about::<A>("of a VLAN, out by a port of a bridge");
    assert_eq!(node.leave(On::Port, &answer.of_vlan(7)), "lb:80 > client:4000 tcp SA");
}

#[cfg_attr(test, test)]
fn packets_of_a_vlan_are_for_its_own_device_but_at_the_ports_of_bridges() {
    in_both_families!(vlans());
}

#[cfg_attr(test, test)]
fn traffic_in_the_clusters_own_range_is_refused_or_dropped() {
    let cases = [
        ("an undefined port of a ClusterIP", syn("pod:4000 > vip:81"), "undefined_port"),
        ("an undefined port of a ClusterIP, UDP", udp("client:4000 > other:80"), "undefined_port"),
        ("a ClusterIP, SCTP, an undefined port", sctp("client:4000 > vip:9999"), "undefined_port"),
    ];
    for (sentence, packet, reason) in cases {
        refused::<crate::packet::ip::V4>(sentence, &packet, reason);
        refused::<crate::packet::ip::V6>(sentence, &packet, reason);
    }
    let dropped = [
        ("an address without a Service", syn("pod:4000 > nobody:80"), "drop: unallocated_address"),
        ("an address without a Service, UDP", udp("client:4000 > nobody:80"), "drop: unallocated_address"),
        ("an address without a Service, ICMP", ping("client > nobody"), "drop: unallocated_address"),
        ("an address without a Service, GRE", raw("client > nobody", 47), "drop: unallocated_address"),
    ];
    in_both_families!(hold(&Setup::default(), On::Uplink, &dropped));
}

/// The answer quotes the packet, comes from whom it was sent to, and goes back to the sender.
fn refused<A: Ip>(sentence: &str, packet: &Build, reason: &str) {
    let mut node = Setup::default().node::<A>();
    assert_answered(sentence, &mut node, packet, reason);
}

fn assert_answered<A: Ip>(sentence: &str, node: &mut TestNode<A>, packet: &Build, reason: &str) {
    about::<A>(sentence);
    let sent = super::read::describe(&packet.bytes::<A>().0, packet.link_header);
    let mut words = sent.split(' ');
    let host = |end: Option<&str>| std::string::String::from(end.unwrap().split(':').next().unwrap());
    let (from, to) = (host(words.next()), host(words.nth(1)));
    // Of TCP the whole header is quoted. Nobody can sum up a quote that was cut.
    let expected = std::format!("answer: {to} > {from} port unreachable ({sent}), {reason}");
    assert_eq!(node.enter(On::Uplink, packet), expected, "{sentence}, {}", family::<A>());
    assert_eq!(node.count(), (0, 0), "{sentence}: no flow is made");
}

fn without_endpoints<A: Ip>() {
    for (sentence, packet) in [
        ("a ClusterIP, TCP", syn("pod:4000 > vip:80")),
        ("a ClusterIP, UDP", udp("pod:4000 > vip:80")),
        ("a ClusterIP, SCTP", sctp("pod:4000 > vip:80")),
        ("a node port", syn("client:4000 > node:30080")),
        ("a node port, UDP", udp("client:4000 > node:30080")),
        ("an external address", syn("client:4000 > external:80")),
        ("a load-balancer address", udp("client:4000 > lb:80")),
        ("a ClusterIP, behind IPv4 options", syn("pod:4000 > vip:80").options(3)),
        ("a ClusterIP, behind IPv6 extension headers", udp("pod:4000 > vip:80").extensions(&[0, 60])),
        ("a ClusterIP, on a device without link header", syn("pod:4000 > vip:80").without_link_header()),
        ("a ClusterIP, a padded frame", udp("pod:4000 > vip:80").payload(0).padded(18)),
        ("a ClusterIP, a datagram without checksum", udp("pod:4000 > vip:80").without_sum()),
    ] {
        for policies in [0, Version::EXTERNAL_LOCAL, Version::INTERNAL_LOCAL] {
            let mut node = Setup { policies, ..Setup::with("") }.node::<A>();
            if matches!(A::FAMILY, crate::addr::Family::V6) && sentence.contains("without checksum") {
                continue;
            }
            assert_answered(sentence, &mut node, &packet, "no_endpoints");
        }
    }
}

#[cfg_attr(test, test)]
fn a_service_without_endpoints_is_refused_whatever_its_protocol_and_policies() {
    in_both_families!(without_endpoints());
}

#[cfg_attr(test, test)]
fn who_finds_no_local_endpoint_is_dropped_silently() {
    let external = Setup { policies: Version::HAS_ANY | Version::EXTERNAL_LOCAL, ..Setup::with("R") };
    let cases = [
        ("a node port, eTP Local, from outside", syn("client:4000 > node:30080"), "drop: no_local_endpoints"),
        ("a load-balancer address, eTP Local", udp("client:4000 > lb:80"), "drop: no_local_endpoints"),
        ("an external address, eTP Local", syn("client:4000 > external:80"), "drop: no_local_endpoints"),
    ];
    in_both_families!(hold(&external, On::Uplink, &cases));
    let internal = Setup { policies: Version::HAS_ANY | Version::INTERNAL_LOCAL, ..Setup::with("R") };
    let cases = [
        ("a ClusterIP, iTP Local, from a pod", syn("pod:4000 > vip:80"), "drop: no_local_endpoints"),
        ("a ClusterIP, iTP Local, from outside", udp("client:4000 > vip:80"), "drop: no_local_endpoints"),
    ];
    in_both_families!(hold(&internal, On::Uplink, &cases));
}

fn source_ranges<A: Ip>() {
    let allowed = "allowed";
    for (sentence, packet, backends, expected) in [
        ("a client in range", syn("client:4000 > lb:80"), "L", allowed),
        ("a client out of range", syn("stranger:4000 > lb:80"), "L", "drop: source_not_allowed"),
        ("a pod out of range", udp("pod:4000 > lb:80"), "L", "drop: source_not_allowed"),
        ("out of range, another external address", udp("stranger:4000 > external:80"), "L", allowed),
        ("out of range, a node port", syn("stranger:4000 > node:30080"), "L", allowed),
        ("out of range, the ClusterIP", syn("stranger:4000 > vip:80"), "L", allowed),
        ("out of range, nobody serves", syn("stranger:4000 > lb:80"), "", "drop: source_not_allowed"),
    ] {
        about::<A>(sentence);
        let flags = if backends.is_empty() { 0 } else { Version::HAS_ANY };
        let policies = flags | Version::SOURCE_RANGES | Version::SOURCE_NODE_ALLOWED;
        let mut node = Setup { policies, ..Setup::with(backends) }.node::<A>();
        for service in 0..3 {
            node.tables.allowed.push((service, super::names::addr("client", A::FAMILY)));
        }
        let found = node.enter(On::Uplink, &packet);
        let found = if found.contains(" > local:8080 ") { allowed } else { &found };
        assert_eq!(found, expected, "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn source_ranges_are_decided_for_every_client_of_a_load_balancer_address() {
    in_both_families!(source_ranges());
}

#[cfg_attr(test, test)]
fn tcp_in_mid_flow_without_a_flow_goes_to_the_stack() {
    let cases = [
        ("an acknowledgement", tcp("client:4000 > lb:80"), "pass: tcp_without_flow"),
        ("a FIN", tcp("client:4000 > vip:80").flags(FIN | ACK), "pass: tcp_without_flow"),
        ("a reset", tcp("client:4000 > node:30080").flags(RST), "pass: tcp_without_flow"),
        ("an answer to a SYN", tcp("client:4000 > external:80").flags(SYN | ACK), "pass: tcp_without_flow"),
        ("a SYN that is a FIN too", tcp("client:4000 > external:80").flags(SYN | FIN), "pass: tcp_without_flow"),
        ("no flags at all", tcp("client:4000 > lb:80").flags(0), "pass: tcp_without_flow"),
        ("an acknowledgement to nobody's port", tcp("client:4000 > node:22"), "pass"),
        ("an acknowledgement to an undefined port", tcp("client:4000 > vip:81"), "pass"),
    ];
    in_both_families!(hold(&Setup::default(), On::Uplink, &cases));
}

#[cfg_attr(test, test)]
fn who_claims_an_impossible_source_is_dropped() {
    let cases = [
        ("the node itself", syn("node:4000 > vip:80"), "drop: spoofed_source"),
        ("another address of the node", udp("second:4000 > lb:80"), "drop: spoofed_source"),
        ("the node, to its own node port", syn("node:4000 > node:30080"), "drop: spoofed_source"),
        ("a ClusterIP", syn("other:4000 > vip:80"), "drop: spoofed_source"),
        ("an unallocated ClusterIP", udp("nobody:4000 > vip:80"), "drop: spoofed_source"),
        ("an external address", syn("external:4000 > lb:80"), "drop: spoofed_source"),
        ("a load-balancer address", syn("lb:4000 > node:30080"), "drop: spoofed_source"),
        ("the very frontend (LAND)", syn("lb:80 > lb:80"), "drop: spoofed_source"),
        ("nobody", udp("any:4000 > vip:80"), "drop: spoofed_source"),
        ("a multicast group", udp("multicast:4000 > vip:80"), "drop: spoofed_source"),
        ("everybody", udp("broadcast:4000 > vip:80"), "drop: spoofed_source"),
        ("a multicast group, to a refused port", udp("multicast:4000 > vip:81"), "drop: spoofed_source"),
        ("the node, pinging a ClusterIP", ping("node > vip"), "drop: spoofed_source"),
    ];
    in_both_families!(hold(&Setup::default(), On::Uplink, &cases));
}

#[cfg_attr(test, test)]
fn loopback_on_the_wire_is_dropped_whoever_it_is_for() {
    let cases = [
        ("to loopback", syn("client:4000 > loopback:80"), "drop: loopback_on_wire"),
        ("to loopback's node port", syn("pod:4000 > loopback:30080"), "drop: loopback_on_wire"),
        ("to loopback, ICMP", ping("client > loopback"), "drop: loopback_on_wire"),
        ("from loopback to a Service", syn("loopback:4000 > vip:80"), "drop: loopback_on_wire"),
        ("from loopback to the node", udp("loopback:4000 > node:53"), "drop: loopback_on_wire"),
    ];
    in_both_families!(hold(&Setup::default(), On::PodDevice, &cases));
}

#[cfg_attr(test, test)]
fn an_echo_to_a_service_is_answered_where_that_is_wanted_and_refused_elsewhere() {
    let refused = [
        (
            "a ClusterIP",
            ping("client > vip"),
            "answer: vip > client port unreachable (client > vip echo request), undefined_port",
        ),
        (
            "a ClusterIP, GRE",
            raw("client > vip", 47),
            "answer: vip > client port unreachable (client > vip protocol 47), undefined_port",
        ),
    ];
    in_both_families!(hold(&Setup::default(), On::Uplink, &refused));
    let answering = Setup { settings: PacketSettings::ANSWER_ECHO, ..Setup::default() };
    let answered = [
        ("a ClusterIP", ping("client > vip"), "answer: vip > client echo reply, echo_answered"),
        ("an external address", ping("pod > external"), "answer: external > pod echo reply, echo_answered"),
        (
            "a load-balancer address, much data",
            ping("pod > lb").payload(1000),
            "answer: lb > pod echo reply, echo_answered",
        ),
        ("the node", ping("client > node"), "pass"),
        ("an address without a Service", ping("client > nobody"), "drop: unallocated_address"),
        (
            "a ClusterIP, without link header",
            ping("client > vip").without_link_header(),
            "answer: vip > client echo reply, echo_answered",
        ),
        (
            "an echo reply to a ClusterIP",
            icmp("client > vip", [0, 129]),
            "answer: vip > client port unreachable (client > vip echo reply), undefined_port",
        ),
    ];
    in_both_families!(hold(&answering, On::Uplink, &answered));
}

#[cfg_attr(test, test)]
fn neighbours_and_routers_are_never_answered() {
    let cases = [
        ("a redirect, a neighbour solicitation", icmp("router > vip", [5, 135]), "pass"),
        ("router discovery", icmp("router > vip", [9, 134]), "pass"),
        ("an error about nothing we know", icmp("router > vip", [10, 127]), "pass"),
    ];
    in_both_families!(hold(&Setup::default(), On::Uplink, &cases));
}

fn own_cluster_ip<A: Ip>() {
    let mut node = Setup::default().node::<A>();
    let own: Addr = super::names::addr("other", A::FAMILY);
    node.tables.know(own, address::CLUSTER_IP | address::OWN);
    for (sentence, packet) in [
        ("an undefined port", udp("pod:4000 > other:53")),
        ("an echo", ping("pod > other")),
        ("a fragment without a first one", udp("pod:4000 > other:53").fragment(7, 8, false)),
    ] {
        about::<A>(sentence);
        assert_eq!(node.enter(On::PodDevice, &packet), "pass", "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_cluster_ip_that_the_node_owns_is_left_to_who_listens_there() {
    in_both_families!(own_cluster_ip());
}

fn same_port<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    assert_eq!(node.enter(On::PodDevice, &sctp("pod:4000 > vip:8080")), "pod:4000 > local:8080 sctp");
    assert_eq!(node.leave(On::PodDevice, &sctp("local:8080 > pod:4000")), "vip:8080 > pod:4000 sctp");
}

#[cfg_attr(test, test)]
fn sctp_is_translated_only_where_its_checksum_allows_it() {
    let cases = [
        ("to another port", sctp("pod:4000 > vip:80"), "drop: sctp_port"),
        ("through this node's address", sctp("client:4000 > vip:8080"), "drop: sctp_port"),
    ];
    in_both_families!(hold(&Setup::with("R"), On::Uplink, &cases));
    in_both_families!(same_port());
}
