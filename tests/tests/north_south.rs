//! Clients outside of the cluster, and pods that no socket hook sees: translated at the devices of a node (issue 5, lines 1,
//! 2 and 10).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;
use proxy_common::addr::Family;
use proxy_common::tables::name;
use proxy_tests::agent::{AT_SOCKETS, Agent, SMALL_TABLES, sluice};
use proxy_tests::crowd::Crowd;
use proxy_tests::edge::{Edge, PODS, counters, devices, outside_address};
use proxy_tests::manifest::{Documents, endpoints, service};
use proxy_tests::node::{Node, Place, Pod};
use proxy_tests::pins::names;
use proxy_tests::probe::{Answer, Client, Kind, Traffic};
use proxy_tests::stage::{Backend, EXTERNAL4, EXTERNAL6, PORT, TARGET, VIP4, VIP6, dialled};
use proxy_userspace::attach::object::DEVICE_HOOKS;
use proxy_userspace::maps::described::say;
use proxy_userspace::maps::shape::Shape;
use proxy_userspace::sys::bpf::{self, tcx};

/// Node ports in front of the backend on node one, and of the one on node two.
const NEAR: u16 = 30_080;
const FAR: u16 = 30_081;
const FAR_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x11))];

/// Where translations take their ports from.
const OUR_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Services in front of one backend each, near and far, and the client's way to their external addresses.
fn stage() -> Edge {
    let stage = Edge::new().unwrap();
    let both = |name: &str, vips: &[IpAddr], node_port| service(name).cluster_ips(vips).node_ports(PORT, node_port);
    let slices = |name: &str, pod| endpoints(name).ports(PORT, TARGET).pod(pod);
    let objects: [&dyn Documents; 4] = [
        &both("near", &[VIP4, VIP6], NEAR).external_ip(EXTERNAL4),
        &slices("near", &stage.near.pod),
        &both("far", &FAR_VIPS, FAR).external_ip(EXTERNAL6),
        &slices("far", &stage.far.pod),
    ];
    stage.manifests.write("manifest", &objects).unwrap();
    stage.route_here(&[EXTERNAL4, EXTERNAL6]).unwrap();
    stage
}

/// Clients outside, one of each kind for each family and for each of the backends.
fn crowd(stage: &Edge, kinds: &[Traffic]) -> Crowd {
    let to = [stage.on_node(NEAR), stage.on_node(FAR)].concat();
    Crowd::at(&stage.outside, kinds.iter().flat_map(|kind| to.iter().map(|to| (*kind, *to))))
}

/// What `by` answers who dials `to`.
fn answer_of(by: &str, client: &Client, kind: Kind, to: SocketAddr) -> Answer {
    let answer = client.dial(kind, to).unwrap_or_else(|error| panic!("{kind:?} {to}: {error}"));
    assert_eq!((answer.by.as_str(), answer.from), (by, Some(to)), "{kind:?}");
    answer
}

#[test]
fn a_backend_of_the_node_sees_its_client_and_one_elsewhere_sees_the_node() {
    let stage = stage();
    let _agent = stage.agent(&PODS);
    let client = Client::start(&stage.outside).unwrap();
    for kind in [Kind::Tcp, Kind::Udp] {
        for to in stage.on_node(NEAR).into_iter().chain([dialled(EXTERNAL4)]) {
            let answer = answer_of("a", &client, kind, to);
            assert_eq!(answer.seen_as.ip(), outside_address(to.ip()), "{kind:?} {to}");
        }
        for to in stage.on_node(FAR).into_iter().chain([dialled(EXTERNAL6)]) {
            let answer = answer_of("b", &client, kind, to);
            let node = if to.is_ipv4() { IpAddr::from(stage.node.v4) } else { stage.node.v6.into() };
            assert_eq!(answer.seen_as.ip(), node, "{kind:?} {to}");
            assert!(OUR_PORTS.contains(&answer.seen_as.port()), "{kind:?} {to}: {}", answer.seen_as);
        }
    }
}

