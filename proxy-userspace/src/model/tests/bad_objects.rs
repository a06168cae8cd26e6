//! Objects past the API's validation: each costs only what is wrong with it, and says so once.

use super::*;
use crate::model::{Change, Event, Refused, objects};

/// What the model says to `change`, one line each.
fn told(model: &mut Model, change: Change) -> Vec<String> {
    model.apply(change).iter().map(ToString::to_string).collect()
}

fn told_by_service(service: &Service) -> String {
    told(&mut Model::default(), service.apply()).join("\n")
}

fn told_by_slice(slice: &Slice) -> String {
    told(&mut Model::default(), slice.apply()).join("\n")
}

#[test]
fn a_bad_field_of_a_service_is_named_with_its_value() {
    let mut no_address = web();
    no_address.0.spec.cluster_ip = None;
    no_address.0.spec.cluster_ips = Vec::new();
    let mut wrong_family = web();
    wrong_family.0.spec.ip_families = vec!["IPv6".into()];
    let mut policy = web();
    policy.0.spec.internal_traffic_policy = Some("local".into());
    let mut affinity = web();
    affinity.0.spec.session_affinity = Some("Cookie".into());
    for (service, expected) in [
        (
            no_address,
            "has no spec.clusterIP and is not served; an API server allocates one, in a file write one (or None for a headless Service)",
        ),
        (wrong_family, "clusterIPs[0] \"10.96.0.10\" is left out: ipFamilies[0] says IPv6"),
        (
            web().cluster_ip("10.96.0.11"),
            "clusterIPs[1] \"10.96.0.11\" is left out: a Service has one ClusterIP per family",
        ),
        (
            build::service("shop/web").cluster_ip("10.96.0"),
            "clusterIPs[0] \"10.96.0\" is no IP address and is not served; correct it in the Service",
        ),
        (
            web().external_ip("nine"),
            "externalIPs[0] \"nine\" is no IP address and is not served; correct it in the Service",
        ),
        (
            web().external_ip("127.0.0.1"),
            "externalIPs[0] \"127.0.0.1\" is a loopback address and is not served; use an address of its own",
        ),
        (
            web().external_ip("169.254.0.1"),
            "externalIPs[0] \"169.254.0.1\" is a link-local address and is not served; use another one",
        ),
        (
            web().load_balancer_ip("169.254.169.254"),
            "status.loadBalancer.ingress[0].ip \"169.254.169.254\" is a link-local address and is not served; use another one",
        ),
        (
            web().load_balancer_ip("0.0.0.0"),
            "status.loadBalancer.ingress[0].ip \"0.0.0.0\" is the unspecified address and is not served; use an address of its own",
        ),
        (
            web().load_balancer_ip_of_mode("203.0.113.1", Some("Direct")),
            "status.loadBalancer.ingress[0].ipMode \"Direct\" is unknown, 203.0.113.1 is not served; use VIP or Proxy",
        ),
        (
            web().source_range("10.0.0.0"),
            "loadBalancerSourceRanges[0] \"10.0.0.0\" is no prefix and is left out; write it like 192.0.2.0/24",
        ),
        (web().port(0), "ports[1].port 0 is not served; use 1 to 65535"),
        (web().port(65_536), "ports[1].port 65536 is not served; use 1 to 65535"),
        (web().node_port(-1), "ports[0].nodePort -1 is not served; use 1 to 65535"),
        (web().named_port("a", "TCP", 80), "ports[1] repeats the number or name of an earlier port and is not served"),
        (web().named_port("a", "HTTP", 81), "ports[1].protocol \"HTTP\" is not served; use TCP, UDP or SCTP"),
        (
            web().node_port(30080).named_port("a", "TCP", 81).node_port(30080),
            "ports[1].nodePort 30080 repeats an earlier one and is not served",
        ),
        (web().affinity(Some(0)), "the affinity timeout of 0 s counts as 10800 s; use 1 to 86400"),
        (web().affinity(Some(86_401)), "the affinity timeout of 86401 s counts as 10800 s; use 1 to 86400"),
        (policy, "internalTrafficPolicy \"local\" is unknown and counts as Cluster; use Cluster or Local"),
        (affinity, "sessionAffinity \"Cookie\" is unknown and counts as None; use None or ClientIP"),
    ] {
        assert_eq!(told_by_service(&service), format!("Service shop/web: {expected}"));
    }
}

