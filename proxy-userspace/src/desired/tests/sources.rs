//! loadBalancerSourceRanges (specification B9), row by row.

use proxy_common::abi::Version;

use super::*;
use crate::model::build::node;

const RESTRICTED: u32 = Version::SOURCE_RANGES;
const NODE_ALLOWED: u32 = Version::SOURCE_RANGES | Version::SOURCE_NODE_ALLOWED;

#[test]
fn source_ranges_restrict_their_family() {
    let exposed = || web().load_balancer_ip("203.0.113.2");
    for (sentence, service, ranges, flags) in [
        ("unset: everybody may", exposed(), "", 0),
        ("one range", exposed().source_range("198.51.100.0/24"), "198.51.100.0/24", RESTRICTED),
        (
            "blanks around it and bits behind it",
            exposed().source_range(" 198.51.100.7/24 "),
            "198.51.100.0/24",
            RESTRICTED,
        ),
        ("a /0 among them: everybody may", exposed().source_range("198.51.100.0/24").source_range("0.0.0.0/0"), "", 0),
        (
            "two halves are no /0 for kube-proxy, but hold everybody",
            exposed().source_range("0.0.0.0/1").source_range("128.0.0.0/1"),
            "0.0.0.0/1 128.0.0.0/1 203.0.113.2/32",
            NODE_ALLOWED,
        ),
        ("only the other family listed: this one is free", exposed().source_range("2001:db8::/32"), "", 0),
        ("deny all in practice", exposed().source_range("255.0.0.0/32"), "255.0.0.0/32", RESTRICTED),
        (
            "the node's own address inside: hosts that hold the address may use it as source",
            exposed().source_range("192.0.2.0/24"),
            "192.0.2.0/24 203.0.113.2/32",
            NODE_ALLOWED,
        ),
    ] {
        let this_node = node(HERE).internal_ip("192.0.2.1");
        let wanted = only([this_node.apply(), service.apply()]);
        let found = wanted.source_ranges.iter().map(ToString::to_string);
        assert_eq!(found.collect::<Vec<_>>().join(" "), ranges, "{sentence}");
        assert_eq!(wanted.flags & NODE_ALLOWED, flags, "{sentence}");
    }
}

#[test]
fn each_family_has_its_own_ranges() {
    let service = web().cluster_ip("fd00:96::10").load_balancer_ip("203.0.113.2").load_balancer_ip("2001:db8::2");
    let wanted = wanted([service.source_range("198.51.100.0/24").source_range("2001:db8:1::/48").apply()]);
    let ranges: Vec<_> = wanted.iter().map(|port| port.source_ranges[0].addr.to_string()).collect();
    assert_eq!(ranges, ["198.51.100.0", "2001:db8:1::"]);
}

#[test]
fn without_a_node_address_the_node_is_not_allowed() {
    let service = web().load_balancer_ip("203.0.113.2").source_range("192.0.2.0/24");
    assert_eq!(only([service.apply()]).flags & NODE_ALLOWED, RESTRICTED);
}

#[test]
fn a_range_holds_the_addresses_that_it_should() {
    let service = web().load_balancer_ip("203.0.113.2").source_range("198.51.100.0/25");
    let range = only([service.apply()]).source_ranges[0];
    for (client, expected) in
        [("198.51.100.127", true), ("198.51.100.128", false), ("192.0.2.1", false), ("::1", false)]
    {
        assert_eq!(range.contains(&addr(client)), expected, "{client}");
    }
}
