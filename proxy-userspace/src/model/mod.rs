//! What the cluster says now, in small own types.
//!
//! In: [`Change`]s from an API server or from files, in any order. Out: which Services are [`Dirty`], and [`Problem`]s
//! with objects. Knows nothing of kernel tables, clients or clocks.
//!
//! ```text
//! objects (JSON, YAML) -> service, endpoints, node, cidr  (one file converts one kind)
//!                      -> Model { catalog of Services and slices, nodes, ServiceCIDRs } -> Dirty
//! ```

pub mod address;
#[cfg(any(test, feature = "test-support"))]
pub mod build;
mod catalog;
pub mod cidr;
mod claims;
mod counted;
mod defaults;
mod dirty;
pub mod endpoints;
mod index;
mod kinds;
mod listing;
mod moment;
mod names;
pub mod node;
pub mod objects;
mod problem;
pub mod protocol;
pub mod service;
mod slices;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use proxy_common::abi::FrontendKey;
use proxy_common::addr::Family;

pub use dirty::Dirty;
pub use names::{ObjectName, ServicePortName};
pub use problem::{Problem, Refused};
pub use slices::Joined;

use catalog::Catalog;
use counted::Counted;
use kinds::Kind;
use names::Names;
use node::{Node, OtherNode};
use objects::EndpointSlice;
use problem::Told;
use service::{Port, Service};

/// One thing that a source learned about the cluster.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "handed over one at a time, never stored")]
pub enum Change {
    Service(Event<objects::Service>),
    EndpointSlice(Event<EndpointSlice>),
    /// This node's own; nothing else about it is read from another one.
    Node(Event<objects::Node>),
    OtherNode(Event<objects::OtherNode>),
    ServiceCidr(Event<objects::ServiceCidr>),
}

/// What happened to the objects of one kind.
#[derive(Clone, Debug)]
pub enum Event<T> {
    /// Added or changed.
    Apply(T),
    /// Gone. `namespace` is empty for cluster-scoped kinds.
    Delete {
        namespace: String,
        name: String,
    },
    /// The complete list: whatever is not in it is gone. The first one makes the kind "synced".
    Reset(Vec<T>),
    /// The complete list in pieces, so that it never has to fit in memory: what is not applied between `Begin` and
    /// `End` is gone at `End`. Another `Begin` starts over.
    Begin,
    End,
}

/// Everything the cluster said, ready to be looked at Service by Service.
#[derive(Debug, Default)]
pub struct Model {
    names: Names,
    catalog: Catalog,
    /// externalIPs and load-balancer addresses.
    external_ips: Counted,
    nodes: BTreeMap<ArcStr, Node>,
    other_nodes: BTreeMap<ArcStr, OtherNode>,
    /// Addresses of other nodes.
    node_addresses: Counted,
    cidrs: BTreeMap<ArcStr, Box<[IpNet]>>,
    listings: kinds::Listings,
    told: Told,
    refused: Vec<Refused>,
    dirty: Dirty,
}

impl Model {
    /// Takes one change in. The problems are those that are new with it.
    pub fn apply(&mut self, change: Change) -> Vec<Problem> {
        match change {
            Change::Service(event) => self.take(event),
            Change::EndpointSlice(event) => self.take(event),
            Change::Node(event) => self.take(event),
            Change::OtherNode(event) => self.take(event),
            Change::ServiceCidr(event) => self.take(event),
        }
    }

    /// Services and EndpointSlices have been listed completely: what is missing is gone, so tables may be written.
    /// Node and ServiceCIDR are not waited for (specification A3).
    pub fn synced(&self) -> bool {
        self.listings.services.complete && self.listings.slices.complete
    }

