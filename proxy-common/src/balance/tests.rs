//! One test per rule.

use std::collections::HashSet;
use std::vec::Vec;
use std::{format, vec};

use super::*;
use crate::fake::{FakeClient, FakeService, FakeTables, cluster_ip, vip};
use crate::socket::{TCP, UDP};

const BOTH_SETS: u16 = Backend::IN_CLUSTER_SET | Backend::IN_LOCAL_SET;

fn chosen(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::To(choice) => choice.backend,
        other => panic!("expected a backend, got {other:?}"),
    }
}

/// Every backend that `count` dials reach.
fn reached(tables: &FakeTables, client: &FakeClient, key: &FrontendKey, count: usize) -> HashSet<u32> {
    (0..count).map(|_| chosen(balance(tables, client, key))).collect()
}

#[test]
fn a_choice_names_the_backend_its_generation_and_what_was_dialled() {
    let mut tables = FakeTables::new();
    tables.serve(&cluster_ip(9, 2));
    tables.serve(&cluster_ip(1, 1));
    let expected = Choice {
        backend: 2,
        generation: 1,
        addr: Addr::v4([10, 1, 0, 2]),
        port: Be16::new(8080),
        kind: Frontend::KIND_CLUSTER_IP,
        flags: Backend::IN_CLUSTER_SET | Backend::SERVING,
        policies: Version::HAS_ANY,
    };
    assert_eq!(balance(&tables, &FakeClient::host(), &vip(1)), Verdict::To(expected));
}

#[test]
fn who_dials_is_not_asked_where_no_policy_depends_on_it() {
    for (flags, asked) in [(0, false), (Version::INTERNAL_LOCAL, true), (Version::EXTERNAL_LOCAL, true)] {
        let (mut tables, client) = (FakeTables::new(), FakeClient::pod());
        tables.serve(&FakeService { sets: vec![BOTH_SETS], flags, ..cluster_ip(1, 0) });
        balance(&tables, &client, &vip(1));
        assert_eq!(client.asked.get(), asked, "flags {flags}");
    }
}

#[test]
fn a_plain_service_port_is_served_without_a_version() {
    let mut tables = FakeTables::new();
    for (last, sets) in [(1, 2), (2, 0)] {
        tables.serve(&FakeService { flags: if sets == 0 { 0 } else { Version::HAS_ANY }, ..cluster_ip(last, sets) });
    }
    assert_eq!(tables.versions.len(), 1, "number 0 is none");
    assert_eq!(reached(&tables, &FakeClient::host(), &vip(1), 100), HashSet::from([0, 1]));
    assert_eq!(balance(&tables, &FakeClient::host(), &vip(2)), Verdict::Refuse(Reason::NoEndpoints));
}

#[test]
fn what_a_word_says_is_what_it_was_made_from() {
    let cluster = Range { start: u32::MAX - 1, len: (1 << 30) - 1 };
    for has_any in [false, true] {
        let version = Version::plain(7, cluster, has_any);
        assert_eq!(version.as_word().map(Word::of), Some(Word::Plain { cluster, has_any }));
    }
    assert_eq!([0, 1, u64::from(u32::MAX)].map(|word| Word::of(word).word()), [0, 1, u64::from(u32::MAX)]);
    let plain = Version::plain(7, Range { start: 2, len: 1 }, true);
    for more in [
        Version { local: Range { start: 3, len: 1 }, ..plain },
        Version { affinity_seconds: 1, ..plain },
        Version { flags: plain.flags | Version::INTERNAL_LOCAL, ..plain },
        Version { scheduler: 1, ..plain },
        Version { cluster: Range { start: 2, len: 1 << 30 }, ..plain },
    ] {
        assert_eq!(more.as_word(), None, "{more:?}");
    }
}

#[test]
fn the_counters_of_who_is_drawn_come_along() {
    let mut tables = FakeTables::new();
    tables.serve(&cluster_ip(1, 2));
    let drawn = chosen(balance(&tables, &FakeClient::host(), &vip(1)));
    assert_eq!(tables.fetched.take(), [drawn]);
}

#[test]
fn every_backend_of_a_set_is_drawn() {
    let mut tables = FakeTables::new();
    tables.serve(&cluster_ip(1, 5));
    assert_eq!(reached(&tables, &FakeClient::host(), &vip(1), 5).len(), 5);
}