/// Everything that processes of the node reach past the hooks at their sockets.
fn assert_node_is_served(stage: &Edge, place: &Place) {
    let client = Client::start(place).unwrap();
    let near = [VIP4, VIP6, EXTERNAL4].map(dialled).into_iter().chain(stage.on_node(NEAR));
    let far = FAR_VIPS.into_iter().chain([EXTERNAL6]).map(dialled).chain(stage.on_node(FAR));
    for (to, by) in near.map(|to| (to, "a")).chain(far.map(|to| (to, "b"))) {
        for kind in [Kind::Tcp, Kind::Udp] {
            let answer = answer_of(by, &client, kind, to);
            assert!(OUR_PORTS.contains(&answer.seen_as.port()), "{kind:?} {to} was met at its socket");
        }
    }
    let undefined = SocketAddr::new(VIP4, 81);
    assert_eq!(client.dial(Kind::Tcp, undefined), Err("ECONNREFUSED".to_owned()), "{undefined}");
}

#[test]
fn processes_of_the_node_that_no_socket_hook_sees_are_served_as_their_packets_leave() {
    let stage = stage();
    let place = Place::new(stage.node.netns.clone(), stage.node.cgroup.join("unhooked")).unwrap();
    let _agent = stage.agent(&[&PODS[..], &["--socket-lb-exclude=unhooked"]].concat());
    assert_node_is_served(&stage, &place);
}

#[test]
fn and_so_they_are_where_packets_leave_by_a_port_of_a_bridge() {
    let stage = stage();
    leave_by_a_bridge(&stage);
    let _agent = stage.agent(&[&PODS[..], &["--socket-lb=off"]].concat());
    assert_node_is_served(&stage, &stage.node.host().unwrap());
}

/// The node's address moves to a bridge, of which `eth0` becomes a port.
fn leave_by_a_bridge(stage: &Edge) {
    let Node { netns, v4, v6, .. } = &stage.node;
    let lines = ["addr flush dev eth0", "link add br0 type bridge mcast_snooping 0", "link set eth0 master br0"];
    netns.ip(&lines).unwrap();
    let lines = [
        "link set br0 up".to_owned(),
        format!("addr add {v4}/24 dev br0"),
        format!("addr add {v6}/64 dev br0 nodad"),
        format!("route replace default via {}", outside_address((*v4).into())),
        format!("route replace default via {}", outside_address((*v6).into())),
    ];
    netns.ip(&lines).unwrap();
    stage.node.route_pods_of(&stage.other).unwrap();
}

#[test]
fn a_node_whose_way_out_is_a_bridge_serves_at_its_port_and_translates_once() {
    let stage = stage();
    leave_by_a_bridge(&stage);
    let _agent = stage.agent(&PODS);
    assert!(devices(&stage.node).contains(&"br0: left alone: bridge: its packets pass its ports".to_owned()));
    let client = Client::start(&stage.outside).unwrap();
    for (port, by) in [(NEAR, "a"), (FAR, "b")] {
        for (kind, to) in stage.on_node(port).into_iter().flat_map(|to| [(Kind::Tcp, to), (Kind::Udp, to)]) {
            answer_of(by, &client, kind, to);
        }
    }
}

#[test]
fn nobody_outside_is_served_where_no_devices_are_wanted_and_the_next_agent_may_want_them() {
    let stage = stage();
    let mut agent = stage.agent(&AT_SOCKETS);
    let client = Client::start(&stage.outside).unwrap();
    for to in stage.on_node(NEAR) {
        assert_eq!(client.dial(Kind::Tcp, to), Err("ECONNREFUSED".to_owned()), "{to}");
    }
    agent.end_with(Signal::SIGKILL).unwrap();
    let agent = stage.agent(&[]);
    for to in stage.on_node(NEAR) {
        assert_eq!(client.dial(Kind::Tcp, to).unwrap().by, "a", "{to}");
    }
    assert!(!agent.log().contains("trying again"), "programs come when there is room for flows: {}", agent.log());
}

#[test]
fn a_pod_that_no_socket_hook_sees_reaches_cluster_ips() {
    let stage = stage();
    let _agent = stage.agent(&PODS);
    let (pod, client) = stage.unseen_client("sandbox").unwrap();
    for kind in [Kind::Tcp, Kind::Udp] {
        for (vip, by) in [(VIP4, "a"), (VIP6, "a"), (FAR_VIPS[0], "b"), (FAR_VIPS[1], "b")] {
            let to = dialled(vip);
            let answer = answer_of(by, &client, kind, to);
            assert_eq!(answer.seen_as.ip(), pod.address_like(vip), "a pod keeps its address, {kind:?} {to}");
        }
    }
}

