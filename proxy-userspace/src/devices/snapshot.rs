//! Links, addresses and routes of a network namespace at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the kernel says. Two that are equal lead to the same choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By interface index.
    pub links: BTreeMap<u32, Link>,
    /// In the kernel's order: of a device, the one that it prefers comes first.
    pub addresses: Vec<OwnAddress>,
    /// Default routes of any table.
    pub default_routes: Vec<Route>,
    /// Devices that any other unicast route leads to.
    pub routed: BTreeSet<u32>,
    /// Grows when somebody removes filters from a device: a reason to look at what stands there.
    pub removals: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    /// As the kernel names it (`veth`, `bond`); empty for hardware.
    pub kind: String,
    pub format: Format,
    pub up: bool,
    /// The bond, bridge or VRF that it is part of.
    pub master: Option<u32>,
    pub lower: Lower,
}

/// How packets of a device begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Ethernet,
    /// With their network header.
    Network,
    Loopback,
    /// In a way that no program of ours reads (`ARPHRD_*`).
    Other(u16),
}

/// What a device is built on, or the other end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lower {
    Nothing,
    Here(u32),
    OtherNamespace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub device: u32,
    pub ip: IpAddr,
    pub prefix_len: u8,
    /// Others can reach it (scope "global").
    pub reachable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub device: u32,
    pub v4: bool,
    pub main_table: bool,
    pub metric: u32,
}

impl Link {
    /// `wireguard` and `veth` are kinds, hardware has none.
    pub fn is_hardware(&self) -> bool {
        self.kind.is_empty()
    }
}

impl Snapshot {
    /// Where the default route of lowest metric leads.
    pub fn default_device(&self, v4: bool) -> Option<u32> {
        let candidates = self.default_routes.iter().filter(|route| route.main_table && route.v4 == v4);
        candidates.min_by_key(|route| route.metric).map(|route| route.device)
    }

    /// Addresses of a device that others can reach.
    pub fn reachable(&self, device: u32) -> impl Iterator<Item = &OwnAddress> {
        self.addresses.iter().filter(move |address| address.device == device && address.reachable)
    }

    pub fn name(&self, device: u32) -> String {
        self.links.get(&device).map_or_else(|| format!("device {device}"), |link| link.name.clone())
    }
}