/// What nobody may dial from outside, in every family and the forms that people write.
const NO_OUTSIDE: [(&str, &str); 16] = [
    ("0.0.0.0", "the unspecified address"),
    ("::", "the unspecified address"),
    ("::ffff:0.0.0.0", "the unspecified address"),
    ("127.0.0.1", "a loopback address"),
    ("127.255.0.9", "a loopback address"),
    ("::1", "a loopback address"),
    ("::ffff:127.0.0.1", "a loopback address"),
    ("169.254.169.254", "a link-local address"),
    ("fe80::1", "a link-local address"),
    ("febf::9", "a link-local address"),
    ("::ffff:169.254.0.1", "a link-local address"),
    ("224.0.0.1", "a multicast address"),
    ("239.255.0.1", "a multicast address"),
    ("ff02::1", "a multicast address"),
    ("ff0e::7", "a multicast address"),
    ("255.255.255.255", "the broadcast address"),
];

#[test]
fn addresses_from_outside_that_mean_something_else_are_left_out_and_their_neighbours_are_served() {
    let good = ["203.0.113.9", "2001:db8::9"];
    for (bad, what) in NO_OUTSIDE {
        let told_of = |service: Service| {
            let mut model = Model::default();
            let told = told(&mut model, service.cluster_ip("fd00:10:96::10").apply());
            let served: Vec<_> = model.service(&name()).unwrap().outside_ips().map(|ip| ip.to_string()).collect();
            assert_eq!(served, good, "{bad}");
            told.join("\n")
        };
        let external = web().external_ip(good[0]).external_ip(bad).external_ip(good[1]);
        let balanced = web().load_balancer_ip(good[0]).load_balancer_ip(bad).load_balancer_ip(good[1]);
        for (service, field) in [(external, "externalIPs[1]"), (balanced, "status.loadBalancer.ingress[1].ip")] {
            let (told, wanted) =
                (told_of(service), format!("Service shop/web: {field} {bad:?} is {what} and is not served"));
            assert!(told.starts_with(&wanted), "{told}");
        }
    }
}

#[test]
fn a_bad_field_of_a_slice_is_named_with_its_value() {
    let slice = || build::slice("shop/web");
    let mut no_label = slice();
    no_label.0.metadata.labels.clear();
    let mut fqdn = slice();
    fqdn.0.address_type = "FQDN".into();
    let mut empty = slice().endpoint("10.1.0.1");
    empty.0.endpoints[0].addresses.clear();
    let mut wrong_family = slice().endpoint("fd00::1");
    wrong_family.0.address_type = "IPv4".into();
    let mut unnamed = slice();
    unnamed.0.ports.push(objects::EndpointPort { port: Some(80), ..Default::default() });
    for (slice, expected) in [
        (no_label, "has no label kubernetes.io/service-name and is not used; name its Service there"),
        (
            slice().label("kubernetes.io/service-name", ""),
            "has no label kubernetes.io/service-name and is not used; name its Service there",
        ),
        (fqdn, "addressType \"FQDN\" is not used; a proxy serves IPv4 and IPv6"),
        (empty, "endpoints[0] has no address and is not used; give it one"),
        (
            wrong_family,
            "endpoints[0] \"fd00::1\" is not of the slice's addressType and is not used; correct or remove it",
        ),
        (slice().endpoint("ten"), "endpoints[0] \"ten\" is no IP address and is not used; correct or remove it"),
        (
            slice().endpoint("127.0.0.1"),
            "endpoints[0] \"127.0.0.1\" is a loopback address and is not used; correct or remove it",
        ),
        (
            slice().endpoint("169.254.1.1"),
            "endpoints[0] \"169.254.1.1\" is a link-local address and is not used; correct or remove it",
        ),
        (
            slice().endpoint("ff02::1"),
            "endpoints[0] \"ff02::1\" is a multicast address and is not used; correct or remove it",
        ),
        (
            slice().endpoint("0.0.0.0"),
            "endpoints[0] \"0.0.0.0\" is the unspecified address and is not used; correct or remove it",
        ),
        (unnamed, "ports[0] has no name and is not used; write name: \"\" for an unnamed port"),
        (slice().named_port("", "HTTP", 80), "ports[0].protocol \"HTTP\" is not used; use TCP, UDP or SCTP"),
        (slice().port(70_000), "ports[0].port 70000 is not used; use 1 to 65535"),
    ] {
        assert_eq!(told_by_slice(&slice), format!("EndpointSlice shop/web-1: {expected}"));
    }
}