#[test]
fn an_address_that_is_no_frontend_is_left_alone_or_refused_by_what_it_is() {
    let mut tables = FakeTables::new();
    let own = [10, 0, 0, 1];
    for (octets, flags) in [
        (own, address::OWN),
        ([172, 30, 0, 2], address::CLUSTER_IP),
        ([172, 30, 0, 3], address::CLUSTER_IP | address::OWN),
        ([10, 0, 0, 4], address::OWN | address::NODE_PORT),
        ([172, 30, 0, 5], address::CLUSTER_IP | address::NODE_PORT),
    ] {
        tables.know(Addr::v4(octets), flags);
    }
    tables.config.service_cidrs[1] = Cidr { addr: Addr::v4([172, 30, 0, 0]), prefix_len: 96 + 16 };
    tables.config.service_cidr_count = 2;
    for (sentence, octets, expected) in [
        ("an address of the node", own, Verdict::Leave),
        ("an undefined port of a ClusterIP", [172, 30, 0, 2], Verdict::Refuse(Reason::UndefinedPort)),
        ("a ClusterIP that the node owns", [172, 30, 0, 3], Verdict::Leave),
        ("a node-port address without that node port", [10, 0, 0, 4], Verdict::Leave),
        ("a ClusterIP that serves node ports", [172, 30, 0, 5], Verdict::Refuse(Reason::UndefinedPort)),
        (
            "an address in a ServiceCIDR that no Service has",
            [172, 30, 9, 9],
            Verdict::Unreachable(Reason::UnallocatedAddress),
        ),
        ("an address outside of every ServiceCIDR", [172, 31, 0, 1], Verdict::Leave),
    ] {
        let key = FrontendKey { addr: Addr::v4(octets), ..vip(0) };
        // The first, unused ServiceCIDR is ::/0: only the count tells that it counts.
        tables.config.service_cidrs.swap(0, 1);
        tables.config.service_cidr_count = 1;
        assert_eq!(balance(&tables, &FakeClient::host(), &key), expected, "{sentence}");
        tables.config.service_cidrs.swap(0, 1);
    }
}

#[test]
fn an_absent_address_is_not_looked_up_and_refused_where_only_services_may_be() {
    let mut tables = FakeTables::new();
    tables.serve(&cluster_ip(1, 1));
    tables.know(vip(1).addr, address::CLUSTER_IP);
    tables.absent = vec![vip(1).addr];
    assert_eq!(balance(&tables, &FakeClient::host(), &vip(1)), Verdict::Leave);
    tables.config.service_cidrs[0] = Cidr { addr: vip(0).addr, prefix_len: 96 + 24 };
    tables.config.service_cidr_count = 1;
    let unallocated = Verdict::Unreachable(Reason::UnallocatedAddress);
    assert_eq!(balance(&tables, &FakeClient::host(), &vip(1)), unallocated);
}

#[test]
fn a_cidr_holds_what_starts_with_its_prefix() {
    let v6 = |text: &str| Addr::from(text.parse::<core::net::IpAddr>().unwrap());
    for (net, prefix_len, addr, inside) in [
        ("::", 0, "ffff::", true),
        ("10.96.0.0", 96 + 12, "10.111.255.255", true),
        ("10.96.0.0", 96 + 12, "10.112.0.0", false),
        ("10.96.0.7", 96 + 32, "10.96.0.7", true),
        ("10.96.0.7", 96 + 32, "10.96.0.6", false),
        ("fd30::", 64, "fd30::1:2:3:4", true),
        ("fd30::", 64, "fd30:0:0:1::", false),
        ("fd30::", 7, "fc00::", true),
        ("fd30::1:0", 112, "fd30::1:ffff", true),
        ("fd30::1:0", 112, "fd30::2:0", false),
        ("fd30::1", 128, "fd30::1", true),
    ] {
        let cidr = Cidr { addr: v6(net), prefix_len };
        assert_eq!(cidr.contains(&v6(addr)), inside, "{addr} in {net}/{prefix_len}");
    }
}

/// A service with a node port 30080 of both families, besides its ClusterIP.
fn with_node_port(flags: u32, sets: Vec<u16>) -> FakeService {
    let v4 = FrontendKey { addr: Addr::UNSPECIFIED_V4, port: Be16::new(30080), proto: TCP, pad: 0 };
    let v6 = FrontendKey { addr: Addr::UNSPECIFIED_V6, ..v4 };
    let mut service = FakeService { sets, flags, ..cluster_ip(1, 0) };
    service.frontends.extend([(v4, Frontend::KIND_NODE_PORT), (v6, Frontend::KIND_NODE_PORT)]);
    service
}

fn node_port(octets: [u8; 4]) -> FrontendKey {
    FrontendKey { addr: Addr::v4(octets), port: Be16::new(30080), proto: TCP, pad: 0 }
}

