//! Fragments do as the first one of their datagram did.

use std::format;
use std::string::String;

use super::build::{Build, udp};
use super::world::{On, Setup};
use super::{Case, about, cases, family, in_both_families};
use crate::packet::ip::Ip;

pub(super) const CASES: &[Case] = cases![
    fragments_follow_their_first_one_through_all_four_points,
    a_fragment_ahead_of_its_first_one_is_dropped_where_it_is_for_a_service,
    a_fragment_follows_nobody_elses_first_one,
    a_refused_first_fragment_is_followed_by_nobody,
    an_extension_header_behind_the_fragment_header_is_no_hindrance,
];

const UP: On = On::Uplink;

/// The first 8 bytes behind the UDP header, and the rest.
fn first(route: &str, id: u32) -> Build {
    udp(route).payload(8).fragment(id, 0, true)
}

fn later(route: &str, id: u32) -> Build {
    udp(route).payload(100).fragment(id, 16, false)
}

fn follow<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let inside = node.enter(UP, &first("client:4000 > lb:80", 7));
    let port: String = inside.split([':', ' ']).nth(1).unwrap().into();
    assert_eq!(inside, format!("client:{port} > remote:8080 udp first fragment"));
    for _ in 0..2 {
        assert_eq!(node.enter(UP, &later("client > lb", 7)), "client > remote fragment at 16");
    }
    // On the way out they are another hook's fragments, under other addresses.
    let inside = format!("client:{port} > remote:8080");
    assert_eq!(node.leave(UP, &first(&inside, 7)), format!("node:{port} > remote:8080 udp first fragment"));
    assert_eq!(node.leave(UP, &later("client > remote", 7)), "node > remote fragment at 16");
    // And back.
    let sent = format!("remote:8080 > node:{port}");
    assert_eq!(node.enter(UP, &first(&sent, 8)), format!("remote:8080 > client:{port} udp first fragment"));
    assert_eq!(node.enter(UP, &later("remote > node", 8)), "remote > client fragment at 16");
    let back = format!("remote:8080 > client:{port}");
    assert_eq!(node.leave(UP, &first(&back, 8)), "lb:80 > client:4000 udp first fragment");
    assert_eq!(node.leave(UP, &later("remote > client", 8)), "lb > client fragment at 16");
}

#[cfg_attr(test, test)]
fn fragments_follow_their_first_one_through_all_four_points() {
    in_both_families!(follow());
}

fn ahead<A: Ip>() {
    for (sentence, route, expected) in [
        ("of a ClusterIP", "client > vip", "drop: fragment_before_first"),
        ("of an external address", "client > external", "drop: fragment_before_first"),
        ("of a load-balancer address", "client > lb", "drop: fragment_before_first"),
        ("of the Services' range", "client > nobody", "drop: fragment_before_first"),
        ("of the node, which may have asked for it itself", "client > node", "pass"),
        ("of somebody else", "client > web", "pass"),
    ] {
        about::<A>(sentence);
        let mut node = Setup::with("L").node::<A>();
        assert_eq!(node.enter(UP, &later(route, 7)), expected, "a fragment {sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_fragment_ahead_of_its_first_one_is_dropped_where_it_is_for_a_service() {
    in_both_families!(ahead());
}

fn strangers<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.enter(UP, &first("client:4000 > lb:80", 7));
    for (sentence, packet) in [
        ("another datagram's", later("client > lb", 8)),
        ("another client's", later("stranger > lb", 7)),
        ("another frontend's", later("client > vip", 7)),
    ] {
        about::<A>(sentence);
        assert_eq!(node.enter(UP, &packet), "drop: fragment_before_first", "{sentence}");
    }
    node.pass(30);
    assert_eq!(node.enter(UP, &later("client > lb", 7)), "client > local fragment at 16", "in time");
    node.pass(1);
    assert_eq!(node.enter(UP, &later("client > lb", 7)), "drop: fragment_before_first", "too late");
}

#[cfg_attr(test, test)]
fn a_fragment_follows_nobody_elses_first_one() {
    in_both_families!(strangers());
}

fn unrecorded<A: Ip>() {
    let mut node = Setup { policies: 0, ..Setup::with("") }.node::<A>();
    let refused = node.enter(UP, &first("client:4000 > vip:80", 7));
    assert!(refused.starts_with("answer: vip > client port unreachable"), "{refused}");
    assert_eq!(node.enter(UP, &later("client > vip", 7)), "drop: fragment_before_first");
    node.enter(UP, &first("client:4000 > web:80", 7));
    node.leave(UP, &first("web:80 > client:4000", 7));
    assert!(node.fragments.is_empty(), "only what is translated is remembered");
}

#[cfg_attr(test, test)]
fn a_refused_first_fragment_is_followed_by_nobody() {
    in_both_families!(unrecorded());
}

#[cfg_attr(test, test)]
fn an_extension_header_behind_the_fragment_header_is_no_hindrance() {
    let mut node = Setup::with("L").node::<crate::packet::ip::V6>();
    let first = first("client:4000 > lb:80", 7).extensions(&[0, 60]);
    assert_eq!(node.enter(UP, &first), "client:4000 > local:8080 udp first fragment");
    let later = later("client > lb", 7).extensions(&[0, 60]);
    assert_eq!(node.enter(UP, &later), "client > local fragment at 16");
}
