//! The start-up barrier, dirty tracking, no-op suppression (specification A3, A4).

use super::*;
use crate::model::{Change, Event};

#[test]
fn the_model_is_synced_when_services_and_slices_were_listed_once() {
    let mut model = Model::default();
    model.apply(web().apply());
    model.apply(build::Node::reset(&[]));
    model.apply(build::ServiceCidr::reset(&[]));
    assert!(!model.synced(), "Node and ServiceCIDR are not part of the barrier");
    model.apply(Service::reset(&[web()]));
    assert!(!model.synced());
    model.apply(Change::EndpointSlice(Event::Begin));
    model.apply(web_slice().apply());
    assert!(!model.synced(), "half a list tells nothing");
    model.apply(Change::EndpointSlice(Event::End));
    assert!(model.synced());
    model.apply(Change::Service(Event::Begin));
    assert!(model.synced(), "a list that starts again takes nothing away");
}

#[test]
fn a_list_that_broke_off_deletes_nothing() {
    let mut model = Model::default();
    model.apply(Service::reset(&[web()]));
    model.apply(Change::Service(Event::Begin));
    model.apply(Change::Service(Event::Begin));
    assert!(model.service(&name()).is_some());
    model.apply(Change::Service(Event::End));
    assert!(model.service(&name()).is_none());
}

#[test]
fn an_end_without_a_beginning_tells_nothing() {
    let mut model = Model::default();
    model.apply(web().apply());
    model.apply(Change::Service(Event::End));
    assert!(model.service(&name()).is_some());
}

#[test]
fn only_what_changed_is_dirty() {
    let mut model = Model::default();
    model.apply(web().apply());
    model.apply(build::service("shop/api").cluster_ip("10.96.0.11").port(80).apply());
    assert_eq!(dirty(&mut model), ["shop/api", "shop/web"]);
    model.apply(web_slice().apply());
    assert_eq!(dirty(&mut model), ["shop/web"]);
    assert_eq!(dirty(&mut model), [""; 0]);
}

#[test]
fn updates_that_change_nothing_that_counts_are_passed_over() {
    let mut model = Model::default();
    model.apply(web().apply());
    model.apply(web_slice().apply());
    model.apply(build::service_cidr("kubernetes").cidr("10.96.0.0/16").apply());
    model.take_dirty();
    let mut annotated = web();
    annotated.0.metadata.annotations.insert("note".into(), "new".into());
    annotated.0.metadata.resource_version = Some("2".into());
    for (sentence, change) in [
        ("the same Service", web().apply()),
        ("another label", web().label("team", "blue").apply()),
        ("another annotation and version", annotated.apply()),
        ("another type alone", web().kind("NodePort").apply()),
        ("the same slice", web_slice().apply()),
        ("the same ServiceCIDR", build::service_cidr("kubernetes").cidr("10.96.0.0/16").apply()),
        ("removal of an unknown Service", build::service("shop/none").delete()),
        ("removal of an unknown slice", build::slice("shop/none").delete()),
    ] {
        model.apply(change);
        assert!(model.take_dirty().is_empty(), "{sentence}");
    }
}

#[test]
fn the_tables_about_the_node_are_dirty_when_cluster_ips_change() {
    let mut model = Model::default();
    model.apply(web().apply());
    assert!(!model.take_dirty().addresses.is_empty(), "a new ClusterIP");
    model.apply(web().affinity(None).apply());
    assert!(model.take_dirty().addresses.is_empty(), "the same ClusterIP");
    model.apply(web().delete());
    assert!(!model.take_dirty().addresses.is_empty(), "a ClusterIP less");
}

#[test]
fn the_label_for_another_proxy_takes_a_service_away_and_gives_it_back() {
    let mut model = Model::default();
    model.apply(web().apply());
    model.take_dirty();
    model.apply(web().label("service.kubernetes.io/service-proxy-name", "").apply());
    let gone = model.take_dirty();
    assert_eq!(gone.former_ports.len(), 1, "{gone:?}");
    assert!(model.service(&name()).is_none());
    model.apply(web().apply());
    assert_eq!(dirty(&mut model), ["shop/web"]);
}

#[test]
fn a_slice_that_moves_to_another_service_makes_both_dirty() {
    let mut model = Model::default();
    model.apply(web_slice().apply());
    model.take_dirty();
    model.apply(web_slice().label("kubernetes.io/service-name", "api").apply());
    assert_eq!(dirty(&mut model), ["shop/api", "shop/web"]);
    model.apply(web_slice().label("service.kubernetes.io/headless", "").apply());
    assert_eq!(dirty(&mut model), ["shop/api"], "a hidden slice leaves the Service that it was last of");
}

#[test]
fn slices_are_found_again_whatever_they_are_called() {
    for name in ["web-x7k2p", "chosen", "web", "api-x7k2p", "web-1-2"] {
        let mut model = Model::default();
        let slice = web_slice().named(name);
        for service in ["shop/api", "test/web"] {
            model.apply(build::slice(service).endpoint("10.1.0.9").apply());
        }
        model.apply(slice.apply());
        model.take_dirty();
        model.apply(slice.clone().endpoint("10.1.0.2").apply());
        assert_eq!(dirty(&mut model), ["shop/web"], "{name} changes");
        model.apply(Change::EndpointSlice(Event::Reset(vec![slice.clone().endpoint("10.1.0.2").0])));
        assert_eq!(dirty(&mut model), ["shop/api", "test/web"], "{name} is in a list, others are not");
        model.apply(slice.delete());
        assert_eq!(dirty(&mut model), ["shop/web"], "{name} goes");
    }
}

#[test]
fn two_services_of_one_name_in_two_namespaces_are_two() {
    let mut model = Model::default();
    model.apply(web().apply());
    model.apply(build::service("test/web").cluster_ip("10.96.0.11").port(80).apply());
    model.apply(build::service("test/web").delete());
    assert!(model.service(&name()).is_some());
}
