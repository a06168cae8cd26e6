//! The rules. Who sees a packet first and last on its way through the node translates it, and nobody else: ports rather
//! than their bridge or VRF, a bond rather than its members, a VLAN device rather than tagged packets on its parent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Format, Link, Lower, Scope, Settings, Snapshot};
use crate::desired::Detector;

/// What a device is to the packet programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It faces the network.
    Network,
    /// It faces a pod.
    Pod,
    /// It is the loopback device, and the node's processes dial Services past the hooks at their sockets.
    Itself,
    LeftAlone,
}

/// What is done with one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub index: u32,
    pub name: String,
    pub reason: Reason,
    pub format: Format,
    /// What enters by it comes from a pod of this node, to a detector by interface (specification B6).
    pub local_pods: bool,
    /// It is the port of what takes VLAN tags off and puts them on.
    pub has_vlans: bool,
    /// What masqueraded packets leave with.
    pub source_v4: Option<Ipv4Addr>,
    pub source_v6: Option<Ipv6Addr>,
}

impl Choice {
    pub fn role(&self) -> Role {
        self.reason.role()
    }
}

/// Why a device has its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    NamedForNetwork,
    DefaultRoute,
    Hardware,
    Vlan(String),
    Bond(String),
    Tunnel(String),
    /// Its parent is in another namespace, as in a node that is a container.
    ParentElsewhere(String),
    Addressed,
    Routed,

    NamedForPods,
    OtherNamespace(String),
    VirtualMachine,

    Unsteered,

    Loopback,
    Unreadable(u16),
    MemberOf(String),
    Ports(String),
    Parent(String),
    Peer(String),
    NoTraffic(String),
    Down(String),
    NotNamedForNetwork,
    NotNamedForPods,
    Unknown(String),
}

impl Reason {
    pub fn role(&self) -> Role {
        match self {
            Self::NamedForNetwork
            | Self::DefaultRoute
            | Self::Hardware
            | Self::Vlan(_)
            | Self::Bond(_)
            | Self::Tunnel(_)
            | Self::ParentElsewhere(_)
            | Self::Addressed
            | Self::Routed => Role::Network,
            Self::NamedForPods | Self::OtherNamespace(_) | Self::VirtualMachine => Role::Pod,
            Self::Unsteered => Role::Itself,
            _ => Role::LeftAlone,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamedForNetwork => write!(f, "named by --network-devices"),
            Self::DefaultRoute => write!(f, "a default route leads there"),
            Self::Hardware => write!(f, "hardware"),
            Self::Vlan(parent) => write!(f, "VLAN of {parent}: packets come without their tag"),
            Self::Bond(kind) => write!(f, "{kind}: the packets of its members pass here"),
            Self::Tunnel(kind) => write!(f, "tunnel ({kind})"),
            Self::ParentElsewhere(kind) => write!(f, "{kind} of a device in another network namespace"),
            Self::Addressed => write!(f, "has an address of a network"),
            Self::Routed => write!(f, "routes lead there"),
            Self::NamedForPods => write!(f, "named by --pod-devices"),
            Self::OtherNamespace(kind) => write!(f, "{kind}, its other end is in another network namespace"),
            Self::VirtualMachine => write!(f, "tap: its other end is a process"),
            Self::Unsteered => write!(f, "processes of the node may be left out at their sockets"),
            Self::Loopback => write!(f, "traffic of the node with itself is translated at its sockets"),
            Self::Unreadable(format) => write!(f, "packets are neither Ethernet nor IP (ARPHRD {format})"),
            Self::MemberOf(master) => write!(f, "its packets pass {master}"),
            Self::Ports(kind) => write!(f, "{kind}: its packets pass its ports"),
            Self::Parent(parent) => write!(f, "its packets pass {parent}"),
            Self::Peer(peer) => write!(f, "its other end is {peer}, in the same network namespace"),
            Self::NoTraffic(kind) => write!(f, "{kind}: no packet leaves the node by it"),
            Self::Down(kind) => write!(f, "tunnel ({kind}) that is down"),
            Self::NotNamedForNetwork => write!(f, "not named by --network-devices"),
            Self::NotNamedForPods => write!(f, "not named by --pod-devices"),
            Self::Unknown(kind) => write!(f, "{kind} without address and route"),
        }
    }
}

/// Every device of `snapshot`, in the order of their indexes.
pub fn choose(snapshot: &Snapshot, settings: &Settings) -> Vec<Choice> {
    let choice = |(index, link): (&u32, &Link)| Choice {
        index: *index,
        name: link.name.clone(),
        reason: reason(snapshot, settings, *index, link),
        format: link.format,
        local_pods: is_of_local_pods(snapshot, &settings.detector, link),
        has_vlans: master(snapshot, link).is_some_and(is_switch),
        source_v4: source(snapshot, *index, link, |ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }),
        source_v6: source(snapshot, *index, link, |ip| match ip {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        }),
    };
    snapshot.links.iter().map(choice).collect()
}

fn reason(snapshot: &Snapshot, settings: &Settings, index: u32, link: &Link) -> Reason {
    match link.format {
        Format::Loopback if settings.itself && settings.network != Scope::None => return Reason::Unsteered,
        Format::Loopback => return Reason::Loopback,
        Format::Other(format) => return Reason::Unreadable(format),
        Format::Ethernet | Format::Network => {}
    }
    if settings.network.names(&link.name) {
        return Reason::NamedForNetwork;
    }
    if settings.pods.names(&link.name) {
        return Reason::NamedForPods;
    }
    let by_itself = others_see(snapshot, link).unwrap_or_else(|| evidence(snapshot, index, link));
    match by_itself.role() {
        Role::Network if settings.network != Scope::Chosen => Reason::NotNamedForNetwork,
        Role::Pod if settings.pods != Scope::Chosen => Reason::NotNamedForPods,
        _ => by_itself,
    }
}

