//! Which addresses a service port is dialled by (specification A2, B1).

use super::*;
use crate::model::objects::ServiceSpec;

#[test]
fn each_field_makes_its_frontends() {
    for (sentence, service, expected) in [
        ("ClusterIP", web(), vec!["ClusterIP 10.96.0.10:80/6"]),
        ("node port", web().node_port(30080), vec!["NodePort 0.0.0.0:30080/6", "ClusterIP 10.96.0.10:80/6"]),
        (
            "external IP",
            web().external_ip("203.0.113.1"),
            vec!["ClusterIP 10.96.0.10:80/6", "ExternalIP 203.0.113.1:80/6"],
        ),
        (
            "external IP with leading zeros and blanks",
            web().external_ip(" 203.000.113.01 "),
            vec!["ClusterIP 10.96.0.10:80/6", "ExternalIP 203.0.113.1:80/6"],
        ),
        ("blank external IP", web().external_ip(" "), vec!["ClusterIP 10.96.0.10:80/6"]),
        (
            "load-balancer address of mode VIP",
            web().load_balancer_ip_of_mode("203.0.113.2", Some("VIP")),
            vec!["ClusterIP 10.96.0.10:80/6", "LoadBalancer 203.0.113.2:80/6"],
        ),
        (
            "load-balancer address of mode Proxy",
            web().load_balancer_ip_of_mode("203.0.113.2", Some("Proxy")),
            vec!["ClusterIP 10.96.0.10:80/6"],
        ),
        ("external IP of the other family", web().external_ip("2001:db8::1"), vec!["ClusterIP 10.96.0.10:80/6"]),
        (
            "one address as external IP and from the load balancer is restricted like the latter",
            web().external_ip("203.0.113.2").load_balancer_ip("203.0.113.2"),
            vec!["ClusterIP 10.96.0.10:80/6", "LoadBalancer 203.0.113.2:80/6"],
        ),
    ] {
        assert_eq!(frontends(&only([service.apply()])), expected, "{sentence}");
    }
}

#[test]
fn services_without_a_cluster_ip_are_not_served() {
    let named = || build::service("shop/web").port(80);
    for (sentence, service) in [
        ("headless", named().cluster_ip("None")),
        ("ExternalName, even with an address", web().kind("ExternalName")),
        ("of another proxy", web().label("service.kubernetes.io/service-proxy-name", "other")),
        ("of another proxy, empty value", web().label("service.kubernetes.io/service-proxy-name", "")),
        ("without ports", build::service("shop/web").cluster_ip("10.96.0.10")),
    ] {
        assert_eq!(wanted([service.apply()]), [], "{sentence}");
    }
}

#[test]
fn a_service_is_absent_from_a_family_without_cluster_ip() {
    let service = web().node_port(30080).external_ip("2001:db8::1").load_balancer_ip("2001:db8::2");
    assert_eq!(frontends(&only([service.apply()])), ["NodePort 0.0.0.0:30080/6", "ClusterIP 10.96.0.10:80/6"]);
}

#[test]
fn a_dual_stack_service_has_a_service_port_per_family() {
    let service = web().cluster_ip("fd00:96::10").node_port(30080);
    let slices = [web_slice().endpoint("10.1.0.1"), web_slice().named("web-2").endpoint("fd00:1::1")];
    let wanted = wanted(std::iter::once(service.apply()).chain(slices.iter().map(Slice::apply)));
    let facts: Vec<_> = wanted
        .iter()
        .map(|port| (frontends(port).join(", "), with_flag(port, Backend::IN_CLUSTER_SET).join(" ")))
        .collect();
    let fact = |frontends: &str, backends: &str| (frontends.to_string(), backends.to_string());
    assert_eq!(
        facts,
        [
            fact("NodePort 0.0.0.0:30080/6, ClusterIP 10.96.0.10:80/6", "10.1.0.1"),
            fact("NodePort :::30080/6, ClusterIP fd00:96::10:80/6", "fd00:1::1"),
        ]
    );
}

#[test]
fn without_ip_families_the_cluster_ip_speaks_for_itself() {
    let mut service = web();
    service.0.spec = ServiceSpec { cluster_ips: Vec::new(), ip_families: Vec::new(), ..service.0.spec };
    assert_eq!(frontends(&only([service.apply()])), ["ClusterIP 10.96.0.10:80/6"]);
}

#[test]
fn the_same_number_with_different_protocols_is_two_service_ports() {
    let service = build::service("kube-system/dns")
        .cluster_ip("10.96.0.10")
        .named_port("dns", "UDP", 53)
        .named_port("dns-tcp", "TCP", 53)
        .named_port("dns-sctp", "SCTP", 53);
    let found: Vec<_> = wanted([service.apply()]).iter().flat_map(frontends).collect();
    assert_eq!(found, ["ClusterIP 10.96.0.10:53/17", "ClusterIP 10.96.0.10:53/132", "ClusterIP 10.96.0.10:53/6"]);
}

