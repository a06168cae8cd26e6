//! The two entries of a flow: both or none, whatever other CPUs and a full table do meanwhile.

use std::format;

use super::build::{syn, tcp, udp};
use super::names::addr;
use super::world::{On, PORTS, Setup, TestNode, connected};
use super::{Case, about, cases, in_both_families};
use crate::abi::{Flow, FlowKey};
use crate::addr::Be16;
use crate::packet::Table;
use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, FIN, SYN};

pub(super) const CASES: &[Case] = cases![
    an_evicted_half_of_a_flow_comes_back_with_what_it_knew,
    in_a_table_that_is_filled_anew_within_a_second_each_packet_looks_at_both_halves,
    a_datagram_whose_request_entry_was_evicted_finds_its_old_port,
    half_a_flow_whose_partner_lost_its_key_goes_too,
    of_two_cpus_that_begin_one_flow_the_second_adopts_the_first,
    a_flow_that_was_promoted_meanwhile_is_adopted_as_well,
    a_full_table_costs_new_flows_only,
    an_element_that_is_given_away_while_it_is_read_is_never_believed,
];

const UP: On = On::Uplink;

fn evicted<A: Ip>() {
    for (sentence, direction) in
        [("the request entry", FlowKey::<A>::REQUEST), ("the reply entry", FlowKey::<A>::REPLY)]
    {
        about::<A>(sentence);
        let mut node = connected::<A>();
        node.pass(1);
        node.evict(direction);
        // The other half works, and makes this one again.
        if direction == FlowKey::<A>::REQUEST {
            assert_eq!(node.leave(UP, &tcp("local:8080 > client:4000")), "lb:80 > client:4000 tcp A", "{sentence}");
        } else {
            assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A", "{sentence}");
        }
        assert_eq!(node.count(), (1, 0), "{sentence} is back");
        assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A", "{sentence}");
        assert_eq!(node.leave(UP, &tcp("local:8080 > client:4000")), "lb:80 > client:4000 tcp A", "{sentence}");
        node.pass(3_601);
        let fin = tcp("client:4000 > lb:80").flags(FIN | ACK);
        assert_eq!(node.enter(UP, &fin), "client:4000 > local:8080 tcp AF", "{sentence}: established still");
    }
}

#[cfg_attr(test, test)]
fn an_evicted_half_of_a_flow_comes_back_with_what_it_knew() {
    in_both_families!(evicted());
}

fn in_a_rush<A: Ip>() {
    for (sentence, flows_room, halves) in [("a roomy table", u32::MAX, 2), ("a table for seven flows", 7, 3)] {
        about::<A>(sentence);
        let mut node = connected::<A>();
        node.flows_room = flows_room;
        // The second one within this second.
        node.enter(UP, &syn("stranger:4000 > lb:80"));
        node.leave(UP, &tcp("local:8080 > stranger:4000").flags(SYN | ACK));
        node.enter(UP, &tcp("stranger:4000 > lb:80"));
        assert_eq!(node.count(), (2, 0), "{sentence}");
        // From here on halves may be alone.
        node.room = node.flows.len() + 4;
        node.evict(FlowKey::<A>::REPLY);
        assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A", "{sentence}");
        assert_eq!(node.flows.len(), halves, "{sentence}");
    }
}

#[cfg_attr(test, test)]
fn in_a_table_that_is_filled_anew_within_a_second_each_packet_looks_at_both_halves() {
    in_both_families!(in_a_rush());
}

fn forgotten_request<A: Ip>() {
    let mut node = Setup::with("R").node::<A>();
    let first = node.enter(UP, &udp("client:4000 > lb:80"));
    node.evict(FlowKey::<A>::REQUEST);
    assert_eq!(node.enter(UP, &udp("client:4000 > lb:80")), first, "same backend, same port");
    assert_eq!(node.count(), (0, 1));
    assert_eq!(node.begun.borrow().values().sum::<u32>(), 1, "it was never another flow");
}

#[cfg_attr(test, test)]
fn a_datagram_whose_request_entry_was_evicted_finds_its_old_port() {
    in_both_families!(forgotten_request());
}