/// Why the packets of a device are none of its own concern, if so.
fn others_see(snapshot: &Snapshot, link: &Link) -> Option<Reason> {
    if let Some(master) = link.master
        && !self::master(snapshot, link).is_some_and(has_ports)
    {
        return Some(Reason::MemberOf(snapshot.name(master)));
    }
    if has_ports(link) {
        return Some(Reason::Ports(link.kind.clone()));
    }
    match (link.kind.as_str(), link.lower) {
        ("dummy" | "ifb" | "nlmon", _) => Some(Reason::NoTraffic(link.kind.clone())),
        ("macvlan" | "macvtap" | "ipvlan" | "ipvtap", Lower::Here(parent)) => {
            Some(Reason::Parent(snapshot.name(parent)))
        }
        ("veth" | "netkit", Lower::Here(peer)) => Some(Reason::Peer(snapshot.name(peer))),
        _ => None,
    }
}

/// Whether packets pass a port first and last. All other masters (bonds, teams, a network card and its virtual function)
/// are where they pass as if the members were not there.
fn has_ports(link: &Link) -> bool {
    is_switch(link) || link.kind == "vrf"
}

/// Whether ports hand on frames rather than packets.
fn is_switch(link: &Link) -> bool {
    matches!(link.kind.as_str(), "bridge" | "openvswitch")
}

fn master<'a>(snapshot: &'a Snapshot, link: &Link) -> Option<&'a Link> {
    snapshot.links.get(&link.master?)
}

/// What a device is by itself.
fn evidence(snapshot: &Snapshot, index: u32, link: &Link) -> Reason {
    let kind = || link.kind.clone();
    let (routed, addressed) = (snapshot.routed.contains(&index), is_in_a_network(snapshot, index));
    match (link.kind.as_str(), link.lower) {
        _ if snapshot.default_routes.iter().any(|route| route.device == index) => Reason::DefaultRoute,
        _ if link.is_hardware() => Reason::Hardware,
        ("vlan", Lower::Here(parent)) => Reason::Vlan(snapshot.name(parent)),
        ("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "macsec", _) => Reason::ParentElsewhere(kind()),
        ("bond" | "team", _) => Reason::Bond(kind()),
        // Every namespace may have some that nobody made (`net.core.fb_tunnels_only_for_init_net`).
        (tunnel, _) if is_tunnel(tunnel) && !link.up => Reason::Down(kind()),
        (tunnel, _) if is_tunnel(tunnel) => Reason::Tunnel(kind()),
        ("tun", _) if link.format == Format::Network => Reason::Tunnel(kind()),
        _ if addressed => Reason::Addressed,
        ("veth" | "netkit", _) => Reason::OtherNamespace(kind()),
        ("tun", _) => Reason::VirtualMachine,
        _ if routed => Reason::Routed,
        _ => Reason::Unknown(kind()),
    }
}

fn is_tunnel(kind: &str) -> bool {
    matches!(
        kind,
        "vxlan"
            | "geneve"
            | "bareudp"
            | "gre"
            | "gretap"
            | "ip6gre"
            | "ip6gretap"
            | "erspan"
            | "ip6erspan"
            | "ipip"
            | "sit"
            | "ip6tnl"
            | "vti"
            | "vti6"
            | "xfrm"
            | "wireguard"
            | "gtp"
            | "ppp"
    )
}

/// Gateways of single pods carry an address too, with the longest prefix (the CNI plugin `ptp`).
fn is_in_a_network(snapshot: &Snapshot, device: u32) -> bool {
    let longest = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    snapshot.reachable(device).any(|address| address.prefix_len < longest(address.ip))
}

/// A port stands for its bridge: that is the interface that netfilter sees.
fn is_of_local_pods(snapshot: &Snapshot, detector: &Detector, link: &Link) -> bool {
    let master = master(snapshot, link).filter(|master| has_ports(master));
    let names = [Some(link), master].map(|link| link.map(|link| link.name.as_str()));
    let any = |fits: &dyn Fn(&str) -> bool| names.iter().flatten().any(|name| fits(name));
    match detector {
        Detector::ClusterCidr(_) | Detector::NodeCidr => false,
        Detector::BridgeInterface(bridge) => any(&|name| name == bridge),
        Detector::InterfaceNamePrefix(prefix) => any(&|name| name.starts_with(prefix.as_str())),
    }
}

/// What `inet_select_addr` and `ipv6_dev_get_saddr` would take: an address of the device, else of what it is a port of,
/// else the one the node is reached by.
fn source<A>(snapshot: &Snapshot, index: u32, link: &Link, family: impl Fn(IpAddr) -> Option<A>) -> Option<A> {
    let default = [true, false].into_iter().filter_map(|v4| snapshot.default_device(v4));
    let devices = [index].into_iter().chain(link.master).chain(default);
    let mut addresses = devices.flat_map(|device| snapshot.reachable(device));
    addresses.find_map(|address| family(address.ip))
}

#[cfg(test)]
mod tests;
