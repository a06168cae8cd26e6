//! Source ports of translations: there are so many towards a backend, and who gets none is told so at once (issue 5, line 5).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_tests::edge::{Edge, counters};
use proxy_tests::manifest::{Documents, endpoints, service};
use proxy_tests::netns::Netns;
use proxy_tests::node::Place;
use proxy_tests::probe::{Client, Kind, Outcome, Server, Socket, Tunnel};
use proxy_tests::stage::{PORT, TARGET, eventually, on};

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
    let web = |name, port: u16| {
        let [_, last] = port.to_be_bytes();
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, port);
        service(name).cluster_ips(&[Ipv4Addr::new(10, 96, 0, last).into(), v6.into()]).node_ports(PORT, port)
    };
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
