//! Source ports of translations: there are so many towards a backend, and who gets none is told so at once (issue 5, line 5).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_tests::edge::{Edge, counters, outside_address};
use proxy_tests::manifest::{Documents, Service, endpoints, service};
use proxy_tests::netns::Netns;
use proxy_tests::node::Place;
use proxy_tests::probe::{Answer, Client, Kind, Outcome, Server, Socket, Tunnel};
use proxy_tests::stage::{PORT, TARGET, at, dialled, eventually, on};

/// In front of the pod on node two, and in front of it once more.
const WEB: u16 = 30_080;
const SAME: u16 = 30_081;
/// In front of a process of node two.
const HOST: u16 = 30_082;

const PORTS: usize = 8;
/// What the agent is told: that many ports, and who is silent for two seconds is gone.
const ARGUMENTS: [&str; 3] =
    ["--source-ports=61000-61007", "--conntrack-udp-timeout=2s", "--conntrack-udp-timeout-stream=2s"];
/// Somebody is refused when none of sixteen tries hits a free port: after so many who try, no port is free any more.
const MANY: usize = 200;

/// Somebody who has spoken after an answer: nobody takes a port from them.
fn open(client: &Client, kind: Kind, to: SocketAddr) -> Outcome<Socket<'_>> {
    let socket = client.open(kind, to);
    socket.connect(to)?;
    let answer = if kind == Kind::Tcp { socket.receive() } else { socket.ask() };
    answer.and_then(|_| socket.ask()).map(|_| socket)
}

/// With this node port.
fn web(name: &str, port: u16) -> Service {
    service(name).cluster_ips(&cluster_ips(port)).node_ports(PORT, port)
}

fn cluster_ips(port: u16) -> [IpAddr; 2] {
    let [_, last] = port.to_be_bytes();
    [Ipv4Addr::new(10, 96, 0, last).into(), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, port).into()]
}

/// A client one hop behind the router, whose packets do not come and go while it is still in the call that dials: what is
/// answered within that call, as over devices in pairs, the kernel heeds with its next try only, a second later.
fn behind_a_tunnel(stage: &Edge) -> (Tunnel, Place) {
    let (netns, outside) = (Netns::new().unwrap(), &stage.outside.netns);
    let carrier = Place::new(outside.clone(), stage.world.cgroup().join("tunnel")).unwrap();
    let tunnel = Tunnel::start(&carrier, &netns, "wan0").unwrap();
    let addresses =
        |host| [format!("addr add 198.51.100.{host}/24 dev wan0"), format!("addr add 2001:db8:51::{host}/64 dev wan0")];
    let up = ["link set wan0 up".to_owned()];
    outside.ip(&[&up, &addresses(1)[..]].concat()).unwrap();
    let routes = ["route add default via 198.51.100.1", "route add default via 2001:db8:51::1"].map(str::to_owned);
    netns.ip(&[&up, &addresses(7)[..], &routes].concat()).unwrap();
    (tunnel, Place::new(netns, stage.world.cgroup().join("away")).unwrap())
}

