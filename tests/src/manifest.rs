//! Services and EndpointSlices as a test writes them, and the folder that an agent watches.
//!
//! A builder shows only what matters to its test. Ports of a Service are named after what they are (`tcp-80`), which is
//! how slices find them.

use std::cell::Cell;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::{Node, Pod};

/// A protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    fn api(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A Service of namespace `default`.
#[derive(Clone, Debug)]
pub struct Service(Value);

/// A Service without an address and without a port.
pub fn service(name: &str) -> Service {
    Service(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "type": "ClusterIP", "clusterIPs": [], "ipFamilies": [], "ports": [] },
    }))
}

impl Service {
    /// Adds ClusterIPs; the first one is the primary.
    #[must_use]
    pub fn cluster_ips(mut self, addresses: &[IpAddr]) -> Self {
        for address in addresses {
            self.push("/spec/clusterIPs", json!(address));
            self.push("/spec/ipFamilies", json!(if address.is_ipv4() { "IPv4" } else { "IPv6" }));
        }
        self.0["spec"]["clusterIP"] = self.0["spec"]["clusterIPs"][0].clone();
        self
    }

    #[must_use]
    pub fn port(mut self, proto: Proto, port: u16) -> Self {
        let name = format!("{proto}-{port}");
        self.push("/spec/ports", json!({ "name": name, "protocol": proto.api(), "port": port }));
        self
    }

    /// Service port `port` over TCP and UDP.
    #[must_use]
    pub fn ports(self, port: u16) -> Self {
        self.port(Proto::Tcp, port).port(Proto::Udp, port)
    }

    #[must_use]
    pub fn node_port(mut self, proto: Proto, port: u16, node_port: u16) -> Self {
        let name = format!("{proto}-{port}");
        self.push("/spec/ports", json!({ "name": name, "protocol": proto.api(), "port": port, "nodePort": node_port }));
        self.of_type("NodePort")
    }

    /// Service port `port` with this node port, over TCP and UDP.
    #[must_use]
    pub fn node_ports(self, port: u16, node_port: u16) -> Self {
        self.node_port(Proto::Tcp, port, node_port).node_port(Proto::Udp, port, node_port)
    }

    #[must_use]
    pub fn external_ip(self, address: IpAddr) -> Self {
        self.external_ips(&[address])
    }

    #[must_use]
    pub fn external_ips(mut self, addresses: &[IpAddr]) -> Self {
        self.spec("externalIPs", json!(addresses))
    }

    #[must_use]
    pub fn load_balancer(self, address: IpAddr) -> Self {
        self.load_balancers(&[address])
    }

    #[must_use]
    pub fn load_balancers(mut self, addresses: &[IpAddr]) -> Self {
        let ingress: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        self.0["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        self.0["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        self.of_type("LoadBalancer")
    }

    #[must_use]
    pub fn source_ranges(mut self, ranges: &[&str]) -> Self {
        self.spec("loadBalancerSourceRanges", json!(ranges))
    }

    #[must_use]
    pub fn internal_policy_local(mut self) -> Self {
        self.spec("internalTrafficPolicy", json!("Local"))
    }

    #[must_use]
    pub fn external_policy_local(mut self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    #[must_use]
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.0["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
        self.spec("sessionAffinity", json!("ClientIP"))
    }

    #[must_use]
    pub fn of_type(mut self, kind: &str) -> Self {
        self.spec("type", json!(kind))
    }

    fn spec(&mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self.clone()
    }

    fn push(&mut self, list: &str, value: Value) {
        let list = self.0.pointer_mut(list).and_then(Value::as_array_mut);
        list.expect("a list that `service` made").push(value);
    }
}

/// The condition of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Ready,
    /// Terminating, but still serving.
    Terminating,
    NotServing,
}

impl Condition {
    fn api(self) -> Value {
        let (ready, serving) = (self == Self::Ready, self != Self::NotServing);
        json!({ "ready": ready, "serving": serving, "terminating": self == Self::Terminating })
    }
}

/// The EndpointSlices of one Service: one per family.
#[derive(Clone, Debug)]
pub struct Endpoints {
    service: String,
    ports: Vec<Value>,
    v4: Vec<Value>,
    v6: Vec<Value>,
}

/// No endpoints for Service `service`.
pub fn endpoints(service: &str) -> Endpoints {
    Endpoints { service: service.to_owned(), ports: Vec::new(), v4: Vec::new(), v6: Vec::new() }
}

impl Endpoints {
    /// Service port `port` is served by pods on `target`.
    #[must_use]
    pub fn port(mut self, proto: Proto, port: u16, target: u16) -> Self {
        self.ports.push(json!({ "name": format!("{proto}-{port}"), "protocol": proto.api(), "port": target }));
        self
    }

