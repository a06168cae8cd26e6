//! The tables about this node: what its addresses mean, where ClusterIPs come from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proxy_common::abi::{Cidr, Config, SERVICE_CIDRS, address};
use proxy_common::addr::{Addr, Family};

use super::sources::cidr;
use super::{NodePortAddresses, ThisNode, WantedNode};
use crate::model::Model;
use crate::model::address::{cidr_family, family_of};
use crate::model::service::{FAMILIES, Service};

/// Computed as a whole: a walk over the ClusterIPs.
pub fn node(model: &Model, this: &ThisNode) -> WantedNode {
    WantedNode { addresses: addresses(model, this), config: config(model, this) }
}

fn addresses(model: &Model, this: &ThisNode) -> Vec<(Addr, u32)> {
    let cluster_ips = model.services().flat_map(Service::cluster_ips);
    let mut flags: BTreeMap<Addr, u32> = cluster_ips.map(|ip| (Addr::from(*ip), address::CLUSTER_IP)).collect();
    // An own address replaces a ClusterIP: whoever listens there keeps it.
    flags.extend(this.own_addresses.iter().map(|ip| (Addr::from(*ip), own(model, this, *ip))));
    if this.loopback_node_ports {
        flags.insert(Addr::from(IpAddr::from(Ipv4Addr::LOCALHOST)), LOOPBACK_NODE_PORT);
    }
    flags.into_iter().collect()
}

const LOOPBACK_NODE_PORT: u32 = address::OWN | address::NODE_PORT | address::LOOPBACK;

fn own(model: &Model, this: &ThisNode, ip: IpAddr) -> u32 {
    let loopback = if ip.is_loopback() { address::LOOPBACK } else { 0 };
    let node_port = if serves_node_ports(model, this, ip) { address::NODE_PORT } else { 0 };
    address::OWN | loopback | node_port
}

/// Specification B7. Loopback addresses only serve when asked for by name (section I).
fn serves_node_ports(model: &Model, this: &ThisNode, ip: IpAddr) -> bool {
    let family = family_of(ip);
    !ip.is_loopback()
        && match &this.node_port_addresses {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => this.node_ip(model, family) == Some(ip),
            NodePortAddresses::Within { ranges, other_family_is_all } => {
                within(ranges, ip).unwrap_or(*other_family_is_all)
            }
        }
}

/// `None` when no range is of the family.
fn within(ranges: &[IpNet], ip: IpAddr) -> Option<bool> {
    let of_family: Vec<_> = ranges.iter().filter(|range| cidr_family(range) == family_of(ip)).collect();
    (!of_family.is_empty()).then(|| of_family.iter().any(|range| range.contains(&ip)))
}

fn config(model: &Model, this: &ThisNode) -> Config {
    let ranges = model.service_cidrs();
    let mut service_cidrs = [Cidr::default(); SERVICE_CIDRS];
    for (place, range) in service_cidrs.iter_mut().zip(&ranges) {
        *place = cidr(range);
    }
    Config {
        service_cidrs,
        service_cidr_count: ranges.len().min(SERVICE_CIDRS) as u32,
        flags: detector_flags(model, this),
        udp_timeout: this.udp_timeout,
        udp_stream_timeout: this.udp_stream_timeout,
    }
}

fn detector_flags(model: &Model, this: &ThisNode) -> u32 {
    let node = model.node(&this.name);
    let flag = |family| match family {
        Family::V4 => Config::DETECTOR_V4,
        Family::V6 => Config::DETECTOR_V6,
    };
    FAMILIES.into_iter().filter(|family| this.has_detector(node, *family)).map(flag).sum()
}
