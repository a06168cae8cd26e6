//! How soon the UDP flow of a client outside leaves a backend that stopped serving, from the API server's word to the first
//! answer of the next one (issue 5, line 6).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proxy_tests::agent::{Agent, SMALL_TABLES};
use proxy_tests::apiserver::node_object;
use proxy_tests::edge::{Edge, PODS, counters};
use proxy_tests::probe::{Client, Kind, PATIENCE, Socket};
use proxy_tests::replay::{Lists, Replay, Sent};
use proxy_tests::stage::{Backend, NODE_PORT, PORT, TARGET, VIP4, VIP6, dialled, eventually};
use serde_json::{Value, json};

/// What the issue allows.
const LIMIT: Duration = Duration::from_millis(100);
/// There and back again, and once more.
const MOVES: [&str; 4] = ["b", "a", "b", "a"];

fn web() -> Value {
    let port = json!({ "name": "main", "port": PORT, "nodePort": NODE_PORT, "protocol": "UDP" });
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "type": "NodePort", "clusterIP": VIP4, "clusterIPs": [VIP4, VIP6], "ports": [port] },
    })
}

/// Both backends, of which one serves.
fn slice(stage: &Edge, v6: bool, by: &str) -> Value {
    let endpoint = |backend: &Backend| {
        let ip = if v6 { IpAddr::from(backend.pod.v6) } else { backend.pod.v4.into() };
        let serves = backend.pod.name == by;
        let conditions = json!({ "ready": serves, "serving": serves, "terminating": false });
        json!({ "addresses": [ip], "nodeName": backend.pod.node, "conditions": conditions })
    };
    let family = if v6 { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {
            "name": format!("web-{}", family.to_lowercase()), "namespace": "default",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "ports": [{ "name": "main", "port": TARGET, "protocol": "UDP" }],
        "endpoints": [endpoint(&stage.near), endpoint(&stage.far)],
    })
}

/// How long it took until `name` answered.
fn moves_to(name: &str, socket: &Socket<'_>, change: &Arc<Sent>) -> Duration {
    let start = std::time::Instant::now();
    loop {
        let answer = socket.ask();
        if answer.as_ref().is_ok_and(|answer| answer.by == name) {
            return change.at().expect("somebody watches").elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "still {answer:?}");
    }
}

#[test]
fn a_udp_flow_moves_within_a_tenth_of_a_second_of_the_word_that_its_backend_does_not_serve() {
    let stage = Edge::new().unwrap();
    stage.route_here(&[VIP4, VIP6]).unwrap();
    let server = Replay::start(&stage.world.uplink, "192.0.2.1:8001".parse().unwrap(), Lists::Streamed).unwrap();
    server.apply(&node_object(&stage.node));
    server.apply(&web());
    for v6 in [false, true] {
        server.apply(&slice(&stage, v6, "a"));
    }
    let arguments = [&SMALL_TABLES[..], &PODS].concat();
    let agent = Agent::start_following(&stage.node, &server.kubeconfig().unwrap(), &arguments).unwrap();
    agent.logged("programmed ").unwrap();
    let client = Client::start(&stage.outside).unwrap();
    let all: Vec<SocketAddr> = stage.on_node(NODE_PORT).into_iter().chain([VIP4, VIP6].map(dialled)).collect();
    for to in &all {
        let socket = client.open(Kind::Udp, *to);
        socket.connect(*to).unwrap();
        // What is under way while the flow moves is lost, as datagrams are: nobody waits for it.
        socket.set_patience(10).unwrap();
        eventually("it is served", || socket.ask().is_ok_and(|answer| answer.by == "a"));
        let took = MOVES.map(|by| moves_to(by, &socket, &server.apply(&slice(&stage, to.is_ipv6(), by))));
        println!("{to}: {took:?}");
        assert!(took.iter().all(|took| *took < LIMIT), "{to}: {took:?}");
    }
    assert_eq!(counters(&stage.node).unwrap()["flow_moved"], (all.len() * MOVES.len()) as u64, "no other flow began");
}
