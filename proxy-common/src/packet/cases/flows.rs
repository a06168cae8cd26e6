//! The life of a flow: followed, promoted, moved, expired, closed.

use std::collections::HashSet;
use std::format;
use std::string::String;

use super::build::{Build, syn, tcp, udp};
use super::names::addr;
use super::world::{On, Setup, TestNode, connected};
use super::{Case, about, cases, family, in_both_families};
use crate::abi::{Backend, Frontend, Succession};
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, FIN, RST, SYN};

pub(super) const CASES: &[Case] = cases![
    a_connection_is_established_when_the_client_speaks_after_the_answer,
    datagrams_are_a_flow_when_there_was_an_answer_and_one_more_question,
    a_datagram_without_checksum_gets_none,
    an_established_connection_keeps_its_backend_whatever_becomes_of_the_service,
    a_syn_that_comes_again_goes_where_the_first_one_went,
    a_udp_flow_leaves_a_backend_that_stopped_serving_with_its_next_datagram,
    whose_udp_flow_dialled_a_service_that_is_gone_is_told,
    a_udp_flow_leaves_a_backend_whose_id_was_given_away,
    a_udp_flow_that_was_forgotten_finds_the_same_backend_again,
    a_flow_ends_with_the_timeout_of_its_state,
    traffic_in_one_direction_keeps_both_entries_young,
    a_syn_begins_a_new_connection_only_where_the_old_one_is_over,
    affinity_is_of_a_client_address_over_all_frontends_of_a_service_port,
    packets_of_a_flow_do_not_make_affinity_last_longer,
    what_another_version_may_know_is_left_to_it_for_as_long_as_it_is_there,
];

const UP: On = On::Uplink;

/// Where a request goes: the host that the stack routes it to.
fn goes_to<A: Ip>(node: &mut TestNode<A>, packet: &Build) -> String {
    let found = node.enter(UP, packet);
    let to = found.split(' ').nth(2).and_then(|end| end.split(':').next());
    to.filter(|_| found.contains(" > ")).map_or_else(|| found.clone(), Into::into)
}

fn handshake<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    for (sentence, expected) in [("a SYN", (0, 1)), ("a SYN that comes again", (0, 1))] {
        about::<A>(sentence);
        node.enter(UP, &syn("client:4000 > lb:80"));
        assert_eq!(node.count(), expected, "{sentence}");
    }
    node.leave(UP, &tcp("local:8080 > client:4000").flags(SYN | ACK));
    assert_eq!(node.count(), (0, 1), "an answered SYN may still be a flood's");
    node.enter(UP, &tcp("client:4000 > lb:80"));
    assert_eq!(node.count(), (1, 0), "the client has spoken after the answer");
    assert_eq!(node.begun.borrow().values().sum::<u32>(), 1, "one connection is counted once");
}

#[cfg_attr(test, test)]
fn a_connection_is_established_when_the_client_speaks_after_the_answer() {
    in_both_families!(handshake());
}

fn datagrams<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    let (question, answer) = (udp("client:4000 > lb:80"), udp("local:8080 > client:4000"));
    node.enter(UP, &question);
    node.enter(UP, &question);
    assert_eq!(node.count(), (0, 1), "questions alone");
    assert_eq!(node.leave(UP, &answer), "lb:80 > client:4000 udp");
    assert_eq!(node.count(), (0, 1), "one answer");
    node.enter(UP, &question);
    assert_eq!(node.count(), (1, 0), "a question after an answer");
    assert_eq!(node.leave(UP, &answer), "lb:80 > client:4000 udp");
}

#[cfg_attr(test, test)]
fn datagrams_are_a_flow_when_there_was_an_answer_and_one_more_question() {
    in_both_families!(datagrams());
}

fn without_checksum<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    let question = udp("client:4000 > lb:80").without_sum();
    assert_eq!(node.enter(UP, &question), "client:4000 > local:8080 udp without checksum");
}

#[cfg_attr(test, test)]
fn a_datagram_without_checksum_gets_none() {
    in_both_families!(without_checksum());
}

