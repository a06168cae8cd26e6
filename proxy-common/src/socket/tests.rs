//! Flows of one socket, from dial to release.

use std::vec::Vec;

use super::*;
use crate::fake::{FakeClient, FakeSocket, FakeTables, cluster_ip, vip};
use crate::policy::Steered;

/// A UDP frontend of [`world`].
fn udp(last: u8) -> FrontendKey {
    FrontendKey { proto: UDP, ..vip(last) }
}

/// TCP and UDP services 1 to 40, one backend each.
fn world() -> FakeTables {
    let mut tables = FakeTables::new();
    for last in 1..=40 {
        for proto in [TCP, UDP] {
            let mut service = cluster_ip(last, 1);
            service.frontends[0].0.proto = proto;
            tables.serve(&service);
        }
    }
    tables
}

fn sent(steering: Steering) -> (Addr, Be16) {
    match steering {
        Steering::To(addr, port) => (addr, port),
        other => panic!("expected a backend, got {other:?}"),
    }
}

fn both_kinds() -> [(&'static str, FakeSocket); 2] {
    [("in its slot", FakeSocket::new()), ("beside a taken slot", FakeSocket::displaced())]
}

#[test]
fn the_peer_of_a_connection_is_what_was_dialled() {
    for (place, mut socket) in both_kinds() {
        let (tables, client) = (world(), FakeClient::host());
        let (addr, port) = sent(connect(&tables, &client, &mut socket, &vip(1)));
        assert_eq!(peer(&mut socket, addr, port), Some((vip(1).addr, vip(1).port)), "{place}");
        assert_eq!(peer(&mut socket, addr, Be16::new(1)), None, "another port, {place}");
        assert_eq!(peer(&mut socket, Addr::v4([192, 0, 2, 1]), port), None, "another address, {place}");
    }
}

#[test]
fn who_is_not_steered_is_left_alone_also_with_flows_from_before() {
    let (tables, mut socket) = (world(), FakeSocket::new());
    sent(send(&tables, &FakeClient::pod(), &mut socket, &udp(1)));
    for (steered, host, pod) in
        [(Steered::Everybody, true, true), (Steered::TheNode, true, false), (Steered::Nobody, false, false)]
    {
        for (client, is_steered) in [(FakeClient::host(), host), (FakeClient::pod(), pod)] {
            let client = FakeClient { steered, ..client };
            for steering in
                [connect(&tables, &client, &mut socket, &vip(2)), send(&tables, &client, &mut socket, &udp(1))]
            {
                assert_eq!(steering != Steering::Leave, is_steered, "{steered:?}: {steering:?}");
            }
        }
    }
}

#[test]
fn a_datagram_flow_is_no_peer() {
    for (place, mut socket) in both_kinds() {
        let (tables, client) = (world(), FakeClient::host());
        let (addr, port) = sent(send(&tables, &client, &mut socket, &udp(1)));
        assert_eq!(peer(&mut socket, addr, port), None, "{place}");
    }
}

#[test]
fn every_answer_comes_from_the_frontend_that_was_asked() {
    for (place, mut socket) in both_kinds() {
        let (tables, client) = (world(), FakeClient::host());
        let backends: Vec<_> =
            (1..=FLOWS_MORE as u8).map(|last| (last, sent(send(&tables, &client, &mut socket, &udp(last))))).collect();
        for (last, (addr, port)) in backends {
            let from = receive(&tables, &client, &mut socket, addr, port);
            assert_eq!(from, Some((udp(last).addr, udp(last).port)), "{last}, {place}");
        }
        assert_eq!(receive(&tables, &client, &mut socket, Addr::v4([192, 0, 2, 1]), Be16::new(8080)), None);
    }
}

#[test]
fn the_oldest_flow_makes_room_and_is_counted() {
    let (tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    let backends: Vec<_> =
        (1..=FLOWS_MORE as u8 + 2).map(|last| sent(send(&tables, &client, &mut socket, &udp(last)))).collect();
    assert_eq!(socket.counted(Reason::SocketFlowEvicted), 1);
    for (i, (addr, port)) in backends.into_iter().enumerate() {
        // The first is in the slot; the second was the oldest beside it.
        let known = receive(&tables, &client, &mut socket, addr, port).is_some();
        assert_eq!(known, i != 1, "flow {i}");
    }
}

#[test]
fn datagrams_follow_their_flow_while_the_backend_serves_and_the_flow_is_young() {
    type Change = fn(&mut FakeTables, &FakeClient);
    for (sentence, replied, change, follows) in [
        ("nothing changed", false, (|_, _| {}) as Change, true),
        ("29 s without replies", false, |_, client| client.pass(29), true),
        ("30 s without replies", false, |_, client| client.pass(30), false),
        ("30 s with replies", true, |_, client| client.pass(30), true),
        ("120 s with replies", true, |_, client| client.pass(120), false),
        ("not ready but serving", false, |tables, _| tables.backends[1].flags = Backend::SERVING, true),
        ("in a set only", false, |tables, _| tables.backends[1].flags = Backend::IN_LOCAL_SET, true),
        ("not serving", false, |tables, _| tables.backends[1].flags = Backend::TERMINATING, false),
        ("the id was given away", false, |tables, _| tables.backends[1].generation += 1, false),
    ] {
        for (place, mut socket) in both_kinds() {
            let (mut tables, client) = (world(), FakeClient::host());
            let (addr, port) = sent(send(&tables, &client, &mut socket, &udp(1)));
            if replied {
                receive(&tables, &client, &mut socket, addr, port);
            }
            change(&mut tables, &client);
            send(&tables, &client, &mut socket, &udp(1));
            assert_eq!(socket.counted(Reason::FollowedFlow) == 1, follows, "{sentence}, {place}");
            assert_eq!(socket.counted(Reason::Translated), 2 - u32::from(follows), "{sentence}, {place}");
        }
    }
}

#[test]
fn a_tcp_connect_never_follows_an_earlier_one() {
    let (tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    for _ in 0..2 {
        connect(&tables, &client, &mut socket, &vip(1));
    }
    assert_eq!(socket.counted(Reason::Translated), 2);
    assert_eq!(socket.stats(0), (2, 1));
}

#[test]
fn a_udp_connect_continues_the_flow_of_the_socket() {
    let (tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    let (addr, port) = sent(send(&tables, &client, &mut socket, &udp(1)));
    connect(&tables, &client, &mut socket, &udp(1));
    assert_eq!(socket.counted(Reason::FollowedFlow), 1);
    assert_eq!(peer(&mut socket, addr, port), Some((udp(1).addr, udp(1).port)));
    assert_eq!(socket.stats(1), (1, 1));
}

#[test]
fn a_connect_to_something_else_forgets_the_peer() {
    for (place, mut socket) in both_kinds() {
        let (tables, client) = (world(), FakeClient::host());
        let (addr, port) = sent(connect(&tables, &client, &mut socket, &udp(1)));
        let direct = FrontendKey { addr, port, ..udp(1) };
        assert_eq!(connect(&tables, &client, &mut socket, &direct), Steering::Leave);
        assert_eq!(peer(&mut socket, addr, port), None, "{place}");
        assert_eq!(socket.stats(1).1, 0, "{place}");
    }
}

#[test]
fn a_connect_to_another_frontend_has_that_as_its_peer() {
    for (place, mut socket) in both_kinds() {
        let (mut tables, client) = (world(), FakeClient::host());
        // Both frontends have the same backend: only the flow tells them apart.
        tables.backends[3].addr = tables.backends[1].addr;
        connect(&tables, &client, &mut socket, &udp(1));
        let (addr, port) = sent(connect(&tables, &client, &mut socket, &udp(2)));
        assert_eq!(peer(&mut socket, addr, port), Some((udp(2).addr, udp(2).port)), "{place}");
    }
}

#[test]
fn datagrams_elsewhere_do_not_touch_the_peer() {
    for (place, mut socket) in both_kinds() {
        let (mut tables, client) = (world(), FakeClient::host());
        let (addr, port) = sent(connect(&tables, &client, &mut socket, &udp(1)));
        tables.backends[1].flags = 0;
        for last in 1..=40 {
            send(&tables, &client, &mut socket, &udp(last));
        }
        assert_eq!(peer(&mut socket, addr, port), Some((udp(1).addr, udp(1).port)), "{place}");
    }
}

#[test]
fn a_refused_dial_changes_nothing() {
    let (mut tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    let (addr, port) = sent(connect(&tables, &client, &mut socket, &udp(1)));
    tables.services[3] = 0;
    assert_eq!(connect(&tables, &client, &mut socket, &udp(2)), Steering::Refuse);
    assert_eq!(socket.counted(Reason::NoEndpoints), 1);
    assert_eq!(peer(&mut socket, addr, port), Some((udp(1).addr, udp(1).port)));
}

#[test]
fn a_flow_that_cannot_be_stored_is_refused() {
    let (tables, client) = (world(), FakeClient::host());
    let mut socket = FakeSocket { memory: false, ..FakeSocket::displaced() };
    assert_eq!(connect(&tables, &client, &mut socket, &vip(1)), Steering::Refuse);
    assert_eq!(socket.counted(Reason::SocketTableFull), 1);
    assert_eq!(socket.stats(0), (0, 0));
}

#[test]
fn release_frees_the_slot_and_counts_it_closed() {
    let (tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    connect(&tables, &client, &mut socket, &vip(1));
    assert_eq!(socket.stats(0), (1, 1));
    release(&tables, &mut socket);
    assert_eq!((socket.slot.cookie, socket.stats(0)), (0, (1, 0)));
}

#[test]
fn release_counts_for_nobody_when_the_backend_id_was_given_away() {
    let (mut tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    connect(&tables, &client, &mut socket, &vip(1));
    tables.backends[0].generation += 1;
    release(&tables, &mut socket);
    assert_eq!((socket.slot.cookie, socket.stats(0)), (0, (1, 1)));
}

#[test]
fn the_slot_of_another_socket_is_never_touched() {
    let (tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::displaced());
    let before = socket.slot;
    connect(&tables, &client, &mut socket, &vip(1));
    send(&tables, &client, &mut socket, &udp(1));
    release(&tables, &mut socket);
    assert_eq!(socket.slot, before);
}

#[test]
fn a_record_of_another_abi_is_not_understood() {
    let (tables, client, mut socket) = (world(), FakeClient::host(), FakeSocket::new());
    let (addr, port) = sent(connect(&tables, &client, &mut socket, &vip(1)));
    socket.slot.abi += 1;
    assert_eq!(peer(&mut socket, addr, port), None);
    assert_ne!(socket.slot, NO_FLOW);
}
