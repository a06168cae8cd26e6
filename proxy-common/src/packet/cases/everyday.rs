//! What most packets are: those of a connection from its first one on, and those of somebody else.

use super::build::{syn, tcp};
use super::world::{On, Setup};
use super::{Case, about, cases, in_both_families};
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, SYN};

pub(super) const CASES: &[Case] = cases![
    packets_of_a_connection_and_of_nobody_are_told_apart,
    packets_of_a_connection_to_elsewhere_pass_four_points,
];

fn everyday<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    about::<A>("a new flow");
    assert_eq!(node.enter(On::Uplink, &syn("client:8192 > lb:80")), "client:8192 > local:8080 tcp S");
    about::<A>("an answer");
    let answer = tcp("local:8080 > client:8192");
    assert_eq!(node.leave(On::Uplink, &answer.clone().flags(SYN | ACK)), "lb:80 > client:8192 tcp SA");
    about::<A>("a handshake");
    let request = tcp("client:8192 > lb:80");
    assert_eq!(node.enter(On::Uplink, &request), "client:8192 > local:8080 tcp A");
    about::<A>("a reply");
    assert_eq!(node.leave(On::Uplink, &answer), "lb:80 > client:8192 tcp A");
    about::<A>("nobody's");
    assert_eq!(node.enter(On::Uplink, &tcp("client:8192 > web:80")), "pass");
    about::<A>("nobody's answer");
    assert_eq!(node.leave(On::Uplink, &tcp("web:80 > client:8192")), "pass");
    about::<A>("a request");
    assert_eq!(node.enter(On::Uplink, &request), "client:8192 > local:8080 tcp A");
}

#[cfg_attr(test, test)]
fn packets_of_a_connection_and_of_nobody_are_told_apart() {
    in_both_families!(everyday());
}

fn elsewhere<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let (asked, reply) = (tcp("client:61007 > remote:8080"), tcp("remote:8080 > node:61007"));
    about::<A>("a new flow to elsewhere");
    assert_eq!(node.enter(On::Uplink, &syn("client:61007 > lb:80")), "client:61007 > remote:8080 tcp S");
    about::<A>("its request leaves");
    assert_eq!(node.leave(On::Uplink, &asked.clone().flags(SYN)), "node:61007 > remote:8080 tcp S");
    about::<A>("its answer enters");
    let answer = reply.clone().flags(SYN | ACK);
    assert_eq!(node.enter(On::Uplink, &answer), "remote:8080 > client:61007 tcp SA");
    about::<A>("its answer leaves");
    let answer = tcp("remote:8080 > client:61007").flags(SYN | ACK);
    assert_eq!(node.leave(On::Uplink, &answer), "lb:80 > client:61007 tcp SA");
    about::<A>("its handshake");
    assert_eq!(node.enter(On::Uplink, &tcp("client:61007 > lb:80")), "client:61007 > remote:8080 tcp A");
    about::<A>("a reply that enters");
    assert_eq!(node.enter(On::Uplink, &reply), "remote:8080 > client:61007 tcp A");
    about::<A>("a request that leaves");
    assert_eq!(node.leave(On::Uplink, &asked), "node:61007 > remote:8080 tcp A");
}

#[cfg_attr(test, test)]
fn packets_of_a_connection_to_elsewhere_pass_four_points() {
    in_both_families!(elsewhere());
}
