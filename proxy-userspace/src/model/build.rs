//! Builders for API objects, so that a test shows only what matters to it.
//!
//! ```
//! use proxy_userspace::model::build::{service, slice};
//!
//! let web = service("shop/web").cluster_ip("10.96.0.10").port(80).apply();
//! let endpoints = slice("shop/web").port(8080).endpoint("10.1.0.1").on("node-1").endpoint("10.1.0.2").apply();
//! ```
//!
//! What a method says about a port or an endpoint is about the last one named before it.

use super::objects::{
    self, ClientIpConfig, EndpointHints, EndpointPort, Hint, LoadBalancerIngress, Metadata, NodeAddress, ServicePort,
    SessionAffinityConfig,
};
use super::{Change, Event};

/// A Service named `namespace/name`.
pub fn service(name: &str) -> Service {
    Service(objects::Service { metadata: metadata(name), ..Default::default() })
}

/// A slice `namespace/name-1` of the Service `namespace/name`, IPv4 until an address says otherwise.
pub fn slice(service: &str) -> Slice {
    let mut metadata = metadata(service);
    metadata.labels.insert("kubernetes.io/service-name".into(), metadata.name.clone());
    metadata.name.push_str("-1");
    Slice(objects::EndpointSlice { metadata, address_type: "IPv4".into(), ..Default::default() })
}

pub fn node(name: &str) -> Node {
    Node(objects::Node { metadata: Metadata { name: name.into(), ..Default::default() }, ..Default::default() })
}

pub fn service_cidr(name: &str) -> ServiceCidr {
    let metadata = Metadata { name: name.into(), ..Default::default() };
    ServiceCidr(objects::ServiceCidr { metadata, ..Default::default() })
}

fn metadata(name: &str) -> Metadata {
    let (namespace, name) = name.split_once('/').expect("a test names objects namespace/name");
    Metadata { namespace: namespace.into(), name: name.into(), ..Default::default() }
}

