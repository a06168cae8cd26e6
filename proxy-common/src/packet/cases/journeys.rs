//! There and back through all four points: which backends a client reaches, whose address they see, and that every answer
//! comes from what was dialled (specification B5, with the declared difference that a local backend sees its client).

use std::collections::BTreeSet;
use std::format;
use std::string::{String, ToString as _};
use std::vec::Vec;

use super::build::{Build, syn, tcp, udp};
use super::world::{On, Setup, TestNode};
use super::{Case, about, cases, family, in_both_families};
use crate::abi::{PacketSettings, Version};
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, SYN};

pub(super) const CASES: &[Case] = cases![
    every_row_of_the_truth_table_holds_for_tcp_in_all_four_variants,
    every_row_of_the_truth_table_holds_for_udp_in_all_four_variants,
    a_detector_may_go_by_device_instead_of_address,
    a_pod_that_reaches_itself_through_a_service_sees_the_node,
    a_backend_on_the_nodes_own_network_is_served_like_any_other,
    a_backend_on_the_clients_own_bridge_answers_as_the_service,
];

/// The protocol of a journey: its packets in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speak {
    Tcp,
    Udp,
}

impl Speak {
    fn request(self, route: &str) -> Build {
        match self {
            Self::Tcp => syn(route),
            Self::Udp => udp(route),
        }
    }

    fn reply(self, route: &str) -> Build {
        match self {
            Self::Tcp => tcp(route).flags(SYN | ACK),
            Self::Udp => udp(route),
        }
    }
}

/// "a:1 > b:2 tcp S" -> ("a:1", "b:2").
fn ends(sentence: &str) -> (&str, &str) {
    let mut words = sentence.split(' ');
    (words.next().unwrap(), words.nth(1).unwrap_or_else(|| panic!("no packet came out: {sentence}")))
}

fn reversed(sentence: &str) -> String {
    let (from, to) = ends(sentence);
    format!("{to} > {from}")
}

fn straight(sentence: &str) -> String {
    let (from, to) = ends(sentence);
    format!("{from} > {to}")
}

/// One journey; the backend's letter, with a star where it saw the node's address.
fn travel<A: Ip>(node: &mut TestNode<A>, on: On, speak: Speak, client: &str, frontend: &str) -> String {
    let inside = node.enter(on, &speak.request(&format!("{client} > {frontend}")));
    let (source, backend) = ends(&inside);
    assert_eq!(source.split(':').next(), client.split(':').next(), "the stack sees the client: {inside}");
    let (letter, far) = if backend.starts_with("local") { ('L', On::PodDevice) } else { ('R', On::Uplink) };

    let sent = node.leave(far, &speak.request(&straight(&inside)));
    let masqueraded = sent != "pass";
    let sent = if masqueraded { sent } else { inside.clone() };
    let seen = ends(&sent).0.split(':').next().unwrap();
    let own = if far == On::Uplink { "node" } else { "bridge" };
    assert_eq!(seen == own, masqueraded, "{sent}");

    let entered = node.enter(far, &speak.reply(&reversed(&sent)));
    let expected = reversed(&inside);
    if masqueraded {
        assert_eq!(straight(&entered), expected, "what the stack sees of both directions is one connection");
    } else {
        assert_eq!(entered, "pass");
    }
    let received = node.leave(on, &speak.reply(&expected));
    assert_eq!(straight(&received), format!("{frontend} > {client}"), "the answer comes from what was dialled");
    if masqueraded { format!("{letter}*") } else { letter.to_string() }
}

/// Everybody that 8 clients at `from` reach.
fn reached<A: Ip>(setup: &Setup, on: On, speak: Speak, from: &str, frontend: &str) -> String {
    let mut node = setup.node::<A>();
    let letters: BTreeSet<_> =
        (0..8).map(|i| travel(&mut node, on, speak, &format!("{from}:{}", 4000 + i), frontend)).collect();
    letters.into_iter().collect::<Vec<_>>().join(" ")
}

