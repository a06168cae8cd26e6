//! externalIPs that are somebody else's: whoever may write a Service could take over traffic to them (CVE-2020-8554).
//!
//! In: the model, this node. Out: whether an address is served, and [`Claim`]s to tell, whatever the policy.

use std::fmt;
use std::net::IpAddr;

use super::{ExternalIps, ThisNode};
use crate::model::service::Service;
use crate::model::{Model, ObjectName};

/// A Service has an externalIP that is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub service: ObjectName,
    pub ip: IpAddr,
    /// Whose it is, and what becomes of it.
    pub message: String,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}: {}", self.service, self.message)
    }
}

/// Whose address `ip` is, if it is not for `service` to have.
fn owner(model: &Model, this: &ThisNode, service: &Service, ip: IpAddr) -> Option<&'static str> {
    let is_of_another = || {
        let mut others = model.outside_at(ip).filter(|other| other.name != service.name);
        others.any(|other| other.load_balancer_ips().contains(&ip))
    };
    if this.owns(ip) || model.is_node_address(ip) {
        Some("an address of a node")
    } else if model.is_api_server(ip) {
        Some("an address of the API server")
    } else if this.is_of_pods(model, ip) {
        Some("in a range of pods")
    } else if model.is_cluster_ip(ip) {
        Some("a ClusterIP")
    } else if model.service_cidrs().iter().any(|range| range.contains(&ip)) {
        Some("in a range of ClusterIPs")
    } else {
        is_of_another().then_some("a load-balancer address of another Service")
    }
}

/// Whether `service` is dialled by its externalIP `ip`.
pub(super) fn is_served(model: &Model, this: &ThisNode, service: &Service, ip: IpAddr) -> bool {
    this.external_ips == ExternalIps::Allowed || owner(model, this, service, ip).is_none()
}

/// Whether some Service is dialled by `ip`, as an externalIP or as a load-balancer address.
pub(super) fn is_anybodys(model: &Model, this: &ThisNode, ip: IpAddr) -> bool {
    let is_its = |service: &Service| service.load_balancer_ips().contains(&ip) || is_served(model, this, service, ip);
    model.outside_at(ip).any(is_its)
}

/// What an operator should know about the externalIPs of `service`.
pub fn claims(model: &Model, this: &ThisNode, service: &Service) -> Vec<Claim> {
    let outcome = match this.external_ips {
        ExternalIps::Allowed => "--external-ip-policy=Restricted would refuse it",
        ExternalIps::Restricted => "it is not served (--external-ip-policy=Restricted); use an address of its own",
    };
    let tell = |ip: &IpAddr| {
        let owner = owner(model, this, service, *ip)?;
        let message = format!("externalIPs {ip} is {owner}: {outcome}");
        Some(Claim { service: service.name.clone(), ip: *ip, message })
    };
    service.external_ips().iter().filter_map(tell).collect()
}