/// S9 of the threat model.
#[test]
fn whoever_gets_no_port_towards_a_backend_is_refused_within_a_second_and_counted_until_others_end() {
    let stage = Edge::new().unwrap();
    let slices = |name| endpoints(name).ports(PORT, TARGET);
    let _host = Server::start(&stage.other.host().unwrap(), "host", &on(&stage.other, TARGET)).unwrap();
    let objects: [&dyn Documents; 6] = [
        &web("web", WEB),
        &slices("web").pod(&stage.far.pod),
        &web("same", SAME),
        &slices("same").pod(&stage.far.pod),
        &web("host", HOST),
        &slices("host").host(&stage.other),
    ];
    let _agent = stage.serve(&objects, &ARGUMENTS).unwrap();
    let (_tunnel, place) = behind_a_tunnel(&stage);
    let client = Client::start(&place).unwrap();
    let refused = || counters(&stage.node).unwrap()["ports_exhausted"];
    for (kind, family) in [(Kind::Tcp, 0), (Kind::Tcp, 1), (Kind::Udp, 0), (Kind::Udp, 1)] {
        let at = |port| stage.on_node(port)[family];
        let case = format!("{kind:?} to {}", at(WEB));
        let mut sockets: Vec<_> = (0..MANY).filter_map(|_| open(&client, kind, at(WEB)).ok()).take(PORTS).collect();
        assert_eq!(sockets.len(), PORTS, "{case}: every port is used");

        for to in [at(WEB), at(SAME)] {
            let (before, start) = (refused(), Instant::now());
            assert_eq!(client.dial(kind, to).unwrap_err(), "ECONNREFUSED", "{case}, by {to}");
            assert!(start.elapsed() < Duration::from_secs(1), "{case}, by {to}: told after {:?}", start.elapsed());
            assert_eq!(refused(), before + 1, "{case}, by {to}");
        }
        assert_eq!(client.dial(kind, at(HOST)).unwrap().by, "host", "{case}: another backend has ports of its own");
        for socket in &sockets {
            assert_eq!(socket.ask().unwrap().by, "b", "{case}: who has a port keeps it");
        }
        if kind == Kind::Tcp {
            sockets.pop();
            eventually("a connection ended, and its port is free", || client.dial(kind, at(WEB)).is_ok());
        }
    }
    for to in stage.on_node(WEB) {
        eventually("somebody is silent, and the port is free", || client.dial(Kind::Udp, to).is_ok());
    }
}

/// Ports that sockets of the node have: at one address of each family, at every address, and in a connection that the node
/// itself has with the backend. And those that nobody has.
const BOUND: [u16; 2] = [61_000, 61_003];
const WILDCARD: u16 = 61_001;
const CONNECTED: u16 = 61_002;
const FREE: std::ops::RangeInclusive<u16> = 61_004..=61_007;

#[test]
fn a_port_that_a_socket_of_the_node_has_is_given_to_no_flow_and_the_socket_is_heard() {
    /// A port of eight is the first one that is tried, of each dial.
    const DIALS: usize = 20;
    let stage = Edge::new().unwrap();
    let slices = endpoints("web").ports(PORT, TARGET).pod(&stage.far.pod);
    let host = stage.node.host().unwrap();
    let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), WILDCARD);
    let bound: Vec<_> = BOUND.iter().flat_map(|port| stage.on_node(*port)).collect();
    let _listener = Server::start(&host, "listener", &[&bound[..], &[everywhere]].concat()).unwrap();
    let _agent = stage.serve(&[&web("web", WEB), &slices], &ARGUMENTS).unwrap();

    let (own, backend) = (Client::start(&host).unwrap(), at(&stage.far.pod, TARGET));
    let connect = |kind, family: usize| {
        let socket = own.open(kind, backend[family]);
        socket.bind(stage.on_node(CONNECTED)[family]).unwrap();
        socket.connect(backend[family]).unwrap();
        socket
    };
    let connected: Vec<_> = [(Kind::Udp, 0), (Kind::Udp, 1), (Kind::Tcp, 0), (Kind::Tcp, 1)]
        .into_iter()
        .map(|(kind, family)| connect(kind, family))
        .collect();

    let clients = [&stage.outside, &stage.far.pod.place].map(|place| Client::start(place).unwrap());
    for (kind, to) in [Kind::Tcp, Kind::Udp].into_iter().flat_map(|kind| stage.on_node(WEB).map(|to| (kind, to))) {
        let mut served = 0;
        for _ in 0..DIALS {
            match clients[0].dial(kind, to) {
                Ok(Answer { by, seen_as, .. }) => {
                    assert_eq!(by, "b");
                    assert!(FREE.contains(&seen_as.port()), "{kind:?} {to}: the backend saw {seen_as}");
                    served += 1;
                }
                // A port that was given for a datagram is taken for two seconds.
                Err(error) => assert_eq!(error, "ECONNREFUSED", "{kind:?} {to}"),
            }
        }
        assert!(served > 0, "{kind:?} {to}");
    }
    for client in &clients {
        for to in bound.iter().copied().chain(stage.on_node(WILDCARD)) {
            for kind in [Kind::Tcp, Kind::Udp] {
                assert_eq!(client.dial(kind, to).map(|answer| answer.by).as_deref(), Ok("listener"), "{kind:?} {to}");
            }
        }
    }
    for socket in &connected {
        assert_eq!(socket.ask().map(|answer| answer.by).as_deref(), Ok("b"), "{socket:?}");
    }
}

