//! The usual cast: one node with pods `a` and `b` that serve, a pod that dials, and a folder of manifests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::agent::{Agent, small};
use crate::manifest::{Documents, Endpoints, Folder, Service, endpoints, service};
use crate::node::{Node, Place, Pod};
use crate::probe::{Client, Kind, PATIENCE, Server};
use crate::world::World;

/// The ClusterIPs of the Service of most tests.
pub const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
pub const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10));
/// Its externalIPs and its node port, where it has any.
pub const EXTERNAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
pub const EXTERNAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x5e, 0, 0, 0, 0, 5));
pub const NODE_PORT: u16 = 30_080;
/// The port of that Service.
pub const PORT: u16 = 80;
/// Where pods serve.
pub const TARGET: u16 = 8080;

/// A pod that answers with its name, over TCP and UDP, IPv4 and IPv6.
#[derive(Debug)]
pub struct Backend {
    pub pod: Pod,
    _server: Server,
}

impl Backend {
    pub fn start(node: &Node, name: &str) -> Result<Self> {
        let pod = node.pod(name)?;
        let server = Server::start(&pod.place, name, &at(&pod, TARGET))?;
        Ok(Self { pod, _server: server })
    }
}

/// One node and who is on it.
pub struct Stage {
    pub manifests: Folder,
    pub a: Backend,
    pub b: Backend,
    pub pod: Pod,
    pub node: Node,
    /// Last, so that it goes last.
    pub world: World,
}

impl Stage {
    pub fn new() -> Result<Self> {
        let world = World::new()?;
        let node = world.node("one")?;
        let (a, b) = (Backend::start(&node, "a")?, Backend::start(&node, "b")?);
        Ok(Self { manifests: Folder::new()?, a, b, pod: node.pod("client")?, node, world })
    }

    /// Starts the agent with this manifest as the only one.
    pub fn serve(&self, objects: &[&dyn Documents]) -> Result<Agent> {
        self.serve_with(objects, &[])
    }

    /// Like [`Self::serve`], with more arguments for the agent.
    pub fn serve_with(&self, objects: &[&dyn Documents], arguments: &[&str]) -> Result<Agent> {
        self.manifests.write("manifest", objects)?;
        Agent::start_with(&self.node, &self.manifests, &[&small()[..], arguments].concat())
    }

    /// Writes so many other Services, without endpoints, into the folder of manifests.
    pub fn add_services(&self, count: u32) {
        let mut text = String::new();
        for number in 0..count {
            let [_, _, high, low] = number.to_be_bytes();
            let spec = format!("{{clusterIP: 10.97.{high}.{low}, ports: [{{port: 80}}]}}");
            let object = format!("kind: Service\nmetadata: {{name: many-{number}}}\nspec: {spec}\n---\n");
            text.push_str(&object);
        }
        self.manifests.write_text("many", text).expect("the folder takes files");
    }

    /// Both pods behind the Service [`web`].
    pub fn both(&self) -> Endpoints {
        web_endpoints().pod(&self.a.pod).pod(&self.b.pod)
    }

    /// A client in the pod.
    pub fn pod_client(&self) -> Result<Client> {
        Client::start(&self.pod.place)
    }

    /// A client among the processes of the node.
    pub fn host_client(&self) -> Result<Client> {
        Client::start(&self.node.host()?)
    }

    /// Where clients live: in a pod, and on the node itself.
    pub fn places(&self) -> Result<[(&'static str, Place); 2]> {
        Ok([("pod", self.pod.place.clone()), ("host", self.node.host()?)])
    }
}

/// The Service `web`: both ClusterIPs, port 80 over TCP and UDP.
pub fn web() -> Service {
    service("web").cluster_ips(&[VIP4, VIP6]).ports(PORT)
}

/// The Service [`web`] with a node port besides.
pub fn web_on_node_port() -> Service {
    service("web").cluster_ips(&[VIP4, VIP6]).node_ports(PORT, NODE_PORT)
}

/// Slices of [`web`] without endpoints.
pub fn web_endpoints() -> Endpoints {
    endpoints("web").ports(PORT, TARGET)
}

/// Who answers 40 dials, for example `a,b`, or the name of the first error. A fair choice among two meets both (the odds
/// against it are 2^39).
pub fn who(client: &Client, kind: Kind, to: SocketAddr) -> String {
    let spread = client.spread(kind, to, 40);
    spread.map_or_else(|error| error, |spread| spread.into_keys().collect::<Vec<_>>().join(","))
}

/// `address` with [`PORT`].
pub fn dialled(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PORT)
}

/// Both addresses of a pod.
pub fn at(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.v4.into(), pod.v6.into()].map(|address| SocketAddr::new(address, port))
}

/// Both addresses of a node.
pub fn on(node: &Node, port: u16) -> [SocketAddr; 2] {
    [node.v4.into(), node.v6.into()].map(|address| SocketAddr::new(address, port))
}

/// How an IPv6 socket dials an IPv4 address.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(_) => address,
    }
}

/// Waits until `condition` holds; what is described is what it waits for.
pub fn eventually(description: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never happened: {description}");
        thread::sleep(Duration::from_millis(2));
    }
}
