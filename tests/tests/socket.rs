//! What a process on a node meets when it dials a Service: real sockets, through `sluice run --manifests`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use proxy_tests::agent::Agent;
use proxy_tests::hooks::refused;
use proxy_tests::manifest::{Condition, Documents, Endpoints, Folder, Proto, endpoints, service, service_cidrs};
use proxy_tests::probe::{Client, Kind, Outcome, Server, Socket};
use proxy_tests::stage::{
    Backend, NODE_PORT, PORT, Stage, TARGET, VIP4, VIP6, at, dialled, eventually, mapped, on, web, web_endpoints,
    web_on_node_port, who,
};
use proxy_tests::world::World;

const KINDS: [Kind; 2] = [Kind::Tcp, Kind::Udp];

/// The three ways to dial the two ClusterIPs: IPv4, IPv6, and IPv4 from an IPv6 socket.
fn cluster_ips() -> [SocketAddr; 3] {
    [dialled(VIP4), dialled(VIP6), mapped(dialled(VIP4))]
}

fn error<T>(name: &str) -> Outcome<T> {
    Err(name.to_owned())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `a` runs here, `b` is on another node.
fn one_here_one_elsewhere(stage: &Stage) -> Endpoints {
    only_elsewhere(stage).pod(&stage.a.pod)
}

fn only_elsewhere(stage: &Stage) -> Endpoints {
    let (ready, there) = (Condition::Ready, &stage.b.pod);
    web_endpoints().address(ready, "elsewhere", there.v4.into()).address(ready, "elsewhere", there.v6.into())
}

#[test]
fn a_cluster_ip_is_served_to_pods_and_host_processes_over_every_kind_of_socket() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for kind in KINDS {
            for to in cluster_ips() {
                assert_eq!(who(&client, kind, to), "a,b", "{place} {kind:?} {to}");
            }
        }
    }
}

#[test]
fn the_client_keeps_seeing_the_address_it_dialled() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for to in cluster_ips() {
            for kind in KINDS {
                assert_eq!(client.dial(kind, to).unwrap().from, Some(to), "{place} {kind:?} {to}");
            }
            let connected = client.open(Kind::Udp, to);
            connected.connect(to).unwrap();
            assert_eq!(connected.peer_name(), Ok(to), "{place} connected UDP to {to}");
            let unconnected = client.open(Kind::Udp, to);
            assert_eq!(unconnected.ask_at(to).unwrap().from, Some(to), "{place} sendto {to}");
        }
    }
}

#[test]
fn a_pod_keeps_its_own_address_towards_a_backend() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    let seen = |vip| client.dial(Kind::Tcp, dialled(vip)).unwrap().seen_as.ip();
    assert_eq!([seen(VIP4), seen(VIP6)], [IpAddr::from(stage.pod.v4), stage.pod.v6.into()]);
}

#[test]
fn a_thousand_datagrams_of_one_socket_reach_one_backend() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    for to in cluster_ips() {
        let socket = client.open(Kind::Udp, to);
        let mut answers = BTreeMap::<_, u32>::new();
        for _ in 0..1000 {
            *answers.entry(socket.ask_at(to).unwrap().by).or_default() += 1;
        }
        assert_eq!(answers.values().collect::<Vec<_>>(), [&1000], "{to}: {answers:?}");
    }
}

#[test]
fn node_ports_are_served_on_the_primary_addresses_only() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web_on_node_port(), &stage.both()]).unwrap();
    let other_addresses = ["10.244.1.1", "fd00:244:1::1"].map(|address| SocketAddr::new(ip(address), NODE_PORT));
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for kind in KINDS {
            for to in on(&stage.node, NODE_PORT) {
                assert_eq!(who(&client, kind, to), "a,b", "{place} {kind:?} {to}");
                assert_eq!(client.dial(kind, to).unwrap().from, Some(to), "{place} {kind:?} {to}");
            }
            for to in other_addresses {
                assert_eq!(client.dial(kind, to), error("ECONNREFUSED"), "{place} {kind:?} {to}");
            }
        }
    }
    let host = stage.host_client().unwrap();
    for loopback in ["127.0.0.1", "::1"] {
        let to = SocketAddr::new(ip(loopback), NODE_PORT);
        assert_eq!(host.dial(Kind::Tcp, to), error("ECONNREFUSED"), "{to}");
    }
}

