//! Two nodes, a client outside, and between them what CNIs and networks make of it; on the first node, whatever firewalls and
//! operators add. There a test runs the agent.
//!
//! ```text
//!               pods a, client          pod b
//! outside ----- node one -------------- node two
//!        way in          between nodes
//! ```
//!
//! | shape | way in | pods | between nodes |
//! |---|---|---|---|
//! | `Bridged` | veth | ports of a bridge | routes |
//! | `Routed` | veth | routes to single veths | routes |
//! | `Overlay` | veth | ports of a bridge | VXLAN |
//! | `Layer3` | tun | routes to single veths | tun |
//!
//! Where a tunnel is between the nodes, rules masquerade what pods send out of the cluster.
//!
//! On node one `rp_filter` is strict, what conntrack calls invalid is dropped, and what is forwarded is counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use proxy_common::abi::{Flow, FlowKey};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::tables::name;
use proxy_userspace::attach::pins::Folder as Tables;
use proxy_userspace::sys::bpf::Map;
use serde_json::Value;

use crate::agent::{Agent, SMALL_TABLES};
use crate::manifest::{Documents, Endpoints, Folder, endpoints, service};
use crate::netns::Netns;
use crate::node::{Node, Place, Pods};
use crate::probe::{Server, Tunnel};
use crate::stage::{Backend, PORT, TARGET, on};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Bridged,
    Routed,
    Overlay,
    Layer3,
}

/// Who serves, each behind a Service of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A pod of node one.
    Near,
    /// A pod of node two.
    Far,
    /// A process of node one.
    Host,
    /// A process of node two.
    FarHost,
    /// The pod of node one that dials.
    Myself,
}

impl Whom {
    pub const ALL: [Self; 5] = [Self::Near, Self::Far, Self::Host, Self::FarHost, Self::Myself];

    /// What it answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Host => "host",
            Self::FarHost => "far-host",
            Self::Myself => "myself",
        }
    }

    /// Whether it is on the node with the agent.
    pub fn is_on_this_node(self) -> bool {
        !matches!(self, Self::Far | Self::FarHost)
    }

    pub fn node_port(self) -> u16 {
        30_080 + self as u16
    }

    pub fn cluster_ips(self) -> [SocketAddr; 2] {
        let last = 10 + self as u8;
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last.into());
        [Ipv4Addr::new(10, 96, 0, last).into(), v6.into()].map(|ip: IpAddr| SocketAddr::new(ip, PORT))
    }
}

pub struct Topology {
    pub shape: Shape,
    /// A pod of node one, which serves too.
    pub client: Backend,
    near: Backend,
    pub far: Backend,
    _hosts: [Server; 2],
    pub manifests: Folder,
    pub node: Node,
    pub other: Node,
    pub outside: Place,
    /// Where the node is dialled from outside, and where from, IPv4 and IPv6.
    pub entry: [IpAddr; 2],
    pub origin: [IpAddr; 2],
    /// Of [`Shape::Layer3`].
    pub tunnels: Vec<Tunnel>,
    pub world: World,
}

/// What is a pod, for the agent as for rules that masquerade.
const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];
/// Where ClusterIPs are.
const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

impl Topology {
    pub fn new(shape: Shape) -> Result<Self> {
        let world = World::new()?;
        let pods = match shape {
            Shape::Bridged | Shape::Overlay => Pods::Bridged,
            Shape::Routed | Shape::Layer3 => Pods::Routed,
        };
        let [node, other] = ["one", "two"].map(|name| world.node_with(name, pods));
        let (node, other) = (node?, other?);
        // Distributions have it so: who answers must be routed to where the question came from.
        node.netns.sysctl(&[("ipv4/conf/all/rp_filter", "1")])?;
        let mut topology = Self {
            client: Backend::start(&node, Whom::Myself.name())?,
            near: Backend::start(&node, Whom::Near.name())?,
            far: Backend::start(&other, Whom::Far.name())?,
            _hosts: [
                Server::start(&node.host()?, Whom::Host.name(), &on(&node, TARGET))?,
                Server::start(&other.host()?, Whom::FarHost.name(), &on(&other, TARGET))?,
            ],
            manifests: Folder::new()?,
            outside: world.outside()?,
            entry: [node.v4.into(), node.v6.into()],
            origin: [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()],
            node,
            other,
            shape,
            tunnels: Vec::new(),
            world,
        };
        match shape {
            Shape::Layer3 => topology.join_by_tunnels()?,
            shape => join(shape, &topology.world, &[&topology.node, &topology.other])?,
        }
        let [v4, v6] = topology.entry;
        let [services4, services6] = SERVICES;
        topology
            .outside
            .netns
            .ip(&[format!("route add {services4} via {v4}"), format!("route add {services6} via {v6}")])?;
        topology.node.netns.nft(FIREWALL)?;
        topology.write_manifests()?;
        Ok(topology)
    }

