//! The cast of what enters a node from outside: two nodes, one of them with an agent, and a client of neither.
//!
//! ```text
//! outside --- node one, with the agent --- pod a
//!         `-- node two ------------------- pod b
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::agent::{Agent, SMALL_TABLES, sluice};
use crate::manifest::{Documents, Folder};
use crate::node::{Node, Place, Pod};
use crate::other;
use crate::probe::Client;
use crate::stage::{Backend, eventually};
use crate::world::World;

/// Which pods are local ones, to the agent.
pub const PODS: [&str; 1] = ["--cluster-cidr=10.244.0.0/16,fd00:244::/32"];

/// Two nodes and who is on them.
pub struct Edge {
    pub near: Backend,
    pub far: Backend,
    pub manifests: Folder,
    /// Has the agent.
    pub node: Node,
    pub other: Node,
    pub outside: Place,
    /// Last, so that it goes last.
    pub world: World,
}

impl Edge {
    pub fn new() -> Result<Self> {
        let world = World::new()?;
        let (node, other) = (world.node("one")?, world.node("two")?);
        // Distributions have it so: who answers must be routed to where the question came from.
        node.netns.sysctl(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/eth0/rp_filter", "1")])?;
        // What goes on to node two leaves by the device by which it came. The kernel would tell that to the client, and after
        // that no error for a second (it takes both from one allowance, as of 6.18).
        node.send_redirects(false)?;
        // The client outside is the router of both. It takes no packet for one with its own address as the source, which an
        // error of its own about a flow from one node to the other would have.
        node.route_pods_of(&other)?;
        other.route_pods_of(&node)?;
        let (near, far) = (Backend::start(&node, "a")?, Backend::start(&other, "b")?);
        let outside = world.outside()?;
        Ok(Self { near, far, manifests: Folder::new()?, node, other, outside, world })
    }

    /// Starts the agent on what is in the folder of manifests.
    pub fn agent(&self, more: &[&str]) -> Agent {
        Agent::start_with(&self.node, &self.manifests, &[&SMALL_TABLES[..], more].concat()).expect("the agent starts")
    }

    /// As [`Self::agent`], of another version ([`crate::other`]).
    pub fn other_agent(&self, more: &[&str]) -> Agent {
        let more = [&SMALL_TABLES[..], more].concat();
        other::start(&self.node, &self.manifests, &more).expect("the other agent starts")
    }

    /// Starts the agent with this manifest as the only one, and says which addresses are pods'.
    pub fn serve(&self, objects: &[&dyn Documents], more: &[&str]) -> Result<Agent> {
        self.manifests.write("manifest", objects)?;
        Ok(self.agent(&[&PODS[..], more].concat()))
    }

    /// Both addresses of the node that has the agent.
    pub fn on_node(&self, port: u16) -> [SocketAddr; 2] {
        crate::stage::on(&self.node, port)
    }

    /// The client outside reaches these by way of the node that has the agent.
    pub fn route_here(&self, addresses: &[IpAddr]) -> Result<()> {
        let via = |address: &IpAddr| if address.is_ipv4() { IpAddr::from(self.node.v4) } else { self.node.v6.into() };
        let routes: Vec<_> = addresses.iter().map(|to| format!("route replace {to} via {}", via(to))).collect();
        self.outside.netns.ip(&routes)
    }

    /// A new pod, whose device is served, and a place in it that no socket hook sees: it is below the cgroup of no node.
    pub fn unseen_place(&self, name: &str) -> Result<(Pod, Place)> {
        let served = || devices(&self.node).iter().filter(|line| line.contains("ingress program")).count();
        let before = served();
        let pod = self.node.pod(name)?;
        eventually("the pod's device is served", || served() > before);
        let place = Place::new(pod.place.netns.clone(), self.world.cgroup().join("unseen").join(name))?;
        Ok((pod, place))
    }

    /// As [`Self::unseen_place`], with a client there.
    pub fn unseen_client(&self, name: &str) -> Result<(Pod, Client)> {
        let (pod, place) = self.unseen_place(name)?;
        Ok((pod, Client::start(&place)?))
    }
}

/// The address of the client outside in the family of `like`.
pub fn outside_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::new(192, 0, 2, 1).into() } else { "2001:db8::1".parse().expect("an address") }
}

/// What `sluice check` says about devices, a line each.
pub fn devices(node: &Node) -> Vec<String> {
    let devices = findings(node, "device").expect("sluice check speaks JSON");
    devices.into_iter().map(|(item, detail)| format!("{item}: {detail}")).collect()
}

/// Every counter of the node by its name.
pub fn counters(node: &Node) -> Result<BTreeMap<String, u64>> {
    let counters = findings(node, "counter")?.into_iter();
    counters.map(|(name, count)| Ok((name, count.parse().context("a number")?))).collect()
}

/// Item and detail of what `sluice check` finds in an area.
fn findings(node: &Node, area: &str) -> Result<Vec<(String, String)>> {
    let pin_dir = node.pin_dir().display().to_string();
    let output = sluice(node, &["check", "--pin-dir", &pin_dir, "-o", "json"])?;
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).context("sluice check -o json")?;
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let of_area = findings.iter().filter(|finding| finding["area"] == area);
    Ok(of_area.map(|finding| (text(finding, "item"), text(finding, "detail"))).collect())
}
