//! The node that tables are made for, as far as the cluster does not say.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::abi::{PortRange, TcpTimeouts};
use proxy_common::addr::Family;

use crate::model::Model;
use crate::model::address::{cidr_family, family_of};
use crate::model::node::Node;

/// Settings and facts about this host. The agent makes a new one when something changes, then calls
/// [`Model::mark_everything`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThisNode {
    /// Equals the name of the Node object and `nodeName` of endpoints.
    pub name: Arc<str>,
    /// Every address of every device of this host.
    pub own_addresses: Vec<IpAddr>,
    /// `--bind-address`: replaces the node's address in its family. The unspecified address says nothing.
    pub bind_address: Option<IpAddr>,
    /// The node's addresses as long as there is no Node object with some: those of the default route's device.
    pub fallback_addresses: Vec<IpAddr>,
    pub node_port_addresses: NodePortAddresses,
    pub detector: Detector,
    /// Node ports answer on 127.0.0.1 too (only kube-proxy's iptables mode did).
    pub loopback_node_ports: bool,
    pub external_ips: ExternalIps,
    /// Seconds a UDP flow keeps its backend: without replies, with replies.
    pub udp_timeout: u32,
    pub udp_stream_timeout: u32,
    /// Programs at devices, if they are wanted.
    pub packets: Option<Packets>,
}

/// What programs at devices are told besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packets {
    /// Devices of pods have programs too.
    pub pods: bool,
    /// `--masquerade-all`.
    pub masquerade_all: bool,
    /// `--answer-echo`.
    pub answer_echo: bool,
    /// `--fast-path`.
    pub fast_path: bool,
    pub tcp: TcpTimeouts,
    /// Source ports that translations draw from.
    pub ports: PortRange,
    /// Unpredictable outside of this node, and the same after a restart.
    pub seed: u32,
}

/// On which own addresses node ports are served (specification B7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's first address of each family.
    #[default]
    Primary,
    All,
    /// Addresses inside one of these; a /0 means all of its family.
    Within {
        ranges: Vec<IpNet>,
        /// What a family without a range means: all of its addresses, as kube-proxy has it, or none.
        other_family_is_all: bool,
    },
}

/// What becomes of externalIPs that are addresses of nodes, of the API server, of pods or of Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// They are served, as kube-proxy does.
    #[default]
    Allowed,
    /// They are refused.
    Restricted,
}

/// How traffic of local pods is told from other traffic (specification B6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detector {
    /// Sources in the first cluster CIDR of a family.
    ClusterCidr(Vec<IpNet>),
    /// Sources in the first of the Node's podCIDRs of a family.
    NodeCidr,
    /// Traffic that enters by this bridge.
    BridgeInterface(String),
    /// Traffic that enters by an interface with this prefix.
    InterfaceNamePrefix(String),
}

impl Default for Detector {
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

impl Default for ThisNode {
    fn default() -> Self {
        Self {
            name: "".into(),
            own_addresses: Vec::new(),
            bind_address: None,
            fallback_addresses: Vec::new(),
            node_port_addresses: NodePortAddresses::default(),
            detector: Detector::default(),
            loopback_node_ports: false,
            external_ips: ExternalIps::Allowed,
            udp_timeout: 30,
            udp_stream_timeout: 120,
            packets: None,
        }
    }
}

impl ThisNode {
    /// The address the cluster knows this node by (specification F3).
    pub fn node_ip(&self, model: &Model, family: Family) -> Option<IpAddr> {
        let bound = self.bind_address.filter(|ip| !ip.is_unspecified() && family_of(*ip) == family);
        bound.or_else(|| self.node_addresses(model).iter().copied().find(|ip| family_of(*ip) == family))
    }

    fn node_addresses<'a>(&'a self, model: &'a Model) -> &'a [IpAddr] {
        let known = model.node(&self.name).map(|node| &*node.addresses);
        known.filter(|addresses| !addresses.is_empty()).unwrap_or(&self.fallback_addresses)
    }

    pub fn owns(&self, ip: IpAddr) -> bool {
        self.own_addresses.contains(&ip)
    }

    /// True when pods can be told from others in this family.
    pub fn has_detector(&self, node: Option<&Node>, family: Family) -> bool {
        match &self.detector {
            Detector::ClusterCidr(_) | Detector::NodeCidr => self.pods(node, family).is_some(),
            Detector::BridgeInterface(name) | Detector::InterfaceNamePrefix(name) => !name.is_empty(),
        }
    }

    /// Whether `ip` is in a range of pods, as far as the cluster's or those of nodes are known.
    pub fn is_of_pods(&self, model: &Model, ip: IpAddr) -> bool {
        let of_cluster = match &self.detector {
            Detector::ClusterCidr(ranges) => &ranges[..],
            Detector::NodeCidr | Detector::BridgeInterface(_) | Detector::InterfaceNamePrefix(_) => &[],
        };
        model.pod_cidrs().chain(of_cluster).any(|range| range.contains(&ip))
    }

    /// The range of pods that a detector by address goes by.
    pub fn pods<'a>(&'a self, node: Option<&'a Node>, family: Family) -> Option<&'a IpNet> {
        let ranges = match &self.detector {
            Detector::ClusterCidr(ranges) => &ranges[..],
            Detector::NodeCidr => node.map_or(&[][..], |node| &node.pod_cidrs),
            Detector::BridgeInterface(_) | Detector::InterfaceNamePrefix(_) => &[],
        };
        ranges.iter().find(|range| cidr_family(range) == family)
    }
}
