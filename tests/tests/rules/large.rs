//! Datagrams that are larger than a packet: fragments where conntrack puts them together on the way, and what the kernel cuts
//! into datagrams as late as it can (issue 5, line 7).

use std::net::SocketAddr;

use proxy_tests::edge::counters;
use proxy_tests::node::Place;
use proxy_tests::probe::{Answer, Client, Kind, Outcome, Socket};
use proxy_tests::topology::{Shape, Topology, Whom};

/// More than one packet, and nearly as much as a datagram holds.
const LENGTHS: [u16; 3] = [2000, 9000, 60_000];

/// Of so many bytes, answered by as many.
fn ask(topology: &Topology, socket: &Socket<'_>, to: SocketAddr, length: u16) -> Outcome<Answer> {
    let ask = || socket.ask_large(Some(to), length, length);
    // Where packets between nodes are smaller, the first ones are lost: they tell their senders so.
    let mut tries = if topology.masquerades() { 8 } else { 1 };
    loop {
        tries -= 1;
        let answer = ask();
        if answer.is_ok() || tries == 0 {
            return answer;
        }
    }
}

fn fragments_get_through(shape: Shape) {
    let topology = Topology::new(shape).unwrap();
    let _agent = topology.agent(&[]).unwrap();
    let unseen = Place::new(topology.client.pod.place.netns.clone(), topology.world.cgroup().join("unseen")).unwrap();
    let (outside, unseen) = (Client::start(&topology.outside).unwrap(), Client::start(&unseen).unwrap());
    for whom in [Whom::Near, Whom::Far, Whom::Host, Whom::FarHost] {
        for (client, to) in [(&outside, topology.node_ports(whom)), (&unseen, whom.cluster_ips())] {
            for to in to {
                let socket = client.open(Kind::Udp, to);
                socket.set_patience(1000).unwrap();
                for length in LENGTHS {
                    let answer = ask(&topology, &socket, to, length)
                        .unwrap_or_else(|error| panic!("{shape:?}: {length} bytes to {whom:?} at {to}: {error}"));
                    assert_eq!((answer.by.as_str(), answer.from), (whom.name(), Some(to)), "{length} bytes");
                }
            }
        }
    }
    let counted = topology.counted().unwrap();
    assert!(counted.requests > 0 && counted.replies > 0, "conntrack has seen them: {counted:?}");
    assert_eq!(counted.invalid, 0, "{counted:?}");
    assert_eq!(counters(&topology.node).unwrap()["fragment_before_first"], 0);
}

#[test]
fn fragments_get_through_beside_conntrack_from_outside_and_from_pods_that_no_socket_hook_sees() {
    fragments_get_through(Shape::Bridged);
    fragments_get_through(Shape::Routed);
}

#[test]
fn and_so_they_do_where_nodes_are_joined_by_vxlan() {
    fragments_get_through(Shape::Overlay);
}

/// What is sent at once, and the datagrams that it becomes.
const PIECES: u16 = 10;
const PIECE: u16 = 1000;

#[test]
fn datagrams_that_the_kernel_cuts_late_are_translated_in_one_piece_and_all_arrive() {
    let topology = Topology::new(Shape::Bridged).unwrap();
    let _agent = topology.agent(&[]).unwrap();
    let came = topology.node.netns.count("iifname eth0 udp dport 8080").unwrap();
    let client = Client::start(&topology.outside).unwrap();
    // At first they stay whole up to the backend; then what leaves the node is cut there, and sums are worked out.
    for features in ["tx on gso on", "tx off sg off tso off gso off gro off"] {
        topology.turn(&[&topology.node.netns], features).unwrap();
        for whom in [Whom::Near, Whom::Far] {
            for to in topology.node_ports(whom) {
                let socket = client.open(Kind::Udp, to);
                socket.connect(to).unwrap();
                socket.cut_into(PIECE).unwrap();
                let before = came().unwrap();
                socket.send_large(None, PIECES * PIECE, 0).unwrap();
                for piece in 0..PIECES {
                    let answer = socket.receive().unwrap_or_else(|error| panic!("{features}, {to}, {piece}: {error}"));
                    assert_eq!((answer.by.as_str(), answer.from), (whom.name(), Some(to)), "{features}");
                }
                assert_eq!(came().unwrap() - before, 1, "{features}, {to}: it came in one piece");
            }
        }
    }
    assert_eq!(topology.counted().unwrap().invalid, 0);
}
