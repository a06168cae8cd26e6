//! Who claims which frontend. Two Services may name one external address: the older one is served (then the one whose
//! name sorts first), so the order of events never decides.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proxy_common::abi::FrontendKey;

use super::names::ObjectName;
use super::problem::Problem;
use super::protocol;
use super::service::Service;
use crate::hash::HashMap;

/// Claimants by frontend, best first; nearly always one.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<FrontendKey, Vec<Arc<Service>>>);

/// A frontend that a Service claims and another one has.
#[derive(Debug)]
pub(super) struct Loss {
    key: FrontendKey,
    winner: ObjectName,
    pub(super) loser: ObjectName,
    /// Nobody is older: the names decided.
    by_name: bool,
}

impl Claims {
    /// The Service that serves `key`.
    pub(super) fn winner(&self, key: &FrontendKey) -> Option<&ObjectName> {
        self.0.get(key)?.first().map(|service| &service.name)
    }

    /// Who loses a frontend because `service` is there: itself or the one that had it.
    pub(super) fn add(&mut self, service: &Arc<Service>) -> Vec<Loss> {
        keys(service).filter_map(|key| self.add_key(key, service)).collect()
    }

    fn add_key(&mut self, key: FrontendKey, service: &Arc<Service>) -> Option<Loss> {
        let claimants = self.0.entry(key).or_insert_with(|| Vec::with_capacity(1));
        let at = claimants.partition_point(|other| other.rank(service).is_lt());
        claimants.insert(at, Arc::clone(service));
        let (winner, loser) = (claimants.first()?, claimants.get(at.max(1))?);
        let by_name = winner.created == loser.created;
        Some(Loss { key, winner: winner.name.clone(), loser: loser.name.clone(), by_name })
    }

    /// Who may have won a frontend because `service` is gone.
    pub(super) fn remove(&mut self, service: &Arc<Service>) -> Vec<ObjectName> {
        keys(service).filter_map(|key| self.remove_key(key, service)).collect()
    }

    fn remove_key(&mut self, key: FrontendKey, service: &Arc<Service>) -> Option<ObjectName> {
        let claimants = self.0.get_mut(&key)?;
        claimants.retain(|other| !Arc::ptr_eq(other, service));
        let heir = claimants.first().map(|heir| heir.name.clone());
        if heir.is_none() {
            self.0.remove(&key);
        }
        heir
    }
}

fn keys(service: &Service) -> impl Iterator<Item = FrontendKey> {
    service.service_ports().flat_map(|(port, family)| service.frontends(port, family)).map(|(key, _)| key)
}

impl Loss {
    pub(super) fn problem(&self) -> Problem {
        let (what, winner) = (self.what(), &self.winner);
        let whom = if self.by_name {
            format!("Service {winner}, whose name comes first")
        } else {
            format!("the older Service {winner}")
        };
        Problem {
            object: format!("Service {}", self.loser),
            message: format!("{what} is served for {whom}; remove it from one of the two"),
        }
    }

    fn what(&self) -> String {
        let (protocol, port) = (protocol::name(self.key.proto), self.key.port.get());
        match IpAddr::from(self.key.addr) {
            ip if ip.is_unspecified() => format!("node port {port}/{protocol}"),
            ip => format!("{}/{protocol}", SocketAddr::new(ip, port)),
        }
    }
}
