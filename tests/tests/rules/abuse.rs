//! What nobody may do to Services or by way of them, against the real agent (issue 5, line 8; `S` numbers are those of the
//! threat model). Floods are in `flows.rs`, ports that run out in `ports.rs`.

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use nix::sys::signal::Signal;
use proxy_common::packet::cases::build::{Build, syn, udp};
use proxy_common::packet::ip::{V4, V6};
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::node_object;
use proxy_tests::edge::{Edge, counters};
use proxy_tests::frames::Wire;
use proxy_tests::manifest::{Documents, Proto, Service, endpoints, service, service_cidrs};
use proxy_tests::node::{Place, Pod};
use proxy_tests::probe::{Client, Kind, Load, Traffic};
use proxy_tests::replay::{Lists, Replay};
use proxy_tests::stage::{
    EXTERNAL4, EXTERNAL6, NODE_PORT, PORT, Stage, TARGET, VIP4, VIP6, dialled, eventually, web_endpoints,
    web_on_node_port, who,
};
use proxy_userspace::facts::facts;
use proxy_userspace::maps::pinned::Pinned;
use serde_json::{Value, json};

const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/108"];

/// Everything that can be dialled, in front of `pod`.
fn objects(pod: &Pod) -> (Service, impl Documents) {
    (web_on_node_port().external_ips(&[EXTERNAL4, EXTERNAL6]), web_endpoints().pod(pod))
}

/// From sources that no honest packet has to everything that can be dialled, and whether the source is a loopback address.
fn spoofed(stage: &Edge, v6: bool) -> Vec<(bool, Build)> {
    let pick = |v4: IpAddr, six: IpAddr| if v6 { six.to_string() } else { v4.to_string() };
    let (node, vip) = (pick(stage.node.v4.into(), stage.node.v6.into()), pick(VIP4, VIP6));
    let external = pick(EXTERNAL4, EXTERNAL6);
    let [loopbacks, others]: [&[&str]; 2] = if v6 {
        [&["::1"], &["fd00:244:1::1", "fd00:10:96::77", "::", "ff02::9", "ff0e::1:3", "ff02::1"]]
    } else {
        [
            &["127.0.0.1", "127.9.9.9"],
            &["10.244.1.1", "10.96.0.77", "0.0.0.0", "224.0.0.9", "239.1.2.3", "255.255.255.255"],
        ]
    };
    let others = others.iter().copied().chain([&*node, &*vip, &*external]).map(|src| (src, false));
    let frontends = [(&vip, PORT), (&external, PORT), (&node, NODE_PORT)];
    let mut packets = Vec::new();
    for (src, is_loopback) in others.chain(loopbacks.iter().map(|src| (*src, true))) {
        for (dst, port) in frontends {
            for src_port in [4000, port] {
                let route = format!("{src}:{src_port} > {dst}:{port}");
                packets.extend([syn(&route), udp(&route)].map(|packet| (is_loopback, packet)));
            }
        }
    }
    packets
}

/// S7.
#[test]
fn sources_that_no_honest_packet_has_reach_nobody_and_each_is_counted() {
    let stage = Edge::new().unwrap();
    spoofed_reach_nobody(&stage, &stage.outside, "uplink", "eth0");
}

/// S7, of a pod with rights to its device.
#[test]
fn and_so_it_is_with_those_that_a_pod_sends() {
    let stage = Edge::new().unwrap();
    let pod = stage.node.pod("evil").unwrap();
    // No socket hook sees what it asks honestly.
    let unseen = Place::new(pod.place.netns.clone(), stage.world.cgroup().join("unseen")).unwrap();
    spoofed_reach_nobody(&stage, &unseen, "eth0", "pods");
}

