//! What every service port should be on this node: the model seen through the policies of specification B.
//!
//! In: [`crate::model`] and [`ThisNode`]. Out: [`WantedService`]s and [`WantedNode`]. Pure: no clock, no kernel, no ids.

use std::sync::Arc;

use proxy_common::abi::{Cidr, Config, FrontendKey};
use proxy_common::addr::{Addr, Be16, Family};

/// One service port in one family: the unit of programming.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    /// Empty for an unnamed port.
    pub port: Arc<str>,
    /// IANA number.
    pub proto: u8,
    pub family: Family,
}

/// What one service port should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedService {
    pub name: ServicePortName,
    /// Sorted by key, each key at most once over all services (conflicts are decided before). Never empty.
    pub frontends: Vec<WantedFrontend>,
    /// Sorted by (address, port), each pair once. Members of a set carry its flag; serving endpoints outside of both
    /// sets are kept with their flags so that their flows stay.
    pub backends: Vec<WantedBackend>,
    /// 0 for none.
    pub affinity_seconds: u32,
    /// `proxy_common::abi::Version` flags.
    pub flags: u32,
    /// Empty unless `SOURCE_RANGES` is set in `flags`. Sorted.
    pub source_ranges: Vec<Cidr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedFrontend {
    pub key: FrontendKey,
    /// `proxy_common::abi::Frontend::KIND_*`.
    pub kind: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WantedBackend {
    pub addr: Addr,
    pub port: Be16,
    /// `proxy_common::abi::Backend` flags.
    pub flags: u16,
}

/// What the tables about this node should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedNode {
    /// ADDRS: flags by address, sorted by address.
    pub addresses: Vec<(Addr, u32)>,
    pub config: Config,
}