#[test]
fn with_the_defaults_of_iptables_mode_node_ports_are_served_on_every_own_address_and_on_ipv4_loopback() {
    let stage = Stage::new().unwrap();
    let arguments = ["--proxy-mode=iptables"];
    let _agent = stage.serve_with(&[&web_on_node_port(), &stage.both()], &arguments).unwrap();
    let (host, pod) = (stage.host_client().unwrap(), stage.pod_client().unwrap());
    let at_port = |address| SocketAddr::new(ip(address), NODE_PORT);
    for kind in KINDS {
        for address in ["10.244.1.1", "fd00:244:1::1", "127.0.0.1"] {
            assert_eq!(who(&host, kind, at_port(address)), "a,b", "{kind:?} {address}");
        }
        assert_eq!(host.dial(kind, at_port("::1")), error("ECONNREFUSED"), "{kind:?} from the node");
        // The loopback of a pod is its own.
        assert_eq!(pod.dial(kind, at_port("127.0.0.1")), error("ECONNREFUSED"), "{kind:?} from the pod");
    }
}

#[test]
fn external_and_load_balancer_addresses_are_served_from_inside() {
    let stage = Stage::new().unwrap();
    let addresses = ["198.51.100.1", "198.51.100.2"].map(ip);
    let service = web().external_ip(addresses[0]).load_balancer(addresses[1]);
    let _agent = stage.serve(&[&service, &stage.both()]).unwrap();
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for to in addresses.map(dialled) {
            for kind in KINDS {
                assert_eq!(who(&client, kind, to), "a,b", "{place} {kind:?} {to}");
            }
        }
    }
}

#[test]
fn internal_policy_local_keeps_a_cluster_ip_on_the_node() {
    let stage = Stage::new().unwrap();
    let objects: [&dyn Documents; 2] = [&web().internal_policy_local(), &one_here_one_elsewhere(&stage)];
    let _agent = stage.serve(&objects).unwrap();
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for to in cluster_ips() {
            assert_eq!(who(&client, Kind::Tcp, to), "a", "{place} {to}");
        }
    }
}

#[test]
fn external_policy_local_spares_the_node_and_with_a_detector_its_pods() {
    let stage = Stage::new().unwrap();
    let service = web_on_node_port().external_policy_local();
    let objects: [&dyn Documents; 2] = [&service, &one_here_one_elsewhere(&stage)];
    let node_port = on(&stage.node, NODE_PORT);
    let from = |client: &Client| node_port.map(|to| who(client, Kind::Tcp, to));
    let (host, pod) = (stage.host_client().unwrap(), stage.pod_client().unwrap());

    let without_detector = stage.serve(&objects).unwrap();
    assert_eq!((from(&host), from(&pod)), (["a,b"; 2].map(String::from), ["a"; 2].map(String::from)));
    drop(without_detector);
    let _with_detector = stage.serve_with(&objects, &["--cluster-cidr=10.244.0.0/16,fd00:244::/32"]).unwrap();
    assert_eq!((from(&host), from(&pod)), (["a,b"; 2].map(String::from), ["a,b"; 2].map(String::from)));
}

#[test]
fn a_cluster_ip_that_the_node_owns_is_left_to_its_listener() {
    let stage = Stage::new().unwrap();
    // Without `nodad` an IPv6 address is tentative for a moment, also at loopback, and cannot be listened at.
    stage.node.netns.ip(&[format!("addr add {VIP4}/32 dev lo"), format!("addr add {VIP6}/128 dev lo nodad")]).unwrap();
    let cache = Server::start(&stage.node.host().unwrap(), "cache", &[VIP4, VIP6].map(dialled)).unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for to in cluster_ips() {
            for kind in KINDS {
                assert_eq!(who(&client, kind, to), "cache", "{place} {kind:?} {to}");
            }
        }
    }
    drop(cache);
    stage.node.netns.ip(&[format!("addr del {VIP4}/32 dev lo")]).unwrap();
    let host = stage.host_client().unwrap();
    eventually("the agent notices that the address is gone", || who(&host, Kind::Tcp, dialled(VIP4)) == "a,b");
}

