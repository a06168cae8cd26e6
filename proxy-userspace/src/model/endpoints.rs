//! EndpointSlice: where traffic may go (specification A5, B2).

use std::sync::Arc;

use arcstr::ArcStr;
use proxy_common::addr::{Addr, Family};
use smallvec::SmallVec;

use super::address::{family_of, parse_ip, parse_port, unfit_for_endpoint};
use super::names::{Names, ObjectName, SliceName};
use super::objects;
use super::problem::Problems;
use super::protocol;

/// Names the Service that a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Slices with this label, whatever its value, are hidden from proxies.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// One slice. A hundred thousand endpoints live in these: 24 bytes each, since all but the address is shared, as are
/// lists of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub name: SliceName,
    pub ports: Arc<[SlicePort]>,
    /// All of one family.
    pub endpoints: Box<[Endpoint]>,
}

impl Slice {
    /// `None` when there are no endpoints.
    pub fn family(&self) -> Option<Family> {
        self.endpoints.first().map(|endpoint| endpoint.addr.family())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// Empty for an unnamed port.
    pub name: ArcStr,
    /// IANA number.
    pub proto: u8,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: Addr,
    state: Arc<State>,
}

/// What endpoints have in common: where they run, where they are meant to be used (an empty list is no hint), and their
/// conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    node: Option<ArcStr>,
    zones: Box<[ArcStr]>,
    nodes: Box<[ArcStr]>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Endpoint {
    pub fn is_on(&self, node: &str) -> bool {
        self.state.node.as_deref() == Some(node)
    }

    pub fn is_ready(&self) -> bool {
        self.state.ready
    }

    pub fn is_serving(&self) -> bool {
        self.state.serving
    }

    pub fn is_terminating(&self) -> bool {
        self.state.terminating
    }

    /// Usable when nothing is ready: it still answers while it goes away.
    pub fn is_last_resort(&self) -> bool {
        self.state.serving && self.state.terminating
    }

    pub fn zones(&self) -> &[ArcStr] {
        &self.state.zones
    }

    pub fn nodes(&self) -> &[ArcStr] {
        &self.state.nodes
    }
}

/// The slice and the Service it belongs to; `None` when it is none of our business.
pub(super) fn convert(
    object: &objects::EndpointSlice,
    names: &mut Names,
    problems: &mut Problems,
) -> Option<(ObjectName, Slice)> {
    if object.metadata.labels.contains_key(HEADLESS_LABEL) {
        return None;
    }
    let service = service_of(object, problems)?;
    let family = address_family(&object.address_type, problems)?;
    let ports: SmallVec<[SlicePort; 1]> =
        object.ports.iter().enumerate().filter_map(|(at, port)| slice_port(at, port, names, problems)).collect();
    let ports = names.share_ports(&ports);
    let name = SliceName::new(&service, &object.metadata.name);
    Some((service, Slice { name, ports, endpoints: endpoints(object, family, names, problems) }))
}

fn service_of(object: &objects::EndpointSlice, problems: &mut Problems) -> Option<ObjectName> {
    let Some(service) = object.metadata.labels.get(SERVICE_LABEL).filter(|service| !service.is_empty()) else {
        problems.push(format!("has no label {SERVICE_LABEL} and is not used; name its Service there"));
        return None;
    };
    Some(ObjectName::new(&object.metadata.namespace, service))
}

fn address_family(text: &str, problems: &mut Problems) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        other => {
            problems.push(format!("addressType {other:?} is not used; a proxy serves IPv4 and IPv6"));
            None
        }
    }
}

/// A port without a number stands for "all ports", which no service port can join: passed over in silence.
fn slice_port(
    at: usize,
    object: &objects::EndpointPort,
    names: &mut Names,
    problems: &mut Problems,
) -> Option<SlicePort> {
    let number = object.port.filter(|number| *number != 0)?;
    let Some(name) = object.name.as_deref() else {
        problems.push(format!("ports[{at}] has no name and is not used; write name: \"\" for an unnamed port"));
        return None;
    };
    let Some(proto) = protocol::number(object.protocol.as_deref()) else {
        let protocol = object.protocol.as_deref().unwrap_or_default();
        problems.push(format!("ports[{at}].protocol {protocol:?} is not used; use TCP, UDP or SCTP"));
        return None;
    };
    let Some(port) = parse_port(number) else {
        problems.push(format!("ports[{at}].port {number} is not used; use 1 to 65535"));
        return None;
    };
    Some(SlicePort { name: names.share(name), proto, port })
}

fn endpoints(
    object: &objects::EndpointSlice,
    family: Family,
    names: &mut Names,
    problems: &mut Problems,
) -> Box<[Endpoint]> {
    let read = |(at, endpoint)| {
        let addr = endpoint_address(at, endpoint, family, problems)?;
        Some(Endpoint { addr, state: state(endpoint, names) })
    };
    // Nearly always all of them: room is asked for once.
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    endpoints.extend(object.endpoints.iter().enumerate().filter_map(read));
    endpoints.into()
}

/// Only the first address of an endpoint counts.
fn endpoint_address(at: usize, endpoint: &objects::Endpoint, family: Family, problems: &mut Problems) -> Option<Addr> {
    let Some(text) = endpoint.addresses.first() else {
        problems.push(format!("endpoints[{at}] has no address and is not used; give it one"));
        return None;
    };
    let message = |why: &str| format!("endpoints[{at}] {text:?} is {why} and is not used; correct or remove it");
    match parse_ip(text) {
        None => problems.push(message("no IP address")),
        Some(ip) => match unfit_for_endpoint(ip) {
            Some(what) => problems.refuse(ip, message(what)),
            None if family_of(ip) != family => problems.push(message("not of the slice's addressType")),
            None => return Some(ip.into()),
        },
    }
    None
}

fn state(object: &objects::Endpoint, names: &mut Names) -> Arc<State> {
    let mut list = |hints: &[objects::Hint]| hints.iter().map(|hint| names.share(&hint.name)).collect();
    let (zones, nodes) =
        object.hints.as_ref().map_or_else(Default::default, |hints| (list(&hints.for_zones), list(&hints.for_nodes)));
    let node = object.node_name.as_deref().map(|node| names.share(node));
    let conditions = &object.conditions;
    names.share_state(State {
        node,
        zones,
        nodes,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
    })
}