    /// The agent of node one.
    pub fn agent(&self, more: &[&str]) -> Result<Agent> {
        let pods = format!("--cluster-cidr={}", PODS.join(","));
        Agent::start_with(&self.node, &self.manifests, &[&SMALL_TABLES[..], &[&pods], more].concat())
    }

    pub fn node_ports(&self, whom: Whom) -> [SocketAddr; 2] {
        self.entry.map(|ip| SocketAddr::new(ip, whom.node_port()))
    }

    /// Whether rules replace the addresses of pods that dial somebody who is no pod.
    pub fn masquerades(&self) -> bool {
        matches!(self.shape, Shape::Overlay | Shape::Layer3)
    }

    /// Whether node one has this address.
    pub fn is_of_the_node(&self, ip: IpAddr) -> Result<bool> {
        let shown = self.node.netns.output("ip", &["-j", "addr", "show", "to", &ip.to_string()])?;
        let devices: Vec<Value> = serde_json::from_str(&shown)?;
        Ok(devices.iter().any(|device| device["addr_info"].as_array().is_some_and(|found| !found.is_empty())))
    }

    /// Turns `features` (`tx off tso off`) of devices whose drivers have them, in these places.
    pub fn turn(&self, places: &[&Netns], features: &str) -> Result<()> {
        for netns in places {
            for device in devices(netns)? {
                let arguments: Vec<&str> = ["-K", &device].into_iter().chain(features.split(' ')).collect();
                netns.output("ethtool", &arguments)?;
            }
        }
        Ok(())
    }

    /// Node one draws from `ports` whom it masquerades.
    pub fn masquerade_from(&self, ports: &str) -> Result<()> {
        let action = format!("meta l4proto {{ tcp, udp }} masquerade to :{ports} fully-random");
        self.node.netns.nft(&format!("delete table inet cni\n{}", masquerade(&self.node, &action)))
    }

    /// Node one, and everybody that it exchanges packets with.
    pub fn places(&self) -> [&Netns; 6] {
        let pods = [&self.client, &self.near, &self.far].map(|backend| &backend.pod.place.netns);
        let [a, b, c] = pods;
        [&self.node.netns, &self.other.netns, &self.world.uplink, a, b, c]
    }

    fn join_by_tunnels(&mut self) -> Result<()> {
        let carriers = Place::new(self.node.netns.clone(), self.world.cgroup().join("tunnels"))?;
        let (node, other, uplink) = (&self.node.netns, &self.other.netns, &self.world.uplink);
        self.tunnels = vec![Tunnel::start(&carriers, other, "overlay0")?, Tunnel::start(&carriers, uplink, "wan0")?];
        for (here, there) in [(&self.node, &self.other), (&self.other, &self.node)] {
            let (from, to) = (here.number, there.number);
            here.netns.ip(&[
                "link set overlay0 mtu 1480 up".to_owned(),
                format!("addr add 10.244.{from}.0/32 dev overlay0"),
                format!("addr add fd00:244:{from}::/128 dev overlay0"),
                format!("route add 10.244.{to}.0/24 dev overlay0"),
                format!("route add fd00:244:{to}::/64 dev overlay0"),
            ])?;
        }
        uplink.ip(&["link set wan0 up", "addr add 198.51.100.1/24 dev wan0", "addr add 2001:db8:51::1/64 dev wan0"])?;
        node.ip(&[
            "link set wan0 up",
            "addr add 198.51.100.2/24 dev wan0",
            "addr add 2001:db8:51::2/64 dev wan0",
            "route replace default via 198.51.100.1",
            "route del default via 2001:db8::1",
            "route add default via 2001:db8:51::1",
        ])?;
        (self.entry, self.origin) = (wan(2), wan(1));
        leave_pods_to_nodes(&self.world, &[&self.node, &self.other])
    }