/// From `device` of a place by that of the node which it is joined to.
fn spoofed_reach_nobody(stage: &Edge, from: &Place, device: &str, by: &str) {
    let (web, slices) = objects(&stage.near.pod);
    let _agent = stage.serve(&[&web, &slices, &service_cidrs(&SERVICE_RANGES)], &[]).unwrap();
    let wire = Wire::between(&from.netns, device, (&stage.node.netns, by)).unwrap();
    let reached = stage.near.pod.place.netns.count("meta l4proto { tcp, udp } th dport 8080").unwrap();
    let before = counters(&stage.node).unwrap();

    let (v4, v6) = (spoofed(stage, false), spoofed(stage, true));
    for (_, packet) in &v4 {
        wire.send::<V4>(packet).unwrap();
    }
    for (_, packet) in &v6 {
        wire.send::<V6>(packet).unwrap();
    }
    let is_loopback = |(is_loopback, _): &&(bool, Build)| *is_loopback;
    let loopback = v4.iter().chain(&v6).filter(is_loopback).count() as u64;
    let spoofed = (v4.len() + v6.len()) as u64 - loopback;
    assert!(loopback + spoofed >= 200, "{loopback} and {spoofed}");

    // Once this is answered, what came before it on the wire has been seen.
    let client = Client::start(from).unwrap();
    for to in stage.on_node(NODE_PORT) {
        assert_eq!(client.dial(Kind::Udp, to).unwrap().by, "a");
    }
    assert_eq!(reached().unwrap(), 2, "the questions of an honest client");
    let after = counters(&stage.node).unwrap();
    let more = |name: &str| after[name] - before[name];
    assert_eq!((more("loopback_on_wire"), more("spoofed_source"), more("translated")), (loopback, spoofed, 2));
}

/// S6: with `route_localnet` the stack believes them.
#[test]
fn nobody_outside_and_no_pod_reaches_loopback_of_the_node() {
    let stage = Edge::new().unwrap();
    let (web, slices) = objects(&stage.near.pod);
    stage.node.netns.sysctl(&[("ipv4/conf/all/route_localnet", "1")]).unwrap();
    let settings = ["--proxy-mode=iptables"];
    let _agent = stage.serve(&[&web, &slices], &settings).unwrap();
    let outside = Wire::between(&stage.outside.netns, "uplink", (&stage.node.netns, "eth0")).unwrap();
    let pod = Wire::between(&stage.near.pod.place.netns, "eth0", (&stage.node.netns, "pods")).unwrap();
    let on_node = stage.node.netns.count("ip daddr 127.0.0.0/8 iif != lo").unwrap();
    let before = counters(&stage.node).unwrap();
    for dst in ["127.0.0.1", "127.0.0.2"] {
        outside.send::<V4>(&udp(format!("198.51.100.7:4000 > {dst}:{NODE_PORT}"))).unwrap();
        pod.send::<V4>(&syn(format!("{}:4000 > {dst}:{NODE_PORT}", stage.near.pod.v4))).unwrap();
    }
    outside.send::<V6>(&udp(format!("2001:db8:51::7:4000 > ::1:{NODE_PORT}"))).unwrap();

    let host = Client::start(&stage.node.host().unwrap()).unwrap();
    let loopback = |last| (Ipv4Addr::new(127, 0, 0, last), NODE_PORT).into();
    assert_eq!(host.dial(Kind::Tcp, loopback(1)).unwrap().by, "a", "the node itself may");
    assert_eq!(host.dial(Kind::Tcp, loopback(2)), Err("ECONNREFUSED".to_owned()), "another loopback address is none");
    let client = Client::start(&stage.outside).unwrap();
    assert_eq!(client.dial(Kind::Udp, stage.on_node(NODE_PORT)[0]).unwrap().by, "a", "packets went on");
    let after = counters(&stage.node).unwrap();
    assert_eq!((on_node().unwrap(), after["loopback_on_wire"] - before["loopback_on_wire"]), (0, 5));
}

/// As many as a usual run has time for. The threat model asks for a thousand: `RESTARTS=1000`.
const RESTARTS: u32 = 30;

