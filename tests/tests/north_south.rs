//! Clients outside of the cluster, and pods that no socket hook sees: translated at the devices of a node (issue 5, lines 1,
//! 2 and 10).
//!
//! ```text
//! outside --- node one, with the agent --- pod a
//!         `-- node two ------------------- pod b
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::signal::Signal;
use proxy_tests::agent::{AT_SOCKETS, Agent, SMALL_TABLES, sluice};
use proxy_tests::manifest::{Documents, Folder, Proto, Service, endpoints, service};
use proxy_tests::node::{Node, Place, Pod};
use proxy_tests::probe::{Client, Kind, Load, Traffic};
use proxy_tests::stage::{Backend, PORT, TARGET, VIP4, VIP6, dialled};
use proxy_tests::world::World;

/// Node ports in front of the backend on node one, and of the one on node two.
const NEAR: u16 = 30_080;
const FAR: u16 = 30_081;
/// externalIPs in front of both.
const EXTERNAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
const EXTERNAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x5e, 0, 0, 0, 0, 5));
const FAR_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x11))];

/// Where translations take their ports from.
const OUR_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

const PODS: [&str; 1] = ["--cluster-cidr=10.244.0.0/16,fd00:244::/32"];

struct Stage {
    near: Backend,
    _far: Backend,
    manifests: Folder,
    node: Node,
    _other: Node,
    outside: Place,
    world: World,
}

impl Stage {
    fn new() -> Self {
        let world = World::new().unwrap();
        let (node, other) = (world.node("one").unwrap(), world.node("two").unwrap());
        // Distributions have it so: who answers must be routed to where the question came from.
        node.netns.sysctl(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/eth0/rp_filter", "1")]).unwrap();
        let (near, far) = (Backend::start(&node, "a").unwrap(), Backend::start(&other, "b").unwrap());
        let manifests = Folder::new().unwrap();
        let both = |name: &str, vips: &[IpAddr], node_port: u16| -> Service {
            let service = service(name).cluster_ips(vips).node_port(Proto::Tcp, PORT, node_port);
            service.node_port(Proto::Udp, PORT, node_port)
        };
        let slices =
            |name: &str, pod| endpoints(name).port(Proto::Tcp, PORT, TARGET).port(Proto::Udp, PORT, TARGET).pod(pod);
        let objects: [&dyn Documents; 4] = [
            &both("near", &[VIP4, VIP6], NEAR).external_ip(EXTERNAL4),
            &slices("near", &near.pod),
            &both("far", &FAR_VIPS, FAR).external_ip(EXTERNAL6),
            &slices("far", &far.pod),
        ];
        manifests.write("manifest", &objects).unwrap();
        let outside = world.outside().unwrap();
        let routes =
            [format!("route add {EXTERNAL4} via {}", node.v4), format!("route add {EXTERNAL6} via {}", node.v6)];
        outside.netns.ip(&routes).unwrap();
        Self { near, _far: far, manifests, node, _other: other, outside, world }
    }

    fn agent(&self, more: &[&str]) -> Agent {
        Agent::start_with(&self.node, &self.manifests, &[&SMALL_TABLES[..], more].concat()).unwrap()
    }

    fn on_node(&self, port: u16) -> [SocketAddr; 2] {
        proxy_tests::stage::on(&self.node, port)
    }
}

/// The client's address in the family of `like`.
fn outside_address(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::new(192, 0, 2, 1).into() } else { "2001:db8::1".parse().unwrap() }
}

#[test]
fn a_backend_of_the_node_sees_its_client_and_one_elsewhere_sees_the_node() {
    let stage = Stage::new();
    let _agent = stage.agent(&PODS);
    let client = Client::start(&stage.outside).unwrap();
    for kind in [Kind::Tcp, Kind::Udp] {
        for to in stage.on_node(NEAR).into_iter().chain([dialled(EXTERNAL4)]) {
            let answer = client.dial(kind, to).unwrap_or_else(|error| panic!("{kind:?} {to}: {error}"));
            assert_eq!((answer.by.as_str(), answer.from), ("a", Some(to)), "{kind:?}");
            assert_eq!(answer.seen_as.ip(), outside_address(to), "{kind:?} {to}");
        }
        for to in stage.on_node(FAR).into_iter().chain([dialled(EXTERNAL6)]) {
            let answer = client.dial(kind, to).unwrap_or_else(|error| panic!("{kind:?} {to}: {error}"));
            assert_eq!((answer.by.as_str(), answer.from), ("b", Some(to)), "{kind:?}");
            let node = if to.is_ipv4() { IpAddr::from(stage.node.v4) } else { stage.node.v6.into() };
            assert_eq!(answer.seen_as.ip(), node, "{kind:?} {to}");
            assert!(OUR_PORTS.contains(&answer.seen_as.port()), "{kind:?} {to}: {}", answer.seen_as);
        }
    }
}

