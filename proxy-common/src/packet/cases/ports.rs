//! Which port and which address a backend sees, so that its answers find back.

use std::collections::HashSet;
use std::format;
use std::string::String;

use super::build::{syn, tcp, udp, unreachable};
use super::world::{On, PORTS, Setup, TestNode};
use super::{Case, PROTOCOLS, about, cases, family, in_both_families, source_port};
use crate::abi::{PortRange, direct};
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, FIN, RST, SYN};
use crate::socket::{TCP, UDP};

pub(super) const CASES: &[Case] = cases![
    one_client_port_to_two_frontends_with_one_backend_is_two_flows,
    every_masqueraded_flow_to_a_backend_has_a_port_of_its_own,
    the_clients_own_port_is_taken_where_it_fits_and_that_of_a_process_never,
    a_client_hears_of_it_when_no_port_is_left_and_expired_flows_give_theirs_back,
    the_port_of_a_connection_that_ended_is_taken_at_once_when_there_is_no_other,
    connections_that_never_began_take_ports_from_each_other_and_never_from_one_that_did,
    a_question_gives_its_port_away_once_its_answer_cannot_be_on_its_way,
    a_masqueraded_flow_keeps_the_address_of_the_device_it_first_left_by,
    a_connection_straight_to_the_backend_is_left_alone_and_the_service_takes_another_port,
    who_has_a_flow_and_asks_its_backend_straight_gets_another_port_there,
    packets_to_no_service_are_looked_for_only_while_they_may_be_like_those_of_a_flow,
    a_port_of_ours_that_the_backend_remembers_is_not_tried_again,
    a_backend_that_refuses_is_heard,
    who_else_sends_from_a_port_that_a_flow_has_gets_another_one,
    a_port_that_somebody_else_sends_from_is_given_to_no_flow,
    errors_about_what_left_by_another_port_find_home,
    a_frontend_among_the_ports_of_flows_is_served_beside_them,
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
    let port = source_port(&found).parse().ok();
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

/// A connection from the client's port to the only backend, elsewhere; what the client heard if there is none.
fn establish<A: Ip>(node: &mut TestNode<A>, client: u16) -> Result<u16, String> {
    let port = own_port(node, &format!("client:{client} > lb:80"))?;
    node.leave(UP, &tcp(format!("remote:8080 > client:{port}")).flags(SYN | ACK));
    node.enter(UP, &tcp(format!("client:{client} > lb:80")));
    Ok(port)
}

fn exhausted<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    node.settings.ports = PortRange { first: 61_000, count: 8 };
    let mut served = 0;
    let refused = (0..40).find_map(|i| match establish(&mut node, 4000 + i) {
        Ok(_) => {
            served += 1;
            None
        }
        Err(found) => Some(found),
    });
    let refused = refused.expect("eight ports serve eight connections");
    assert!(served >= 6, "{served} of 8 were found in 16 tries each");
    assert!(refused.starts_with("answer: lb > client port unreachable"), "{refused}");
    assert!(refused.ends_with("ports_exhausted"), "{refused}");
    assert_eq!(node.count(), (served, 0));
    // What nobody uses any more is given away, agent or not.
    node.pass(86_401);
    assert!(node.enter(UP, &syn("stranger:4000 > lb:80")).starts_with("stranger:61"));
}

#[cfg_attr(test, test)]
fn a_client_hears_of_it_when_no_port_is_left_and_expired_flows_give_theirs_back() {
    in_both_families!(exhausted());
}

/// A node with one port of its own and one backend, elsewhere.
fn with_one_port<A: Ip>() -> TestNode<A> {
    let mut node = Setup::with("R").node::<A>();
    node.settings.ports = PortRange { first: 61_000, count: 1 };
    node
}

