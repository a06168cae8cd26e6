//! API servers that are away, and ways to them that break (issue section 4.5).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::node_object;
use proxy_tests::probe::Kind;
use proxy_tests::replay::{Lists, Replay};
use proxy_tests::stage::{Stage, VIP4, dialled, web};
use proxy_tests::world::World;

/// At the other end of the uplink, where an API server may be.
const API: &str = "192.0.2.1:8001";

/// What the agent says while it cannot follow the API server.
const AWAY: &str = "what is known keeps serving, next try";

/// Rules that lose every packet to and from the API server. Both ways: a server whose packets still arrive, if only its
/// retransmissions, is not gone, and is given up 10 s after the last of them.
const LOSE: &str = "table inet test {
    chain input {
        type filter hook input priority 0
        tcp dport 8001 drop
    }
    chain output {
        type filter hook output priority 0
        tcp sport 8001 drop
    }
}";

fn master() -> String {
    format!("--master=http://{API}")
}

#[test]
fn with_nothing_to_serve_and_an_api_that_refuses_it_ends_within_half_a_minute_and_names_the_flag() {
    ends_and_names_the_flag("");
}

#[test]
fn with_nothing_to_serve_and_an_api_that_loses_every_packet_it_ends_within_half_a_minute_and_names_the_flag() {
    ends_and_names_the_flag(LOSE);
}

fn ends_and_names_the_flag(rules: &str) {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    world.uplink.nft(rules).unwrap();
    let start = Instant::now();
    let mut agent = Agent::start_on_master(&node, &master()).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    agent.logged("give its real address (not a ClusterIP) with --master URL").unwrap();
}

#[test]
fn started_without_an_api_server_what_an_earlier_agent_pinned_serves() {
    let stage = Stage::new().unwrap();
    let mut earlier = stage.serve(&[&web(), &stage.both()]).unwrap();
    earlier.end_with(Signal::SIGKILL).unwrap();
    let agent = Agent::start_on_master(&stage.node, &master()).unwrap();
    agent.logged(AWAY).unwrap();
    let client = stage.pod_client().unwrap();
    assert!(client.dial(Kind::Tcp, dialled(VIP4)).is_ok());
}

#[test]
fn a_node_that_the_api_server_does_not_know_is_named_after_half_a_minute_and_served() {
    let stage = Stage::new().unwrap();
    let api: SocketAddr = API.parse().unwrap();
    let server = Replay::start(&stage.world.uplink, api, Lists::Paged).unwrap();
    let json = |text: &str| serde_json::from_str(text).unwrap();
    server.apply(&json(
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80, "protocol": "TCP"}]}}"#,
    ));
    server.apply(&json(&format!(
        r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {{"name": "web-1", "namespace": "default", "labels": {{"kubernetes.io/service-name": "web"}}}},
            "ports": [{{"name": "", "port": 8080, "protocol": "TCP"}}], "endpoints": [{{"addresses": ["{}"]}}]}}"#,
        stage.a.pod.v4
    )));
    let agent = Agent::start_on_master(&stage.node, &master()).unwrap();
    let unknown = "node one does not exist or has no address after 30 s; going on with this host's own. \
                   --hostname-override must name the Node object";
    agent.logged_within(Duration::from_mins(1), unknown).unwrap();
    agent.logged("programmed ").unwrap();
    assert_eq!(stage.pod_client().unwrap().dial(Kind::Tcp, dialled(VIP4)).unwrap().by, "a");
}

#[test]
fn a_connection_whose_packets_vanish_is_noticed_within_15_seconds() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let api: SocketAddr = API.parse().unwrap();
    let server = Replay::start(&world.uplink, api, Lists::Paged).unwrap();
    server.apply(&node_object(&node));
    let agent = Agent::start_on_master(&node, &master()).unwrap();
    agent.logged("programmed ").unwrap();

    let start = Instant::now();
    world.uplink.nft(LOSE).unwrap();
    agent.logged(AWAY).unwrap();
    assert!(start.elapsed() < Duration::from_secs(15), "noticed after {:?}\n{}", start.elapsed(), agent.log());
}
