//! Made-up clusters of any size, as an API server would show them.
//!
//! In: how many Services and endpoints. Out: JSON objects with the fields that real ones have, also those that a proxy
//! passes over: about 0.5 kB per Service, 0.27 kB per endpoint.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// What the slice controller puts into one slice.
pub const SLICE: u32 = 100;
/// Where endpoints listen.
pub const TARGET: u16 = 8080;
/// Where Services are dialled.
pub const PORT: u16 = 80;
/// Where ClusterIPs come from.
const SERVICE_CIDR: &str = "10.96.0.0/12";
const NODES: u32 = 500;

/// A cluster of equal Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub services: u32,
    /// Endpoints of each Service.
    pub endpoints: u32,
}

impl Size {
    pub fn objects(self) -> impl Iterator<Item = Value> {
        let slices = move |service| (0..self.endpoints.div_ceil(SLICE)).map(move |number| self.slice(service, number));
        (0..self.services).flat_map(move |service| [self.service(service)].into_iter().chain(slices(service)))
    }

    pub fn service(self, number: u32) -> Value {
        service(&service_name(number), cluster_ip(number))
    }

    /// One slice of a Service as it is at first.
    pub fn slice(self, service: u32, number: u32) -> Value {
        let (first, end) = (number * SLICE, (number * SLICE + SLICE).min(self.endpoints));
        let addresses: Vec<Ipv4Addr> = (first..end).map(|at| self.endpoint(service, at)).collect();
        slice(&service_name(service), number, &addresses)
    }

    /// The address of an endpoint; `at` may pass the end: nobody else has those below [`SPARE`].
    pub fn endpoint(self, service: u32, at: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + service * (self.endpoints + SPARE) + at)
    }
}

/// Addresses between two Services' endpoints.
pub const SPARE: u32 = 2;

pub fn service_name(number: u32) -> String {
    format!("service-{number}")
}

/// The ClusterIP of the Service of this number; 10.96.0.0/16 is for others.
pub fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 1)) + number)
}

pub fn service(name: &str, cluster_ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "load", "uid": uid(cluster_ip.into()),
            "creationTimestamp": "2026-01-31T12:00:00Z", "labels": { "app": name },
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET }],
            "selector": { "app": name }, "sessionAffinity": "None",
        },
        "status": { "loadBalancer": {} },
    })
}

/// A slice of ready endpoints.
pub fn slice(service: &str, number: u32, addresses: &[Ipv4Addr]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| endpoint(service, *address)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{number:05}"), "namespace": "load", "generation": 1,
            "generateName": format!("{service}-"), "creationTimestamp": "2026-01-31T12:00:00Z",
            "labels": {
                "app": service, "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Service", "name": service, "controller": true }],
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET }],
    })
}

fn endpoint(service: &str, address: Ipv4Addr) -> Value {
    let number = u32::from(address);
    json!({
        "addresses": [address],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "nodeName": format!("node-{}", number % NODES),
        "targetRef": { "kind": "Pod", "namespace": "load", "name": format!("{service}-{number:x}"), "uid": uid(number) },
        "zone": format!("zone-{}", number % 3),
    })
}

fn uid(number: u32) -> String {
    format!("8a6e0804-2bd0-4672-b79d-{number:012x}")
}

pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": [SERVICE_CIDR] },
    })
}
