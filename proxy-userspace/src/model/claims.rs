//! Who claims which address. Whom the cluster gave an address goes before who wrote it into externalIPs. Of two that did the
//! same the older one is served (then the one whose name sorts first), so the order of events never decides.

use std::cmp::Ordering;
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
    because: Because,
}

/// What decided.
#[derive(Debug)]
enum Because {
    /// The cluster gave it to one of them; the other wrote it into externalIPs.
    Given,
    Age,
    /// Nobody is older.
    Name,
}

impl Catalog {
    /// The Service that serves `key`.
    pub(super) fn winner(&self, key: &FrontendKey) -> Option<&Service> {
        let at_cluster_ip = FrontendKey::of_address(key.addr);
        let services = [&at_cluster_ip, key].into_iter().flat_map(|key| self.services_by(&self.by_frontend, key));
        services.filter(|service| service.claims(key)).min_by(|a, b| precedence(a, b, key))
    }

    /// Services that have `ip` among their externalIPs or load-balancer addresses.
    pub(super) fn outside_at(&self, ip: IpAddr) -> impl Iterator<Item = &Service> {
        let services = self.services_by(&self.by_outside_ip, &ip);
        services.filter(move |service| service.outside_ips().any(|other| other == ip))
    }

    pub(super) fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        let key = FrontendKey::of_address(ip.into());
        self.services_by(&self.by_frontend, &key).any(|service| service.cluster_ips().any(|other| other == ip))
    }

    /// Who loses a frontend because `service` is there: itself or the one that had it.
    pub(super) fn add_service(&mut self, service: Service) -> Vec<Loss> {
        let losses = keys(&service).filter_map(|key| Some(Loss::between(key, &service, self.winner(&key)?))).collect();
        let id = self.find_or_add(&service.name);
        leads(&service).for_each(|key| self.by_frontend.add(&key, id));
        service.outside_ips().for_each(|ip| self.by_outside_ip.add(&ip, id));
        self.known[id].set_service(service);
        losses
    }

    /// The Service that was there, and who may have won a frontend because it is gone.
    pub(super) fn remove_service(&mut self, name: &ObjectName) -> Option<(Service, Vec<ObjectName>)> {
        let id = self.find(name)?;
        let service = self.known[id].take_service()?;
        leads(&service).for_each(|key| self.by_frontend.remove(&key, id));
        service.outside_ips().for_each(|ip| self.by_outside_ip.remove(&ip, id));
        self.forget_if_empty(id);
        let heirs = keys(&service).filter_map(|key| Some(self.winner(&key)?.name.clone())).collect();
        Some((service, heirs))
    }
}

fn precedence(one: &Service, other: &Service, key: &FrontendKey) -> Ordering {
    one.only_wrote(key).cmp(&other.only_wrote(key)).then_with(|| one.rank(other))
}

fn keys(service: &Service) -> impl Iterator<Item = FrontendKey> {
    service.service_ports().flat_map(|(port, family)| service.frontends(port, family)).map(|(key, _)| key)
}

/// What a Service is found by: its ClusterIPs, whatever the port, and its other frontends.
fn leads(service: &Service) -> impl Iterator<Item = FrontendKey> {
    let at_cluster_ip = |key: &FrontendKey| service.cluster_ips().any(|ip| key.addr == ip.into());
    let cluster_ips = service.cluster_ips().map(|ip| FrontendKey::of_address(ip.into()));
    cluster_ips.chain(keys(service).filter(move |key| !at_cluster_ip(key)))
}

impl Loss {
    fn between(key: FrontendKey, one: &Service, other: &Service) -> Self {
        let (winner, loser) = if precedence(one, other, &key).is_lt() { (one, other) } else { (other, one) };
        let because = if loser.only_wrote(&key) && !winner.only_wrote(&key) {
            Because::Given
        } else if winner.created == loser.created {
            Because::Name
        } else {
            Because::Age
        };
        Self { key, winner: winner.name.clone(), loser: loser.name.clone(), because }
    }

    pub(super) fn problem(&self) -> Problem {
        let (what, winner) = (self.what(), &self.winner);
        let whom = match self.because {
            Because::Given => format!("Service {winner}, to which it was given"),
            Because::Age => format!("the older Service {winner}"),
            Because::Name => format!("Service {winner}, whose name comes first"),
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
