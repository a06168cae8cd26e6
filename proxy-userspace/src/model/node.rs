//! Node: where this node stands and which addresses the cluster knows it by; and what other nodes have.

use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;

use super::address::{parse_cidr, parse_ip};
use super::names::Names;
use super::objects;
use super::problem::Problems;

/// The zone a node (and each endpoint) is in.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Empty when the node has no zone.
    pub zone: ArcStr,
    /// All InternalIPs, then all ExternalIPs (specification F3).
    pub addresses: Box<[IpAddr]>,
    pub pod_cidrs: Box<[IpNet]>,
}

/// What matters of a Node that is not this node's: what is nobody else's to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OtherNode {
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) pod_cidrs: Box<[IpNet]>,
}

pub(super) fn convert_other(object: &objects::OtherNode, problems: &mut Problems) -> OtherNode {
    OtherNode { addresses: addresses(&object.0, problems), pod_cidrs: pod_cidrs(&object.0, problems) }
}

pub(super) fn convert(object: &objects::Node, names: &mut Names, problems: &mut Problems) -> Node {
    let zone = object.metadata.labels.get(ZONE_LABEL).map_or("", String::as_str);
    Node { zone: names.share(zone), addresses: addresses(object, problems), pod_cidrs: pod_cidrs(object, problems) }
}

fn addresses(object: &objects::Node, problems: &mut Problems) -> Box<[IpAddr]> {
    ["InternalIP", "ExternalIP"]
        .into_iter()
        .flat_map(|kind| object.status.addresses.iter().filter(move |address| address.kind == kind))
        .filter_map(|address| read_address(address, problems))
        .collect()
}

fn read_address(address: &objects::NodeAddress, problems: &mut Problems) -> Option<IpAddr> {
    let ip = parse_ip(&address.address);
    if ip.is_none() {
        let (kind, text) = (&address.kind, &address.address);
        problems.push(format!("{kind} {text:?} in status.addresses is no IP address and is left out"));
    }
    ip
}

fn pod_cidrs(object: &objects::Node, problems: &mut Problems) -> Box<[IpNet]> {
    let read = |text: &String| {
        let cidr = parse_cidr(text);
        if cidr.is_none() {
            problems.push(format!("{text:?} in spec.podCIDRs is no prefix and is left out"));
        }
        cidr
    };
    object.spec.pod_cidrs.iter().filter_map(read).collect()
}