const CLUSTER_IP: &[&str] = &["vip:80"];
const EXTERNAL: &[&str] = &["node:30080", "external:80", "lb:80"];
const DEFAULT: u32 = Version::HAS_ANY;
const INTERNAL_LOCAL: u32 = Version::HAS_ANY | Version::INTERNAL_LOCAL;
const EXTERNAL_LOCAL: u32 = Version::HAS_ANY | Version::EXTERNAL_LOCAL;

/// Detector, no detector, masqueradeAll, masqueradeAll without detector.
const VARIANTS: [(&str, bool, u32); 4] = [
    ("with a detector", true, 0),
    ("without a detector", false, 0),
    ("with a detector and masqueradeAll", true, PacketSettings::MASQUERADE_ALL),
    ("without a detector, with masqueradeAll", false, PacketSettings::MASQUERADE_ALL),
];

type Row = (&'static str, &'static str, &'static [&'static str], u32, [&'static str; 4]);

/// A star: the backend sees the node. The node itself as client is no row: its packets never come in by a device (`own`).
#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("a pod dials a ClusterIP", "pod", CLUSTER_IP, DEFAULT, ["L R", "L R", "L* R*", "L* R*"]),
    ("a pod dials a ClusterIP, eTP Local", "pod", CLUSTER_IP, EXTERNAL_LOCAL, ["L R", "L R", "L* R*", "L* R*"]),
    ("a pod dials a ClusterIP, iTP Local", "pod", CLUSTER_IP, INTERNAL_LOCAL, ["L", "L", "L*", "L*"]),
    ("a pod dials an external address", "pod", EXTERNAL, DEFAULT, ["L R*"; 4]),
    ("a pod dials an external address, eTP Local", "pod", EXTERNAL, EXTERNAL_LOCAL, ["L R", "L", "L R", "L"]),
    ("a pod dials an external address, iTP Local", "pod", EXTERNAL, INTERNAL_LOCAL, ["L R*"; 4]),
    ("a pod of another node dials an external address", "farpod", EXTERNAL, DEFAULT, ["L R*"; 4]),
    ("a pod of another node dials an external address, eTP Local", "farpod", EXTERNAL, EXTERNAL_LOCAL,
        ["L R", "L", "L R", "L"]),
    ("a pod of another node dials a ClusterIP", "farpod", CLUSTER_IP, DEFAULT, ["L R", "L R", "L* R*", "L* R*"]),
    ("outside dials a ClusterIP", "client", CLUSTER_IP, DEFAULT, ["L R*", "L R", "L* R*", "L* R*"]),
    ("outside dials a ClusterIP, eTP Local", "client", CLUSTER_IP, EXTERNAL_LOCAL, ["L R*", "L R", "L* R*", "L* R*"]),
    ("outside dials a ClusterIP, iTP Local", "client", CLUSTER_IP, INTERNAL_LOCAL, ["L", "L", "L*", "L*"]),
    ("outside dials an external address", "client", EXTERNAL, DEFAULT, ["L R*"; 4]),
    ("outside dials an external address, eTP Local", "client", EXTERNAL, EXTERNAL_LOCAL, ["L"; 4]),
    ("outside dials an external address, iTP Local", "client", EXTERNAL, INTERNAL_LOCAL, ["L R*"; 4]),
];

fn rows_hold<A: Ip>(speak: Speak) {
    for (sentence, from, frontends, policies, expected) in ROWS {
        for ((variant, detector, settings), expected) in VARIANTS.into_iter().zip(expected) {
            for frontend in *frontends {
                about::<A>(&format!("{sentence} ({frontend}), {variant}"));
                let setup = Setup { policies: *policies, detector, settings, ..Setup::default() };
                let on = if *from == "pod" { On::PodDevice } else { On::Uplink };
                let found = reached::<A>(&setup, on, speak, from, frontend);
                assert_eq!(found, *expected, "{sentence} ({frontend}), {variant}, {speak:?}, {}", family::<A>());
            }
        }
    }
}

