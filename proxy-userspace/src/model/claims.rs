//! Who claims which address. Two Services may name one external address: the older one is served (then the one whose
//! name sorts first), so the order of events never decides.

use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::FrontendKey;

use super::catalog::Catalog;
use super::names::ObjectName;
use super::problem::Problem;
use super::protocol;
use super::service::Service;

/// A frontend that a Service claims and another one has.
#[derive(Debug)]
pub(super) struct Loss {
    key: FrontendKey,
    winner: ObjectName,
    pub(super) loser: ObjectName,
    /// Nobody is older: the names decided.
    by_name: bool,
}

impl Catalog {
    /// The Service that serves `key`.
    pub(super) fn winner(&self, key: &FrontendKey) -> Option<&Service> {
        let candidates = self.by_frontend.candidates(key).filter_map(|id| self.known[id].service.as_ref());
        candidates.filter(|service| service.claims(key)).min_by(|a, b| a.rank(b))
    }

    pub(super) fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        let mut candidates = self.by_cluster_ip.candidates(&ip).filter_map(|id| self.known[id].service.as_ref());
        candidates.any(|service| service.cluster_ips().any(|other| other == ip))
    }

    /// Who loses a frontend because `service` is there: itself or the one that had it.
    pub(super) fn add_service(&mut self, service: Service) -> Vec<Loss> {
        let losses = keys(&service).filter_map(|key| Some(Loss::between(key, &service, self.winner(&key)?))).collect();
        let id = self.find_or_add(&service.name);
        keys(&service).for_each(|key| self.by_frontend.add(&key, id));
        service.cluster_ips().for_each(|ip| self.by_cluster_ip.add(&ip, id));
        self.known[id].service = Some(service);
        losses
    }

    /// The Service that was there, and who may have won a frontend because it is gone.
    pub(super) fn remove_service(&mut self, name: &ObjectName) -> Option<(Service, Vec<ObjectName>)> {
        let id = self.find(name)?;
        let service = self.known[id].service.take()?;
        keys(&service).for_each(|key| self.by_frontend.remove(&key, id));
        service.cluster_ips().for_each(|ip| self.by_cluster_ip.remove(&ip, id));
        self.forget_if_empty(id);
        let heirs = keys(&service).filter_map(|key| Some(self.winner(&key)?.name.clone())).collect();
        Some((service, heirs))
    }
}

fn keys(service: &Service) -> impl Iterator<Item = FrontendKey> {
    service.service_ports().flat_map(|(port, family)| service.frontends(port, family)).map(|(key, _)| key)
}

impl Loss {
    fn between(key: FrontendKey, one: &Service, other: &Service) -> Self {
        let (winner, loser) = if one.rank(other).is_lt() { (one, other) } else { (other, one) };
        let by_name = winner.created == loser.created;
        Self { key, winner: winner.name.clone(), loser: loser.name.clone(), by_name }
    }

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