/// The backend answers its neighbour straight away, by the bridge. Whether netfilter sees that is a setting (`br_netfilter`), which
/// is 1 where the module is loaded.
#[test]
fn a_backend_on_the_clients_own_bridge_is_reached_whether_netfilter_sees_what_is_bridged_or_not() {
    let stage = stage();
    let _agent = stage.agent(&PODS);
    let (pod, client) = stage.unseen_client("sandbox").unwrap();
    let netns = &stage.node.netns;
    let has_setting = netns.output("ls", &["/proc/sys/net"]).unwrap().contains("bridge");
    for is_seen in if has_setting { &["1", "0"][..] } else { &["0"] } {
        if has_setting {
            let names = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
            netns.sysctl(&names.map(|name| (name, *is_seen))).unwrap();
        }
        for (kind, to) in [Kind::Tcp, Kind::Udp].into_iter().flat_map(|kind| {
            [dialled(VIP4), dialled(VIP6)].into_iter().chain(stage.on_node(NEAR)).map(move |to| (kind, to))
        }) {
            let answer = answer_of("a", &client, kind, to);
            assert_eq!(answer.seen_as.ip(), pod.address_like(to.ip()), "{kind:?} {to}, netfilter sees it: {is_seen}");
        }
        for to in [VIP4, VIP6] {
            client.exchange(dialled(to), 1 << 20).unwrap_or_else(|error| panic!("{to}, {is_seen}: {error}"));
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
    let stage = stage();
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
    let stage = stage();
    let netns = &stage.near.pod.place.netns;
    netns.nft(&redirect(&stage.near.pod)).unwrap();
    let cgroup = |path: &str| stage.node.cgroup.join("mesh.slice").join(path);
    let served_by = |path: &str| {
        let client = Client::start(&Place::new(netns.clone(), cgroup(path)).unwrap()).unwrap();
        FAR_VIPS.map(|vip| client.dial(Kind::Tcp, dialled(vip)).unwrap_or_else(|error| panic!("{vip}: {error}")).by)
    };
    let _agent = stage.agent(&[&PODS[..], &["--socket-lb-exclude=none.slice/*,mesh.slice/pod-*/"]].concat());
    assert_eq!(served_by("other-1"), ["b", "b"], "no pattern names it");
    fs::create_dir_all(cgroup("pod-1")).unwrap();
    proxy_tests::stage::eventually("a pod that came later is left out", || served_by("pod-1") == ["a", "a"]);
    assert_eq!(served_by("pod-1/containers/one"), ["a", "a"], "a container of this pod, made now");
    assert_eq!(served_by("other-2"), ["b", "b"], "no pattern names it");
}

/// What leaves a pod for Services, and what leaves it for their backends, before its rules redirect anything.
fn witness(stage: &Edge) -> String {
    let (Node { v4, v6, .. }, [near, far]) = (&stage.node, [&stage.near.pod, &stage.far.pod]);
    format!(
        "table inet witness {{
            counter dialled {{ }}
            counter steered {{ }}
            chain output {{
                type filter hook output priority -200
                ip daddr {{ 10.96.0.0/16, {v4} }} counter name dialled
                ip6 daddr {{ fd00:10:96::/112, {v6} }} counter name dialled
                meta l4proto {{ tcp, udp }} ip daddr {{ {}, {} }} counter name steered
                meta l4proto {{ tcp, udp }} ip6 daddr {{ {}, {} }} counter name steered
            }}
        }}",
        near.v4, far.v4, near.v6, far.v6
    )
}