#[test]
fn an_undefined_port_of_a_cluster_ip_is_refused() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    refuses_everywhere(&stage, &[VIP4, VIP6].map(|vip| SocketAddr::new(vip, 81)), Errno::ECONNREFUSED);
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let stage = Stage::new().unwrap();
    let external = ip("198.51.100.1");
    let service = web_on_node_port().external_ip(external);
    let _agent = stage.serve(&[&service, &web_endpoints()]).unwrap();
    let mut addresses = vec![dialled(VIP4), dialled(VIP6), dialled(external)];
    addresses.extend(on(&stage.node, NODE_PORT));
    refuses_everywhere(&stage, &addresses, Errno::ECONNREFUSED);
}

#[test]
fn policy_local_without_a_local_endpoint_is_unreachable() {
    let stage = Stage::new().unwrap();
    let service = web_on_node_port().internal_policy_local().external_policy_local();
    let _agent = stage.serve(&[&service, &only_elsewhere(&stage)]).unwrap();
    refuses_everywhere(&stage, &[VIP4, VIP6].map(dialled), Errno::EHOSTUNREACH);
    let (host, pod) = (stage.host_client().unwrap(), stage.pod_client().unwrap());
    for to in on(&stage.node, NODE_PORT) {
        assert_eq!(pod.dial(Kind::Tcp, to), refused(Errno::EHOSTUNREACH), "pod {to}");
        assert_eq!(who(&host, Kind::Tcp, to), "b", "host {to}");
    }
}

#[test]
fn an_address_of_the_service_range_without_a_service_is_unreachable() {
    let stage = Stage::new().unwrap();
    write_ranges(&stage);
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    refuses_everywhere(&stage, &["10.96.0.99", "fd00:10:96::99"].map(|free| dialled(ip(free))), Errno::EHOSTUNREACH);
}

/// Tells where ClusterIPs come from.
fn write_ranges(stage: &Stage) {
    stage.manifests.write("ranges", &[&service_cidrs(&["10.96.0.0/16", "fd00:10:96::/112"])]).unwrap();
}

/// TCP connect, UDP connect and sendto are refused with `errno`, from everywhere.
fn refuses_everywhere(stage: &Stage, addresses: &[SocketAddr], errno: Errno) {
    for (place, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for &to in addresses {
            for to in [to, mapped(to)] {
                for kind in [Kind::Tcp, Kind::Udp] {
                    assert_eq!(client.open(kind, to).connect(to), refused(errno), "{place} connect {kind:?} {to}");
                }
                assert_eq!(client.open(Kind::Udp, to).send_to(to), refused(errno), "{place} sendto {to}");
            }
        }
    }
}

#[test]
fn no_packet_for_a_service_leaves_the_node() {
    let stage = Stage::new().unwrap();
    write_ranges(&stage);
    stage.world.uplink.nft(COUNT_SERVICE_TRAFFIC).unwrap();
    let (served, empty) = (ip("198.51.100.1"), ip("198.51.100.2"));
    let closed = service("closed").cluster_ips(&[ip("10.96.0.11")]).external_ip(empty).ports(PORT);
    let objects: [&dyn Documents; 3] = [&web().external_ip(served), &stage.both(), &closed];
    let _agent = stage.serve(&objects).unwrap();
    let cluster_ips = ["10.96.0.10", "10.96.0.11", "10.96.0.99", "fd00:10:96::10", "fd00:10:96::99"].map(ip);
    let cluster_ips = cluster_ips.into_iter().flat_map(|ip| [PORT, 81].map(|port| SocketAddr::new(ip, port)));
    let addresses: Vec<_> = cluster_ips.chain([dialled(served), dialled(empty)]).collect();
    for (_, start) in stage.places().unwrap() {
        let client = Client::start(&start).unwrap();
        for &to in &addresses {
            // Some are answered, some refused: here only what leaves the node counts.
            let _ = KINDS.map(|kind| client.dial(kind, to));
        }
    }
    let counted = || stage.world.uplink.counters().unwrap();
    assert_eq!(counted(), [("v4".to_owned(), 0), ("v6".to_owned(), 0)].into());

    // The counters do count: an address that is nobody's leaves the node.
    let _ = stage.pod_client().unwrap().dial(Kind::Udp, dialled(ip("198.51.100.3")));
    assert_eq!(counted(), [("v4".to_owned(), 1), ("v6".to_owned(), 0)].into());
}

