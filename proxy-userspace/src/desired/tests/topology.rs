//! Hints (specification B4): same node, then same zone, then everywhere.

use super::*;
use crate::model::build::node;

const A: &str = "10.1.0.1";
const B: &str = "10.1.0.2";
const BOTH: &str = "10.1.0.1 10.1.0.2";

/// Two ready endpoints, each with its hints.
fn two(a: fn(Slice) -> Slice, b: fn(Slice) -> Slice) -> Slice {
    b(a(web_slice().endpoint(A)).endpoint(B))
}

fn no_hint(slice: Slice) -> Slice {
    slice
}

fn own_zone(slice: Slice) -> Slice {
    slice.for_zone("zone-a")
}

fn other_zone(slice: Slice) -> Slice {
    slice.for_zone("zone-b")
}

fn both_zones(slice: Slice) -> Slice {
    slice.for_zone("zone-b").for_zone("zone-a")
}

fn own_node(slice: Slice) -> Slice {
    own_zone(slice).for_node(HERE)
}

fn other_node(slice: Slice) -> Slice {
    own_zone(slice).for_node(ELSEWHERE)
}

#[test]
fn hints_choose_among_ready_endpoints() {
    for (sentence, slice, expected) in [
        ("no hints: everywhere", two(no_hint, no_hint), BOTH),
        ("hints for the own zone and another one: own zone", two(own_zone, other_zone), A),
        ("an endpoint for several zones counts in each", two(both_zones, other_zone), A),
        ("one hint missing: hints are off", two(own_zone, no_hint), BOTH),
        ("no hint for the own zone: everywhere", two(other_zone, other_zone), BOTH),
        ("a hint for the own node: own node", two(own_node, other_node), A),
        ("node hints for other nodes only: fall back to the zone", two(other_node, other_node), BOTH),
        (
            "node hints for other nodes, one of them in another zone",
            two(other_node, |s| other_zone(s).for_node(ELSEWHERE)),
            A,
        ),
        ("one node hint missing: zone hints count", two(own_node, other_zone), A),
        ("one node hint missing, all in this zone", two(own_node, own_zone), BOTH),
        ("an endpoint that is not ready needs no hint", two(own_zone, Slice::not_ready), A),
        ("a hint on an endpoint that is not ready chooses nothing", two(|s| own_zone(s).not_ready(), other_zone), B),
        (
            "terminating fallback ignores hints",
            two(|s| other_zone(s).terminating(), |s| own_zone(s).terminating()),
            BOTH,
        ),
    ] {
        let zone = node(HERE).zone("zone-a");
        let wanted = only([zone.apply(), web().apply(), slice.apply()]);
        assert_eq!(with_flag(&wanted, Backend::IN_CLUSTER_SET).join(" "), expected, "{sentence}");
    }
}

#[test]
fn a_node_without_a_zone_ignores_zone_hints() {
    for (sentence, node) in [
        ("no Node object", node("somebody-else").zone("zone-a")),
        ("no label", node(HERE)),
        ("empty label", node(HERE).zone("")),
    ] {
        let slice = two(own_zone, |slice| slice.for_zone(""));
        let wanted = only([node.apply(), web().apply(), slice.apply()]);
        assert_eq!(with_flag(&wanted, Backend::IN_CLUSTER_SET).join(" "), BOTH, "{sentence}");
    }
}

#[test]
fn hints_never_apply_to_the_local_set() {
    let slice = web_slice().endpoint(A).on(HERE).for_zone("zone-b").endpoint(B).on(ELSEWHERE).for_zone("zone-a");
    let service = web().node_port(30080).external_local();
    let wanted = only([node(HERE).zone("zone-a").apply(), service.apply(), slice.apply()]);
    assert_eq!(sets(&wanted), (B.into(), A.into(), true));
}

#[test]
fn each_node_decides_for_itself() {
    let slice = two(own_zone, other_zone);
    for (zone, expected) in [("zone-a", A), ("zone-b", B), ("zone-c", BOTH)] {
        let wanted = only([node(HERE).zone(zone).apply(), web().apply(), slice.apply()]);
        assert_eq!(with_flag(&wanted, Backend::IN_CLUSTER_SET).join(" "), expected, "{zone}");
    }
}

#[test]
fn a_zone_that_arrives_later_makes_everything_dirty() {
    let mut model = model([web().apply(), two(own_zone, other_zone).apply()]);
    model.take_dirty();
    model.apply(node(HERE).zone("zone-a").apply());
    let dirty = model.take_dirty();
    assert!(dirty.everything && dirty.node, "{dirty:?}");
    model.apply(node(HERE).zone("zone-a").label("kubernetes.io/arch", "amd64").apply());
    assert!(model.take_dirty().is_empty(), "another label changes nothing");
    model.apply(node(HERE).delete());
    assert!(model.take_dirty().is_empty(), "a deleted Node keeps its zone (A4)");
}