#[test]
fn what_rules_of_a_pod_leave_alone_is_served_at_its_device_where_its_sockets_are_not_steered() {
    let stage = stage();
    let mesh = Backend::start(&stage.node, "mesh").unwrap();
    let netns = &mesh.pod.place.netns;
    netns.nft(&redirect(&mesh.pod)).unwrap();
    netns.nft(&witness(&stage)).unwrap();
    let nodes = [IpAddr::from(stage.node.v4), stage.node.v6.into()];
    let left_alone = Place::new(netns.clone(), stage.node.cgroup.join("mesh.slice/pod-1/main")).unwrap();
    for (argument, place) in
        [("--socket-lb-exclude=mesh.slice/pod-*", &left_alone), ("--socket-lb=off", &mesh.pod.place)]
    {
        let _agent = stage.agent(&[&PODS[..], &[argument]].concat());
        let client = Client::start(place).unwrap();
        let mut dials = 0;
        for (kind, v6) in [Kind::Tcp, Kind::Udp].into_iter().flat_map(|kind| [(kind, 0), (kind, 1)]) {
            let own = mesh.pod.address_like(nodes[v6]);
            // The pod's rules know of the far Service's TCP port, and of no other.
            let far = if kind == Kind::Tcp { "mesh" } else { "b" };
            for (to, by, seen) in [
                (dialled([VIP4, VIP6][v6]), "a", own),
                (dialled(FAR_VIPS[v6]), far, own),
                (stage.on_node(NEAR)[v6], "a", own),
                (stage.on_node(FAR)[v6], "b", nodes[v6]),
            ] {
                let answer = answer_of(by, &client, kind, to);
                assert_eq!(answer.seen_as.ip(), seen, "{argument}, {kind:?} {to}");
                let is_ours = OUR_PORTS.contains(&answer.seen_as.port());
                assert_eq!(is_ours, seen == nodes[v6], "{argument}, {kind:?} {to}: {}", answer.seen_as);
                dials += 1;
            }
        }
        let counters = netns.counters().unwrap();
        assert_eq!(counters["steered"], 0, "{argument}");
        assert!(counters["dialled"] >= dials, "{argument}: {counters:?}");
    }
    let _agent = stage.agent(&PODS);
    answer_of("a", &Client::start(&mesh.pod.place).unwrap(), Kind::Udp, dialled(VIP4));
    assert!(netns.counters().unwrap()["steered"] > 0, "other pods are steered");
}

#[test]
fn nobody_notices_that_the_agent_is_killed_and_comes_back() {
    let stage = stage();
    // Datagrams of a new socket each take a port for half a minute, and connections that were closed for two.
    let arguments = [&PODS[..], &["--source-ports=10000-29999"]].concat();
    let mut agent = stage.agent(&arguments);
    let [near4, near6] = stage.on_node(NEAR);
    let [far4, far6] = stage.on_node(FAR);
    let ways = [
        (Traffic::Tcp, near4),
        (Traffic::Tcp, far6),
        (Traffic::Udp, far4),
        (Traffic::Udp, near6),
        (Traffic::Datagrams, near4),
        (Traffic::Datagrams, far6),
    ];
    let mut crowd = Crowd::at(&stage.outside, ways);
    crowd.goes_on();
    agent.end_with(Signal::SIGKILL).unwrap();
    crowd.goes_on();
    let agent = stage.agent(&arguments);
    crowd.goes_on();
    crowd.was_never_refused();
    drop(agent);
}

#[test]
fn flows_go_on_when_tables_are_made_anew_with_another_layout() {
    let stage = stage();
    let arguments = [&PODS[..], &["--source-ports=10000-29999"]].concat();
    let mut agent = stage.agent(&arguments);
    let mut crowd = crowd(&stage, &[Traffic::Stream, Traffic::Datagrams, Traffic::Tcp]);
    let pins = stage.node.pin_dir();
    let (ours, earlier) = (pins.join("v1"), pins.join("v0"));
    let changes: [(&str, &dyn Fn(), bool); 3] = [
        (
            "one table has another shape, and one is missing",
            &|| {
                fs::rename(ours.join(name::SLOTS), ours.join(name::VERSION)).unwrap();
            },
            true,
        ),
        ("they are of an earlier version", &|| fs::rename(&ours, &earlier).unwrap(), true),
        (
            "they are of an earlier version, and who is dialled has to be learned anew",
            &|| {
                fs::remove_file(ours.join(name::FRONTEND)).unwrap();
                fs::rename(&ours, &earlier).unwrap();
            },
            false,
        ),
    ];
    for (what, change, knows_backends) in changes {
        crowd.goes_on();
        agent.end_with(Signal::SIGKILL).unwrap();
        change();
        crowd.goes_on();
        agent = stage.agent(&arguments);
        crowd.goes_on();
        assert!(!earlier.exists(), "{what}: they went");
        let is_moved = counters(&stage.node).unwrap()["flow_moved"] > 0;
        assert!(!(is_moved && knows_backends), "{what}: UDP flows know their backends");
    }
    crowd.was_never_refused();
    drop(agent);
}