    /// What changed since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Addresses that nobody may name and that objects named since the last call; each once for as long as they do.
    pub fn take_refused(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.refused)
    }

    /// Says that something outside of the model changed what every Service should be: an address of this host, a setting.
    pub fn mark_everything(&mut self) {
        self.dirty.everything = true;
        self.dirty.node = true;
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.catalog.services()
    }

    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.catalog.service(name)
    }

    /// The endpoints of one service port, sorted by address and port, each pair once.
    pub fn endpoints(&self, service: &ObjectName, port: &Port, family: Family) -> Vec<Joined<'_>> {
        self.catalog.join(service, port, family)
    }

    /// How many endpoints one service port has, duplicates included.
    pub fn endpoint_count(&self, service: &ObjectName, port: &Port, family: Family) -> u32 {
        self.catalog.count(service, port, family)
    }

    /// The Service that serves `key`, of all that claim it.
    pub fn winner(&self, key: &FrontendKey) -> Option<&ObjectName> {
        self.catalog.winner(key).map(|service| &service.name)
    }

    /// Every ClusterIP; only mistakes make one appear twice.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.services().flat_map(Service::cluster_ips)
    }

    pub fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.catalog.is_cluster_ip(ip)
    }

    /// Every externalIP and load-balancer address, sorted.
    pub fn external_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.external_ips.iter()
    }

    pub fn is_external_ip(&self, ip: IpAddr) -> bool {
        self.external_ips.has(ip)
    }

    /// Services that have `ip` among their externalIPs or load-balancer addresses.
    pub fn outside_at(&self, ip: IpAddr) -> impl Iterator<Item = &Service> {
        self.catalog.outside_at(ip)
    }

    /// Whether a Node that was told of, this one's or another one's, has `ip`.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.node_addresses.has(ip) || self.nodes.values().any(|node| node.addresses.contains(&ip))
    }

    /// The podCIDRs of every Node that was told of.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = &IpNet> {
        let others = self.other_nodes.values().flat_map(|node| &node.pod_cidrs);
        self.nodes.values().flat_map(|node| &node.pod_cidrs).chain(others)
    }

    pub fn is_api_server(&self, ip: IpAddr) -> bool {
        self.catalog.endpoints_of(&api_server()).any(|endpoint| endpoint.addr == ip.into())
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The ranges of all ServiceCIDRs, sorted; those inside others or next to each other are merged.
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        IpNet::aggregate(&self.cidrs.values().flatten().copied().collect())
    }

    fn take<T: Kind>(&mut self, event: Event<T>) -> Vec<Problem> {
        match event {
            Event::Apply(object) => self.put(&object),
            Event::Delete { namespace, name } => {
                self.delete::<T>(&ObjectName::new(&namespace, &name));
                Vec::new()
            }
            Event::Reset(list) => self.reset(&list),
            Event::Begin => {
                self.begin_list::<T>();
                Vec::new()
            }
            Event::End => {
                self.end_list::<T>();
                Vec::new()
            }
        }
    }

    fn reset<T: Kind>(&mut self, list: &[T]) -> Vec<Problem> {
        self.begin_list::<T>();
        let problems = list.iter().flat_map(|object| self.put(object)).collect();
        self.end_list::<T>();
        problems
    }

    fn begin_list<T: Kind>(&mut self) {
        let known = T::known(self);
        T::listing(&mut self.listings).begin(known);
    }

    fn end_list<T: Kind>(&mut self) {
        for gone in T::listing(&mut self.listings).end() {
            self.delete::<T>(&gone);
        }
    }

    fn put<T: Kind>(&mut self, object: &T) -> Vec<Problem> {
        let metadata = object.metadata();
        let name = ObjectName::new(&metadata.namespace, &metadata.name);
        if let Some(problem) = T::misnamed(&name) {
            return vec![problem];
        }
        T::listing(&mut self.listings).see(&name);
        let mut problems = problem::Problems::default();
        let conflicts = T::put(self, name.clone(), object, &mut problems);
        if problems.is_empty() && self.told.is_empty() {
            return conflicts;
        }
        let title = T::title(&name);
        let faults = problems.into_faults(&title);
        let mut news = self.told.news(title, faults);
        if !news.refused.is_empty() {
            self.refused.push(Refused { kind: T::NAME, object: name, ips: news.refused });
        }
        news.problems.extend(conflicts);
        news.problems
    }

    fn delete<T: Kind>(&mut self, name: &ObjectName) {
        T::remove(self, name);
        self.told.forget(&T::title(name));
    }

    /// Puts a Service (or its absence) in the place of the one before; nothing happens when they are equal.
    fn replace_service(&mut self, name: &ObjectName, new: Option<Service>) -> Vec<Problem> {
        if self.catalog.service(name) == new.as_ref() {
            return Vec::new();
        }
        self.dirty.add_services([name.clone()]);
        let external = |of: Option<&Service>| of.map_or_else(Vec::new, |of| of.outside_ips().collect());
        let changed = self.external_ips.replace(&external(self.catalog.service(name)), &external(new.as_ref()));
        self.dirty.add_addresses(changed.iter().copied());
        self.mark_claimants(changed);
        let had = self.drop_service(name);
        let has: Vec<_> = new.iter().flat_map(Service::cluster_ips).collect();
        if had != has {
            let changed: Vec<_> = had.into_iter().chain(has).collect();
            self.dirty.add_addresses(changed.iter().copied());
            self.mark_claimants(changed);
        }
        new.map(|new| self.add_service(new)).unwrap_or_default()
    }

    /// Puts another node (or its absence) in the place of what was known of it.
    fn replace_other_node(&mut self, name: &ObjectName, new: Option<OtherNode>) {
        let old = match new.clone() {
            Some(new) => self.other_nodes.insert(name.name().into(), new),
            None => self.other_nodes.remove(name.name()),
        };
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let mut changed = self.node_addresses.replace(&old.addresses, &new.addresses);
        changed.retain(|ip| self.is_external_ip(*ip));
        self.dirty.add_addresses(changed.iter().copied());
        self.mark_claimants(changed);
        if old.pod_cidrs != new.pod_cidrs {
            self.mark_all_claimants();
        }
    }

    /// Something became of these addresses that matters to Services which have them among their externalIPs.
    fn mark_claimants(&mut self, ips: Vec<IpAddr>) {
        if self.dirty.everything {
            return;
        }
        let claimants = |ip| self.catalog.outside_at(ip).map(|service| service.name.clone()).collect::<Vec<_>>();
        let names: Vec<_> = ips.into_iter().flat_map(claimants).collect();
        self.dirty.add_services(names);
    }

    /// Something changed that matters to every Service with addresses from outside.
    fn mark_all_claimants(&mut self) {
        let ips: Vec<_> = self.external_ips.iter().collect();
        self.dirty.add_addresses(ips.iter().copied());
        self.mark_claimants(ips);
    }

    /// The ClusterIPs that it had.
    fn drop_service(&mut self, name: &ObjectName) -> Vec<IpAddr> {
        let Some((old, heirs)) = self.catalog.remove_service(name) else { return Vec::new() };
        self.dirty.former_ports.extend(old.service_ports().map(|(port, family)| old.port_name(port, family)));
        self.dirty.add_services(heirs);
        old.cluster_ips().collect()
    }

    fn add_service(&mut self, new: Service) -> Vec<Problem> {
        let losses = self.catalog.add_service(new);
        let told = losses.iter().map(claims::Loss::problem).collect();
        self.dirty.add_services(losses.into_iter().map(|loss| loss.loser));
        told
    }

    /// Says that these Services must be computed again.
    pub fn mark_services(&mut self, names: impl IntoIterator<Item = ObjectName>) {
        self.dirty.add_services(names);
    }

    /// As [`Self::mark_services`], of those whose endpoints changed.
    fn mark_served(&mut self, names: Vec<ObjectName>) {
        if names.contains(&api_server()) {
            self.mark_all_claimants();
        }
        self.mark_services(names);
    }
}

/// The Service whose endpoints are the API servers.
fn api_server() -> ObjectName {
    ObjectName::new("default", "kubernetes")
}
