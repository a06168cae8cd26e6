//! Readiness, the terminating fallback and the two policies (specification B3).

use proxy_common::abi::{Backend, Version};

use super::*;

/// Endpoints by what they can be: three here, three elsewhere.
fn here(slice: Slice, ip: &str) -> Slice {
    slice.endpoint(ip).on(HERE)
}

fn there(slice: Slice, ip: &str) -> Slice {
    slice.endpoint(ip).on(ELSEWHERE)
}

const LOCAL: &str = "10.1.0.1";
const REMOTE: &str = "10.1.0.2";

/// One local and one remote endpoint with these conditions each.
fn two(local: fn(Slice) -> Slice, remote: fn(Slice) -> Slice) -> Slice {
    remote(there(local(here(web_slice(), LOCAL)), REMOTE))
}

fn ready(slice: Slice) -> Slice {
    slice
}

/// publishNotReadyAddresses: the slice controller says ready whatever else holds.
fn ready_and_terminating(slice: Slice) -> Slice {
    slice.conditions(true, true, true)
}

fn terminating_and_not_serving(slice: Slice) -> Slice {
    slice.conditions(false, false, true)
}

fn serving_only(slice: Slice) -> Slice {
    slice.conditions(false, true, false)
}

#[test]
fn each_policy_chooses_its_sets() {
    let both = || two(ready, ready);
    let node_port = || web().node_port(30080);
    for (sentence, service, slice, expected) in [
        ("Cluster policies use every ready endpoint", web(), both(), ("10.1.0.1 10.1.0.2", "", true)),
        ("iTP Local without external addresses has no cluster set", web().internal_local(), both(), ("", LOCAL, true)),
        (
            "iTP Local with a node port has both sets",
            node_port().internal_local(),
            both(),
            ("10.1.0.1 10.1.0.2", LOCAL, true),
        ),
        (
            "eTP Local keeps the cluster set for the short way",
            node_port().external_local(),
            both(),
            ("10.1.0.1 10.1.0.2", LOCAL, true),
        ),
        (
            "eTP Local counts with an external IP",
            web().external_ip("203.0.113.1").external_local(),
            both(),
            ("10.1.0.1 10.1.0.2", LOCAL, true),
        ),
        (
            "eTP Local counts with a load-balancer address",
            web().load_balancer_ip("203.0.113.1").external_local(),
            both(),
            ("10.1.0.1 10.1.0.2", LOCAL, true),
        ),
        ("eTP Local of a plain ClusterIP is ignored", web().external_local(), both(), ("10.1.0.1 10.1.0.2", "", true)),
        (
            "eTP Local of a LoadBalancer without any address yet adds no local set",
            web().kind("LoadBalancer").external_local(),
            both(),
            ("10.1.0.1 10.1.0.2", "", true),
        ),
        (
            "both policies Local",
            node_port().external_local().internal_local(),
            both(),
            ("10.1.0.1 10.1.0.2", LOCAL, true),
        ),
    ] {
        assert_eq!(sets_of(&service, &slice), owned(expected), "{sentence}");
    }
}

#[test]
fn terminating_endpoints_serve_when_nothing_is_ready() {
    let local = || web().node_port(30080).external_local();
    for (sentence, service, slice, expected) in [
        ("a ready one anywhere keeps terminating ones out", web(), two(Slice::terminating, ready), (REMOTE, "", true)),
        (
            "all terminating and serving: all of them",
            web(),
            two(Slice::terminating, Slice::terminating),
            ("10.1.0.1 10.1.0.2", "", true),
        ),
        (
            "terminating and not serving: never",
            web(),
            two(terminating_and_not_serving, terminating_and_not_serving),
            ("", "", false),
        ),
        (
            "of terminating ones only those that serve",
            web(),
            two(terminating_and_not_serving, Slice::terminating),
            (REMOTE, "", true),
        ),
        (
            "the local set falls back by itself while the cluster set has ready ones",
            local(),
            two(Slice::terminating, ready),
            (REMOTE, LOCAL, true),
        ),
        ("the cluster set prefers the ready local one", local(), two(ready, Slice::terminating), (LOCAL, LOCAL, true)),
        (
            "both sets fall back",
            local(),
            two(Slice::terminating, Slice::terminating),
            ("10.1.0.1 10.1.0.2", LOCAL, true),
        ),
        ("iTP Local falls back too", web().internal_local(), two(Slice::terminating, ready), ("", LOCAL, true)),
        (
            "iTP Local with a terminating endpoint elsewhere: usable somewhere, not here",
            web().internal_local(),
            two(terminating_and_not_serving, Slice::terminating),
            ("", "", true),
        ),
    ] {
        assert_eq!(sets_of(&service, &slice), owned(expected), "{sentence}");
    }
}