#[test]
fn node_ports_are_served_on_their_addresses_and_loopback_only_to_the_node_itself() {
    let mut tables = FakeTables::new();
    tables.serve(&with_node_port(Version::HAS_ANY, vec![Backend::IN_CLUSTER_SET]));
    tables.know(Addr::v4([10, 0, 0, 1]), address::OWN | address::NODE_PORT);
    tables.know(Addr::v4([10, 0, 0, 2]), address::OWN);
    tables.know(Addr::v4([127, 0, 0, 1]), address::OWN | address::NODE_PORT | address::LOOPBACK);
    let (host, pod) = (FakeClient::host(), FakeClient::pod());
    for (sentence, client, octets, served) in [
        ("the host on a node-port address", &host, [10, 0, 0, 1], true),
        ("a pod on a node-port address", &pod, [10, 0, 0, 1], true),
        ("the host on another own address", &host, [10, 0, 0, 2], false),
        ("the host on its loopback", &host, [127, 0, 0, 1], true),
        ("a pod on its own loopback", &pod, [127, 0, 0, 1], false),
        ("the host on a foreign address", &host, [192, 0, 2, 1], false),
    ] {
        let verdict = balance(&tables, client, &node_port(octets));
        assert_eq!(matches!(verdict, Verdict::To(_)), served, "{sentence}: {verdict:?}");
    }
    for any in [Addr::UNSPECIFIED_V4, Addr::UNSPECIFIED_V6] {
        let key = FrontendKey { addr: any, ..node_port([0; 4]) };
        assert_eq!(balance(&tables, &host, &key), Verdict::Leave, "the host on {any:?}, the key of node ports itself");
    }
    let other_proto = FrontendKey { proto: UDP, ..node_port([10, 0, 0, 1]) };
    assert_eq!(balance(&tables, &host, &other_proto), Verdict::Leave);
}

#[test]
fn an_exact_frontend_beats_a_node_port() {
    let mut tables = FakeTables::new();
    tables.serve(&with_node_port(Version::HAS_ANY, vec![Backend::IN_CLUSTER_SET]));
    let exact =
        FakeService { frontends: vec![(node_port([10, 0, 0, 1]), Frontend::KIND_EXTERNAL_IP)], ..cluster_ip(2, 1) };
    let (_, ids) = tables.serve(&exact);
    tables.know(Addr::v4([10, 0, 0, 1]), address::OWN | address::NODE_PORT);
    assert_eq!(chosen(balance(&tables, &FakeClient::host(), &node_port([10, 0, 0, 1]))), ids[0]);
}

/// A service whose first backend is local and whose second is not, with a frontend of every kind.
fn local_and_cluster(flags: u32) -> FakeService {
    let kinds =
        [Frontend::KIND_CLUSTER_IP, Frontend::KIND_NODE_PORT, Frontend::KIND_EXTERNAL_IP, Frontend::KIND_LOAD_BALANCER];
    let frontends = kinds.iter().map(|kind| (vip(*kind as u8), *kind)).collect();
    FakeService { frontends, sets: vec![Backend::IN_LOCAL_SET, Backend::IN_CLUSTER_SET], flags, affinity_seconds: 0 }
}

#[test]
fn policies_choose_the_set_by_frontend_and_client() {
    const LOCAL: u32 = 0;
    const CLUSTER: u32 = 1;
    let (internal, external) = (Version::INTERNAL_LOCAL, Version::EXTERNAL_LOCAL);
    let (host, pod) = (FakeClient::host(), FakeClient::pod());
    for (sentence, client, flags, detector, cluster_ip, others) in [
        ("the host, default policies", &host, 0, 0, CLUSTER, CLUSTER),
        ("the host, iTP Local", &host, internal, 0, LOCAL, CLUSTER),
        ("the host, eTP Local", &host, external, 0, CLUSTER, CLUSTER),
        ("a pod, default policies", &pod, 0, 0, CLUSTER, CLUSTER),
        ("a pod, iTP Local", &pod, internal, 0, LOCAL, CLUSTER),
        ("a pod, eTP Local, no detector", &pod, external, 0, CLUSTER, LOCAL),
        ("a pod, eTP Local, a detector", &pod, external, Config::DETECTOR_V4, CLUSTER, CLUSTER),
        ("a pod, eTP Local, a detector for IPv6 only", &pod, external, Config::DETECTOR_V6, CLUSTER, LOCAL),
    ] {
        let mut tables = FakeTables::new();
        tables.config.flags = detector;
        tables.serve(&local_and_cluster(flags));
        for kind in 1..=4 {
            let expected = if kind == Frontend::KIND_CLUSTER_IP { cluster_ip } else { others };
            let verdict = balance(&tables, client, &vip(kind as u8));
            assert_eq!(chosen(verdict), expected, "{sentence}, kind {kind}");
        }
    }
}