#[test]
fn a_node_whose_way_out_is_a_bridge_serves_at_its_port_and_translates_once() {
    let stage = Stage::new();
    let Node { netns, v4, v6, .. } = &stage.node;
    let lines = ["addr flush dev eth0", "link add br0 type bridge mcast_snooping 0", "link set eth0 master br0"];
    netns.ip(&lines).unwrap();
    let lines = [
        "link set br0 up".to_owned(),
        format!("addr add {v4}/24 dev br0"),
        format!("addr add {v6}/64 dev br0 nodad"),
        format!("route replace default via {}", outside_address(SocketAddr::from((*v4, 0)))),
        format!("route replace default via {}", outside_address(SocketAddr::from((*v6, 0)))),
    ];
    netns.ip(&lines).unwrap();
    let _agent = stage.agent(&PODS);
    assert!(check(&stage.node).contains(&"br0: left alone: bridge: its packets pass its ports".to_owned()));
    let client = Client::start(&stage.outside).unwrap();
    for (port, by) in [(NEAR, "a"), (FAR, "b")] {
        for (kind, to) in stage.on_node(port).into_iter().flat_map(|to| [(Kind::Tcp, to), (Kind::Udp, to)]) {
            let answer = client.dial(kind, to).unwrap_or_else(|error| panic!("{kind:?} {to}: {error}"));
            assert_eq!((answer.by.as_str(), answer.from), (by, Some(to)), "{kind:?}");
        }
    }
}

#[test]
fn nobody_outside_is_served_where_no_devices_are_wanted_and_the_next_agent_may_want_them() {
    let stage = Stage::new();
    let mut agent = stage.agent(&AT_SOCKETS);
    let client = Client::start(&stage.outside).unwrap();
    for to in stage.on_node(NEAR) {
        assert_eq!(client.dial(Kind::Tcp, to), Err("ECONNREFUSED".to_owned()), "{to}");
    }
    agent.end_with(Signal::SIGKILL).unwrap();
    let _agent = stage.agent(&[]);
    for to in stage.on_node(NEAR) {
        assert_eq!(client.dial(Kind::Tcp, to).unwrap().by, "a", "{to}");
    }
}

#[test]
fn a_pod_that_no_socket_hook_sees_reaches_cluster_ips() {
    let stage = Stage::new();
    let _agent = stage.agent(&PODS);
    let pod = stage.node.pod("sandbox").unwrap();
    // Below the cgroup of no node.
    let unseen = Place::new(pod.place.netns.clone(), stage.world.cgroup().join("unseen")).unwrap();
    proxy_tests::stage::eventually("the pod's device is served", || {
        check(&stage.node).iter().any(|line| line.contains("pod2") && line.contains("ingress program"))
    });
    let client = Client::start(&unseen).unwrap();
    for kind in [Kind::Tcp, Kind::Udp] {
        for (vip, by) in [(VIP4, "a"), (VIP6, "a"), (FAR_VIPS[0], "b"), (FAR_VIPS[1], "b")] {
            let to = dialled(vip);
            let answer = client.dial(kind, to).unwrap_or_else(|error| panic!("{kind:?} {to}: {error}"));
            assert_eq!((answer.by.as_str(), answer.from), (by, Some(to)), "{kind:?}");
            assert_eq!(answer.seen_as.ip(), pod.address_like(vip), "a pod keeps its address, {kind:?} {to}");
        }
    }
}

/// As meshes do: what the pod sends to the far Service goes to a listener of the pod.
fn redirect(to: &Pod) -> String {
    let Pod { v4, v6, .. } = to;
    format!(
        "table inet mesh {{
            chain output {{
                type nat hook output priority -100
                ip daddr {} tcp dport {PORT} dnat ip to {v4}:{TARGET}
                ip6 daddr {} tcp dport {PORT} dnat ip6 to [{v6}]:{TARGET}
            }}
        }}",
        FAR_VIPS[0], FAR_VIPS[1]
    )
}

#[test]
fn a_pods_own_redirection_sees_the_service_where_only_the_host_is_steered() {
    let stage = Stage::new();
    let (pod, host) = (&stage.near.pod.place, &stage.node.host().unwrap());
    let served_by = |arguments: &[&str], place: &Place| {
        let _agent = stage.agent(&[&PODS[..], arguments].concat());
        let client = Client::start(place).unwrap();
        FAR_VIPS.map(|vip| client.dial(Kind::Tcp, dialled(vip)).unwrap_or_else(|error| panic!("{vip}: {error}")).by)
    };
    assert_eq!(served_by(&["--socket-lb=host"], pod), ["b", "b"], "without rules of the pod");
    pod.netns.nft(&redirect(&stage.near.pod)).unwrap();
    assert_eq!(served_by(&["--socket-lb=host"], pod), ["a", "a"], "the pod's rules decide");
    assert_eq!(served_by(&["--socket-lb=all"], pod), ["b", "b"], "steered before its rules");
    assert_eq!(served_by(&["--socket-lb=host"], host), ["b", "b"], "the host is steered");
}