/// Counts what arrives at the default gateway for a Service address.
const COUNT_SERVICE_TRAFFIC: &str = "\
table inet watch {
    counter v4 {}
    counter v6 {}
    chain arrives {
        type filter hook prerouting priority -300;
        ip daddr { 10.96.0.0/16, 198.51.100.0/24 } counter name v4
        ip6 daddr fd00:10:96::/112 counter name v6
    }
}
";

#[test]
fn a_client_with_affinity_keeps_its_backend_while_that_is_a_member() {
    let stage = Stage::new().unwrap();
    let service = web_on_node_port().affinity(3600);
    let _agent = stage.serve(&[&service, &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    let chosen = client.dial(Kind::Tcp, dialled(VIP4)).unwrap().by;
    // ClusterIP and node port of one service port share what is remembered; mapped is the same client.
    for to in [dialled(VIP4), mapped(dialled(VIP4)), on(&stage.node, NODE_PORT)[0]] {
        assert_eq!(who(&client, Kind::Tcp, to), chosen, "{to}");
    }
    let (gone, left) = if chosen == "a" { ("a", &stage.b) } else { ("b", &stage.a) };
    stage.manifests.write("manifest", &[&service, &web_endpoints().pod(&left.pod)]).unwrap();
    eventually("the backend is taken out", || client.dial(Kind::Tcp, dialled(VIP4)).unwrap().by != gone);
    assert_eq!(who(&client, Kind::Tcp, dialled(VIP4)), left.pod.name.as_str());
    stage.manifests.write("manifest", &[&service, &stage.both()]).unwrap();
    let fresh = Client::start(&stage.node.pod("fresh").unwrap().place).unwrap();
    let other_port = SocketAddr::new(VIP4, PORT);
    eventually("both serve again", || fresh.dial(Kind::Udp, other_port).is_ok());
    assert_eq!(who(&client, Kind::Tcp, dialled(VIP4)), left.pod.name.as_str(), "the new choice is kept");
}

#[test]
fn affinity_expires_after_its_time_without_a_new_connection() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web().affinity(1), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    let dial = || client.dial(Kind::Tcp, dialled(VIP4)).unwrap().by;
    let first = dial();
    eventually("another backend is chosen after a quiet second", || {
        std::thread::sleep(std::time::Duration::from_millis(1050));
        dial() != first
    });
}

#[test]
fn source_ranges_are_decided_for_the_node_and_refused_for_pods() {
    let stage = Stage::new().unwrap();
    let balancer = ip("198.51.100.1");
    let (host, pod) = (stage.host_client().unwrap(), stage.pod_client().unwrap());
    let service = |ranges| web().load_balancer(balancer).source_ranges(ranges);
    let _agent = stage.serve(&[&service(&["192.0.2.0/24"]), &stage.both()]).unwrap();
    assert_eq!(who(&host, Kind::Tcp, dialled(balancer)), "a,b");
    assert_eq!(pod.dial(Kind::Tcp, dialled(balancer)), refused(Errno::ECONNREFUSED));
    stage.manifests.write("manifest", &[&service(&["203.0.113.0/24"]), &stage.both()]).unwrap();
    eventually("the new ranges hold", || host.dial(Kind::Tcp, dialled(balancer)) == refused(Errno::EHOSTUNREACH));
    // Ranges are about the load-balancer address alone.
    assert_eq!(who(&pod, Kind::Tcp, dialled(VIP4)), "a,b");
}

#[test]
fn connections_are_counted_per_backend() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    let client = stage.pod_client().unwrap();
    for (protocol, kind) in [("TCP", Kind::Tcp), ("UDP", Kind::Udp)] {
        let to = dialled(VIP4);
        for _ in 0..5 {
            client.dial(kind, to).unwrap();
        }
        let counts = || counted(&stage, protocol, to);
        eventually("closed sockets are not counted as open", || counts() == [0, 5]);
        let open = client.open(kind, to);
        open.connect(to).unwrap();
        assert_eq!(counts(), [1, 6], "{protocol}");
        drop(open);
        eventually("the last socket is closed", || counts() == [0, 6]);
        assert_eq!(counted(&stage, protocol, dialled(VIP6)), [0, 0], "{protocol}: another service port");
    }
}

