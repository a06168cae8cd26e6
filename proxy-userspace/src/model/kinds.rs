//! The kinds, each with the verbs that every event is made of.

use arcstr::ArcStr;
use proxy_common::abi::SERVICE_CIDRS;

use super::listing::Listing;
use super::names::ObjectName;
use super::objects::{EndpointSlice, Metadata, Node, OtherNode, Service, ServiceCidr};
use super::problem::{Problem, Problems};
use super::{Model, cidr, endpoints, node, service};

#[derive(Debug, Default)]
pub(super) struct Listings {
    pub(super) services: Listing,
    pub(super) slices: Listing,
    pub(super) nodes: Listing,
    pub(super) other_nodes: Listing,
    pub(super) cidrs: Listing,
}

pub(super) trait Kind: Sized {
    const NAME: &'static str;
    const NAMESPACED: bool;

    fn metadata(&self) -> &Metadata;
    fn listing(listings: &mut Listings) -> &mut Listing;
    fn known(model: &Model) -> Vec<ObjectName>;
    /// Puts the object in. Returns the problems it makes for others.
    fn put(model: &mut Model, name: ObjectName, object: &Self, problems: &mut Problems) -> Vec<Problem>;
    fn remove(model: &mut Model, name: &ObjectName);

    /// As people call the object.
    fn title(name: &ObjectName) -> String {
        if Self::NAMESPACED { format!("{} {name}", Self::NAME) } else { format!("{} {}", Self::NAME, name.name()) }
    }

    /// What is wrong with the name itself.
    fn misnamed(name: &ObjectName) -> Option<Problem> {
        let nameless = name.name().is_empty() || (Self::NAMESPACED && name.namespace().is_empty());
        let message = if nameless {
            "has no name or no namespace and is not used; give it both"
        } else if name.name().contains('/') {
            "has a slash in its name and is not used; no API server takes one"
        } else {
            return None;
        };
        Some(Problem { object: Self::title(name), message: message.into() })
    }
}

impl Kind for Service {
    const NAME: &'static str = "Service";
    const NAMESPACED: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn listing(listings: &mut Listings) -> &mut Listing {
        &mut listings.services
    }

    fn known(model: &Model) -> Vec<ObjectName> {
        model.services().map(|service| service.name.clone()).collect()
    }

    fn put(model: &mut Model, name: ObjectName, object: &Self, problems: &mut Problems) -> Vec<Problem> {
        let service = service::convert(&name, object, &mut model.names, problems);
        model.replace_service(&name, service)
    }

    fn remove(model: &mut Model, name: &ObjectName) {
        model.replace_service(name, None);
    }
}

impl Kind for EndpointSlice {
    const NAME: &'static str = "EndpointSlice";
    const NAMESPACED: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn listing(listings: &mut Listings) -> &mut Listing {
        &mut listings.slices
    }

    fn known(model: &Model) -> Vec<ObjectName> {
        model.catalog.slice_names().collect()
    }

    fn put(model: &mut Model, name: ObjectName, object: &Self, problems: &mut Problems) -> Vec<Problem> {
        let changed = match endpoints::convert(object, &mut model.names, problems) {
            Some((service, slice)) => model.catalog.put_slice(&name, &service, slice),
            None => model.catalog.remove_slice(&name).into_iter().collect(),
        };
        model.mark_served(changed);
        Vec::new()
    }

    fn remove(model: &mut Model, name: &ObjectName) {
        let changed = model.catalog.remove_slice(name);
        model.mark_served(changed.into_iter().collect());
    }
}

impl Kind for Node {
    const NAME: &'static str = "Node";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn listing(listings: &mut Listings) -> &mut Listing {
        &mut listings.nodes
    }

    fn known(model: &Model) -> Vec<ObjectName> {
        cluster_scoped(model.nodes.keys())
    }

    fn put(model: &mut Model, name: ObjectName, object: &Self, problems: &mut Problems) -> Vec<Problem> {
        let node = node::convert(object, &mut model.names, problems);
        if model.nodes.get(name.name()) != Some(&node) {
            model.nodes.insert(name.name().into(), node);
            model.mark_everything();
        }
        Vec::new()
    }

    /// A Node that is deleted keeps its zone and addresses in force: kube-proxy does not let go either (A4, F4).
    fn remove(_: &mut Model, _: &ObjectName) {}
}

impl Kind for OtherNode {
    const NAME: &'static str = "Node";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    fn listing(listings: &mut Listings) -> &mut Listing {
        &mut listings.other_nodes
    }

    fn known(model: &Model) -> Vec<ObjectName> {
        cluster_scoped(model.other_nodes.keys())
    }

    fn put(model: &mut Model, name: ObjectName, object: &Self, problems: &mut Problems) -> Vec<Problem> {
        let node = node::convert_other(object, problems);
        if model.other_nodes.get(name.name()) != Some(&node) {
            model.replace_other_node(&name, Some(node));
        }
        Vec::new()
    }

    fn remove(model: &mut Model, name: &ObjectName) {
        model.replace_other_node(name, None);
    }
}

impl Kind for ServiceCidr {
    const NAME: &'static str = "ServiceCIDR";
    const NAMESPACED: bool = false;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn listing(listings: &mut Listings) -> &mut Listing {
        &mut listings.cidrs
    }

    fn known(model: &Model) -> Vec<ObjectName> {
        cluster_scoped(model.cidrs.keys())
    }

    fn put(model: &mut Model, name: ObjectName, object: &Self, problems: &mut Problems) -> Vec<Problem> {
        let cidrs = cidr::convert(object, problems);
        if model.cidrs.get(name.name()) != Some(&cidrs) {
            model.cidrs.insert(name.name().into(), cidrs);
            model.dirty.node = true;
            model.mark_all_claimants();
        }
        report_those_that_do_not_fit(model, problems);
        Vec::new()
    }

    fn remove(model: &mut Model, name: &ObjectName) {
        if model.cidrs.remove(name.name()).is_some() {
            model.dirty.node = true;
            model.mark_all_claimants();
        }
    }
}

fn report_those_that_do_not_fit(model: &Model, problems: &mut Problems) {
    let ranges = model.service_cidrs().len();
    if ranges > SERVICE_CIDRS {
        problems.push(format!(
            "all ServiceCIDRs together are {ranges} ranges, of which {SERVICE_CIDRS} are watched; addresses without a \
             Service in the others are not refused at once"
        ));
    }
}

/// Names of a kind without namespaces. Lists of those carry an empty namespace.
fn cluster_scoped<'a>(names: impl Iterator<Item = &'a ArcStr>) -> Vec<ObjectName> {
    names.map(|name| ObjectName::new("", name)).collect()
}