fn stays<A: Ip>() {
    for (sentence, change) in [
        ("another backend is chosen for new ones", (|node| node.choose_from(1, 1)) as fn(&mut TestNode<A>)),
        ("its backend stopped serving", |node| node.set_backend("local", 0)),
        ("nobody serves any more", TestNode::without_endpoints),
        ("the Service is gone", |node| node.tables.withdraw(|_| true)),
    ] {
        about::<A>(sentence);
        let mut node = connected::<A>();
        change(&mut node);
        assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A", "{sentence}");
        assert_eq!(node.leave(UP, &tcp("local:8080 > client:4000")), "lb:80 > client:4000 tcp A", "{sentence}");
    }
}

#[cfg_attr(test, test)]
fn an_established_connection_keeps_its_backend_whatever_becomes_of_the_service() {
    in_both_families!(stays());
}

fn retransmitted<A: Ip>() {
    let mut node = Setup::default().node::<A>();
    for port in 4000..4020 {
        let dial = syn(format!("client:{port} > lb:80"));
        let first = goes_to(&mut node, &dial);
        for _ in 0..3 {
            assert_eq!(goes_to(&mut node, &dial), first, "port {port}");
        }
    }
}

#[cfg_attr(test, test)]
fn a_syn_that_comes_again_goes_where_the_first_one_went() {
    in_both_families!(retransmitted());
}

fn moves<A: Ip>() {
    let question = udp("client:4000 > vip:80");
    let mut node = Setup { detector: false, ..Setup::default() }.node::<A>();
    node.choose_from(0, 1);
    assert_eq!(goes_to(&mut node, &question), "local");
    node.choose_from(1, 1);
    node.set_backend("local", Backend::SERVING);
    assert_eq!(goes_to(&mut node, &question), "local", "not ready, but it serves what it has");
    node.set_backend("local", 0);
    assert_eq!(node.enter(UP, &question), "client:4000 > remote:8080 udp, flow_moved", "it stopped serving");
    assert_eq!(node.count(), (0, 1), "the old flow is gone, both halves");
    assert_eq!(node.leave(UP, &udp("local:8080 > client:4000")), "pass", "so are its answers");
    assert_eq!(node.leave(UP, &udp("remote:8080 > client:4000")), "vip:80 > client:4000 udp");

    let served = node.tables.clone();
    let mut refused = |sentence, change: fn(&mut TestNode<A>), reason| {
        about::<A>(sentence);
        change(&mut node);
        let found = node.enter(UP, &question);
        assert!(found.starts_with("answer: vip > client port unreachable"), "{sentence}: {found}");
        assert!(found.ends_with(reason), "{sentence}: {found}");
        assert_eq!(node.count(), (0, 0), "{sentence}");
        node.tables = served.clone();
        assert_eq!(node.enter(UP, &question), "client:4000 > remote:8080 udp", "{sentence}, and somebody serves again");
    };
    refused("nobody serves", TestNode::without_endpoints, "no_endpoints");
    let deleted = |node: &mut TestNode<A>| {
        node.without_endpoints();
        node.tables.withdraw(|entry| entry.kind != Frontend::KIND_ADDRESS);
    };
    refused("another port of the Service stays", deleted, "undefined_port");
}

#[cfg_attr(test, test)]
fn a_udp_flow_leaves_a_backend_that_stopped_serving_with_its_next_datagram() {
    in_both_families!(moves());
}

fn told<A: Ip>() {
    for (sentence, to, reason, later) in [
        ("an address that nobody else may have", "vip", "unallocated_address", "drop: unallocated_address"),
        ("an address that leads elsewhere now", "lb", "no_endpoints", "pass"),
    ] {
        about::<A>(sentence);
        let mut node = Setup::with("L").node::<A>();
        let question = udp(format!("client:4000 > {to}:80"));
        assert_eq!(goes_to(&mut node, &question), "local", "{sentence}");
        node.without_endpoints();
        node.tables.withdraw(|_| true);
        let found = node.enter(UP, &question);
        assert_eq!(
            found,
            format!("answer: {to} > client port unreachable (client:4000 > {to}:80 udp), {reason}"),
            "{sentence}"
        );
        assert_eq!(node.enter(UP, &question), later, "{sentence}, from then on");
    }
}

#[cfg_attr(test, test)]
fn whose_udp_flow_dialled_a_service_that_is_gone_is_told() {
    in_both_families!(told());
}