#[test]
fn flows_go_on_when_another_version_keeps_them_in_another_layout() {
    let stage = stage();
    let mut agent = stage.other_agent(&PODS);
    // Connections begin all the time, so that some do while programs change.
    let kinds = [Traffic::Stream, Traffic::Datagrams, Traffic::Tcp, Traffic::Tcp, Traffic::Tcp];
    let mut crowd = crowd(&stage, &kinds);
    crowd.goes_on();
    agent.end_with(Signal::SIGKILL).unwrap();
    crowd.goes_on();
    let more = [&SMALL_TABLES[..], &PODS].concat();
    agent = Agent::start_restricted(&stage.node, &stage.manifests, &more).unwrap();
    agent.logged("FLOWS4 has other fields").unwrap();
    agent.logged("flows of packets from other tables").unwrap();
    crowd.goes_on();
    crowd.was_never_refused();
    assert_eq!(counters(&stage.node).unwrap()["flow_moved"], 0, "UDP flows know their backends");
    drop(agent);
}

#[test]
fn flows_of_another_version_go_on_when_the_agent_dies_on_the_way_to_ours() {
    // Their tables step aside with the first of these calls, ours take the place with the second; then ours are described. With
    // the last one programs for devices are kept, and theirs are asked by then.
    for (call, when) in [("rename", 2), ("unlink", 1), ("unlink", 2)] {
        succeeded_after_a_death(call, when);
    }
}

#[test]
fn flows_go_on_that_an_agent_left_behind_which_another_version_succeeds() {
    let stage = stage();
    let mut agent = stage.agent(&PODS);
    let mut crowd = crowd(&stage, &[Traffic::Stream, Traffic::Datagrams, Traffic::Tcp]);
    let pins = stage.node.pin_dir();
    crowd.goes_on();
    agent.end_with(Signal::SIGKILL).unwrap();
    relabel(&pins);
    dies_at(&stage, "unlink", 1);
    assert!(pins.join("v1-old").exists(), "tables took the place of others, which have the flows");
    relabel(&pins);
    crowd.goes_on();
    let agent = stage.agent(&PODS);
    agent.logged("FLOWS4 has other fields").unwrap();
    crowd.goes_on();
    assert_eq!(names(&pins), ["links", "v1"]);
    crowd.was_never_refused();
}

#[test]
fn nobody_waits_for_programs_of_another_version_that_are_gone() {
    let stage = stage();
    let mut agent = stage.agent(&PODS);
    let pins = stage.node.pin_dir();
    agent.end_with(Signal::SIGKILL).unwrap();
    relabel(&pins);
    // What begins is theirs by then.
    dies_at(&stage, "unlink", 2);
    for program in DEVICE_HOOKS {
        fs::remove_file(pins.join("v1-old").join(program)).unwrap();
    }
    let mut agent = stage.agent(&PODS);
    // What held the table of those programs goes with it.
    agent.end_with(Signal::SIGKILL).unwrap();
    let client = Client::start(&stage.outside).unwrap();
    for to in stage.on_node(NEAR) {
        answer_of("a", &client, Kind::Tcp, to);
    }
}

#[test]
fn an_agent_that_wants_no_devices_leaves_no_programs_of_the_last_one_there() {
    let stage = stage();
    let mut agent = stage.agent(&PODS);
    let hooks = || names(&stage.node.pin_dir().join("links/devices"));
    assert!(!hooks().is_empty());
    agent.end_with(Signal::SIGKILL).unwrap();
    let _agent = stage.agent(&AT_SOCKETS);
    assert_eq!(hooks(), [""; 0], "pins are what keeps programs at devices");
}