/// S4: a window in which packets to a Service leave the node as they are.
#[test]
fn no_packet_to_a_service_leaves_the_node_untranslated_while_agents_come_and_go() {
    let stage = Edge::new().unwrap();
    let (web, slices) = objects(&stage.near.pod);
    let arguments = ["--source-ports=10000-29999"];
    let mut agent = stage.serve(&[&web, &slices], &arguments).unwrap();
    let (_, unseen) = stage.unseen_place("sandbox").unwrap();
    let wire = Wire::between(&stage.node.netns, "eth0", (&stage.outside.netns, "uplink")).unwrap();
    let to_service = [format!("ip daddr {VIP4}"), format!("ip6 daddr {VIP6}")];
    let left = stage.outside.netns.count_any(&to_service.each_ref().map(String::as_str)).unwrap();
    let (client, host) = (stage.node.pod("client").unwrap(), stage.node.host().unwrap());
    let places =
        [(&unseen, Traffic::Tcp), (&unseen, Traffic::Datagrams), (&client.place, Traffic::Tcp), (&host, Traffic::Udp)];
    let of_vip = |vip| places.map(|(place, traffic)| Load::without_pauses(place, traffic, dialled(vip)).unwrap());
    let mut loads: Vec<_> = [VIP4, VIP6].into_iter().flat_map(of_vip).collect();
    let mut go_on = || loads.iter_mut().for_each(|load| drop(load.after(30).unwrap()));
    let restarts = env::var("RESTARTS").map_or(RESTARTS, |count| count.parse().expect("RESTARTS is a number"));
    let start = Instant::now();
    for _ in 0..restarts {
        go_on();
        agent.end_with(Signal::SIGKILL).unwrap();
        agent = agent.restart().unwrap();
    }
    go_on();
    let elapsed = start.elapsed();
    let mut answered = 0;
    for load in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed, 0, "{report:?}");
        answered += report.answered;
    }
    println!("{restarts} restarts, {answered} questions answered in {elapsed:?}");
    assert_eq!(left().unwrap(), 0);
    // Of nobody that the node serves as it leaves.
    wire.send::<V4>(&udp(format!("198.51.100.7:4000 > {VIP4}:{PORT}"))).unwrap();
    wire.send::<V6>(&udp(format!("2001:db8:51::7:4000 > {VIP6}:{PORT}"))).unwrap();
    eventually("those that do leave are counted", || left().unwrap() == 2);
}

/// S5.
#[test]
fn a_service_takes_traffic_to_nodes_and_other_services_only_where_external_ips_are_not_restricted() {
    let stage = Edge::new().unwrap();
    let (web, slices) = objects(&stage.near.pod);
    let evil = |name: &str, ip: IpAddr| {
        // Older than everybody, so that age does not help.
        let evil = service(name).cluster_ips(&[IpAddr::V4(Ipv4Addr::new(10, 96, 6, 6))]).port(Proto::Tcp, TARGET);
        let slices = endpoints(name).port(Proto::Tcp, TARGET, TARGET).pod(&stage.far.pod);
        (evil.external_ip(ip), slices)
    };
    let taken = [stage.near.pod.v4, stage.node.v4].map(IpAddr::from);
    let (pods, node) = (evil("pods", taken[0]), evil("node", taken[1]));
    let cidrs = service_cidrs(&SERVICE_RANGES);
    let objects: [&dyn Documents; 7] = [&web, &slices, &pods.0, &pods.1, &node.0, &node.1, &cidrs];
    // Somebody serves there.
    let host = stage.node.host().unwrap();
    let at_node = (stage.node.v4, TARGET).into();
    let _server = proxy_tests::probe::Server::start(&host, "node", &[at_node]).unwrap();
    let client = stage.node.pod("client").unwrap();
    let client = Client::start(&client.place).unwrap();
    let at_pod = (stage.near.pod.v4, TARGET).into();
    let served = |policy: &str| {
        let mut agent = stage.serve(&objects, &[policy]).unwrap();
        let told = agent.logged("is an address of a node").is_ok() && agent.logged("is in a range of pods").is_ok();
        let by = [at_pod, at_node].map(|to| client.dial(Kind::Tcp, to).unwrap().by);
        agent.end_with(Signal::SIGTERM).unwrap();
        (told, by)
    };
    assert_eq!(served("--external-ip-policy=Allowed"), (true, ["b".to_owned(), "b".to_owned()]));
    assert_eq!(served("--external-ip-policy=Restricted"), (true, ["a".to_owned(), "node".to_owned()]));
}

