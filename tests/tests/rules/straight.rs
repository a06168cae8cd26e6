//! Clients that speak with a Service and, by the same port, with the backend that they have there (issue 5, line 5).

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use proxy_common::abi::direct;
use proxy_common::addr::Family;
use proxy_common::socket::UDP;
use proxy_common::tables::name;
use proxy_tests::edge::{Edge, outside_address};
use proxy_tests::manifest::endpoints;
use proxy_tests::probe::{Client, Kind};
use proxy_tests::stage::{NODE_PORT, PORT, TARGET, eventually, web_on_node_port};
use proxy_userspace::attach::pins::Folder;
use proxy_userspace::flows::Collector;
use proxy_userspace::sys::bpf::Map;

/// Each of both is to the backend what the other one is, but for the port.
#[test]
fn who_asks_a_service_and_its_backend_straight_by_one_port_is_answered_by_both() {
    let stage = Edge::new().unwrap();
    let web = web_on_node_port();
    let slices = endpoints("web").ports(PORT, TARGET).pod(&stage.near.pod);
    let mut agent = stage.serve(&[&web, &slices], &[]).unwrap();
    let client = Client::start(&stage.outside).unwrap();
    let mut open = Vec::new();
    for (at, to) in stage.on_node(NODE_PORT).into_iter().enumerate() {
        let straight = SocketAddr::new(stage.near.pod.address_like(to.ip()), TARGET);
        for (port, kind, order) in [
            (4000, Kind::Udp, [to, straight]),
            (4001, Kind::Udp, [straight, to]),
            (4002, Kind::Tcp, [to, straight]),
            (4003, Kind::Tcp, [straight, to]),
        ] {
            let from = SocketAddr::new(outside_address(to.ip()), port);
            let sockets = order.map(|to| {
                let socket = client.open(kind, to);
                socket.bind(from).unwrap();
                socket.connect(to).unwrap();
                let first = if kind == Kind::Tcp { socket.receive() } else { socket.ask() };
                first.unwrap_or_else(|error| panic!("{kind:?} from {from} to {to}, first to {}: {error}", order[0]));
                (to, socket)
            });
            open.extend(sockets.map(|(to, socket)| (at, kind, to, socket)));
        }
    }
    let all_go_on = |when: &str| {
        for (_, kind, to, socket) in &open {
            for _ in 0..3 {
                let answer = socket.ask().unwrap_or_else(|error| panic!("{kind:?} {to} {when}: {error}"));
                assert_eq!((answer.by.as_str(), answer.from), ("a", Some(*to)), "{kind:?}, {when}");
            }
        }
    };
    all_go_on("at first");
    agent.end_with(Signal::SIGTERM).unwrap();
    let _agent = agent.restart().unwrap();
    all_go_on("after a restart");
}

#[test]
fn packets_to_no_service_pass_again_when_no_flow_is_like_them_any_more() {
    let stage = Edge::new().unwrap();
    let slices = endpoints("web").ports(PORT, TARGET).pod(&stage.near.pod);
    // What is over is forgotten by the first look.
    let _agent = stage.serve(&[&web_on_node_port(), &slices], &["--conntrack-udp-timeout=1s"]).unwrap();
    let client = Client::start(&stage.outside).unwrap();
    let tables = Folder::at(&stage.node.pin_dir()).current();
    let words = Map::<u32, u32>::open(&tables.join(name::DIRECT)).unwrap();
    let of_udp = || [Family::V4, Family::V6].map(|family| words.get(&direct::place(family, UDP)).unwrap().unwrap());
    let mut collector = Collector::default();
    let mut look = || collector.look(&tables, Duration::ZERO).unwrap();
    assert_eq!(of_udp(), [direct::LOOK; 2], "nobody has looked yet");
    look();
    assert_eq!(of_udp(), [direct::PASS; 2], "nobody is served");
    for to in stage.on_node(NODE_PORT) {
        client.dial(Kind::Udp, to).unwrap();
        client.dial(Kind::Tcp, to).unwrap();
    }
    assert_eq!(of_udp(), [direct::LOOK; 2]);
    look();
    assert_eq!(of_udp(), [direct::LOOK; 2], "they are still there");
    eventually("they are over", || {
        look();
        of_udp() == [direct::PASS; 2]
    });
}
