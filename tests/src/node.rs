//! Nodes and pods: namespaces with addresses, joined by veth, each with a cgroup of its own.
//!
//! ```text
//! uplink 192.0.2.1 --- 192.0.2.(10+n) node n 10.244.n.1 --- 10.244.n.(10+m) pod m
//!        2001:db8::1   2001:db8::(10+n)      fd00:244:n::1  fd00:244:n::(10+m)
//! ```
//!
//! Pods are ports of a bridge that has the addresses of the node towards them, or each is at a route of its own
//! ([`Pods::Routed`]).

use std::cell::Cell;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::sys;
use crate::world::World;

/// Where a process can be started: a network namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    pub netns: Netns,
    pub cgroup: PathBuf,
}

impl Place {
    /// The place with this cgroup, which is made when it is not there.
    pub fn new(netns: Netns, cgroup: PathBuf) -> Result<Self> {
        fs::create_dir_all(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        Ok(Self { netns, cgroup })
    }

    /// A command that starts here and ends with the thread that starts it.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let procs = self.cgroup.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))?;
        let mut command = Command::new(program.as_ref());
        sys::start_inside(&mut command, self.netns.file()?, procs);
        Ok(command)
    }
}

/// How a node reaches its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// Ports of one bridge.
    Bridged,
    /// Each by a route to its address alone. Its gateway is no address of the node: the node answers for it (as Calico has
    /// it, proxy ARP in IPv4 and a link-local address in IPv6).
    Routed,
}

/// The gateways of pods with routes of their own.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub netns: Netns,
    /// Processes of the node and of its pods are all below it: the attach point of the socket hooks.
    pub cgroup: PathBuf,
    /// Part of the addresses of its pods.
    pub(crate) number: u8,
    network: Pods,
    pods: Cell<u8>,
}