#[cfg_attr(test, test)]
fn every_row_of_the_truth_table_holds_for_tcp_in_all_four_variants() {
    in_both_families!(rows_hold(Speak::Tcp));
}

#[cfg_attr(test, test)]
fn every_row_of_the_truth_table_holds_for_udp_in_all_four_variants() {
    in_both_families!(rows_hold(Speak::Udp));
}

fn by_device<A: Ip>() {
    for (sentence, on, from, expected) in [
        ("who enters by a pod's device is a pod", On::PodDevice, "client", "L R"),
        ("who enters elsewhere is none, whatever its address", On::Uplink, "pod", "L"),
    ] {
        about::<A>(sentence);
        let flags = PacketSettings::PODS_BY_DEVICE;
        let setup = Setup { policies: EXTERNAL_LOCAL, settings: flags, ..Setup::default() };
        assert_eq!(reached::<A>(&setup, on, Speak::Tcp, from, "lb:80"), expected, "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_detector_may_go_by_device_instead_of_address() {
    in_both_families!(by_device());
}

fn hairpin<A: Ip>() {
    for (sentence, frontend, policies) in [
        ("through a ClusterIP", "vip:80", DEFAULT),
        ("through a ClusterIP, iTP Local", "vip:80", INTERNAL_LOCAL),
        ("through a node port", "node:30080", DEFAULT),
        ("through a load-balancer address, eTP Local", "lb:80", EXTERNAL_LOCAL),
    ] {
        about::<A>(sentence);
        let mut node = Setup { policies, ..Setup::with("P") }.node::<A>();
        let inside = node.enter(On::PodDevice, &syn(format!("pod:4000 > {frontend}")));
        let (source, backend) = ends(&inside);
        assert_eq!((source.split(':').next(), backend), (Some("pod"), "pod:8080"), "{sentence}");
        let sent = node.leave(On::PodDevice, &syn(straight(&inside)));
        assert!(sent.starts_with("bridge:61"), "{sentence}: the pod must not see itself: {sent}");
        let back = node.enter(On::PodDevice, &tcp(reversed(&sent)).flags(SYN | ACK));
        let received = node.leave(On::PodDevice, &tcp(straight(&back)).flags(SYN | ACK));
        assert_eq!(received, format!("{frontend} > pod:4000 tcp SA"), "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_pod_that_reaches_itself_through_a_service_sees_the_node() {
    in_both_families!(hairpin());
}

fn host_network<A: Ip>() {
    let mut node = Setup::with("N").node::<A>();
    assert_eq!(node.enter(On::Uplink, &syn("client:4000 > lb:80")), "client:4000 > node:8080 tcp S");
    let answer = tcp("node:8080 > client:4000").flags(SYN | ACK);
    assert_eq!(node.leave(On::Uplink, &answer), "lb:80 > client:4000 tcp SA");
}

#[cfg_attr(test, test)]
fn a_backend_on_the_nodes_own_network_is_served_like_any_other() {
    in_both_families!(host_network());
}

fn one_bridge<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    assert_eq!(node.enter(On::PodDevice, &syn("pod:4000 > vip:80")), "pod:4000 > local:8080 tcp S");
    assert_eq!(node.leave(On::PodDevice, &syn("pod:4000 > local:8080")), "pass");
    // The answer takes the short way over the bridge; it still leaves by the client's own port of it.
    let answer = tcp("local:8080 > pod:4000").flags(SYN | ACK);
    assert_eq!(node.enter(On::PodDevice, &answer), "pass");
    assert_eq!(node.leave(On::PodDevice, &answer), "vip:80 > pod:4000 tcp SA");
}

#[cfg_attr(test, test)]
fn a_backend_on_the_clients_own_bridge_answers_as_the_service() {
    in_both_families!(one_bridge());
}
