//! Services that can be dialled in every way there is, at addresses that follow from their number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::manifest::{Endpoints, Service, endpoints, service};
use crate::node::Node;
use crate::stage::{PORT, TARGET, dialled, on};

/// A way to dial a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancer,
}

impl Frontend {
    pub const ALL: [Self; 4] = [Self::ClusterIp, Self::NodePort, Self::ExternalIp, Self::LoadBalancer];
    /// Those with addresses of their own; a node port is at those of nodes.
    const WITH_ADDRESSES: [Self; 3] = [Self::ClusterIp, Self::ExternalIp, Self::LoadBalancer];

    /// Where Service `number` is dialled, over IPv4 and over IPv6; its node port, at this node.
    pub fn of(self, number: u8, node: &Node) -> [SocketAddr; 2] {
        match self {
            Self::NodePort => on(node, node_port(number)),
            _ => self.addresses(number).map(dialled),
        }
    }

    fn addresses(self, number: u8) -> [IpAddr; 2] {
        let last = number.into();
        let (v4, v6) = match self {
            Self::ClusterIp => ([10, 96, 0, number], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, last]),
            Self::ExternalIp => ([203, 0, 113, number], [0x2001, 0xdb8, 0x5e, 0, 0, 0, 0, last]),
            Self::LoadBalancer => ([198, 18, 0, number], [0x2001, 0xdb8, 0x18, 0, 0, 0, 0, last]),
            Self::NodePort => panic!("a node port is at addresses of nodes"),
        };
        [Ipv4Addr::from(v4).into(), Ipv6Addr::from(v6).into()]
    }
}

pub fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

/// Every address of Service `number`.
pub fn addresses(number: u8) -> impl Iterator<Item = IpAddr> {
    Frontend::WITH_ADDRESSES.into_iter().flat_map(move |frontend| frontend.addresses(number))
}

/// Service `number` with all its frontends, over TCP and UDP.
pub fn web(number: u8) -> Service {
    service(&name(number))
        .cluster_ips(&Frontend::ClusterIp.addresses(number))
        .external_ips(&Frontend::ExternalIp.addresses(number))
        .node_ports(PORT, node_port(number))
        .load_balancers(&Frontend::LoadBalancer.addresses(number))
}

/// Slices of [`web`] without endpoints.
pub fn web_endpoints(number: u8) -> Endpoints {
    endpoints(&name(number)).ports(PORT, TARGET)
}

fn name(number: u8) -> String {
    format!("web-{number}")
}
