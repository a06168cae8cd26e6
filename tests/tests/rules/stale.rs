//! Flows whose backend stopped serving: UDP moves on with its next datagram, TCP stays (issue 5, line 6; specification C1).

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use nix::sys::signal::Signal;
use proxy_tests::agent::Agent;
use proxy_tests::edge::{Edge, counters};
use proxy_tests::manifest::Condition::{self, NotServing, Ready, Terminating};
use proxy_tests::manifest::{Documents, Proto, Service, endpoints};
use proxy_tests::probe::{Client, Kind, Socket};
use proxy_tests::stage::{
    EXTERNAL4, EXTERNAL6, NODE_PORT, PORT, TARGET, VIP4, VIP6, dialled, web_endpoints, web_on_node_port,
};

const VIPS: [IpAddr; 2] = [VIP4, VIP6];
const EXTERNAL: [IpAddr; 2] = [EXTERNAL4, EXTERNAL6];
const REFUSED: &str = "ECONNREFUSED";

fn web() -> Service {
    web_on_node_port().external_ips(&EXTERNAL)
}

/// The Service, its manifest, and a client outside that keeps its sockets.
struct Scene<'a> {
    stage: &'a Edge,
    agent: &'a Agent,
}

impl Scene<'_> {
    /// What serves from now on: `a` is near, `b` is far. Returns once the tables say so.
    fn change(&self, objects: &[&dyn Documents]) {
        self.agent.programs(|| self.stage.manifests.write("manifest", objects)).unwrap();
    }

    fn served_by(&self, near: Condition, far: Condition) {
        let slices = web_endpoints().pod_that_is(near, &self.stage.near.pod).pod_that_is(far, &self.stage.far.pod);
        self.change(&[&web(), &slices]);
    }

    fn served_by_nobody(&self) {
        self.change(&[&web(), &web_endpoints()]);
    }
}

fn connected(client: &Client, kind: Kind, to: SocketAddr) -> Socket<'_> {
    let socket = client.open(kind, to);
    socket.connect(to).unwrap();
    socket
}

fn by(sockets: &[Socket<'_>]) -> Vec<String> {
    let by = |socket: &Socket<'_>| socket.ask().map_or_else(|error| error, |answer| answer.by);
    sockets.iter().map(by).collect()
}

#[test]
fn a_udp_flow_moves_with_its_next_datagram_when_its_backend_stops_serving_and_a_connection_stays() {
    let stage = Edge::new().unwrap();
    stage.route_here(&EXTERNAL).unwrap();
    stage.route_here(&VIPS).unwrap();
    let mut agent = stage.serve(&[&web()], &["-v2"]).unwrap();
    let scene = Scene { stage: &stage, agent: &agent };
    scene.served_by(Ready, NotServing);
    let client = Client::start(&stage.outside).unwrap();
    let to: Vec<_> =
        stage.on_node(NODE_PORT).into_iter().chain(VIPS.map(dialled)).chain(EXTERNAL.map(dialled)).collect();
    let udp: Vec<_> = to.iter().map(|to| connected(&client, Kind::Udp, *to)).collect();
    let tcp: Vec<_> = to.iter().map(|to| connected(&client, Kind::Tcp, *to)).collect();
    let all = |name: &str| vec![name.to_owned(); to.len()];
    for socket in &tcp {
        assert_eq!(socket.receive().unwrap().by, "a");
    }
    let moved = || counters(&stage.node).unwrap()["flow_moved"];
    let check = |what: &str, wanted: &str| {
        assert_eq!(by(&udp), all(wanted), "{what}");
        assert_eq!(by(&tcp), all("a"), "a connection, {what}");
    };
    check("at first", "a");
    assert_eq!(moved(), 0);

    scene.served_by(Terminating, Ready);
    check("it terminates and serves", "a");
    let start = Instant::now();
    scene.served_by(NotServing, Ready);
    check("it does not serve any more", "b");
    println!("from a written file to the answers of the next backend to {} flows: {:?}", udp.len(), start.elapsed());
    assert_eq!(moved(), udp.len() as u64);
    scene.served_by(Ready, Ready);
    check("it is back, and nobody has to leave", "b");
    scene.served_by(Ready, NotServing);
    check("the other one went", "a");
    scene.served_by_nobody();
    check("nobody is left", REFUSED);
    scene.served_by(NotServing, Ready);
    check("somebody came", "b");
    let slices = endpoints("web").port(Proto::Udp, PORT, TARGET).pod(&stage.far.pod);
    let known = agent.log_length();
    scene.change(&[&slices]);
    agent.logs_after(known, &["gave back what went out of use"]).unwrap();
    check("the Service is gone", REFUSED);
    agent.end_with(Signal::SIGTERM).unwrap();
    let agent = agent.restart().unwrap();
    assert_eq!(by(&tcp), all("a"), "a connection, the Service is gone and the agent is another one");
    let scene = Scene { stage: &stage, agent: &agent };
    scene.served_by(NotServing, Ready);
    check("the Service is back", "b");
}
