//! The policies of specification B as tables, over objects as an API server sends them.

mod frontends;
mod node;
mod properties;
mod selection;
mod sources;
mod topology;
mod truth_table;

use proxy_common::abi::{Backend, Frontend, Version};
use proxy_common::addr::Addr;

use super::{ThisNode, WantedService, services};
use crate::model::build::{self, Service, Slice};
use crate::model::{Change, Model};

/// The node that every test looks from.
const HERE: &str = "node-1";
const ELSEWHERE: &str = "node-2";

fn this() -> ThisNode {
    ThisNode { name: HERE.into(), ..ThisNode::default() }
}

fn model(changes: impl IntoIterator<Item = Change>) -> Model {
    let mut model = Model::default();
    for change in changes {
        let problems = model.apply(change);
        assert_eq!(problems, [], "a test that expects problems asks the model itself");
    }
    model
}

/// All service ports that have frontends, by name.
fn wanted_from(this: &ThisNode, changes: impl IntoIterator<Item = Change>) -> Vec<WantedService> {
    let mut model = model(changes);
    let dirty = model.take_dirty();
    services(&model, this, &dirty).into_iter().filter_map(|(_, wanted)| wanted).collect()
}

fn wanted(changes: impl IntoIterator<Item = Change>) -> Vec<WantedService> {
    wanted_from(&this(), changes)
}

/// The only service port there is.
fn only(changes: impl IntoIterator<Item = Change>) -> WantedService {
    let mut wanted = wanted(changes);
    assert_eq!(wanted.len(), 1, "{wanted:#?}");
    wanted.remove(0)
}

/// A Service with a ClusterIP and nothing else.
fn web() -> Service {
    build::service("shop/web").cluster_ip("10.96.0.10").port(80)
}

/// The slice behind [`web`], still without endpoints.
fn web_slice() -> Slice {
    build::slice("shop/web").port(8080)
}

/// The addresses of backends that have `flag`.
fn with_flag(wanted: &WantedService, flag: u16) -> Vec<String> {
    wanted.backends.iter().filter(|backend| backend.flags & flag != 0).map(|backend| backend.addr.to_string()).collect()
}

/// What a test of endpoint sets compares: cluster set, local set, `hasAny`.
fn sets(wanted: &WantedService) -> (String, String, bool) {
    let members = |flag| with_flag(wanted, flag).join(" ");
    (members(Backend::IN_CLUSTER_SET), members(Backend::IN_LOCAL_SET), wanted.flags & Version::HAS_ANY != 0)
}

/// Frontends as people write them: `ClusterIP 10.96.0.10:80/6`.
fn frontends(wanted: &WantedService) -> Vec<String> {
    let kind = |kind| match kind {
        Frontend::KIND_CLUSTER_IP => "ClusterIP",
        Frontend::KIND_NODE_PORT => "NodePort",
        Frontend::KIND_EXTERNAL_IP => "ExternalIP",
        Frontend::KIND_LOAD_BALANCER => "LoadBalancer",
        _ => "unused",
    };
    let line = |key: proxy_common::abi::FrontendKey| format!("{}:{:?}/{}", key.addr, key.port, key.proto);
    wanted.frontends.iter().map(|frontend| format!("{} {}", kind(frontend.kind), line(frontend.key))).collect()
}

fn addr(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}