/// To who comes next, these tables are another version's.
fn relabel(pins: &Path) {
    let text = [Family::V4, Family::V6].map(|family| Shape::ours(family).text(family)).concat();
    say(&pins.join("v1"), &text.replace(" pad ", " fill ")).unwrap();
}

/// An agent starts, and is killed at this call.
fn dies_at(stage: &Edge, call: &str, when: u32) {
    let more = [&SMALL_TABLES[..], &PODS].concat();
    let [trace, inject] = [format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}")];
    let strace = ["-f", "-e", &trace, "-e", &inject];
    let mut agent = Agent::start_under(&stage.node, &stage.manifests, &strace, &more).unwrap();
    agent.ended().unwrap();
}

/// Kills the agent that succeeds another version, at this call. Then the next one starts.
fn succeeded_after_a_death(call: &str, when: u32) {
    eprintln!("the agent dies at {call} {when}");
    let stage = stage();
    let mut agent = stage.other_agent(&PODS);
    let mut crowd = crowd(&stage, &[Traffic::Stream, Traffic::Datagrams]);
    crowd.goes_on();
    agent.end_with(Signal::SIGKILL).unwrap();
    dies_at(&stage, call, when);
    crowd.goes_on();
    let agent = stage.agent(&PODS);
    agent.logged("flows of packets from other tables").unwrap();
    crowd.goes_on();
    crowd.was_never_refused();
}

#[test]
fn connections_that_begin_when_the_tables_are_full_of_ended_ones_are_served() {
    let stage = stage();
    let few = ["--max-frontends=1024", "--max-services=256", "--max-backends=4096", "--max-flows=2048"];
    let _agent = Agent::start_with(&stage.node, &stage.manifests, &[&few[..], &PODS].concat()).unwrap();
    let mut crowd = crowd(&stage, &[Traffic::Tcp; 3]);
    // Three times what there is room for, of each family.
    for (.., load) in &mut crowd.0 {
        load.after(1024).unwrap();
    }
    crowd.was_never_refused();
    assert_eq!(counters(&stage.node).unwrap()["tcp_without_flow"], 0, "flows that were needed");
}

#[test]
fn check_shows_each_device_and_cleanup_leaves_it_as_it_was() {
    let stage = stage();
    let reserved = || stage.node.netns.output("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"]).unwrap();
    assert_eq!(reserved().trim(), "");
    let mut agent = stage.agent(&PODS);
    assert_eq!(reserved().trim(), "61000-65535");
    let lines = devices(&stage.node);
    for (device, reason) in [
        ("eth0", "faces the network, layer 2: a default route leads there; ingress program "),
        ("pod1", "faces a pod, layer 2: veth, its other end is in another network namespace; ingress program "),
        ("pods", "left alone: bridge: its packets pass its ports"),
        ("lo", "left alone: traffic of the node with itself is translated at its sockets"),
    ] {
        let line = format!("{device}: {reason}");
        assert!(lines.iter().any(|found| found.starts_with(&line)), "{line} is missing in {lines:#?}");
    }
    assert!(programs_at(&stage.node, "eth0") >= 2 && programs_at(&stage.node, "pod1") >= 2);
    agent.end_with(Signal::SIGTERM).unwrap();
    let pin_dir = stage.node.pin_dir().display().to_string();
    let cleaned = sluice(&stage.node, &["cleanup", "--pin-dir", &pin_dir]).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(reserved().trim(), "");
    assert_eq!(programs_at(&stage.node, "eth0") + programs_at(&stage.node, "pod1"), 0);
    assert_eq!(stage.near.pod.name, "a");
}

/// How many programs are at both hooks of this device.
fn programs_at(node: &Node, device: &str) -> usize {
    let links = node.netns.inside(|| {
        let index = if_nametoindex(device)?;
        // Kernels before 6.6 have no such links to ask for: there, filters are all.
        let at = |hook| bpf::tcx_programs(index, hook).map_or(0, |ids| ids.len());
        Ok(at(tcx::INGRESS) + at(tcx::EGRESS))
    });
    let filters =
        |hook| node.netns.output("tc", &["filter", "show", "dev", device, hook]).unwrap().matches("bpf").count();
    links.unwrap() + filters("ingress") + filters("egress")
}
