//! Which port and which address a backend sees, so that its answers find back.

use std::collections::HashSet;
use std::format;
use std::string::String;

use super::build::{syn, tcp};
use super::family;
use super::world::{On, PORTS, Setup, TestNode};
use super::{Case, about, cases, in_both_families};
use crate::abi::PortRange;
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, RST, SYN};

pub(super) const CASES: &[Case] = cases![
    one_client_port_to_two_frontends_with_one_backend_is_two_flows,
    every_masqueraded_flow_to_a_backend_has_a_port_of_its_own,
    the_clients_own_port_is_taken_where_it_fits_and_that_of_a_process_never,
    a_client_hears_of_it_when_no_port_is_left_and_expired_flows_give_theirs_back,
    a_masqueraded_flow_keeps_the_address_of_the_device_it_first_left_by,
    a_connection_straight_to_the_backend_is_left_alone_and_the_service_takes_another_port,
    a_backend_that_refuses_is_heard,
];

const UP: On = On::Uplink;

fn two_frontends<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    assert_eq!(node.enter(UP, &syn("client:4000 > vip:80")), "client:4000 > local:8080 tcp S");
    let second = node.enter(UP, &syn("client:4000 > other:81"));
    let port = second.strip_prefix("client:").and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(PORTS.contains(port.parse().unwrap()), "{second}");
    // The stack sees the client with another port, and so does the backend: its address is its own.
    assert_eq!(node.leave(On::PodDevice, &syn(format!("client:{port} > local:8080"))), "pass");
    let first = tcp("local:8080 > client:4000").flags(SYN | ACK);
    assert_eq!(node.leave(UP, &first), "vip:80 > client:4000 tcp SA");
    let second = tcp(format!("local:8080 > client:{port}")).flags(SYN | ACK);
    assert_eq!(node.leave(UP, &second), "other:81 > client:4000 tcp SA");
}

#[cfg_attr(test, test)]
fn one_client_port_to_two_frontends_with_one_backend_is_two_flows() {
    in_both_families!(two_frontends());
}

/// The port that a masqueraded packet got.
fn own_port<A: Ip>(node: &mut TestNode<A>, route: &str) -> Result<u16, String> {
    let found = node.enter(UP, &syn(route));
    let port = found.split(' ').next().and_then(|end| end.rsplit(':').next()?.parse().ok());
    port.filter(|port| PORTS.contains(*port)).ok_or(found)
}

fn masqueraded_ports<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let ports: HashSet<_> = (0..400).map(|i| own_port(&mut node, &format!("client:{} > lb:80", 4000 + i))).collect();
    assert_eq!(ports.len(), 400, "one port for each flow to one backend, {}", family::<A>());
    assert_eq!(own_port(&mut node, "stranger:61007 > lb:80"), own_port(&mut node, "stranger:61007 > lb:80"));
}

#[cfg_attr(test, test)]
fn every_masqueraded_flow_to_a_backend_has_a_port_of_its_own() {
    in_both_families!(masqueraded_ports());
}

fn client_port_fits<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    assert_eq!(own_port(&mut node, "client:61007 > lb:80"), Ok(61_007));
    assert_ne!(own_port(&mut node, "stranger:61007 > lb:80"), Ok(61_007), "that one is taken");
    let mut node = Setup::with("R").node::<A>();
    node.sockets = (61_000..61_900).collect();
    for client in 4000..4008 {
        if let Ok(port) = own_port(&mut node, &format!("client:{client} > lb:80")) {
            assert!(port >= 61_900, "a process has port {port}");
        }
    }
}

#[cfg_attr(test, test)]
fn the_clients_own_port_is_taken_where_it_fits_and_that_of_a_process_never() {
    in_both_families!(client_port_fits());
}

fn exhausted<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    node.settings.ports = PortRange { first: 61_000, count: 8 };
    let mut served = 0;
    let refused = (0..40).find_map(|i| match node.enter(UP, &syn(format!("client:{} > lb:80", 4000 + i))) {
        found if found.starts_with("client:61") => {
            served += 1;
            None
        }
        found => Some(found),
    });
    let refused = refused.expect("eight ports serve eight flows");
    assert!(served >= 6, "{served} of 8 were found in 16 tries each");
    assert!(refused.starts_with("answer: lb > client port unreachable"), "{refused}");
    assert!(refused.ends_with("ports_exhausted"), "{refused}");
    assert_eq!(node.count(), (0, served));
    // What nobody uses any more is given away, agent or not.
    node.pass(121);
    assert!(node.enter(UP, &syn("stranger:4000 > lb:80")).starts_with("stranger:61"));
}

#[cfg_attr(test, test)]
fn a_client_hears_of_it_when_no_port_is_left_and_expired_flows_give_theirs_back() {
    in_both_families!(exhausted());
}

fn leaves_by<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let inside = node.enter(UP, &syn("client:4000 > lb:80"));
    let inside = inside.strip_suffix(" tcp S").unwrap();
    let port = inside.split(' ').next().unwrap().rsplit(':').next().unwrap();
    assert_eq!(node.leave(On::PodDevice, &syn(inside)), format!("bridge:{port} > remote:8080 tcp S"));
    // The route changes; the flow keeps the address that the backend knows.
    assert_eq!(node.leave(UP, &syn(inside)), format!("bridge:{port} > remote:8080 tcp S"));
    let answer = tcp(format!("remote:8080 > bridge:{port}")).flags(SYN | ACK);
    assert_eq!(node.enter(UP, &answer), format!("remote:8080 > client:{port} tcp SA"));
    let elsewhere = tcp(format!("remote:8080 > node:{port}")).flags(SYN | ACK);
    assert_eq!(node.enter(UP, &elsewhere), "pass", "no answer to an address that it never had");
}

#[cfg_attr(test, test)]
fn a_masqueraded_flow_keeps_the_address_of_the_device_it_first_left_by() {
    in_both_families!(leaves_by());
}

fn direct_connection<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.enter(UP, &syn("client:4000 > lb:80"));
    // The client has a connection with the backend from the same port, straight; the backend takes our SYN for that one's.
    let challenge = tcp("local:8080 > client:4000").flags(ACK);
    assert_eq!(node.leave(UP, &challenge), "pass: foreign_segment");
    let again = node.enter(UP, &syn("client:4000 > lb:80"));
    let port = again.strip_prefix("client:").and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(PORTS.contains(port.parse().unwrap()), "the SYN that comes again has another port: {again}");
    let answer = tcp(format!("local:8080 > client:{port}")).flags(SYN | ACK);
    assert_eq!(node.leave(UP, &answer), "lb:80 > client:4000 tcp SA");
    assert_eq!(node.leave(UP, &challenge), "pass", "the straight connection goes on");
}

#[cfg_attr(test, test)]
fn a_connection_straight_to_the_backend_is_left_alone_and_the_service_takes_another_port() {
    in_both_families!(direct_connection());
}

fn refused_syn<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.enter(UP, &syn("client:4000 > lb:80"));
    let refusal = tcp("local:8080 > client:4000").flags(RST | ACK);
    assert_eq!(node.leave(UP, &refusal), "lb:80 > client:4000 tcp AR");
}

#[cfg_attr(test, test)]
fn a_backend_that_refuses_is_heard() {
    in_both_families!(refused_syn());
}