#[test]
fn bad_fields_of_a_node_and_a_service_cidr_are_named() {
    let mut model = Model::default();
    let node = build::node("node-1").internal_ip("one").pod_cidr("10.1.0.0");
    assert_eq!(
        told(&mut model, node.apply()),
        [
            "Node node-1: InternalIP \"one\" in status.addresses is no IP address and is left out",
            "Node node-1: \"10.1.0.0\" in spec.podCIDRs is no prefix and is left out",
        ]
    );
    assert_eq!(
        told(&mut model, build::service_cidr("kubernetes").cidr("10.96/16").apply()),
        ["ServiceCIDR kubernetes: spec.cidrs[0] \"10.96/16\" is no prefix and is left out; write it like 10.96.0.0/16"]
    );
}

#[test]
fn the_rest_of_a_bad_object_is_served() {
    let mut model = Model::default();
    model.apply(web().external_ip("nine").external_ip("203.0.113.1").apply());
    let service = model.service(&name()).unwrap();
    assert_eq!(service.external_ips().len(), 1);
    let slice = build::slice("shop/web").port(8080).endpoint("127.0.0.1").endpoint("10.1.0.1");
    model.apply(slice.apply());
    let service = model.service(&name()).unwrap();
    let endpoints = model.endpoints(&service.name, &service.ports[0], proxy_common::addr::Family::V4);
    assert_eq!(endpoints.len(), 1);
}

#[test]
fn a_problem_is_told_once_until_it_changes() {
    let mut model = Model::default();
    let bad = || web().external_ip("nine");
    assert_eq!(told(&mut model, bad().apply()).len(), 1);
    assert_eq!(told(&mut model, bad().label("team", "blue").apply()), [""; 0], "an update that changes nothing");
    assert_eq!(told(&mut model, Service::reset(&[bad()])), [""; 0], "a new list");
    assert_eq!(told(&mut model, web().external_ip("ten").apply()).len(), 1, "another value");
    assert_eq!(told(&mut model, web().apply()), [""; 0], "corrected");
    assert_eq!(told(&mut model, bad().apply()).len(), 1, "broken again");
    model.apply(bad().delete());
    assert_eq!(told(&mut model, bad().apply()).len(), 1, "made again");
}

#[test]
fn addresses_that_nobody_may_name_are_told_apart_from_other_problems_and_each_once() {
    let mut model = Model::default();
    let mut refused = |change: Change| {
        model.apply(change);
        let line = |of: Refused| {
            format!(
                "{} {}: {}",
                of.kind,
                of.object,
                of.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            )
        };
        model.take_refused().into_iter().map(line).collect::<Vec<_>>().join("; ")
    };
    let slice = || build::slice("shop/web").endpoint("10.1.0.1").endpoint("ten").endpoint("127.0.0.1");
    assert_eq!(refused(slice().apply()), "EndpointSlice shop/web-1: 127.0.0.1");
    assert_eq!(refused(slice().port(80).apply()), "", "it is known");
    assert_eq!(refused(slice().endpoint("224.0.0.1").apply()), "EndpointSlice shop/web-1: 224.0.0.1", "another one");
    let all = web().external_ip("fe80::1").load_balancer_ip("169.254.169.254").external_ip("nine");
    assert_eq!(refused(all.apply()), "Service shop/web: fe80::1 169.254.169.254");
    assert_eq!(refused(slice().delete()), "");
    assert_eq!(refused(slice().apply()), "EndpointSlice shop/web-1: 127.0.0.1", "made again");
}

#[test]
fn forms_of_an_address_that_nobody_may_name_are_that_address_whatever_the_slice_holds() {
    let mut slice =
        build::slice("shop/web").endpoint("::ffff:127.0.0.1").endpoint("::ffff:10.1.0.1").endpoint("fd00::1");
    slice.0.address_type = "IPv6".into();
    let mut model = Model::default();
    model.apply(web().cluster_ip("fd00:10:96::10").apply());
    assert_eq!(
        told(&mut model, slice.port(8080).apply()),
        [
            "EndpointSlice shop/web-1: endpoints[0] \"::ffff:127.0.0.1\" is a loopback address and is not used; correct or remove it",
            "EndpointSlice shop/web-1: endpoints[1] \"::ffff:10.1.0.1\" is not of the slice's addressType and is not used; correct or remove it",
        ]
    );
    let service = model.service(&name()).unwrap();
    let families = [proxy_common::addr::Family::V4, proxy_common::addr::Family::V6];
    assert_eq!(families.map(|family| model.endpoints(&service.name, &service.ports[0], family).len()), [0, 1]);
}

#[test]
fn a_thousand_bad_endpoints_tell_ten() {
    let slice = (0..1000).fold(build::slice("shop/web"), |slice, n| slice.endpoint(&format!("bad-{n}")));
    let told = told(&mut Model::default(), slice.apply());
    assert_eq!(told.len(), 11);
    assert_eq!(told[10], "EndpointSlice shop/web-1: and 990 more problems of this object");
}

