//! What every service port should be on this node: the model seen through the policies of specification B.
//!
//! In: [`crate::model`] and [`ThisNode`]. Out: [`WantedService`]s and [`WantedNode`]. Pure: no clock, no kernel, no ids.
//!
//! ```text
//! Service  -> frontends (which addresses, minus lost claims) \
//! Slices   -> select    (cluster and local set, B3 and B4)    -> WantedService
//! ranges   -> sources   (B9)                                 /
//! ThisNode -> node      (B7 addresses, detector, ServiceCIDRs) -> WantedNode
//! ```

mod external;
mod frontends;
mod node;
mod select;
mod sources;
#[cfg(test)]
mod tests;
mod this_node;

use proxy_common::abi::{Backend, Cidr, Config, FrontendKey, PacketSettings, Version};
use proxy_common::addr::{Addr, Be16, Family};

pub use crate::model::ServicePortName;
pub use external::{Claim, claims};
pub use node::{node, some_addresses};
pub use this_node::{Detector, ExternalIps, NodePortAddresses, Packets, ThisNode};

use crate::model::service::{Port, Service};
use crate::model::{Dirty, Model};
use select::{Place, Selected};
use sources::Sources;

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

impl WantedService {
    /// Whether its one word says all about it ([`Word::Plain`](proxy_common::abi::Word)).
    pub fn is_plain(&self) -> bool {
        let has_local_set = || self.backends.iter().any(|backend| backend.flags & Backend::IN_LOCAL_SET != 0);
        self.affinity_seconds == 0 && self.flags & !Version::HAS_ANY == 0 && !has_local_set()
    }
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
    /// What addresses are: flags by address, sorted by address.
    pub addresses: Vec<(Addr, u32)>,
    pub config: Config,
    /// PACKETS: `None` where no programs are wanted at devices.
    pub packets: Option<PacketSettings>,
}

/// Computes what `dirty` names again, sorted by name; with `dirty.everything` that is all there is.
///
/// `None` means that the service port must go: it was there, and now it or its last frontend is not. When `this` changes
/// (an own address, a setting), call [`Model::mark_everything`] first: frontends, sets and source ranges depend on it.
pub fn services(model: &Model, this: &ThisNode, dirty: &Dirty) -> Vec<(ServicePortName, Option<WantedService>)> {
    let mut wanted = Vec::new();
    for service in dirty_services(model, dirty) {
        wanted.extend(
            service.service_ports().map(|(port, family)| {
                (service.port_name(port, family), service_port(model, this, service, port, family))
            }),
        );
    }
    sort_by_name(&mut wanted);
    let is_gone = |name: &&ServicePortName| wanted.binary_search_by_key(name, |(name, _)| name).is_err();
    let gone: Vec<_> = dirty.former_ports.iter().filter(is_gone).cloned().collect();
    if !gone.is_empty() {
        wanted.extend(gone.into_iter().map(|name| (name, None)));
        sort_by_name(&mut wanted);
    }
    wanted
}

fn sort_by_name<T>(wanted: &mut [(ServicePortName, T)]) {
    wanted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
}

fn dirty_services<'a>(model: &'a Model, dirty: &'a Dirty) -> Box<dyn Iterator<Item = &'a Service> + 'a> {
    if dirty.everything {
        Box::new(model.services())
    } else {
        Box::new(dirty.services.iter().filter_map(|name| model.service(name)))
    }
}

fn service_port(
    model: &Model,
    this: &ThisNode,
    service: &Service,
    port: &Port,
    family: Family,
) -> Option<WantedService> {
    let frontends = frontends::of(model, this, service, port, family);
    if frontends.is_empty() {
        return None;
    }
    let endpoints = model.endpoints(&service.name, port, family);
    let zone = model.node(&this.name).map_or("", |node| &node.zone);
    let place = Place { node: &this.name, zone };
    let Selected { backends, has_any } = select::select(&endpoints, select::Rules::of(service, port, family), place);
    let Sources { ranges, flags: source_flags } = sources::of(service, family, this.node_ip(model, family));
    Some(WantedService {
        name: service.port_name(port, family),
        frontends,
        backends,
        affinity_seconds: service.affinity_seconds,
        flags: policy_flags(service) | if has_any { Version::HAS_ANY } else { 0 } | source_flags,
        source_ranges: ranges,
    })
}

fn policy_flags(service: &Service) -> u32 {
    let internal = if service.internal_local { Version::INTERNAL_LOCAL } else { 0 };
    let external = if service.external_local { Version::EXTERNAL_LOCAL } else { 0 };
    internal | external
}