#[test]
fn an_empty_set_is_refused_when_nobody_serves_and_unreachable_when_only_this_node_does_not() {
    let (pod, kind) = (FakeClient::pod(), Frontend::KIND_LOAD_BALANCER as u8);
    for (sentence, flags, expected) in [
        ("no endpoint anywhere", 0, Verdict::Refuse(Reason::NoEndpoints)),
        ("no endpoint anywhere, eTP Local", Version::EXTERNAL_LOCAL, Verdict::Refuse(Reason::NoEndpoints)),
        (
            "an endpoint elsewhere, eTP Local",
            Version::EXTERNAL_LOCAL | Version::HAS_ANY,
            Verdict::Unreachable(Reason::NoLocalEndpoints),
        ),
    ] {
        let mut tables = FakeTables::new();
        tables.serve(&FakeService { sets: vec![], ..local_and_cluster(flags) });
        assert_eq!(balance(&tables, &pod, &vip(kind)), expected, "{sentence}");
    }
}

#[test]
fn a_service_without_a_version_is_refused() {
    let mut tables = FakeTables::new();
    let (service, _) = tables.serve(&cluster_ip(1, 1));
    tables.services[service as usize] = 0;
    assert_eq!(balance(&tables, &FakeClient::host(), &vip(1)), Verdict::Refuse(Reason::NoEndpoints));
}

#[test]
fn source_ranges_restrict_load_balancer_addresses_before_everything_else() {
    let ranges = Version::SOURCE_RANGES;
    let inside = Addr::v4([192, 0, 2, 1]);
    let unbound = FakeClient::host();
    let bound = |source| FakeClient { source: Some(source), ..FakeClient::host() };
    let allowed = "a backend";
    for (sentence, client, flags, kind, expected) in [
        ("the host, unbound, node not in range", unbound, ranges, 4, "SourceNotAllowed"),
        ("the host, unbound, node in range", FakeClient::host(), ranges | Version::SOURCE_NODE_ALLOWED, 4, allowed),
        ("the host, bound inside", bound(inside), ranges, 4, allowed),
        (
            "the host, bound outside",
            bound(Addr::v4([192, 0, 2, 2])),
            ranges | Version::SOURCE_NODE_ALLOWED,
            4,
            "SourceNotAllowed",
        ),
        ("a pod", FakeClient::pod(), ranges | Version::SOURCE_NODE_ALLOWED, 4, "SourceUnknown"),
        ("a pod, no ranges", FakeClient::pod(), 0, 4, allowed),
        ("a pod, ClusterIP", FakeClient::pod(), ranges, 1, allowed),
        ("a pod, node port", FakeClient::pod(), ranges, 2, allowed),
        ("a pod, external IP", FakeClient::pod(), ranges, 3, allowed),
    ] {
        let mut tables = FakeTables::new();
        let (service, _) = tables.serve(&local_and_cluster(flags | Version::HAS_ANY));
        tables.allowed.push((service, inside));
        let verdict = match balance(&tables, &client, &vip(kind)) {
            Verdict::To(_) => allowed.into(),
            Verdict::Refuse(reason @ Reason::SourceUnknown) | Verdict::Unreachable(reason) => format!("{reason:?}"),
            other => format!("{other:?}"),
        };
        assert_eq!(verdict, expected, "{sentence}");
    }
}

#[test]
fn a_pod_that_its_device_can_judge_by_its_address_is_left_to_that() {
    let mut tables = FakeTables::new();
    tables.serve(&local_and_cluster(Version::SOURCE_RANGES | Version::HAS_ANY));
    tables.config.flags |= Config::PODS_AT_DEVICES;
    assert_eq!(balance(&tables, &FakeClient::pod(), &vip(4)), Verdict::Leave);
    assert!(matches!(balance(&tables, &FakeClient::pod(), &vip(1)), Verdict::To(_)), "its ClusterIP has no ranges");
}

#[test]
fn source_ranges_are_asked_before_a_lack_of_endpoints_is_told() {
    let mut tables = FakeTables::new();
    tables.serve(&FakeService { sets: vec![], ..local_and_cluster(Version::SOURCE_RANGES) });
    let expected = Verdict::Unreachable(Reason::SourceNotAllowed);
    assert_eq!(balance(&tables, &FakeClient::host(), &vip(4)), expected);
}

