//! Flows that go past the stack: sent on where they come in, in both directions, or in none.

use std::format;

use super::build::{syn, tcp, udp, unreachable};
use super::world::{On, Setup, TestNode};
use super::{Case, about, cases, family, in_both_families, source_port};
use crate::abi::PacketSettings;
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, SYN};

pub(super) const CASES: &[Case] = cases![
    a_flow_to_a_local_backend_is_sent_on_both_ways,
    a_flow_to_elsewhere_is_sent_on_both_ways,
    fragments_of_a_reply_are_sent_on_behind_the_first_one,
    flows_that_rules_or_ways_may_concern_go_through_the_stack,
    errors_about_a_flow_go_its_way,
    what_is_of_no_flow_goes_through_the_stack,
    who_shares_a_bit_with_an_address_of_a_service_is_treated_as_others_are,
    flows_go_through_the_stack_again_both_ways_once_that_is_not_asked_for_any_more,
];

const UP: On = On::Uplink;

fn node<A: Ip>(backends: &'static str) -> TestNode<A> {
    Setup { settings: PacketSettings::FAST_PATH, ..Setup::with(backends) }.node()
}

fn local<A: Ip>() {
    let mut node = node::<A>("L");
    assert_eq!(node.enter(UP, &syn("client:4000 > lb:80")), "forward: client:4000 > local:8080 tcp S");
    let answer = tcp("local:8080 > client:4000").flags(SYN | ACK);
    assert_eq!(node.enter(On::PodDevice, &answer), "forward: local:8080 > client:4000 tcp SA");
    assert_eq!(node.leave(UP, &answer), "lb:80 > client:4000 tcp SA");
    assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "forward: client:4000 > local:8080 tcp A");
    assert_eq!(node.count(), (1, 0), "established, {}", family::<A>());
}

#[cfg_attr(test, test)]
fn a_flow_to_a_local_backend_is_sent_on_both_ways() {
    in_both_families!(local());
}