fn ended<A: Ip>() {
    let (fin, taken) = (FIN | ACK, "stranger:61000 > remote:8080 tcp S, port_taken_over");
    let client = |flags| (true, flags);
    let backend = |flags| (false, flags);
    for (sentence, segments, is_over) in [
        ("both closed", &[client(fin), backend(fin), client(ACK)][..], true),
        ("the backend reset it", &[backend(RST | ACK)], true),
        ("the client closed", &[client(fin), backend(ACK)], false),
        ("the last FIN is on its way", &[client(fin), backend(fin)], false),
        ("it goes on", &[client(ACK), backend(ACK)], false),
    ] {
        about::<A>(sentence);
        let mut node = with_one_port::<A>();
        establish(&mut node, 4000).unwrap();
        for (from_client, flags) in segments {
            if *from_client {
                node.enter(UP, &tcp("client:4000 > lb:80").flags(*flags));
            } else {
                node.leave(UP, &tcp("remote:8080 > client:61000").flags(*flags));
            }
        }
        let next = node.enter(UP, &syn("stranger:4000 > lb:80"));
        assert_eq!(next == taken, is_over, "{sentence}: {next}");
        assert_eq!(node.count(), if is_over { (0, 1) } else { (1, 0) }, "{sentence}: the old flow goes as a whole");
    }
    let mut node = Setup::with("R").node::<A>();
    node.settings.ports = PortRange { first: 61_000, count: 2 };
    let first = establish(&mut node, 4000).unwrap();
    node.enter(UP, &tcp("client:4000 > lb:80").flags(RST));
    for client in 5000..5032 {
        node.settings.seed = client;
        let mut node = node.clone();
        assert_ne!(
            own_port(&mut node, &format!("stranger:{client} > lb:80")),
            Ok(first),
            "as long as there is another"
        );
    }
}

#[cfg_attr(test, test)]
fn the_port_of_a_connection_that_ended_is_taken_at_once_when_there_is_no_other() {
    in_both_families!(ended());
}

fn never_began<A: Ip>() {
    let mut node = with_one_port::<A>();
    for client in 4000..4010 {
        let found = node.enter(UP, &syn(format!("client:{client} > lb:80")));
        let expected = if client == 4000 { "" } else { ", port_taken_over" };
        assert_eq!(found, format!("client:61000 > remote:8080 tcp S{expected}"));
        assert_eq!(node.count(), (0, 1), "whoever had the port before is gone");
    }
    assert_eq!(establish(&mut node, 4009), Ok(61_000));
    for client in 5000..5010 {
        let found = node.enter(UP, &syn(format!("stranger:{client} > lb:80")));
        assert!(found.ends_with("ports_exhausted"), "no flood takes the port of a connection: {found}");
    }
    assert_eq!(node.enter(UP, &tcp("client:4009 > lb:80")), "client:61000 > remote:8080 tcp A");
}

#[cfg_attr(test, test)]
fn connections_that_never_began_take_ports_from_each_other_and_never_from_one_that_did() {
    in_both_families!(never_began());
}

fn unanswered<A: Ip>() {
    let mut node = with_one_port::<A>();
    assert_eq!(node.enter(UP, &udp("client:4000 > lb:80")), "client:61000 > remote:8080 udp");
    node.pass(1);
    let early = node.enter(UP, &udp("stranger:4000 > lb:80"));
    assert!(early.ends_with("ports_exhausted"), "the answer is still on its way: {early}");
    assert_eq!(node.leave(UP, &udp("remote:8080 > client:61000")), "lb:80 > client:4000 udp");
    node.pass(2);
    let later = node.enter(UP, &udp("stranger:4000 > lb:80"));
    assert_eq!(later, "stranger:61000 > remote:8080 udp, port_taken_over");
    assert_eq!(node.leave(UP, &udp("remote:8080 > client:61000")), "pass", "that one asked for nothing");
}

#[cfg_attr(test, test)]
fn a_question_gives_its_port_away_once_its_answer_cannot_be_on_its_way() {
    in_both_families!(unanswered());
}

fn leaves_by<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let inside = node.enter(UP, &syn("client:4000 > lb:80"));
    let inside = inside.strip_suffix(" tcp S").unwrap();
    let port = source_port(inside);
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