#[test]
fn affinity_keeps_a_client_on_its_backend_and_each_new_flow_restarts_the_timer() {
    let mut tables = FakeTables::new();
    tables.serve(&FakeService { affinity_seconds: 10, ..cluster_ip(1, 3) });
    let client = FakeClient::host();
    let first = chosen(balance(&tables, &client, &vip(1)));
    for _ in 0..5 {
        client.pass(9);
        assert_eq!(chosen(balance(&tables, &client, &vip(1))), first);
    }
    client.pass(10);
    assert_eq!(client.random.get(), 1, "one draw until now");
    balance(&tables, &client, &vip(1));
    assert_eq!(client.random.get(), 2, "the record expired");
}

#[test]
fn affinity_is_of_one_namespace_and_one_service_port() {
    let mut tables = FakeTables::new();
    tables.serve(&FakeService { affinity_seconds: 10, ..cluster_ip(1, 3) });
    tables.serve(&FakeService { affinity_seconds: 10, ..cluster_ip(2, 3) });
    for (client, key) in [(FakeClient::host(), vip(1)), (FakeClient::pod(), vip(1)), (FakeClient::host(), vip(2))] {
        assert_eq!(reached(&tables, &client, &key, 5).len(), 1);
    }
    assert_eq!(tables.affinity.borrow().len(), 3);
}

#[test]
fn an_affinity_record_counts_only_while_its_backend_is_a_member_of_the_set_asked_for() {
    for (sentence, change) in [
        ("the backend left the set", (|b| b.flags = Backend::SERVING) as fn(&mut Backend)),
        ("the backend is in the other set only", |b| b.flags = Backend::IN_LOCAL_SET),
        ("the id was given away within the service", |b| b.generation += 1),
        ("the id was given away", |b| b.service += 1),
        ("the id was freed", |b| (b.generation, b.flags) = (0, 0)),
    ] {
        let mut tables = FakeTables::new();
        tables.serve(&FakeService { affinity_seconds: 10, ..cluster_ip(1, 2) });
        let client = FakeClient::host();
        let first = chosen(balance(&tables, &client, &vip(1)));
        change(&mut tables.backends[first as usize]);
        assert_ne!(chosen(balance(&tables, &client, &vip(1))), first, "{sentence}");
    }
}

#[test]
fn affinity_serves_both_policies_from_one_record_where_the_backend_is_in_both_sets() {
    let mut tables = FakeTables::new();
    let service =
        FakeService { affinity_seconds: 10, sets: vec![BOTH_SETS; 3], ..local_and_cluster(Version::EXTERNAL_LOCAL) };
    tables.serve(&service);
    let pod = FakeClient::pod();
    let first = chosen(balance(&tables, &pod, &vip(1)));
    assert_eq!(chosen(balance(&tables, &pod, &vip(4))), first);
}

#[test]
fn a_backend_freed_while_it_is_drawn_is_still_the_old_choice_and_nothing_remembers_it() {
    let mut tables = FakeTables::new();
    let (_, ids) = tables.serve(&FakeService { affinity_seconds: 60, ..cluster_ip(1, 2) });
    tables.versions[1].cluster.len = 1;
    tables.backends[ids[0] as usize] = Backend { generation: 0, flags: 0, ..tables.backends[ids[0] as usize] };
    assert_eq!(chosen(balance(&tables, &FakeClient::host(), &vip(1))), ids[0]);
    tables.slots[0] = ids[1];
    assert_eq!(chosen(balance(&tables, &FakeClient::host(), &vip(1))), ids[1]);
}

#[test]
fn tables_that_contradict_each_other_for_good_are_refused() {
    for (sentence, spoil) in [
        (
            "the version is of another service",
            (|t| {
                t.versions.push(Version::plain(9, Range { start: 0, len: 1 }, true));
                t.services[0] = Word::Version(1).word();
            }) as fn(&mut FakeTables),
        ),
        ("the version does not exist", |t| t.services[0] = 99),
        ("the slot does not exist", |t| t.slots.clear()),
        ("the backend does not exist", |t| t.slots[0] = 99),
        ("the backend is of another service", |t| t.backends[0].service = 9),
    ] {
        let mut tables = FakeTables::new();
        tables.serve(&cluster_ip(1, 1));
        spoil(&mut tables);
        let verdict = balance(&tables, &FakeClient::host(), &vip(1));
        assert_eq!(verdict, Verdict::Refuse(Reason::TablesChanging), "{sentence}");
    }
}
