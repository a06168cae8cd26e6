//! What addresses mean (specification B7, F3, section I) and what CONFIG says.

use std::net::IpAddr;

use proxy_common::abi::{Cidr, Config, PacketSettings, PortRange, TcpTimeouts, address};

use super::*;
use crate::desired::{Detector, NodePortAddresses, Packets, node};
use crate::model::build;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Own addresses of a host with two devices.
fn host() -> ThisNode {
    let own = ips(&["127.0.0.1", "::1", "192.0.2.1", "198.51.100.1", "2001:db8::1", "fe80::1"]);
    ThisNode { own_addresses: own, ..this() }
}

fn with_flag(this: &ThisNode, changes: impl IntoIterator<Item = Change>, flag: u32) -> String {
    let wanted = node(&model(changes), this);
    let found = wanted.addresses.iter().filter(|(_, flags)| flags & flag != 0);
    found.map(|(addr, _)| addr.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn node_ports_are_served_on_the_addresses_that_were_asked_for() {
    use NodePortAddresses::{All, Primary, Within};
    let within = |ranges: &[&str], other_family_is_all| Within {
        ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        other_family_is_all,
    };
    let all_v6 = "2001:db8::1 fe80::1";
    let all_v4 = "192.0.2.1 198.51.100.1";
    for (sentence, selection, expected) in [
        ("primary: the first address of each family", Primary, "192.0.2.1 2001:db8::1".into()),
        ("all: every address but loopback", All, format!("{all_v4} {all_v6}")),
        ("a range: the addresses inside", within(&["198.51.100.0/24"], false), "198.51.100.1".into()),
        (
            "a range of one family, the other one as kube-proxy has it",
            within(&["198.51.100.0/24"], true),
            format!("198.51.100.1 {all_v6}"),
        ),
        ("a range without any address", within(&["203.0.113.0/24"], false), String::new()),
        ("/0: all of the family", within(&["0.0.0.0/0"], false), all_v4.into()),
        ("loopback ranges serve nothing", within(&["127.0.0.0/8", "::1/128"], false), String::new()),
    ] {
        let this = ThisNode { node_port_addresses: selection, ..host() };
        let object = build::node(HERE).external_ip("198.51.100.1").internal_ip("192.0.2.1").internal_ip("2001:db8::1");
        assert_eq!(with_flag(&this, [object.apply()], address::NODE_PORT), expected, "{sentence}");
    }
}

#[test]
fn the_primary_address_is_found_in_order() {
    let both = || build::node(HERE).external_ip("198.51.100.1").internal_ip("192.0.2.1");
    let bound = |ip: &str| ThisNode { bind_address: Some(ip.parse().unwrap()), ..host() };
    for (sentence, this, object, expected) in [
        ("InternalIP before ExternalIP", host(), both(), "192.0.2.1"),
        ("ExternalIP when there is no other", host(), build::node(HERE).external_ip("198.51.100.1"), "198.51.100.1"),
        ("a bind address replaces it", bound("198.51.100.1"), both(), "198.51.100.1"),
        ("a bind address adds its family", bound("2001:db8::1"), both(), "192.0.2.1 2001:db8::1"),
        ("an unspecified bind address says nothing", bound("0.0.0.0"), both(), "192.0.2.1"),
        (
            "an address that the host does not own serves nothing",
            host(),
            build::node(HERE).internal_ip("192.0.2.9"),
            "",
        ),
        ("another node's object does not count", host(), build::node(ELSEWHERE).internal_ip("192.0.2.1"), ""),
        (
            "without a Node the fallback counts",
            ThisNode { fallback_addresses: ips(&["198.51.100.1"]), ..host() },
            build::node(HERE),
            "198.51.100.1",
        ),
    ] {
        assert_eq!(with_flag(&this, [object.apply()], address::NODE_PORT), expected, "{sentence}");
    }
}

#[test]
fn loopback_serves_node_ports_only_when_asked_to_and_only_in_ipv4() {
    assert_eq!(with_flag(&host(), [], address::LOOPBACK | address::NODE_PORT), "::1 127.0.0.1");
    assert_eq!(with_flag(&host(), [], address::NODE_PORT), "");
    let asked = ThisNode { loopback_node_ports: true, ..host() };
    assert_eq!(with_flag(&asked, [], address::NODE_PORT), "127.0.0.1");
    let flags = node(&Model::default(), &asked).addresses;
    assert!(flags.contains(&(addr("127.0.0.1"), address::OWN | address::NODE_PORT | address::LOOPBACK)), "{flags:?}");
}

#[test]
fn every_cluster_ip_is_known_unless_the_node_owns_it() {
    let changes =
        || [web().cluster_ip("fd00:96::10").apply(), build::service("a/b").cluster_ip("192.0.2.1").port(1).apply()];
    assert_eq!(with_flag(&host(), changes(), address::CLUSTER_IP), "10.96.0.10 fd00:96::10");
    let own = node(&model(changes()), &host()).addresses;
    assert!(own.contains(&(addr("192.0.2.1"), address::OWN)), "{own:?}");
}

#[test]
fn addresses_are_sorted_and_each_is_there_once() {
    let twice = ThisNode { own_addresses: ips(&["192.0.2.1", "192.0.2.1", "10.0.0.1"]), ..this() };
    let addresses: Vec<_> =
        node(&model([web().apply()]), &twice).addresses.iter().map(|(addr, _)| addr.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.96.0.10", "192.0.2.1"]);
}

fn packets() -> Packets {
    let ports = PortRange { first: 61_000, count: 1000 };
    Packets {
        pods: true,
        masquerade_all: true,
        answer_echo: true,
        fast_path: true,
        tcp: TcpTimeouts::default(),
        ports,
        seed: 7,
    }
}

#[test]
fn external_addresses_are_known_where_packets_ask_for_them_unless_the_node_owns_them() {
    let service = build::service("shop/web").cluster_ip("10.96.0.1").port(80);
    let service = service.external_ip("203.0.113.1").external_ip("192.0.2.1").load_balancer_ip("203.0.113.2");
    let with = ThisNode { packets: Some(packets()), ..host() };
    assert_eq!(with_flag(&with, [service.apply()], address::EXTERNAL), "203.0.113.1 203.0.113.2");
    assert_eq!(with_flag(&host(), [service.apply()], address::EXTERNAL), "");
    assert_eq!(with_flag(&with, [service.apply(), service.delete()], address::EXTERNAL), "");
}

#[test]
fn packets_are_told_how_to_tell_pods_from_others() {
    let told = |detector| {
        let this = ThisNode { packets: Some(packets()), detector, ..host() };
        let object = build::node(HERE).pod_cidr("10.244.1.0/24").pod_cidr("10.244.2.0/24");
        let PacketSettings { pods, flags, .. } = node(&model([object.apply()]), &this).packets.unwrap();
        (pods.map(|range| range.to_string()), flags)
    };
    let range = |text: &str| text.parse().unwrap();
    let none = Cidr::default().to_string();
    let all = PacketSettings::MASQUERADE_ALL | PacketSettings::ANSWER_ECHO | PacketSettings::FAST_PATH;
    for (detector, v4, v6, flags) in [
        (Detector::NodeCidr, "10.244.1.0/24", &*none, all),
        (Detector::ClusterCidr(vec![range("fd00::/48"), range("10.0.0.0/8")]), "10.0.0.0/8", "fd00::/48", all),
        (Detector::BridgeInterface("cni0".to_owned()), &*none, &*none, all | PacketSettings::PODS_BY_DEVICE),
    ] {
        assert_eq!(told(detector.clone()), ([v4.to_owned(), v6.to_owned()], flags), "{detector:?}");
    }
    assert_eq!(node(&model([]), &host()).packets, None);
}

#[test]
fn a_detector_exists_for_the_families_that_it_knows() {
    let cidrs = |texts: &[&str]| Detector::ClusterCidr(texts.iter().map(|text| text.parse().unwrap()).collect());
    let both = Config::DETECTOR_V4 | Config::DETECTOR_V6;
    let plain = build::node(HERE);
    let with_pods = build::node(HERE).pod_cidr("10.1.1.0/24");
    for (sentence, detector, node_object, expected) in [
        ("ClusterCIDR without a range", cidrs(&[]), &plain, 0),
        ("ClusterCIDR of IPv4", cidrs(&["10.1.0.0/16"]), &plain, Config::DETECTOR_V4),
        ("ClusterCIDR of both", cidrs(&["fd00::/48", "10.1.0.0/16"]), &plain, both),
        ("NodeCIDR before the node has one", Detector::NodeCidr, &plain, 0),
        ("NodeCIDR of IPv4", Detector::NodeCidr, &with_pods, Config::DETECTOR_V4),
        ("BridgeInterface", Detector::BridgeInterface("cni0".into()), &plain, both),
        ("InterfaceNamePrefix", Detector::InterfaceNamePrefix("veth".into()), &plain, both),
    ] {
        let this = ThisNode { detector, ..this() };
        assert_eq!(node(&model([node_object.apply()]), &this).config.flags, expected, "{sentence}");
    }
}

#[test]
fn service_cidrs_are_merged_and_follow_their_objects() {
    let cidrs = |model: &Model| {
        let config = node(model, &this()).config;
        let used = &config.service_cidrs[..config.service_cidr_count as usize];
        used.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let first = build::service_cidr("kubernetes").cidr("10.96.0.0/16").cidr("fd00:96::/108");
    let second = build::service_cidr("more").cidr("10.96.1.0/24").cidr("10.97.0.0/16");
    let mut model = model([first.apply(), second.apply()]);
    assert_eq!(cidrs(&model), "10.96.0.0/15 fd00:96::/108");
    model.take_dirty();
    model.apply(second.delete());
    assert!(model.take_dirty().node);
    assert_eq!(cidrs(&model), "10.96.0.0/16 fd00:96::/108");
}

#[test]
fn udp_timeouts_are_those_of_the_kernel_unless_told_otherwise() {
    let config = node(&Model::default(), &this()).config;
    assert_eq!((config.udp_timeout, config.udp_stream_timeout), (30, 120));
}