#[test]
fn endpoints_that_are_not_ready_do_not_serve() {
    for (sentence, service, slice, expected) in [
        ("not ready, not serving", web(), two(Slice::not_ready, ready), (REMOTE, "", true)),
        ("serving without being ready or terminating", web(), two(serving_only, ready), (REMOTE, "", true)),
        ("none is usable anywhere", web(), two(Slice::not_ready, serving_only), ("", "", false)),
        (
            "none is usable anywhere, iTP Local",
            web().internal_local(),
            two(Slice::not_ready, Slice::not_ready),
            ("", "", false),
        ),
        ("iTP Local and only a remote one", web().internal_local(), two(Slice::not_ready, ready), ("", "", true)),
        (
            "eTP Local and only a remote one",
            web().node_port(30080).external_local(),
            two(Slice::not_ready, ready),
            (REMOTE, "", true),
        ),
        (
            "ready though terminating (publishNotReadyAddresses)",
            web(),
            two(ready_and_terminating, ready),
            ("10.1.0.1 10.1.0.2", "", true),
        ),
        ("no endpoints at all", web(), web_slice(), ("", "", false)),
    ] {
        assert_eq!(sets_of(&service, &slice), owned(expected), "{sentence}");
    }
}

#[test]
fn missing_conditions_mean_ready_serving_and_not_terminating() {
    let wanted = only([web().apply(), web_slice().endpoint(LOCAL).apply()]);
    assert_eq!(wanted.backends[0].flags, Backend::IN_CLUSTER_SET | Backend::SERVING);
}

#[test]
fn an_endpoint_without_node_name_is_never_local() {
    let slice = web_slice().endpoint(LOCAL);
    assert_eq!(sets_of(&web().internal_local(), &slice), owned(("", "", true)));
}

#[test]
fn serving_endpoints_outside_of_both_sets_stay_as_backends() {
    let slice = two(serving_only, ready).endpoint("10.1.0.3").not_ready();
    let wanted = only([web().apply(), slice.apply()]);
    assert_eq!(with_flag(&wanted, Backend::SERVING), [LOCAL, REMOTE]);
    assert_eq!(wanted.backends.len(), 2, "{wanted:#?}");
    assert_eq!(wanted.backends[0].flags, Backend::SERVING | Backend::ON_THIS_NODE);
}

#[test]
fn backends_say_where_they_run_and_whether_they_go() {
    let wanted = only([web().apply(), two(Slice::terminating, ready).apply()]);
    assert_eq!(with_flag(&wanted, Backend::ON_THIS_NODE), [LOCAL]);
    assert_eq!(with_flag(&wanted, Backend::TERMINATING), [LOCAL]);
}

#[test]
fn policies_become_flags_where_they_count() {
    let policies = Version::INTERNAL_LOCAL | Version::EXTERNAL_LOCAL;
    for (sentence, service, expected) in [
        ("Cluster and Cluster", web().node_port(30080), 0),
        ("iTP Local", web().internal_local(), Version::INTERNAL_LOCAL),
        ("eTP Local of a NodePort", web().node_port(30080).external_local(), Version::EXTERNAL_LOCAL),
        (
            "eTP Local of a ClusterIP with external IPs",
            web().external_ip("203.0.113.1").external_local(),
            Version::EXTERNAL_LOCAL,
        ),
        ("eTP Local of a plain ClusterIP", web().external_local(), 0),
        ("both", web().node_port(30080).external_local().internal_local(), policies),
    ] {
        assert_eq!(only([service.apply()]).flags & policies, expected, "{sentence}");
    }
}

fn sets_of(service: &Service, slice: &Slice) -> (String, String, bool) {
    sets(&only([service.apply(), slice.apply()]))
}

fn owned((cluster, local, has_any): (&str, &str, bool)) -> (String, String, bool) {
    (cluster.into(), local.into(), has_any)
}