/// Open and total connections of the only backend of a frontend, as `sluice list` shows them.
fn counted(stage: &Stage, protocol: &str, frontend: SocketAddr) -> [u64; 2] {
    let list = proxy_tests::agent::list(&stage.node).unwrap();
    let frontend = frontend.to_string();
    let found = list.as_array().unwrap().iter().find(|row| row["protocol"] == protocol && row["frontend"] == frontend);
    let backend = &found.unwrap()["backends"][0];
    ["active", "total"].map(|column| backend[column].as_u64().unwrap())
}

#[test]
fn two_nodes_on_one_kernel_see_their_own_local_endpoints() {
    let world = World::new().unwrap();
    let nodes = ["one", "two"].map(|name| world.node(name).unwrap());
    let backends = [Backend::start(&nodes[0], "a").unwrap(), Backend::start(&nodes[1], "b").unwrap()];
    let clients = [0, 1].map(|index| Client::start(&nodes[index].pod("client").unwrap().place).unwrap());
    let manifests = Folder::new().unwrap();
    let slices = web_endpoints().pod(&backends[0].pod).pod(&backends[1].pod);
    manifests.write("local", &[&web_on_node_port().internal_policy_local(), &slices]).unwrap();
    let all = service("all").cluster_ips(&[ip("10.96.0.20")]).port(Proto::Tcp, PORT);
    let slices = endpoints("all").port(Proto::Tcp, PORT, TARGET).pod(&backends[0].pod).pod(&backends[1].pod);
    manifests.write("all", &[&all, &slices]).unwrap();
    let _agents = [0, 1].map(|index| Agent::start(&nodes[index], &manifests).unwrap());

    for (index, own) in ["a", "b"].into_iter().enumerate() {
        for vip in [VIP4, VIP6] {
            assert_eq!(who(&clients[index], Kind::Tcp, dialled(vip)), own, "node {index} {vip}");
        }
        assert_eq!(who(&clients[index], Kind::Tcp, dialled(ip("10.96.0.20"))), "a,b", "node {index}");
        let node_port = on(&nodes[index], NODE_PORT)[0];
        assert_eq!(who(&clients[index], Kind::Tcp, node_port), "a,b", "node {index}");
    }
}

#[test]
fn a_cgroup_that_is_made_later_and_deeper_is_served_too() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let mut place = stage.pod.place.clone();
    place.cgroup = place.cgroup.parent().unwrap().join("late/very/deep");
    let place = proxy_tests::node::Place::new(place.netns, place.cgroup).unwrap();
    let client = Client::start(&place).unwrap();
    assert_eq!(who(&client, Kind::Tcp, dialled(VIP4)), "a,b");
}

/// Connects a fresh UDP socket and asks.
fn connected(client: &Client, to: SocketAddr) -> Socket<'_> {
    let socket = client.open(Kind::Udp, to);
    socket.connect(to).unwrap();
    socket
}

#[test]
fn a_socket_that_is_disconnected_and_connected_elsewhere_forgets_the_service() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    for (vip, direct) in [VIP4, VIP6].map(dialled).into_iter().zip(at(&stage.a.pod, TARGET)) {
        let socket = connected(&client, vip);
        assert_eq!(socket.ask().unwrap().from, Some(vip));
        socket.disconnect().unwrap();
        assert_eq!(socket.peer_name(), error("ENOTCONN"));
        socket.connect(direct).unwrap();
        assert_eq!(socket.peer_name(), Ok(direct));
        assert_eq!(socket.ask().unwrap().from, Some(direct));
        socket.connect(vip).unwrap();
        assert_eq!(socket.peer_name(), Ok(vip), "and back without a disconnect");
    }
}