/// What the backend answers to one address and port of its client is told apart by nothing but the port that it sees. The client
/// speaks to `to` from `from`, in a socket each.
fn speaks_from_one_port(client: &Client, kind: Kind, from: SocketAddr, to: &[SocketAddr], by: &str) {
    let connect = |to: &SocketAddr| {
        let socket = client.open(kind, *to);
        socket.bind(from).unwrap();
        socket.connect(*to).unwrap_or_else(|error| panic!("{kind:?}, {from} to {to}: {error}"));
        (socket, *to)
    };
    let sockets: Vec<_> = to.iter().map(connect).collect();
    for (socket, to) in sockets.iter().chain(&sockets) {
        let answer = socket.ask().unwrap_or_else(|error| panic!("{kind:?}, {from} to {to}: {error}"));
        assert_eq!((answer.by.as_str(), answer.from), (by, Some(*to)), "{kind:?}, {from}");
    }
    let seen: HashSet<_> = sockets.iter().map(|(socket, _)| socket.ask().unwrap().seen_as).collect();
    assert_eq!(seen.len(), to.len(), "{kind:?}, {from}: the backend tells them apart: {seen:?}");
}

#[test]
fn one_port_of_a_client_dials_two_services_with_one_backend_and_the_backend_itself() {
    /// In front of the pod on the node, twice.
    const NEAR: [u16; 2] = [30_090, 30_091];
    const ELSEWHERE: [u16; 2] = [WEB, SAME];
    let stage = Edge::new().unwrap();
    let slices = |name, pod| endpoints(name).ports(PORT, TARGET).pod(pod);
    let (near, far) = (&stage.near.pod, &stage.far.pod);
    let objects: [&dyn Documents; 8] = [
        &web("web", WEB),
        &slices("web", far),
        &web("same", SAME),
        &slices("same", far),
        &web("near", NEAR[0]),
        &slices("near", near),
        &web("near-too", NEAR[1]),
        &slices("near-too", near),
    ];
    let _agent = stage.serve(&objects, &[]).unwrap();
    let (pod, unseen) = stage.unseen_client("sandbox").unwrap();
    let outside = Client::start(&stage.outside).unwrap();
    let mut port = 40_000;
    for (kind, family) in [(Kind::Tcp, 0), (Kind::Tcp, 1), (Kind::Udp, 0), (Kind::Udp, 1)] {
        for (pair, backend, by) in [(NEAR, near, "a"), (ELSEWHERE, far, "b")] {
            let node_ports = pair.map(|port| stage.on_node(port)[family]);
            let vips = pair.map(|port| dialled(cluster_ips(port)[family]));
            // Node ports of it and of the other one, and the ClusterIP of one.
            let all = [&node_ports[..], &vips[..1]].concat();
            let straight = at(backend, TARGET)[family];
            for (client, own, to) in [
                (&outside, outside_address(straight.ip()), &node_ports[..]),
                (&unseen, pod.address_like(straight.ip()), &all),
                (&unseen, pod.address_like(straight.ip()), &vips),
            ] {
                port += 1;
                speaks_from_one_port(client, kind, SocketAddr::new(own, port), to, by);
            }
            // A connection that passes untranslated is left alone; who dials the Service besides gets another port a second later.
            if kind == Kind::Tcp {
                port += 1;
                let from = SocketAddr::new(pod.address_like(straight.ip()), port);
                speaks_from_one_port(&unseen, kind, from, &[straight, vips[0]], by);
            }
        }
    }
}