#[test]
fn cgroups_that_patterns_name_are_not_steered_and_neither_is_what_comes_up_below_them() {
    let stage = Stage::new();
    let netns = &stage.near.pod.place.netns;
    netns.nft(&redirect(&stage.near.pod)).unwrap();
    let cgroup = |path: &str| stage.node.cgroup.join("mesh.slice").join(path);
    let served_by = |path: &str| {
        let client = Client::start(&Place::new(netns.clone(), cgroup(path)).unwrap()).unwrap();
        FAR_VIPS.map(|vip| client.dial(Kind::Tcp, dialled(vip)).unwrap_or_else(|error| panic!("{vip}: {error}")).by)
    };
    let _agent = stage.agent(&[&PODS[..], &["--socket-lb-exclude=none.slice/*,mesh.slice/pod-*/"]].concat());
    assert_eq!(served_by("other-1"), ["b", "b"], "no pattern names it");
    std::fs::create_dir_all(cgroup("pod-1")).unwrap();
    proxy_tests::stage::eventually("a pod that came later is left out", || served_by("pod-1") == ["a", "a"]);
    assert_eq!(served_by("pod-1/containers/one"), ["a", "a"], "a container of this pod, made now");
    assert_eq!(served_by("other-2"), ["b", "b"], "no pattern names it");
}

#[test]
fn nobody_notices_that_the_agent_is_killed_and_comes_back() {
    let stage = Stage::new();
    // Datagrams of a new socket each take a port for half a minute, and connections that were closed for two.
    let arguments = [&PODS[..], &["--source-ports=10000-29999"]].concat();
    let mut agent = stage.agent(&arguments);
    let [near4, near6] = stage.on_node(NEAR);
    let [far4, far6] = stage.on_node(FAR);
    let mut loads: Vec<(SocketAddr, Load)> = [
        (Traffic::Tcp, near4),
        (Traffic::Tcp, far6),
        (Traffic::Udp, far4),
        (Traffic::Udp, near6),
        (Traffic::Datagrams, near4),
        (Traffic::Datagrams, far6),
    ]
    .into_iter()
    .map(|(traffic, to)| (to, Load::start(&stage.outside, traffic, to).unwrap()))
    .collect();
    let mut go_on = || loads.iter_mut().for_each(|(_, load)| drop(load.after(100).unwrap()));
    go_on();
    agent.end_with(Signal::SIGKILL).unwrap();
    go_on();
    let agent = stage.agent(&arguments);
    go_on();
    for (to, load) in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed, 0, "{to}: {report:?}");
    }
    drop(agent);
}

#[test]
fn check_shows_each_device_and_cleanup_leaves_it_as_it_was() {
    let stage = Stage::new();
    let reserved = || stage.node.netns.output("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"]).unwrap();
    assert_eq!(reserved().trim(), "");
    let mut agent = stage.agent(&PODS);
    assert_eq!(reserved().trim(), "61000-65535");
    let lines = check(&stage.node);
    for (device, reason) in [
        ("eth0", "faces the network, layer 2: a default route leads there; ingress program "),
        ("pod1", "faces a pod, layer 2: veth, its other end is in another network namespace; ingress program "),
        ("pods", "left alone: bridge: its packets pass its ports"),
        ("lo", "left alone: traffic of the node with itself is translated at its sockets"),
    ] {
        let line = format!("{device}: {reason}");
        assert!(lines.iter().any(|found| found.starts_with(&line)), "{line} is missing in {lines:#?}");
    }
    agent.end_with(Signal::SIGTERM).unwrap();
    let pin_dir = stage.node.pin_dir().display().to_string();
    let cleaned = sluice(&stage.node, &["cleanup", "--pin-dir", &pin_dir]).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(reserved().trim(), "");
    let left = stage.node.netns.output("bpftool", &["net", "show"]).unwrap();
    assert!(!left.contains("tc_ingress") && !left.contains("tc_egress"), "{left}");
    assert_eq!(stage.near.pod.name, "a");
}

/// What `sluice check` says about devices, a line each.
fn check(node: &Node) -> Vec<String> {
    let pin_dir = node.pin_dir().display().to_string();
    let output = sluice(node, &["check", "--pin-dir", &pin_dir, "-o", "json"]).unwrap();
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &serde_json::Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let devices = findings.iter().filter(|finding| finding["area"] == "device");
    devices.map(|finding| format!("{}: {}", text(finding, "item"), text(finding, "detail"))).collect()
}