impl Node {
    pub(crate) fn join(world: &World, number: u8, name: &str, network: Pods) -> Result<Self> {
        let place = Place::new(Netns::new()?, world.cgroup().join(name))?;
        let node = Self {
            name: name.to_owned(),
            v4: Ipv4Addr::new(192, 0, 2, 10 + number),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10 + u16::from(number)),
            netns: place.netns,
            cgroup: place.cgroup,
            number,
            network,
            pods: Cell::new(0),
        };
        node.netns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        node.join_uplink(&world.uplink)?;
        if network == Pods::Bridged {
            node.make_bridge()?;
        }
        Ok(node)
    }

    /// A pod on this node. Pods live in nested cgroups, as under a kubelet.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pods.set(self.pods.get() + 1);
        let address = 10 + self.pods.get();
        let (number, host) = (self.number, u16::from(address));
        let cgroup = self.cgroup.join("kubepods/burstable").join(name).join("main");
        let pod = Pod {
            name: name.to_owned(),
            node: self.name.clone(),
            v4: Ipv4Addr::new(10, 244, number, address),
            v6: Ipv6Addr::new(0xfd00, 0x244, u16::from(number), 0, 0, 0, 0, host),
            device: format!("pod{}", self.pods.get()),
            place: Place::new(Netns::new()?, cgroup)?,
        };
        match self.network {
            Pods::Bridged => self.connect(&pod)?,
            Pods::Routed => self.connect_by_routes(&pod)?,
        }
        Ok(pod)
    }

    /// Takes a pod's device away, and with it all ways to the pod.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        self.netns.ip(&[format!("link del {}", pod.device)])
    }

    /// The place of processes of the node itself.
    pub fn host(&self) -> Result<Place> {
        Place::new(self.netns.clone(), self.cgroup.join("host"))
    }

    /// The folder for the pins of this node's agent.
    pub fn pin_dir(&self) -> PathBuf {
        Path::new(crate::world::PINS).join(&self.name)
    }

    /// Whether the kernel of the node tells clients of shorter ways (ICMP redirects), as it does where nobody turns that off.
    pub fn send_redirects(&self, does: bool) -> Result<()> {
        let value = if does { "1" } else { "0" };
        self.netns.sysctl(&[("ipv4/conf/all/send_redirects", value), ("ipv4/conf/eth0/send_redirects", value)])
    }

    /// Reaches the pods of `other` by way of its address, not by that of the router.
    pub fn route_pods_of(&self, other: &Self) -> Result<()> {
        let Self { v4, v6, number, .. } = other;
        self.netns.ip(&[
            format!("route replace 10.244.{number}.0/24 via {v4}"),
            format!("route replace fd00:244:{number}::/64 via {v6}"),
        ])
    }

    fn join_uplink(&self, uplink: &Netns) -> Result<()> {
        let Self { name, v4, v6, number, .. } = self;
        uplink.ip(&[
            format!("link add {name} type veth peer name eth0 netns {}", self.netns.path()),
            format!("link set {name} master uplink up"),
            format!("route add 10.244.{number}.0/24 via {v4}"),
            format!("route add fd00:244:{number}::/64 via {v6}"),
        ])?;
        self.netns.ip(&[
            "link set eth0 up",
            &format!("addr add {v4}/24 dev eth0"),
            &format!("addr add {v6}/64 dev eth0 nodad"),
            "route add default via 192.0.2.1",
            "route add default via 2001:db8::1",
        ])
    }

    fn make_bridge(&self) -> Result<()> {
        let number = self.number;
        self.netns.ip(&[
            // An address of its own, as CNIs give it: else it is that of a port, and goes with a pod while others send to it.
            &format!("link add pods address 0a:58:0a:f4:{number:02x}:01 type bridge mcast_snooping 0"),
            "link set pods up",
            &format!("addr add 10.244.{number}.1/24 dev pods"),
            &format!("addr add fd00:244:{number}::1/64 dev pods nodad"),
        ])
    }

    fn connect(&self, pod: &Pod) -> Result<()> {
        let (number, device) = (self.number, &pod.device);
        let netns = &pod.place.netns;
        self.netns.ip(&[
            format!("link add {device} type veth peer name eth0 netns {}", netns.path()),
            format!("link set {device} master pods up"),
        ])?;
        netns.ip(&[
            "link set eth0 up",
            &format!("addr add {}/24 dev eth0", pod.v4),
            &format!("addr add {}/64 dev eth0 nodad", pod.v6),
            &format!("route add default via 10.244.{number}.1"),
            &format!("route add default via fd00:244:{number}::1"),
        ])
    }

    fn connect_by_routes(&self, pod: &Pod) -> Result<()> {
        let ([gateway4, gateway6], device) = (GATEWAYS, &pod.device);
        let netns = &pod.place.netns;
        self.netns.ip(&[
            format!("link add {device} type veth peer name eth0 netns {}", netns.path()),
            format!("link set {device} up"),
            format!("addr add {gateway6}/64 dev {device} nodad"),
            format!("route add {} dev {device}", pod.v4),
            format!("route add {} dev {device}", pod.v6),
        ])?;
        self.netns.sysctl(&[
            (&format!("ipv4/conf/{device}/proxy_arp"), "1"),
            (&format!("ipv4/neigh/{device}/proxy_delay"), "0"),
        ])?;
        netns.ip(&[
            "link set eth0 up",
            &format!("addr add {}/32 dev eth0", pod.v4),
            &format!("addr add {}/128 dev eth0 nodad", pod.v6),
            &format!("route add {gateway4} dev eth0"),
            &format!("route add default via {gateway4} dev eth0"),
            &format!("route add default via {gateway6} dev eth0"),
        ])
    }
}

/// A pod: a network namespace behind the bridge of its node.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub node: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// The node's end of what joins it.
    pub device: String,
    pub place: Place,
}

impl Pod {
    /// The pod's address of the family that `like` has.
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}