#[test]
fn affinity_has_its_timeout() {
    for (sentence, service, expected) in [
        ("none", web(), 0),
        ("ClientIP with the default of the API", web().affinity(None), 10_800),
        ("ClientIP with a timeout", web().affinity(Some(7)), 7),
    ] {
        assert_eq!(only([service.apply()]).affinity_seconds, expected, "{sentence}");
    }
}

#[test]
fn a_cluster_ip_that_the_node_owns_is_left_to_its_listener() {
    let this = ThisNode { own_addresses: vec!["10.96.0.10".parse().unwrap()], ..this() };
    assert_eq!(wanted_from(&this, [web().apply()]), []);
    let exposed = wanted_from(&this, [web().node_port(30080).external_ip("203.0.113.1").apply()]);
    assert_eq!(frontends(&exposed[0]), ["NodePort 0.0.0.0:30080/6", "ExternalIP 203.0.113.1:80/6"]);
}

#[test]
fn an_external_ip_that_the_node_owns_is_served() {
    let this = ThisNode { own_addresses: vec!["203.0.113.1".parse().unwrap()], ..this() };
    let exposed = wanted_from(&this, [web().external_ip("203.0.113.1").apply()]);
    assert_eq!(frontends(&exposed[0]), ["ClusterIP 10.96.0.10:80/6", "ExternalIP 203.0.113.1:80/6"]);
}

#[test]
fn a_service_port_that_went_is_named_once_as_none() {
    let mut model = model([web().apply()]);
    model.take_dirty();
    model.apply(web().delete());
    let dirty = model.take_dirty();
    let answer = services(&model, &this(), &dirty);
    assert!(matches!(&answer[..], [(name, None)] if name.service.name() == "web"), "{answer:?}");
    assert!(model.take_dirty().is_empty());
}

#[test]
fn a_port_that_was_renamed_is_none_under_its_old_name() {
    let named = |name| build::service("shop/web").cluster_ip("10.96.0.10").named_port(name, "TCP", 80);
    let mut model = model([named("old").apply()]);
    model.take_dirty();
    model.apply(named("new").apply());
    let dirty = model.take_dirty();
    let answer = services(&model, &this(), &dirty);
    let facts: Vec<_> = answer.iter().map(|(name, wanted)| (&*name.port, wanted.is_some())).collect();
    assert_eq!(facts, [("new", true), ("old", false)]);
}

#[test]
fn an_address_that_two_services_claim_goes_to_the_older_one() {
    let shared = "203.0.113.1";
    let service =
        |name: &str, ip, created| build::service(name).cluster_ip(ip).port(80).external_ip(shared).created(created);
    let old = service("z/old", "10.96.0.1", "2026-01-01T00:00:00Z");
    let new = service("a/new", "10.96.0.2", "2026-02-01T00:00:00Z");
    for order in [[&old, &new], [&new, &old]] {
        let mut model = Model::default();
        let problems: Vec<_> = order.iter().flat_map(|service| model.apply(service.apply())).collect();
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["Service a/new: 203.0.113.1:80/TCP is served for the older Service z/old; remove it from one of the two"]
        );
        assert_eq!(owner(&mut model, shared), Some("old".into()));

        model.apply(old.delete());
        assert_eq!(owner(&mut model, shared), Some("new".into()), "the loser takes over");
        model.apply(old.apply());
        assert_eq!(owner(&mut model, shared), Some("old".into()), "and gives it back");
    }
}

#[test]
fn of_two_claims_of_one_age_the_first_name_wins() {
    let service = |name: &str, ip| build::service(name).cluster_ip(ip).port(80).node_port(30080);
    let mut model = Model::default();
    model.apply(service("b/web", "10.96.0.1").apply());
    let problems = model.apply(service("a/web", "10.96.0.2").apply());
    assert_eq!(
        problems[0].to_string(),
        "Service b/web: node port 30080/TCP is served for Service a/web, whose name comes first; remove it from one of the two"
    );
    let dirty = model.take_dirty();
    let found: Vec<_> = services(&model, &this(), &dirty).into_iter().filter_map(|(_, wanted)| wanted).collect();
    assert_eq!(found.iter().flat_map(frontends).filter(|text| text.starts_with("NodePort")).count(), 1);
    assert_eq!(frontends(&found[0]).len(), 2, "a/web has the node port");
}

/// Who serves `ip`, after asking again for exactly what is dirty on top of what was known.
fn owner(model: &mut Model, ip: &str) -> Option<String> {
    let dirty = model.take_dirty();
    let answer = services(model, &this(), &dirty);
    let mut owners = answer.into_iter().filter_map(|(name, wanted)| {
        let serves = wanted?.frontends.iter().any(|frontend| frontend.key.addr == addr(ip));
        serves.then(|| name.service.name().to_owned())
    });
    let owner = owners.next();
    assert_eq!(owners.next(), None, "one owner only");
    owner
}