#[test]
fn objects_without_a_name_are_not_used() {
    let mut model = Model::default();
    let mut nameless = web();
    nameless.0.metadata.namespace = String::new();
    assert_eq!(
        told(&mut model, nameless.apply()),
        ["Service /web: has no name or no namespace and is not used; give it both"]
    );
    assert_eq!(model.services().count(), 0);
}

#[test]
fn a_name_with_a_slash_is_not_used_since_it_could_be_that_of_another_namespace() {
    let mut model = Model::default();
    for (namespace, name) in [("shop", "web/1"), ("shop/web", "1")] {
        let mut slashed = web();
        (slashed.0.metadata.namespace, slashed.0.metadata.name) = (namespace.into(), name.into());
        assert_eq!(
            told(&mut model, slashed.apply()),
            ["Service shop/web/1: has a slash in its name and is not used; no API server takes one"]
        );
        assert_eq!(model.services().count(), 0);
        model.apply(slashed.delete());
    }
}

#[test]
fn more_service_cidrs_than_fit_are_reported() {
    let many = (0..9).fold(build::service_cidr("many"), |cidrs, n| cidrs.cidr(&format!("10.{}.0.0/16", 2 * n)));
    assert_eq!(
        told(&mut Model::default(), many.apply()),
        [
            "ServiceCIDR many: all ServiceCIDRs together are 9 ranges, of which 8 are watched; addresses without a Service \
             in the others are not refused at once"
        ]
    );
}

#[test]
fn null_is_empty_wherever_an_api_server_may_write_it() {
    let service: objects::Service = serde_json::from_str(
        r#"{"metadata": {"name": "web", "namespace": "shop", "labels": null, "annotations": null, "creationTimestamp": null},
            "spec": {"clusterIP": null, "clusterIPs": null, "ipFamilies": null, "ports": null, "externalIPs": [null],
                     "loadBalancerSourceRanges": null, "sessionAffinityConfig": {"clientIP": null}},
            "status": {"loadBalancer": {"ingress": null}}}"#,
    )
    .unwrap();
    assert_eq!(
        service.spec,
        objects::ServiceSpec {
            external_ips: vec![String::new()],
            session_affinity_config: Some(objects::SessionAffinityConfig::default()),
            ..Default::default()
        }
    );
    let slice: objects::EndpointSlice = serde_json::from_str(
        r#"{"metadata": {"name": "web-1"}, "addressType": "IPv4", "endpoints": null, "ports": [null]}"#,
    )
    .unwrap();
    assert_eq!((slice.endpoints.len(), slice.ports.len()), (0, 1));
    let endpoint: objects::Endpoint = serde_json::from_str(
        r#"{"addresses": null, "conditions": null, "hints": {"forZones": null, "forNodes": [{"name": null}]}, "nodeName": null}"#,
    )
    .unwrap();
    assert_eq!(endpoint.hints.unwrap().for_nodes.len(), 1);
    let node: objects::Node =
        serde_json::from_str(r#"{"metadata": null, "spec": {"podCIDRs": null, "taints": null}, "status": null}"#)
            .unwrap();
    assert_eq!(node, objects::Node::default());
    serde_json::from_str::<objects::ServiceCidr>(r#"{"spec": null}"#).unwrap();
}

#[test]
fn a_wrong_type_fails_its_object_and_says_where() {
    for text in [
        r#"{"spec": {"ports": {}}}"#,
        r#"{"spec": {"ports": [{"port": "80"}]}}"#,
        r#"{"spec": {"ports": [{"port": 99999999999}]}}"#,
        r#"{"spec": {"clusterIP": 10}}"#,
        r#"{"metadata": {"labels": []}}"#,
        "[1]",
    ] {
        let error = serde_json::from_str::<objects::Service>(text).unwrap_err().to_string();
        assert!(
            error.contains("invalid type") || error.contains("invalid value") || error.contains("invalid length"),
            "{error}"
        );
    }
}

#[test]
fn unknown_fields_are_passed_over() {
    let text = r#"{"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web", "managedFields": [{}]}, "spec": {"selector": {"a": "b"}}}"#;
    assert_eq!(serde_json::from_str::<objects::Service>(text).unwrap().metadata.name, "web");
}

#[test]
fn deleting_what_was_never_served_is_no_event() {
    let mut model = Model::default();
    model.apply(Change::Node(Event::Delete { namespace: String::new(), name: "node-1".into() }));
    model.apply(web().delete());
    assert!(model.take_dirty().is_empty());
}