    /// Of [`Shape::Layer3`]: what goes out of the cluster leaves by `eth0`, which has link headers.
    pub fn leave_by_the_first_device(&self) -> Result<()> {
        self.node.netns.ip(&[
            "route replace default via 192.0.2.1",
            "route del default via 2001:db8:51::1",
            "route add default via 2001:db8::1",
        ])
    }

    fn write_manifests(&self) -> Result<()> {
        let objects = Whom::ALL.map(|whom| {
            let ips = whom.cluster_ips().map(|address| address.ip());
            let service = service(whom.name()).cluster_ips(&ips).node_ports(PORT, whom.node_port());
            (service, self.endpoints(whom))
        });
        let objects: Vec<&dyn Documents> =
            objects.iter().flat_map(|(service, slices)| [service as &dyn Documents, slices]).collect();
        self.manifests.write("manifest", &objects)
    }

    fn endpoints(&self, whom: Whom) -> Endpoints {
        let slices = endpoints(whom.name()).ports(PORT, TARGET);
        match whom {
            Whom::Near => slices.pod(&self.near.pod),
            Whom::Far => slices.pod(&self.far.pod),
            Whom::Host => slices.host(&self.node),
            Whom::FarHost => slices.host(&self.other),
            Whom::Myself => slices.pod(&self.client.pod),
        }
    }

    /// Of [`Shape::Overlay`]: what pods of node two send to ClusterIPs goes to node one.
    pub fn reach_services_from_the_other_node(&self) -> Result<()> {
        let (number, [services4, services6]) = (self.node.number, SERVICES);
        self.other.netns.ip(&[
            format!("route add {services4} via 10.244.{number}.0 dev flannel.1 onlink"),
            format!("route add {services6} via fd00:244:{number}:: dev flannel.1 onlink"),
        ])
    }

    /// Joins node one and the network a second time, at `eth1`. What goes to [`Self::REMOTE`] or to pods of node two leaves by
    /// either device, and what comes from there enters by the first one.
    pub fn join_again(&self) -> Result<()> {
        let Self { node, world, .. } = self;
        let [remote4, remote6] = Self::REMOTE;
        world.uplink.ip(&[
            format!("link add second type veth peer name eth1 netns {}", node.netns.path()),
            "link set second up".to_owned(),
            "addr add 192.0.3.1/24 dev second".to_owned(),
            "addr add 2001:db8:3::1/64 dev second nodad".to_owned(),
            format!("addr add {remote4}/32 dev lo"),
            format!("addr add {remote6}/128 dev lo"),
            format!("route add 192.0.3.11/32 via {}", node.v4),
            format!("route add 2001:db8:3::b/128 via {}", node.v6),
        ])?;
        node.netns.ip(&[
            "link set eth1 up",
            "addr add 192.0.3.11/24 dev eth1",
            "addr add 2001:db8:3::b/64 dev eth1 nodad",
        ])?;
        let (other, pods) = (&self.other, self.other.number);
        let ways = [
            (format!("{remote4}/32"), "192.0.2.1".to_owned(), "192.0.3.1"),
            (format!("{remote6}/128"), "2001:db8::1".to_owned(), "2001:db8:3::1"),
            (format!("10.244.{pods}.0/24"), other.v4.to_string(), "192.0.3.1"),
            (format!("fd00:244:{pods}::/64"), other.v6.to_string(), "2001:db8:3::1"),
        ];
        let routes = ways.map(|(to, first, second)| {
            format!("route replace {to} nexthop via {first} dev eth0 nexthop via {second} dev eth1")
        });
        node.netns.ip(&routes)?;
        // By ports, not by addresses alone.
        node.netns.sysctl(&[("ipv4/fib_multipath_hash_policy", "1"), ("ipv6/fib_multipath_hash_policy", "1")])
    }