fn given_away<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    let question = udp("client:4000 > vip:80");
    node.enter(UP, &question);
    for backend in &mut node.tables.backends {
        backend.generation += 1;
        backend.addr = addr("remote", A::FAMILY);
    }
    assert_eq!(goes_to(&mut node, &question), "remote");
}

#[cfg_attr(test, test)]
fn a_udp_flow_leaves_a_backend_whose_id_was_given_away() {
    in_both_families!(given_away());
}

fn heals<A: Ip>() {
    let mut node = Setup::default().node::<A>();
    let mut reached = HashSet::new();
    for port in 4000..4032 {
        let question = udp(format!("client:{port} > lb:80"));
        let backend = goes_to(&mut node, &question);
        node.flows.clear();
        assert_eq!(goes_to(&mut node, &question), backend, "port {port}");
        reached.insert(backend);
    }
    assert_eq!(reached.len(), 2, "and yet all backends are chosen");
}

#[cfg_attr(test, test)]
fn a_udp_flow_that_was_forgotten_finds_the_same_backend_again() {
    in_both_families!(heals());
}

fn expires<A: Ip>() {
    let question = udp("client:4000 > lb:80");
    let answer = udp("local:8080 > client:4000");
    for (sentence, seconds, packets, expected) in [
        ("UDP, unanswered, in time", 30, 1, "local"),
        ("UDP, unanswered, too late", 31, 1, "remote"),
        ("UDP, one question and its answer, in time", 30, 2, "local"),
        ("UDP, one question and its answer, too late", 31, 2, "remote"),
        ("UDP, one more question, in time", 120, 3, "local"),
        ("UDP, one more question, too late", 121, 3, "remote"),
    ] {
        about::<A>(sentence);
        let mut node = Setup::default().node::<A>();
        node.choose_from(0, 1);
        for number in 0..packets {
            if number % 2 == 0 {
                node.enter(UP, &question);
            } else {
                node.leave(UP, &answer);
            }
        }
        node.choose_from(1, 1);
        node.pass(seconds);
        assert_eq!(goes_to(&mut node, &question), expected, "{sentence}, {}", family::<A>());
    }
    for (sentence, seconds, expected) in [
        ("TCP, in time", 86_400, "client:4000 > local:8080 tcp A"),
        ("TCP, too late", 86_401, "pass: tcp_without_flow"),
    ] {
        about::<A>(sentence);
        let mut node = connected::<A>();
        node.pass(seconds);
        assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), expected, "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_flow_ends_with_the_timeout_of_its_state() {
    in_both_families!(expires());
}

fn kept_young<A: Ip>() {
    let mut node = connected::<A>();
    for _ in 0..3 {
        node.pass(80_000);
        assert_eq!(node.leave(UP, &tcp("local:8080 > client:4000")), "lb:80 > client:4000 tcp A");
    }
    assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A");
}

#[cfg_attr(test, test)]
fn traffic_in_one_direction_keeps_both_entries_young() {
    in_both_families!(kept_young());
}