/// The verbs that every builder shares: what becomes of the object.
macro_rules! changes {
    ($builder:ident, $variant:ident) => {
        impl $builder {
            pub fn apply(&self) -> Change {
                Change::$variant(Event::Apply(self.0.clone()))
            }

            pub fn delete(&self) -> Change {
                let Metadata { namespace, name, .. } = self.0.metadata.clone();
                Change::$variant(Event::Delete { namespace, name })
            }

            pub fn reset(all: &[Self]) -> Change {
                Change::$variant(Event::Reset(all.iter().map(|builder| builder.0.clone()).collect()))
            }

            pub fn label(mut self, key: &str, value: &str) -> Self {
                self.0.metadata.labels.insert(key.into(), value.into());
                self
            }
        }
    };
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Service(pub objects::Service);
changes!(Service, Service);

impl Service {
    /// One per family.
    pub fn cluster_ip(mut self, ip: &str) -> Self {
        let spec = &mut self.0.spec;
        spec.cluster_ip.get_or_insert_with(|| ip.into());
        spec.cluster_ips.push(ip.into());
        spec.ip_families.push(family(ip));
        self
    }

    pub fn kind(mut self, kind: &str) -> Self {
        self.0.spec.kind = Some(kind.into());
        self
    }

    /// An unnamed TCP port.
    pub fn port(self, port: i32) -> Self {
        self.named_port("", "TCP", port)
    }

    pub fn named_port(mut self, name: &str, protocol: &str, port: i32) -> Self {
        let (name, protocol) = (Some(name.into()), Some(protocol.into()));
        self.0.spec.ports.push(ServicePort { name, protocol, port, node_port: None });
        self
    }

    pub fn node_port(mut self, port: i32) -> Self {
        self.0.spec.ports.last_mut().expect("a node port belongs to a port").node_port = Some(port);
        self.0.spec.kind.get_or_insert_with(|| "NodePort".into());
        self
    }

    pub fn external_ip(mut self, ip: &str) -> Self {
        self.0.spec.external_ips.push(ip.into());
        self
    }

    /// An address of mode VIP.
    pub fn load_balancer_ip(self, ip: &str) -> Self {
        self.load_balancer_ip_of_mode(ip, None).kind("LoadBalancer")
    }

    pub fn load_balancer_ip_of_mode(mut self, ip: &str, mode: Option<&str>) -> Self {
        let ingress = LoadBalancerIngress { ip: Some(ip.into()), ip_mode: mode.map(Into::into) };
        self.0.status.load_balancer.ingress.push(ingress);
        self
    }

    pub fn source_range(mut self, range: &str) -> Self {
        self.0.spec.load_balancer_source_ranges.push(range.into());
        self
    }

    pub fn affinity(mut self, timeout_seconds: Option<i32>) -> Self {
        self.0.spec.session_affinity = Some("ClientIP".into());
        let client_ip = Some(ClientIpConfig { timeout_seconds });
        self.0.spec.session_affinity_config = Some(SessionAffinityConfig { client_ip });
        self
    }

    pub fn internal_local(mut self) -> Self {
        self.0.spec.internal_traffic_policy = Some("Local".into());
        self
    }

    pub fn external_local(mut self) -> Self {
        self.0.spec.external_traffic_policy = Some("Local".into());
        self
    }

    /// An RFC 3339 time.
    pub fn created(mut self, time: &str) -> Self {
        self.0.metadata.creation_timestamp = Some(time.into());
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Slice(pub objects::EndpointSlice);
changes!(Slice, EndpointSlice);

impl Slice {
    /// Another name than that of the first slice.
    pub fn named(mut self, name: &str) -> Self {
        self.0.metadata.name = name.into();
        self
    }

    /// An unnamed TCP port.
    pub fn port(self, port: i32) -> Self {
        self.named_port("", "TCP", port)
    }

    pub fn named_port(mut self, name: &str, protocol: &str, port: i32) -> Self {
        let (name, protocol) = (Some(name.into()), Some(protocol.into()));
        self.0.ports.push(EndpointPort { name, protocol, port: Some(port) });
        self
    }

    /// A ready endpoint; its family becomes the slice's.
    pub fn endpoint(mut self, ip: &str) -> Self {
        self.0.address_type = family(ip);
        self.0.endpoints.push(objects::Endpoint { addresses: vec![ip.into()], ..Default::default() });
        self
    }

    pub fn on(mut self, node: &str) -> Self {
        self.last().node_name = Some(node.into());
        self
    }

    pub fn conditions(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        let conditions = &mut self.last().conditions;
        (conditions.ready, conditions.serving) = (Some(ready), Some(serving));
        conditions.terminating = Some(terminating);
        self
    }

    pub fn not_ready(self) -> Self {
        self.conditions(false, false, false)
    }

    /// Going away, still answering.
    pub fn terminating(self) -> Self {
        self.conditions(false, true, true)
    }

    pub fn for_zone(mut self, zone: &str) -> Self {
        self.hints().for_zones.push(Hint { name: zone.into() });
        self
    }

    pub fn for_node(mut self, node: &str) -> Self {
        self.hints().for_nodes.push(Hint { name: node.into() });
        self
    }

    fn last(&mut self) -> &mut objects::Endpoint {
        self.0.endpoints.last_mut().expect("name an endpoint first")
    }

    fn hints(&mut self) -> &mut EndpointHints {
        self.last().hints.get_or_insert_default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Node(pub objects::Node);
changes!(Node, Node);

impl Node {
    pub fn zone(self, zone: &str) -> Self {
        self.label("topology.kubernetes.io/zone", zone)
    }

    pub fn internal_ip(self, ip: &str) -> Self {
        self.address("InternalIP", ip)
    }

    pub fn external_ip(self, ip: &str) -> Self {
        self.address("ExternalIP", ip)
    }

    fn address(mut self, kind: &str, ip: &str) -> Self {
        self.0.status.addresses.push(NodeAddress { kind: kind.into(), address: ip.into() });
        self
    }

    pub fn pod_cidr(mut self, cidr: &str) -> Self {
        self.0.spec.pod_cidrs.push(cidr.into());
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ServiceCidr(pub objects::ServiceCidr);
changes!(ServiceCidr, ServiceCidr);

impl ServiceCidr {
    pub fn cidr(mut self, cidr: &str) -> Self {
        self.0.spec.cidrs.push(cidr.into());
        self
    }
}

fn family(ip: &str) -> String {
    if ip.contains(':') { "IPv6" } else { "IPv4" }.into()
}