fn elsewhere<A: Ip>() {
    let mut node = node::<A>("R");
    let inside = node.enter(UP, &udp("client:4000 > lb:80"));
    let port = source_port(&inside);
    assert_eq!(inside, format!("forward: client:{port} > remote:8080 udp"));
    let sent = node.leave(UP, &udp(format!("client:{port} > remote:8080")));
    assert_eq!(sent, format!("node:{port} > remote:8080 udp"));
    let back = node.enter(UP, &udp(format!("remote:8080 > node:{port}")));
    assert_eq!(back, format!("forward: remote:8080 > client:{port} udp"));
    let received = node.leave(UP, &udp(format!("remote:8080 > client:{port}")));
    assert_eq!(received, "lb:80 > client:4000 udp", "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn a_flow_to_elsewhere_is_sent_on_both_ways() {
    in_both_families!(elsewhere());
}

fn fragments<A: Ip>() {
    let mut node = node::<A>("L");
    node.enter(UP, &udp("client:4000 > lb:80"));
    let part = |first| udp("local:8080 > client:4000").payload(24).fragment(7, if first { 0 } else { 32 }, first);
    for first in [true, false] {
        assert_eq!(node.enter(On::PodDevice, &part(first)).split(": ").next(), Some("forward"), "{first}");
        assert_eq!(node.leave(UP, &part(first)).split([':', ' ']).next(), Some("lb"), "{first}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn fragments_of_a_reply_are_sent_on_behind_the_first_one() {
    in_both_families!(fragments());
}

fn through<A: Ip>() {
    about::<A>("from a device without link headers");
    let bare = syn("client:4000 > lb:80").without_link_header();
    assert_eq!(node::<A>("L").enter(UP, &bare), "client:4000 > local:8080 tcp S");
    about::<A>("a pod, to who may be no pod");
    let mut stranger = node::<A>("R");
    stranger.settings.pods = Default::default();
    assert_eq!(stranger.enter(On::PodDevice, &syn("pod:4000 > vip:80")).split(':').next(), Some("pod"));
    about::<A>("where it is not asked for");
    let mut off = Setup::with("L").node::<A>();
    assert_eq!(off.enter(UP, &syn("client:4000 > lb:80")), "client:4000 > local:8080 tcp S");
    let answer = tcp("local:8080 > client:4000").flags(SYN | ACK);
    assert_eq!(off.enter(On::PodDevice, &answer), "pass", "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn flows_that_rules_or_ways_may_concern_go_through_the_stack() {
    in_both_families!(through());
}

fn errors<A: Ip>() {
    let mut node = node::<A>("L");
    node.enter(UP, &udp("client:4000 > lb:80"));
    about::<A>("about a reply");
    let error = unreachable("router > lb", udp("lb:80 > client:4000"));
    assert_eq!(node.enter(UP, &error), "forward: router > local unreachable (local:8080 > client:4000 udp)");
    about::<A>("about a request");
    let error = unreachable("local > client", udp("client:4000 > local:8080"));
    let sent = "local > client unreachable (client:4000 > local:8080 udp)";
    assert_eq!(node.enter(On::PodDevice, &error), format!("forward: {sent}"));
    assert_eq!(node.leave(UP, &error), "lb > client unreachable (client:4000 > lb:80 udp)");
    about::<A>("to somebody else");
    let error = unreachable("router > second", udp("lb:80 > client:4000"));
    assert_eq!(node.enter(UP, &error), "router > second unreachable (local:8080 > client:4000 udp)");
    about::<A>("about one to elsewhere");
    let mut node = self::node::<A>("R");
    let port = source_port(&node.enter(UP, &udp("client:4000 > lb:80")));
    node.leave(UP, &udp(format!("client:{port} > remote:8080")));
    let error = unreachable("remote > node", udp(format!("node:{port} > remote:8080")));
    let sent = format!("forward: remote > client unreachable (client:{port} > remote:8080 udp)");
    assert_eq!(node.enter(UP, &error), sent, "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn errors_about_a_flow_go_its_way() {
    in_both_families!(errors());
}

fn others<A: Ip>() {
    let mut node = node::<A>("L");
    node.enter(UP, &udp("client:4000 > lb:80"));
    about::<A>("another pod to the client");
    assert_eq!(node.enter(On::PodDevice, &udp("pod:8080 > client:4000")), "pass");
    about::<A>("of another connection with the client's port");
    node.enter(UP, &syn("client:4000 > lb:80"));
    assert_eq!(node.enter(On::PodDevice, &tcp("local:8080 > client:4000")), "pass");
}

#[cfg_attr(test, test)]
fn what_is_of_no_flow_goes_through_the_stack() {
    in_both_families!(others());
}

fn asked_no_more<A: Ip>() {
    let mut node = node::<A>("L");
    let (question, answer) = (udp("client:4000 > lb:80"), udp("local:8080 > client:4000"));
    assert_eq!(node.enter(UP, &question), "forward: client:4000 > local:8080 udp");
    node.settings.flags = 0;
    assert_eq!(node.enter(UP, &question), "client:4000 > local:8080 udp");
    assert_eq!(node.enter(On::PodDevice, &answer), "pass");
    assert_eq!(node.leave(UP, &answer), "lb:80 > client:4000 udp", "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn flows_go_through_the_stack_again_both_ways_once_that_is_not_asked_for_any_more() {
    in_both_families!(asked_no_more());
}

fn shared_bit<A: Ip>() {
    let mut node = node::<A>("L");
    // Whatever the address, it may be in the tables.
    node.tables.absent.clear();
    assert_eq!(node.enter(UP, &tcp("client:4000 > web:80")), "pass");
    assert_eq!(node.enter(UP, &udp("client:4000 > web:80").payload(24).fragment(7, 32, false)), "pass");
    assert_eq!(node.enter(UP, &syn("client:4000 > lb:80")), "forward: client:4000 > local:8080 tcp S");
    let answer = tcp("local:8080 > client:4000").flags(SYN | ACK);
    assert_eq!(node.enter(On::PodDevice, &answer), "forward: local:8080 > client:4000 tcp SA");
    assert_eq!(node.leave(UP, &answer), "lb:80 > client:4000 tcp SA", "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn who_shares_a_bit_with_an_address_of_a_service_is_treated_as_others_are() {
    in_both_families!(shared_bit());
}