    /// An address of the client outside that [`Self::join_again`] gives it.
    pub const REMOTE: [IpAddr; 2] =
        [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 200)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 1))];

    /// How many packets a device of node one has sent.
    pub fn sent_by(&self, device: &str) -> Result<u64> {
        let shown = self.node.netns.output("ip", &["-j", "-s", "link", "show", device])?;
        let shown: Value = serde_json::from_str(&shown)?;
        shown[0]["stats64"]["tx"]["packets"].as_u64().with_context(|| format!("packets of {device}"))
    }

    /// How many flows of node one are foreign: of others who send from ports of ours.
    pub fn foreign_flows(&self) -> Result<usize> {
        fn of<A: Ip>(tables: &Path, names: [&str; 2]) -> Result<usize>
        where
            FlowKey<A>: aya::Pod,
            Flow<A>: aya::Pod,
        {
            let mut count = 0;
            for name in names {
                let entries = Map::<FlowKey<A>, Flow<A>>::open(&tables.join(name))?.entries()?;
                count += entries.iter().filter(|(_, flow)| flow.is_foreign()).count() / 2;
            }
            Ok(count)
        }
        let tables = Tables::at(&self.node.pin_dir()).current();
        Ok(of::<V4>(&tables, [name::FLOWS4, name::EMBRYONIC4])? + of::<V6>(&tables, [name::FLOWS6, name::EMBRYONIC6])?)
    }

    /// Gives both nodes a device on top of `eth0`, by which node one reaches node two.
    pub fn reach_by_upper_device(&self) -> Result<()> {
        for Node { netns, number, .. } in [&self.node, &self.other] {
            netns.ip(&[
                "link add link eth0 name above type macvlan mode bridge".to_owned(),
                "link set above up".to_owned(),
                format!("addr add 192.0.7.1{number}/24 dev above"),
                format!("addr add 2001:db8:7::{number}/64 dev above nodad"),
            ])?;
        }
        let Node { v4, v6, number, .. } = &self.other;
        self.node.netns.ip(&[
            format!("route add {v4}/32 via 192.0.7.1{number}"),
            format!("route add {v6}/128 via 2001:db8:7::{number}"),
        ])
    }

    /// What the firewall of node one has counted so far.
    pub fn counted(&self) -> Result<Counted> {
        let counters = self.node.netns.counters()?;
        let of = |name: &str| counters.get(name).copied().with_context(|| format!("counter {name}"));
        Ok(Counted { requests: of("requests")?, replies: of("replies")?, invalid: of("invalid")? })
    }
}

/// Lets pods of each of these nodes reach those of the others, as `shape` has it.
pub fn join(shape: Shape, world: &World, nodes: &[&Node]) -> Result<()> {
    match shape {
        Shape::Bridged | Shape::Routed => {
            let mut pairs = pairs(nodes);
            pairs.try_for_each(|(here, there)| here.route_pods_of(there))
        }
        Shape::Overlay => join_by_vxlan(world, nodes),
        Shape::Layer3 => bail!("tunnels join two nodes"),
    }
}

/// Everyone with everyone else.
fn pairs<'a>(nodes: &'a [&'a Node]) -> impl Iterator<Item = (&'a Node, &'a Node)> {
    let others = move |here: &'a Node| nodes.iter().filter(move |there| there.number != here.number);
    nodes.iter().flat_map(move |here| others(here).map(move |there| (*here, *there)))
}