fn taken_partner<A: Ip>() {
    for table in [Table::Established, Table::Embryonic] {
        about::<A>(&format!("{table:?}"));
        let mut node = connected::<A>();
        let is_reply = |((_, key), _): &(&(Table, FlowKey<A>), _)| key.direction() == FlowKey::<A>::REPLY;
        let ((_, key), entry) = node.flows.iter().find(is_reply).unwrap();
        let (key, other) = (*key, Flow { client_port: Be16::new(9), ..*entry }.sealed());
        node.room = usize::MAX - 1;
        node.evict(FlowKey::<A>::REPLY);
        node.flows.insert((table, key), other);
        node.pass(1);
        node.enter(UP, &tcp("client:4000 > lb:80"));
        assert_eq!(node.flows.len(), 1, "the half that could only misdirect is gone, {table:?}");
    }
}

#[cfg_attr(test, test)]
fn half_a_flow_whose_partner_lost_its_key_goes_too() {
    in_both_families!(taken_partner());
}

/// Another CPU stores the same flow to the other backend first.
fn rival<A: Ip>(node: &mut TestNode<A>, flow: &Flow<A>) {
    let rival = Flow { backend: A::of(&addr("remote", A::FAMILY)), ..*flow }.sealed();
    node.flows.insert((Table::Embryonic, rival.reply_key(PORTS)), rival.mirrored());
    node.flows.insert((Table::Embryonic, rival.request_key()), rival);
}

fn adopted<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.meanwhile = Some(rival::<A>);
    assert_eq!(node.enter(UP, &syn("client:4000 > lb:80")), "client:4000 > remote:8080 tcp S");
    assert_eq!(node.count(), (0, 1), "our claim was given back");
}

#[cfg_attr(test, test)]
fn of_two_cpus_that_begin_one_flow_the_second_adopts_the_first() {
    in_both_families!(adopted());
}

fn promoted_rival<A: Ip>() {
    let mut node = Setup::with("L").node::<A>();
    node.meanwhile = Some(|node, flow| {
        rival(node, flow);
        let entries: std::vec::Vec<_> = node.flows.drain().collect();
        for ((_, key), entry) in entries {
            let table = if entry.backend == flow.backend { Table::Embryonic } else { Table::Established };
            node.flows.insert((table, key), entry);
        }
    });
    assert_eq!(node.enter(UP, &syn("client:4000 > lb:80")), "client:4000 > remote:8080 tcp S");
    assert_eq!(node.count(), (1, 0));
}

#[cfg_attr(test, test)]
fn a_flow_that_was_promoted_meanwhile_is_adopted_as_well() {
    in_both_families!(promoted_rival());
}

fn full<A: Ip>() {
    for room in [0, 1] {
        let mut node = Setup::with("L").node::<A>();
        node.room = room;
        assert_eq!(node.enter(UP, &syn("client:4000 > lb:80")), "drop: flow_table_full", "room for {room}");
        assert!(node.flows.is_empty(), "nothing is left behind");
    }
    let mut node = Setup::with("L").node::<A>();
    node.room = 2;
    node.enter(UP, &syn("client:4000 > lb:80"));
    node.leave(UP, &tcp("local:8080 > client:4000").flags(SYN | ACK));
    assert_eq!(node.enter(UP, &tcp("client:4000 > lb:80")), "client:4000 > local:8080 tcp A");
    assert_eq!(node.count(), (0, 1), "who cannot be promoted stays where it is, and whole");
}

#[cfg_attr(test, test)]
fn a_full_table_costs_new_flows_only() {
    in_both_families!(full());
}

fn recycled<A: Ip>() {
    for (sentence, spoil) in [
        (
            "of another flow",
            (|flow| {
                let other = Be16::new(9);
                *flow = Flow { client_port: other, source_port: other, ..*flow }.sealed();
            }) as fn(&mut Flow<A>),
        ),
        ("of two flows", |flow| flow.backend_port = Be16::new(9)),
    ] {
        about::<A>(sentence);
        let mut node = connected::<A>();
        node.room = usize::MAX - 1;
        node.flows.values_mut().for_each(spoil);
        let found = node.enter(UP, &tcp("client:4000 > lb:80"));
        assert_eq!(found, "pass: tcp_without_flow", "an element with the fields {sentence}");
        assert_eq!(node.leave(UP, &tcp("local:8080 > client:4000")), "pass", "{sentence}");
    }
}

#[cfg_attr(test, test)]
fn an_element_that_is_given_away_while_it_is_read_is_never_believed() {
    in_both_families!(recycled());
}
