//! Slices and service ports (specification A5).

use proxy_common::addr::Family;

use super::*;
use crate::model::objects::EndpointPort;

/// The endpoints of the first port of `shop/web`, as `address:port`, terminating ones with a `-`.
fn joined(service: &Service, slices: &[Slice]) -> Vec<String> {
    let mut model = Model::default();
    model.apply(service.apply());
    for slice in slices {
        model.apply(slice.apply());
    }
    let service = model.service(&name()).expect("the Service is there");
    let joined = model.endpoints(&service.name, &service.ports[0], Family::V4);
    let mark = |terminating| if terminating { "-" } else { "" };
    joined.iter().map(|it| format!("{}:{:?}{}", it.addr, it.port, mark(it.endpoint.is_terminating()))).collect()
}

fn web_slice() -> Slice {
    build::slice("shop/web")
}

#[test]
fn slice_ports_join_by_name_and_protocol() {
    let named = build::service("shop/web").cluster_ip("10.96.0.10").named_port("http", "TCP", 80);
    let with = |name: &str, protocol: &str| web_slice().named_port(name, protocol, 8080).endpoint("10.1.0.1");
    let without_name = |port| {
        let mut slice = web_slice().endpoint("10.1.0.1");
        slice.0.ports.push(port);
        slice
    };
    let port = || EndpointPort { port: Some(8080), ..EndpointPort::default() };
    let unnamed_tcp = EndpointPort { name: Some(String::new()), ..port() };
    let unnumbered = EndpointPort { name: Some(String::new()), protocol: Some("TCP".into()), port: None };
    let zero = EndpointPort { port: Some(0), ..unnumbered.clone() };
    for (sentence, service, slice, expected) in [
        ("equal names and protocols join", &named, with("http", "TCP"), vec!["10.1.0.1:8080"]),
        ("another name does not", &named, with("https", "TCP"), vec![]),
        ("another protocol does not", &named, with("http", "UDP"), vec![]),
        ("the empty name joins an unnamed port", &web(), with("", "TCP"), vec!["10.1.0.1:8080"]),
        ("a missing protocol is TCP", &web(), without_name(unnamed_tcp), vec!["10.1.0.1:8080"]),
        ("a missing name joins nothing", &web(), without_name(port()), vec![]),
        ("a missing number joins nothing", &web(), without_name(unnumbered), vec![]),
        ("number 0 joins nothing", &web(), without_name(zero), vec![]),
    ] {
        assert_eq!(joined(service, &[slice]), expected, "{sentence}");
    }
}

#[test]
fn a_named_port_may_resolve_differently_in_each_slice() {
    let slices = [
        web_slice().port(8080).endpoint("10.1.0.2"),
        web_slice().named("web-2").port(9090).endpoint("10.1.0.1"),
        build::slice("other/web").port(7070).endpoint("10.1.0.3"),
    ];
    assert_eq!(joined(&web(), &slices), ["10.1.0.1:9090", "10.1.0.2:8080"]);
}

#[test]
fn slices_of_the_other_family_do_not_join() {
    assert_eq!(joined(&web(), &[web_slice().port(8080).endpoint("fd00::1")]), [""; 0]);
}

#[test]
fn of_duplicates_the_one_that_stays_wins_whatever_comes_first() {
    let stays = web_slice().port(8080).endpoint("10.1.0.1");
    let goes = stays.clone().terminating().named("web-0");
    let goes_too = goes.clone().named("web-2");
    for slices in [[&stays, &goes, &goes_too], [&goes, &goes_too, &stays], [&goes_too, &stays, &goes]] {
        assert_eq!(joined(&web(), &slices.map(Clone::clone)), ["10.1.0.1:8080"]);
    }
    assert_eq!(joined(&web(), &[goes, goes_too]), ["10.1.0.1:8080-"]);
}

#[test]
fn of_duplicates_that_stay_a_ready_one_wins() {
    let ready = web_slice().port(8080).endpoint("10.1.0.1");
    let not_ready = ready.clone().not_ready();
    for (first, second) in [(&ready, &not_ready), (&not_ready, &ready)] {
        let mut model = Model::default();
        model.apply(web().apply());
        model.apply(first.clone().named("web-1").apply());
        model.apply(second.clone().named("web-2").apply());
        let service = model.service(&name()).unwrap();
        let joined = model.endpoints(&service.name, &service.ports[0], Family::V4);
        assert!(joined.len() == 1 && joined[0].endpoint.is_ready(), "{joined:?}");
    }
}

#[test]
fn only_the_first_address_of_an_endpoint_counts() {
    let mut slice = web_slice().port(8080).endpoint("010.001.0.01");
    slice.0.endpoints[0].addresses.push("10.1.0.2".into());
    assert_eq!(joined(&web(), &[slice]), ["10.1.0.1:8080"]);
}