    /// Service port `port` is served by pods on `target`, over TCP and UDP.
    #[must_use]
    pub fn ports(self, port: u16, target: u16) -> Self {
        self.port(Proto::Tcp, port, target).port(Proto::Udp, port, target)
    }

    #[must_use]
    pub fn pod(self, pod: &Pod) -> Self {
        self.pod_that_is(Condition::Ready, pod)
    }

    #[must_use]
    pub fn pod_that_is(self, condition: Condition, pod: &Pod) -> Self {
        let on = &pod.node;
        self.address(condition, on, pod.v4.into()).address(condition, on, pod.v6.into())
    }

    /// Processes of a node itself.
    #[must_use]
    pub fn host(self, node: &Node) -> Self {
        let (ready, on) = (Condition::Ready, &node.name);
        self.address(ready, on, node.v4.into()).address(ready, on, node.v6.into())
    }

    /// An endpoint by its address.
    #[must_use]
    pub fn address(mut self, condition: Condition, node: &str, address: IpAddr) -> Self {
        let endpoint = json!({ "addresses": [address], "conditions": condition.api(), "nodeName": node });
        let family = if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        family.push(endpoint);
        self
    }
}

/// What can stand in a manifest file.
pub trait Documents {
    fn documents(&self) -> Vec<Value>;
}

impl Documents for Service {
    fn documents(&self) -> Vec<Value> {
        vec![self.0.clone()]
    }
}

impl Documents for Endpoints {
    fn documents(&self) -> Vec<Value> {
        let slice = |family: &str, endpoints: &[Value]| {
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-{}", self.service, family.to_lowercase()),
                    "namespace": "default",
                    "labels": { "kubernetes.io/service-name": self.service },
                },
                "addressType": family,
                "ports": self.ports,
                "endpoints": endpoints,
            })
        };
        vec![slice("IPv4", &self.v4), slice("IPv6", &self.v6)]
    }
}

/// An object as it is.
impl Documents for Value {
    fn documents(&self) -> Vec<Value> {
        vec![self.clone()]
    }
}

/// The ranges that ClusterIPs come from.
pub fn service_cidrs(ranges: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": ranges },
    })
}

/// Objects as one YAML text (JSON documents are YAML).
pub fn text(objects: &[&dyn Documents]) -> String {
    let documents = objects.iter().flat_map(|object| object.documents());
    let texts: Vec<String> = documents.map(|document| format!("{document:#}\n")).collect();
    texts.join("---\n")
}

/// How many folders this process has made.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A folder of manifests, gone with the world.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    drafts: Cell<u32>,
}

impl Folder {
    pub fn new() -> Result<Self> {
        let path = PathBuf::from(format!("/run/manifests-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, drafts: Cell::new(0) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.yaml"))
    }

    /// Replaces the file `NAME.yaml` at once with these objects.
    pub fn write(&self, name: &str, objects: &[&dyn Documents]) -> Result<()> {
        self.write_text(name, text(objects))
    }

    /// Replaces the file `NAME.yaml` at once with this text.
    pub fn write_text(&self, name: &str, text: impl AsRef<[u8]>) -> Result<()> {
        self.drafts.set(self.drafts.get() + 1);
        let draft = self.path.with_extension(format!("draft-{}", self.drafts.get()));
        fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
        fs::rename(&draft, self.file(name)).with_context(|| format!("replace {name}.yaml"))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.file(name)).with_context(|| format!("remove {name}.yaml"))
    }
}
