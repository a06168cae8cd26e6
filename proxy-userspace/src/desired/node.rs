//! The tables about this node: what its addresses mean, where ClusterIPs come from.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proxy_common::abi::{Cidr, Config, PacketSettings, SERVICE_CIDRS, address};
use proxy_common::addr::{Addr, Family};

use super::sources::cidr;
use super::{Detector, NodePortAddresses, Packets, ThisNode, WantedNode, external};
use crate::model::Model;
use crate::model::address::{cidr_family, family_of};
use crate::model::service::FAMILIES;

/// Computed as a whole: a walk over the addresses of all Services.
pub fn node(model: &Model, this: &ThisNode) -> WantedNode {
    let packets = this.packets.as_ref().map(|packets| packet_settings(model, this, packets));
    WantedNode { addresses: addresses(model, this), config: config(model, this), packets }
}

/// What some addresses should be, sorted; `None` for one that the tables need not know.
pub fn some_addresses(
    model: &Model,
    this: &ThisNode,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Vec<(Addr, Option<u32>)> {
    let mut wanted: Vec<_> = addresses.into_iter().map(|ip| (Addr::from(ip), address(model, this, ip))).collect();
    wanted.sort_unstable();
    wanted
}

fn addresses(model: &Model, this: &ThisNode) -> Vec<(Addr, u32)> {
    let loopback = this.loopback_node_ports.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let own = this.own_addresses.iter().copied().chain(loopback);
    let external = this.packets.iter().flat_map(|_| model.external_ips());
    let known = some_addresses(model, this, model.cluster_ips().chain(external).chain(own));
    let mut flags: Vec<_> = known.into_iter().filter_map(|(addr, flags)| Some((addr, flags?))).collect();
    flags.dedup();
    flags
}

/// An own address replaces a ClusterIP: whoever listens there keeps it.
fn address(model: &Model, this: &ThisNode, ip: IpAddr) -> Option<u32> {
    if this.loopback_node_ports && ip == Ipv4Addr::LOCALHOST {
        Some(LOOPBACK_NODE_PORT)
    } else if this.owns(ip) {
        Some(own(model, this, ip))
    } else if model.is_cluster_ip(ip) {
        Some(address::CLUSTER_IP)
    } else {
        // Sockets ask what they dial first, packets come here first.
        (this.packets.is_some() && external::is_anybodys(model, this, ip)).then_some(address::EXTERNAL)
    }
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
        flags: detector_flags(model, this) | pod_flags(this),
        udp_timeout: this.udp_timeout,
        udp_stream_timeout: this.udp_stream_timeout,
    }
}

/// The detector by CIDR counts where [`Config`] says that its family has one.
fn packet_settings(model: &Model, this: &ThisNode, packets: &Packets) -> PacketSettings {
    let by_device = matches!(this.detector, Detector::BridgeInterface(_) | Detector::InterfaceNamePrefix(_));
    let flag = |set, flag| if set { flag } else { 0 };
    let node = model.node(&this.name);
    PacketSettings {
        pods: FAMILIES.map(|family| this.pods(node, family).map(cidr).unwrap_or_default()),
        tcp: packets.tcp,
        ports: packets.ports,
        seed: packets.seed,
        flags: flag(packets.masquerade_all, PacketSettings::MASQUERADE_ALL)
            | flag(packets.answer_echo, PacketSettings::ANSWER_ECHO)
            | flag(packets.fast_path, PacketSettings::FAST_PATH)
            | flag(by_device, PacketSettings::PODS_BY_DEVICE),
    }
}

fn pod_flags(this: &ThisNode) -> u32 {
    let at_devices = this.packets.as_ref().is_some_and(|packets| packets.pods);
    if at_devices { Config::PODS_AT_DEVICES } else { 0 }
}

fn detector_flags(model: &Model, this: &ThisNode) -> u32 {
    let node = model.node(&this.name);
    let flag = |family| match family {
        Family::V4 => Config::DETECTOR_V4,
        Family::V6 => Config::DETECTOR_V6,
    };
    FAMILIES.into_iter().filter(|family| this.has_detector(node, *family)).map(flag).sum()
}
