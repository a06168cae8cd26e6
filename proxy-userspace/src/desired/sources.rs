//! loadBalancerSourceRanges: who may dial a load-balancer address (specification B9).

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::abi::{Cidr, Version};
use proxy_common::addr::{Addr, Family};

use crate::model::address::{cidr_family, family_of};
use crate::model::service::Service;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// Sorted; empty when everybody may.
    pub(super) ranges: Vec<Cidr>,
    /// `SOURCE_RANGES`, `SOURCE_NODE_ALLOWED`.
    pub(super) flags: u32,
}

/// Only ranges of the family restrict it; a /0 lifts the restriction.
pub(super) fn of(service: &Service, family: Family, node_ip: Option<IpAddr>) -> Sources {
    let ranges: Vec<_> = service.source_ranges().iter().filter(|range| cidr_family(range) == family).copied().collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return Sources::default();
    }
    let node_allowed = node_ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip)));
    if node_allowed { with_own_node(service, family, ranges) } else { restricted(&ranges, Version::SOURCE_RANGES) }
}

/// A host that holds a load-balancer address dials it with that address as source.
fn with_own_node(service: &Service, family: Family, mut ranges: Vec<IpNet>) -> Sources {
    let addresses = service.load_balancer_ips().iter().filter(|ip| family_of(**ip) == family);
    ranges.extend(addresses.map(|ip| IpNet::from(*ip)));
    restricted(&ranges, Version::SOURCE_RANGES | Version::SOURCE_NODE_ALLOWED)
}

fn restricted(ranges: &[IpNet], flags: u32) -> Sources {
    let mut ranges: Vec<_> = ranges.iter().map(cidr).collect();
    ranges.sort_by_key(|range| (range.addr, range.prefix_len));
    ranges.dedup();
    Sources { ranges, flags }
}

pub(super) fn cidr(range: &IpNet) -> Cidr {
    let addr = Addr::from(range.addr());
    let mapped = if addr.is_v4() { 96 } else { 0 };
    Cidr { addr, prefix_len: mapped + u32::from(range.prefix_len()) }
}
