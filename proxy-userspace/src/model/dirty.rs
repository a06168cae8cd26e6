//! What has to be computed again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::names::{ObjectName, ServicePortName};

/// Collected since the last [`super::Model::take_dirty`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Every Service: the node, its zone or its addresses changed.
    pub everything: bool,
    pub services: BTreeSet<ObjectName>,
    /// Service ports that were there at the last call and have changed or gone since.
    pub former_ports: BTreeSet<ServicePortName>,
    /// The tables about the node: ServiceCIDRs or node addresses changed.
    pub node: bool,
    /// Addresses that a Service got or lost.
    pub addresses: BTreeSet<IpAddr>,
}

impl Dirty {
    /// Names nothing where all is computed again anyway.
    pub(super) fn add_services(&mut self, names: impl IntoIterator<Item = ObjectName>) {
        if !self.everything {
            self.services.extend(names);
        }
    }

    pub(super) fn add_addresses(&mut self, ips: impl IntoIterator<Item = IpAddr>) {
        if !self.everything {
            self.addresses.extend(ips);
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
