//! One service port -> the addresses it is dialled by on this node.

use proxy_common::abi::Frontend;
use proxy_common::addr::Family;

use super::{ThisNode, WantedFrontend, external};
use crate::model::Model;
use crate::model::service::{Port, Service};

/// Sorted by key. Without the frontends that another Service serves, externalIPs that are refused, and without a ClusterIP that this node owns itself:
/// a DNS cache may listen there.
pub(super) fn of(
    model: &Model,
    this: &ThisNode,
    service: &Service,
    port: &Port,
    family: Family,
) -> Vec<WantedFrontend> {
    let left_to_its_listener = service.cluster_ip(family).is_some_and(|ip| this.owns(ip));
    service
        .frontends(port, family)
        .into_iter()
        .map(|(key, kind)| WantedFrontend { key, kind })
        .filter(|frontend| !(left_to_its_listener && frontend.kind == Frontend::KIND_CLUSTER_IP))
        .filter(|WantedFrontend { key, kind }| {
            *kind != Frontend::KIND_EXTERNAL_IP || external::is_served(model, this, service, key.addr.into())
        })
        .filter(|frontend| model.winner(&frontend.key) == Some(&service.name))
        .collect()
}