#[test]
fn a_refused_socket_may_try_again() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &web_endpoints()]).unwrap();
    let client = stage.pod_client().unwrap();
    let sockets = KINDS.map(|kind| (kind, client.open(kind, dialled(VIP4))));
    for (kind, socket) in &sockets {
        assert_eq!(socket.connect(dialled(VIP4)), refused(Errno::ECONNREFUSED), "{kind:?}");
        assert_eq!(socket.peer_name(), error("ENOTCONN"), "{kind:?}");
    }
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    eventually("the Service has endpoints", || client.dial(Kind::Tcp, dialled(VIP4)).is_ok());
    for (kind, socket) in &sockets {
        assert_eq!(socket.connect(dialled(VIP4)), Ok(()), "{kind:?}");
        assert_eq!(socket.peer_name(), Ok(dialled(VIP4)), "{kind:?}");
        assert_eq!(socket.ask().unwrap().from, Some(dialled(VIP4)), "{kind:?}");
    }
}

#[test]
fn duplicates_and_children_of_a_socket_see_the_service_too() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    let to = dialled(VIP4);
    let first = client.open(Kind::Udp, to);
    first.send_to(to).unwrap();
    assert_eq!(first.receive_in_child().unwrap().from, Some(to), "a child that inherits the socket");
    let second = first.duplicate();
    drop(first);
    assert_eq!(second.ask_at(to).unwrap().from, Some(to), "a duplicate that outlives its original");
}

#[test]
fn one_bound_port_may_talk_to_two_services_at_once() {
    let stage = Stage::new().unwrap();
    let other = ip("10.96.0.20");
    let second = service("second").cluster_ips(&[other]).port(Proto::Udp, PORT);
    let behind = endpoints("second").port(Proto::Udp, PORT, TARGET).pod(&stage.b.pod);
    let objects: [&dyn Documents; 4] = [&web(), &web_endpoints().pod(&stage.a.pod), &second, &behind];
    let _agent = stage.serve(&objects).unwrap();
    let client = stage.pod_client().unwrap();
    let socket = client.open(Kind::Udp, dialled(VIP4));
    socket.bind(SocketAddr::new(ip("0.0.0.0"), 5353)).unwrap();
    for _ in 0..10 {
        for (to, name) in [(dialled(VIP4), "a"), (dialled(other), "b")] {
            let answer = socket.ask_at(to).unwrap();
            assert_eq!((answer.by.as_str(), answer.from, answer.seen_as.port()), (name, Some(to), 5353));
        }
    }
}

#[test]
fn tcp_fast_open_reaches_the_service() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    for to in cluster_ips() {
        let socket = client.open(Kind::Tcp, to);
        socket.fast_open(to).unwrap();
        assert_eq!(socket.receive().unwrap().from, Some(to), "{to}");
    }
}

#[test]
fn multipath_tcp_reaches_the_service_but_names_its_backend_as_the_peer() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    let client = stage.pod_client().unwrap();
    // A limit: the socket that connects and the one that is asked have different cookies.
    let [v4, v6] = at(&stage.a.pod, TARGET);
    for (to, peer) in cluster_ips().into_iter().zip([v4, v6, mapped(v4)]) {
        let answer = client.dial(Kind::Mptcp, to).unwrap();
        assert_eq!((answer.by.as_str(), answer.from), ("a", Some(peer)), "{to}");
    }
}

#[test]
fn a_socket_that_dials_a_backend_directly_is_left_alone() {
    let stage = Stage::new().unwrap();
    let _agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    let client = stage.pod_client().unwrap();
    for (vip, direct) in [VIP4, VIP6].map(dialled).into_iter().zip(at(&stage.a.pod, TARGET)) {
        let through = client.open(Kind::Udp, vip);
        assert_eq!(through.ask_at(vip).unwrap().from, Some(vip));
        assert_eq!(client.open(Kind::Udp, direct).ask_at(direct).unwrap().from, Some(direct));
        for kind in KINDS {
            assert_eq!(client.dial(kind, direct).unwrap().from, Some(direct), "{kind:?}");
        }
    }
}