fn join_by_vxlan(world: &World, nodes: &[&Node]) -> Result<()> {
    let mac = |node: &Node| format!("0a:58:00:00:00:{:02x}", node.number);
    for here in nodes {
        let (v4, from) = (here.v4, here.number);
        here.netns.ip(&[
            format!("link add flannel.1 address {} type vxlan id 1 dstport 8472 dev eth0 local {v4}", mac(here)),
            format!("addr add 10.244.{from}.0/32 dev flannel.1"),
            format!("addr add fd00:244:{from}::/128 dev flannel.1 nodad"),
            "link set flannel.1 up".to_owned(),
        ])?;
    }
    for (here, there) in pairs(nodes) {
        let (to, peer, mac) = (there.number, there.v4.to_string(), mac(there));
        here.netns.output("bridge", &["fdb", "append", &mac, "dev", "flannel.1", "dst", &peer])?;
        // Nobody asks who that is: before 5.14 the first address of a network is one of broadcast.
        here.netns.ip(&[
            format!("neigh add 10.244.{to}.0 lladdr {mac} dev flannel.1 nud permanent"),
            format!("neigh add fd00:244:{to}:: lladdr {mac} dev flannel.1 nud permanent"),
            format!("route add 10.244.{to}.0/24 via 10.244.{to}.0 dev flannel.1 onlink"),
            format!("route add fd00:244:{to}::/64 via fd00:244:{to}:: dev flannel.1 onlink"),
        ])?;
    }
    leave_pods_to_nodes(world, nodes)
}

/// The network between the nodes knows no pods, so that what they send out of the cluster has to leave as the node's.
fn leave_pods_to_nodes(world: &World, nodes: &[&Node]) -> Result<()> {
    for node in nodes {
        node.netns.nft(&masquerade(node, "masquerade fully-random"))?;
        let number = node.number;
        world.uplink.ip(&[format!("route del 10.244.{number}.0/24"), format!("route del fd00:244:{number}::/64")])?;
    }
    Ok(())
}

fn wan(host: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, host.into());
    [Ipv4Addr::new(198, 51, 100, host).into(), v6.into()]
}

/// Packets that netfilter has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Forwarded, of connections in the direction in which they were opened.
    pub requests: u64,
    /// Forwarded, in the other direction.
    pub replies: u64,
    /// Dropped, wherever.
    pub invalid: u64,
}

/// Conntrack calls every IPv6 redirect invalid. The node sends some where packets leave by the bridge that they came by: to
/// a pod that dials another one of the same bridge, as it would with kube-proxy.
pub const FIREWALL: &str = "table inet firewall {
    counter invalid { }
    counter requests { }
    counter replies { }
    chain forward {
        type filter hook forward priority 0
        ct state invalid counter name invalid drop
        ct direction original counter name requests
        ct direction reply counter name replies
    }
    chain input {
        type filter hook input priority 0
        ct state invalid counter name invalid drop
    }
    chain output {
        type filter hook output priority 0
        icmpv6 type nd-redirect accept
        ct state invalid counter name invalid drop
    }
}";

/// As flannel has it: what pods send out of the cluster leaves as the node's, and so does what comes to pods of other nodes
/// from outside.
fn masquerade(node: &Node, action: &str) -> String {
    let own = [format!("10.244.{}.0/24", node.number), format!("fd00:244:{}::/64", node.number)];
    let rules = |family: &str, all: &str, own: &str| {
        format!(
            "{family} saddr {all} {family} daddr {all} return
             {family} saddr {all} {family} daddr != {all} {action}
             {family} saddr != {all} {family} daddr {own} return
             {family} saddr != {all} {family} daddr {all} {action}"
        )
    };
    let (v4, v6) = (rules("ip", PODS[0], &own[0]), rules("ip6", PODS[1], &own[1]));
    format!("table inet cni {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat\n{v4}\n{v6}\n}}\n}}")
}

/// Names of all devices but the loopback.
fn devices(netns: &Netns) -> Result<Vec<String>> {
    let links: Vec<Value> = serde_json::from_str(&netns.output("ip", &["-j", "link"])?)?;
    let names = links.iter().filter_map(|link| link["ifname"].as_str()).filter(|name| *name != "lo");
    let names: Vec<String> = names.map(str::to_owned).collect();
    ensure!(!names.is_empty(), "no devices");
    Ok(names)
}