fn straight<A: Ip>() {
    for (ask, answer, asks, answers) in PROTOCOLS {
        about::<A>(asks);
        let mut node = Setup::with("L").node::<A>();
        let of_service = answer("local:8080 > client:4000");
        node.enter(UP, &ask("client:4000 > lb:80"));
        assert_eq!(node.leave(UP, &of_service), format!("lb:80 > client:4000 {answers}"));
        let sent = node.enter(UP, &ask("client:4000 > local:8080"));
        let port = source_port(&sent);
        assert!(PORTS.contains(port.parse().unwrap()), "to the backend both would be one: {sent}");
        assert_eq!(sent, format!("client:{port} > local:8080 {asks}"));
        assert_eq!(node.leave(On::PodDevice, &ask(&format!("client:{port} > local:8080"))), "pass");
        let back = answer(&format!("local:8080 > client:{port}"));
        assert_eq!(node.leave(UP, &back), format!("local:8080 > client:4000 {answers}"));
        assert_eq!(node.leave(UP, &of_service), format!("lb:80 > client:4000 {answers}"), "that one goes on");
        assert_eq!(node.enter(UP, &ask("client:4000 > local:8080")), sent, "and so does this one");
        for other in ["stranger:4000 > local:8080", "client:4001 > local:8080", "client:4000 > local:8081"] {
            assert_eq!(node.enter(UP, &ask(other)), "pass", "{other} is like no flow");
        }
        assert_eq!(node.begun.borrow().values().sum::<u32>(), 1, "flows to backends, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn who_has_a_flow_and_asks_its_backend_straight_gets_another_port_there() {
    in_both_families!(straight());
}

fn looked_for<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    let (datagram, segment) = (udp("client:4000 > local:8080"), tcp("client:4000 > local:8080"));
    node.direct = [direct::PASS; 4];
    node.enter(UP, &syn("client:4000 > lb:80"));
    assert_eq!(node.direct, [direct::PASS; 4], "connections are told by their first segment");
    node.enter(UP, &syn("client:4000 > local:8080"));
    let moved = node.enter(UP, &segment);
    assert_ne!(source_port(&moved), "4000", "the next segment of that one: {moved}");
    assert_eq!(node.enter(UP, &datagram), "pass");
    node.enter(UP, &udp("client:4000 > lb:80"));
    let moved = node.enter(UP, &datagram);
    assert_ne!(source_port(&moved), "4000", "the backend knows that port now: {moved}");
    let of_family =
        |direct: [u32; 4]| [direct::place(A::FAMILY, TCP), direct::place(A::FAMILY, UDP)].map(|at| direct[at as usize]);
    assert_eq!(of_family(node.direct), [direct::LOOK; 2], "{}", family::<A>());
    assert_eq!(node.direct.iter().filter(|word| **word == direct::PASS).count(), 2, "the other family's");
}

#[cfg_attr(test, test)]
fn packets_to_no_service_are_looked_for_only_while_they_may_be_like_those_of_a_flow() {
    in_both_families!(looked_for());
}

fn remembered<A: Ip>() {
    for client in ["client:4000", "client:61007"] {
        let mut node = Setup::with("R").node::<A>();
        let mut tried = HashSet::new();
        // Of connections that were forgotten here, the backend keeps some.
        for _ in 0..3 {
            let port = own_port(&mut node, &format!("{client} > lb:80")).unwrap();
            assert!(tried.insert(port), "{client}: {port} again after {tried:?}");
            let challenge = tcp(format!("remote:8080 > client:{port}")).flags(ACK);
            assert_eq!(node.leave(UP, &challenge), "pass: foreign_segment");
        }
        let port = own_port(&mut node, &format!("{client} > lb:80")).unwrap();
        let answer = tcp(format!("remote:8080 > client:{port}")).flags(SYN | ACK);
        assert_eq!(node.leave(UP, &answer), format!("lb:80 > {client} tcp SA"));
        assert_eq!(node.count(), (0, 1), "only the last one is left");
    }
}

#[cfg_attr(test, test)]
fn a_port_of_ours_that_the_backend_remembers_is_not_tried_again() {
    in_both_families!(remembered());
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

fn taken_from_a_flow<A: Ip>() {
    for (ask, answer, asks, answers) in PROTOCOLS {
        about::<A>(asks);
        let mut node = Setup::with("R").node::<A>();
        // A socket of the node itself may be the one that sends.
        node.sockets = [61_007].into();
        let ours = source_port(&node.enter(UP, &ask("client:4000 > lb:80")));
        node.leave(UP, &ask(&format!("client:{ours} > remote:8080")));
        let sent = format!("node:{ours} > remote:8080");
        let left = node.leave(UP, &ask(&sent));
        let other = source_port(&left);
        assert_eq!(left, format!("node:{other} > remote:8080 {asks}"));
        assert_ne!(other, ours, "the backend knows that one from the client");
        assert_eq!(node.leave(UP, &ask(&sent)), left, "again");
        let back = answer(&format!("remote:8080 > node:{other}"));
        assert_eq!(node.enter(UP, &back), format!("remote:8080 > node:{ours} {answers}"));
        let back = answer(&format!("remote:8080 > node:{ours}"));
        assert_eq!(
            node.enter(UP, &back),
            format!("remote:8080 > client:{ours} {answers}"),
            "the client's is the client's"
        );
        about::<A>("to others");
        let elsewhere = node.leave(UP, &ask(&format!("node:{ours} > web:80")));
        assert_eq!(elsewhere, format!("node:{ours} > web:80 {asks}"), "whom no flow goes to");
        assert_eq!(
            node.leave(UP, &ask(&format!("node:{ours} > remote:8081"))).split(' ').next(),
            Some(&*format!("node:{ours}"))
        );
        assert_eq!(node.count(), (0, 4), "{}", family::<A>());
        assert_eq!(node.begun.borrow().values().sum::<u32>(), 1, "flows to backends");
    }
}

#[cfg_attr(test, test)]
fn who_else_sends_from_a_port_that_a_flow_has_gets_another_one() {
    in_both_families!(taken_from_a_flow());
}

fn kept_from_flows<A: Ip>() {
    for (ask, answer, asks, answers) in PROTOCOLS {
        about::<A>(asks);
        let mut node = Setup::with("R").node::<A>();
        let sent = "node:61007 > remote:8080";
        assert_eq!(node.leave(UP, &ask(sent)), format!("{sent} {asks}"));
        let ours = source_port(&node.enter(UP, &ask("client:61007 > lb:80")));
        assert_ne!(ours, "61007");
        let back = "remote:8080 > node:61007";
        assert_eq!(node.enter(UP, &answer(back)), format!("{back} {answers}"));
        assert_eq!(node.leave(UP, &ask(sent)), format!("{sent} {asks}"), "again");
        about::<A>("more than a day later");
        node.pass(100_000);
        assert_eq!(source_port(&node.enter(UP, &ask("stranger:61007 > lb:80"))), "61007", "nobody uses it any more");
    }
}

#[cfg_attr(test, test)]
fn a_port_that_somebody_else_sends_from_is_given_to_no_flow() {
    in_both_families!(kept_from_flows());
}

fn errors_of_others<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let ours = source_port(&node.enter(UP, &udp("client:4000 > lb:80")));
    node.leave(UP, &udp(format!("client:{ours} > remote:8080")));
    let sent = udp(format!("node:{ours} > remote:8080"));
    let other = source_port(&node.leave(UP, &sent));
    about::<A>("the backend refuses");
    let error = unreachable("remote > node", udp(format!("node:{other} > remote:8080")));
    let told = format!("remote > node unreachable (node:{ours} > remote:8080 udp)");
    assert_eq!(node.enter(UP, &error), told);
    about::<A>("the sender refuses the answer");
    let error = unreachable("node > remote", udp(format!("remote:8080 > node:{ours}")));
    let told = format!("node > remote unreachable (remote:8080 > node:{other} udp)");
    assert_eq!(node.leave(UP, &error), told);
    about::<A>("about nothing that left");
    let error = unreachable("node > remote", udp("remote:8080 > node:61999"));
    assert_eq!(node.leave(UP, &error), "pass", "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn errors_about_what_left_by_another_port_find_home() {
    in_both_families!(errors_of_others());
}

#[cfg(test)]
fn below<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let ours = source_port(&node.enter(UP, &udp("client:4000 > lb:80")));
    let left = node.leave(UP, &udp(format!("client:{ours} > remote:8080")));
    assert_eq!(left, format!("node:{ours} > remote:8080 udp"));
    assert_eq!(node.leave_below(UP, &udp(format!("node:{ours} > remote:8080"))), "pass", "{}", family::<A>());
    assert_eq!(node.count(), (0, 1), "no flow is made");
}

#[test]
#[cfg(test)]
fn what_a_flow_sends_is_its_own_at_devices_below_too() {
    in_both_families!(below());
}

fn frontend_among_ports<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    node.settings.ports = PortRange { first: 30_000, count: 1000 };
    let inside = node.enter(UP, &syn("client:4000 > node:30080"));
    let port = source_port(&inside);
    assert_eq!(inside, format!("client:{port} > remote:8080 tcp S"));
    assert_eq!(
        node.leave(UP, &syn(format!("client:{port} > remote:8080"))),
        format!("node:{port} > remote:8080 tcp S")
    );
    let answer = tcp(format!("remote:8080 > node:{port}")).flags(SYN | ACK);
    assert_eq!(node.enter(UP, &answer), format!("remote:8080 > client:{port} tcp SA"), "{}", family::<A>());
    assert_eq!(node.enter(UP, &tcp("stranger:8080 > node:30999")), "pass", "nobody waits for it");
}

#[cfg_attr(test, test)]
fn a_frontend_among_the_ports_of_flows_is_served_beside_them() {
    in_both_families!(frontend_among_ports());
}