fn reopens<A: Ip>() {
    let fin = FIN | ACK;
    let client = |flags| (true, flags);
    let backend = |flags| (false, flags);
    for (sentence, segments, expected) in [
        ("after both closed", &[client(fin), backend(fin), client(ACK)][..], "remote"),
        ("after the backend reset it", &[backend(RST | ACK)], "remote"),
        ("after the client reset it", &[client(RST)], "remote"),
        ("while the backend still sends", &[client(fin), backend(ACK)], "local"),
        ("while the last FIN is on its way", &[client(fin), backend(fin)], "local"),
        ("in the middle of it", &[client(ACK)], "local"),
    ] {
        about::<A>(sentence);
        let mut node = Setup { detector: false, ..Setup::default() }.node::<A>();
        node.choose_from(0, 1);
        node.enter(UP, &syn("client:4000 > vip:80"));
        node.leave(UP, &tcp("local:8080 > client:4000").flags(SYN | ACK));
        node.enter(UP, &tcp("client:4000 > vip:80"));
        for (from_client, flags) in segments {
            if *from_client {
                node.enter(UP, &tcp("client:4000 > vip:80").flags(*flags));
            } else {
                node.leave(UP, &tcp("local:8080 > client:4000").flags(*flags));
            }
        }
        node.choose_from(1, 1);
        assert_eq!(goes_to(&mut node, &syn("client:4000 > vip:80")), expected, "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_syn_begins_a_new_connection_only_where_the_old_one_is_over() {
    in_both_families!(reopens());
}

fn affinity<A: Ip>() {
    let mut node = Setup { affinity_seconds: 60, ..Setup::default() }.node::<A>();
    let first = goes_to(&mut node, &syn("client:4000 > lb:80"));
    for port in 4001..4020 {
        for frontend in ["lb:80", "external:80", "node:30080", "vip:80"] {
            let dial = syn(format!("client:{port} > {frontend}"));
            assert_eq!(goes_to(&mut node, &dial), first, "{frontend}, port {port}");
        }
    }
    node.pass(60);
    let reached: HashSet<_> =
        (5000..5020).map(|port| goes_to(&mut node, &syn(format!("stranger:{port} > lb:80")))).collect();
    assert_eq!(reached.len(), 1, "every client for itself");
    node.pass(60);
    let mut reached = HashSet::new();
    for port in 6000..6020 {
        reached.insert(goes_to(&mut node, &syn(format!("client:{port} > lb:80"))));
        node.pass(60);
    }
    assert_eq!(reached.len(), 2, "records expire");
}

#[cfg_attr(test, test)]
fn affinity_is_of_a_client_address_over_all_frontends_of_a_service_port() {
    in_both_families!(affinity());
}

fn affinity_of_flows<A: Ip>() {
    for (sentence, dial, goes_on) in
        [("a connection", syn as fn(String) -> Build, tcp as fn(String) -> Build), ("datagrams", udp, udp)]
    {
        about::<A>(sentence);
        let mut node = Setup { affinity_seconds: 60, ..Setup::default() }.node::<A>();
        let mut reached = HashSet::new();
        for port in 4000..4020 {
            let backend = goes_to(&mut node, &dial(format!("client:{port} > lb:80")));
            let record = node.tables.affinity.borrow().clone();
            for _ in 0..2 {
                node.pass(29);
                assert_eq!(goes_to(&mut node, &goes_on(format!("client:{port} > lb:80"))), backend, "{sentence}");
                node.leave(UP, &goes_on(format!("{backend}:8080 > client:{port}")));
            }
            assert_eq!(*node.tables.affinity.borrow(), record, "{sentence}: who has a flow does not dial");
            node.pass(2);
            reached.insert(backend);
        }
        assert_eq!(reached.len(), 2, "{sentence}: a record outlives the last dial by a minute, whatever its flow says");
    }
}

#[cfg_attr(test, test)]
fn packets_of_a_flow_do_not_make_affinity_last_longer() {
    in_both_families!(affinity_of_flows());
}

fn succeeded<A: Ip>() {
    let mut node = connected::<A>();
    let (begins, goes_on) = (syn("client:4001 > lb:80"), tcp("client:4002 > lb:80"));
    let later = udp("client:4003 > lb:80").fragment(7, 64, false);
    let theirs = [("a SYN", &begins), ("a datagram", &udp("client:4004 > lb:80")), ("what goes on", &goes_on)];
    node.succession = Succession { begins: 1, goes_on: 1 };
    for (sentence, packet) in theirs.into_iter().chain([("a later fragment", &later)]) {
        about::<A>(&format!("{sentence}, before all hooks are ours"));
        assert_eq!(node.enter(UP, packet), "pass", "{sentence}");
    }
    about::<A>("a flow that was brought");
    assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A");

    node.succession.begins = 0;
    about::<A>("what begins when all hooks are ours");
    assert_eq!(node.enter(UP, &begins), "client:4001 > local:8080 tcp S");
    about::<A>("what goes on when all hooks are ours");
    assert_eq!(node.enter(UP, &goes_on), "pass");
    node.succession.goes_on = 0;
    about::<A>("what goes on when nobody else is there any more");
    assert_eq!(node.enter(UP, &goes_on), "pass: tcp_without_flow");
}

#[cfg_attr(test, test)]
fn what_another_version_may_know_is_left_to_it_for_as_long_as_it_is_there() {
    in_both_families!(succeeded());
}