/// What no slice may name. An API server takes none of them, so that none is behind this one.
const UNUSABLE: [&str; 40] = [
    "0.0.0.0",
    "000.000.000.000",
    "::ffff:0.0.0.0",
    "127.0.0.0",
    "127.0.0.1",
    "127.1.2.3",
    "127.0.0.53",
    "127.255.255.255",
    "127.000.000.001",
    "::ffff:127.0.0.1",
    "169.254.0.1",
    "169.254.20.10",
    "169.254.169.254",
    "169.254.255.255",
    "::ffff:169.254.169.254",
    "224.0.0.0",
    "224.0.0.1",
    "224.0.0.251",
    "239.255.255.250",
    "239.255.255.255",
    "::ffff:224.0.0.1",
    "255.255.255.255",
    "::",
    "0:0:0:0:0:0:0:0",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::0001",
    "fe80::",
    "fe80::1",
    "fe80::a9fe:a9fe",
    "FE80::1:2",
    "fe9f::1",
    "febf::1",
    "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff00::",
    "ff01::1",
    "ff02::1",
    "ff02::fb",
    "ff05::2",
    "ff0e::101",
];

/// S11.
#[test]
fn endpoints_that_nobody_may_name_are_in_no_table_and_their_neighbours_are_served() {
    const API: &str = "192.0.2.1:8001";
    let stage = Stage::new().unwrap();
    let server = Replay::start(&stage.world.uplink, API.parse().unwrap(), Lists::Streamed).unwrap();
    server.apply(&node_object(&stage.node));
    server.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default", "uid": "1" },
        "spec": { "clusterIP": VIP4, "clusterIPs": [VIP4, VIP6], "ports": [{ "port": PORT, "protocol": "TCP" }] },
    }));
    let pod = &stage.a.pod;
    let slices = [("web-v4", "IPv4", pod.v4.to_string(), 0..22), ("web-v6", "IPv6", pod.v6.to_string(), 22..40)];
    for (name, family, good, bad) in &slices {
        let mut addresses = UNUSABLE[bad.clone()].to_vec();
        addresses.insert(addresses.len() / 2, good);
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({ "addresses": [address] })).collect();
        let labels = json!({ "kubernetes.io/service-name": "web" });
        server.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": { "name": name, "namespace": "default", "uid": name, "labels": labels },
            "ports": [{ "name": "", "port": TARGET, "protocol": "TCP" }], "endpoints": endpoints,
        }));
    }
    let _agent = Agent::follow(&stage.node, &server.kubeconfig().unwrap()).unwrap();

    let client = stage.pod_client().unwrap();
    for vip in [VIP4, VIP6] {
        assert_eq!(who(&client, Kind::Tcp, dialled(vip)), "a", "{vip}");
    }
    let snapshot = Pinned::open(&stage.node.pin_dir().join("v1")).unwrap().read().unwrap();
    let facts = facts(&snapshot).into_iter().filter(|fact| fact.contains(" -> ")).collect::<Vec<_>>();
    let wanted = [(VIP4, IpAddr::from(pod.v4)), (VIP6, pod.v6.into())].map(|(vip, pod)| {
        let (vip, pod) = (dialled(vip), SocketAddr::new(pod, TARGET));
        format!("TCP {vip} ClusterIP random -> {pod} cluster,serving")
    });
    assert_eq!(facts, wanted, "one endpoint of each family");
    assert_eq!(counters(&stage.node).unwrap()["address_refused"], UNUSABLE.len() as u64);
    eventually("each slice is told of", || server.events().len() >= slices.len());
    let about = |event: &Value| [&event["reason"], &event["regarding"]["kind"], &event["regarding"]["name"]].map(text);
    let mut told: Vec<_> = server.events().iter().map(about).collect();
    told.sort();
    assert_eq!(told, ["web-v4", "web-v6"].map(|name| ["RefusedAddress", "EndpointSlice", name]));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
