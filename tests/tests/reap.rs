//! `sluice reap`: connected UDP sockets leave a backend that stopped serving; nothing else is touched.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_common::abi::{Backend, Config, FrontendKey};
use proxy_common::tables::Capacity;
use proxy_tests::hooks::frontend;
use proxy_tests::node::{Node, Pod};
use proxy_tests::ops::{backend, publish, switch, withdraw};
use proxy_tests::pins::options;
use proxy_tests::probe::{Client, Kind, PATIENCE, Server, Socket};
use proxy_tests::reaper::Reaper;
use proxy_tests::world::World;
use proxy_userspace::attach::Datapath;
use proxy_userspace::attach::pins::Folder;
use proxy_userspace::maps::MapStore;
use proxy_userspace::maps::pinned::Pinned;
use proxy_userspace::plan::Op;

/// The service address, for TCP and UDP, and the port its backends listen on.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 5353;
const NAMES: [&str; 2] = ["a", "b"];

/// What the issue allows between the change and the move.
const LIMIT: Duration = Duration::from_millis(100);

fn vip() -> SocketAddr {
    SocketAddr::new(VIP.into(), 53)
}

/// A node whose service has two pods as backends.
struct Stage {
    node: Node,
    servers: Vec<Pod>,
    version: u32,
    _processes: Vec<Server>,
    datapath: Datapath,
}

impl Stage {
    fn new(world: &World) -> Self {
        Self::with_slots(world, 1024)
    }

    /// With room for this many sockets in SOCKETS.
    fn with_slots(world: &World, sockets: u32) -> Self {
        let node = world.node("one").unwrap();
        let servers: Vec<Pod> = NAMES.iter().map(|name| node.pod(name).unwrap()).collect();
        let processes =
            servers.iter().map(|pod| Server::start(&pod.place, &pod.name, &[backend_address(pod)]).unwrap());
        let processes = processes.collect();
        let options = options(&node, Capacity { sockets, backends: 4096, ..Capacity::DEFAULT });
        let mut datapath = Datapath::open(&options).unwrap();
        datapath.grow(&options.limit).unwrap();
        datapath.apply(&beginning(&datapath.capacity())).unwrap();
        datapath.go_live().unwrap();
        let mut stage = Self { node, servers, version: 0, _processes: processes, datapath };
        stage.serve_from(&NAMES);
        stage
    }

    /// Only these backends serve from now on.
    fn serve_from(&mut self, names: &[&str]) {
        self.version += 1;
        let ids: Vec<u32> = names.iter().map(|name| 1 + u32::from(*name == "b")).collect();
        let mut ops = switch(1, self.version, self.version * 2, ids).to_vec();
        for (id, pod) in (1..).zip(&self.servers) {
            let serving = backend(backend_address(pod), 1);
            let is_serving = names.contains(&pod.name.as_str());
            let value = if is_serving { serving } else { Backend { flags: 0, ..serving } };
            ops.push(Op::Backend { id, value, fresh: false });
        }
        self.datapath.apply(&ops).unwrap();
    }

    fn server(&self, name: &str) -> &Pod {
        self.servers.iter().find(|pod| pod.name == name).unwrap()
    }

    /// What `sluice check` says.
    fn check(&self) -> String {
        let (pin_dir, cgroup) = (self.node.pin_dir().display().to_string(), self.node.cgroup.display().to_string());
        let arguments = ["check", "-o", "json", "--pin-dir", &pin_dir, "--cgroup-root", &cgroup];
        String::from_utf8(proxy_tests::agent::sluice(&self.node, &arguments).unwrap().stdout).unwrap()
    }

    /// The protocol of the socket that has the first slot.
    fn protocol_in_slot(&self) -> u8 {
        let maps = Pinned::open(&Folder::at(&self.node.pin_dir()).current()).unwrap();
        maps.sockets.get(&0).unwrap().unwrap().proto
    }

    /// Takes the backend `name` out of service; returns the name of the other one.
    fn end(&mut self, name: &str) -> &'static str {
        let other = NAMES[usize::from(name == NAMES[0])];
        self.serve_from(&[other]);
        other
    }
}

/// A UDP frontend.
fn udp(port: u16) -> FrontendKey {
    frontend(&format!("udp {VIP}:{port}"))
}

fn backend_address(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4.into(), PORT)
}

/// The frontends and the configuration, which stay.
fn beginning(tables: &Capacity) -> Vec<Op> {
    let config = Config { udp_timeout: 30, udp_stream_timeout: 120, ..Config::default() };
    let mut ops = vec![Op::Config { value: config.into() }];
    for (id, proto) in [(1, "tcp"), (2, "udp")] {
        ops.extend(publish(tables, id, frontend(&format!("{proto} {}", vip())), 1));
    }
    ops
}

/// Asks through `socket` until `name` answers. An answer that is under way while the socket moves is lost, as datagrams
/// are: nobody waits for it.
fn until_answered_by(socket: &Socket<'_>, name: &str) {
    socket.set_patience(10).unwrap();
    let start = Instant::now();
    loop {
        let answer = socket.ask();
        if answer.as_ref().is_ok_and(|answer| answer.by == name) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "still {answer:?}");
    }
}

fn connected(client: &Client, to: SocketAddr) -> (Socket<'_>, String) {
    let socket = client.open(Kind::Udp, to);
    socket.connect(to).unwrap();
    let by = socket.ask().unwrap().by;
    (socket, by)
}

#[test]
fn a_connected_socket_moves_in_place_in_every_namespace_and_others_stay() {
    let world = World::new().unwrap();
    let mut stage = Stage::new(&world);
    let pod = stage.node.pod("client").unwrap();
    let (inside, host) = (Client::start(&pod.place).unwrap(), Client::start(&stage.node.host().unwrap()).unwrap());
    let _reaper = Reaper::start(&stage.node).unwrap();
    let (socket, first) = connected(&inside, vip());
    let mapped = SocketAddr::new(Ipv4Addr::to_ipv6_mapped(&VIP).into(), 53);
    let on_host: Vec<_> = [vip(), mapped, vip(), mapped].iter().map(|to| connected(&host, *to)).collect();
    let pod_address = backend_address(stage.server(&first));
    let (direct, _) = connected(&inside, pod_address);
    let stream = inside.open(Kind::Tcp, vip());
    stream.connect(vip()).unwrap();
    let stream_by = stream.ask().unwrap().by;
    let port = socket.local_name().unwrap();

    let other = stage.end(&first);
    until_answered_by(&socket, other);
    for (socket, _) in &on_host {
        until_answered_by(socket, other);
    }
    assert_eq!(socket.local_name().unwrap(), port, "the socket keeps its port");
    assert_eq!(socket.peer_name().unwrap(), vip(), "the application does not notice");
    assert_eq!(direct.ask().unwrap().by, first, "who dialled the pod stays with it");
    assert_eq!(stream.ask().unwrap().by, stream_by, "TCP is left alone");
}

#[test]
fn sockets_move_within_a_tenth_of_a_second_whether_they_have_a_slot_or_not() {
    let world = World::new().unwrap();
    let mut stage = Stage::with_slots(&world, 1);
    let client = Client::start(&stage.node.host().unwrap()).unwrap();
    let _reaper = Reaper::start(&stage.node).unwrap();
    let (with_slot, mut name) = connected(&client, vip());
    let (without, _) = connected_to(&client, &name);
    for socket in [&with_slot, &without] {
        name = stage.end(&name).to_owned();
        let changed = Instant::now();
        until_answered_by(socket, &name);
        let took = changed.elapsed();
        assert!(took < LIMIT, "moved after {took:?}");
    }
}

#[test]
fn without_the_right_to_reach_into_processes_the_socket_is_closed() {
    let world = World::new().unwrap();
    let mut stage = Stage::new(&world);
    let client = Client::start(&stage.node.host().unwrap()).unwrap();
    let _reaper = Reaper::without_ptrace(&stage.node, &[]).unwrap();
    let (socket, first) = connected(&client, vip());
    let pod_address = backend_address(stage.server(&first));
    let (direct, _) = connected(&client, pod_address);

    let other = stage.end(&first);
    until_closed(&socket);
    assert_eq!(direct.ask().unwrap().by, first);
    assert_eq!(connected(&client, vip()).1, other, "a new socket goes elsewhere");
    assert!(stage.check().contains("without CAP_SYS_PTRACE: sockets are closed instead of moved"));
}

#[test]
fn with_no_backend_left_the_socket_is_closed() {
    let world = World::new().unwrap();
    let mut stage = Stage::new(&world);
    let client = Client::start(&stage.node.host().unwrap()).unwrap();
    let _reaper = Reaper::start(&stage.node).unwrap();
    let (socket, _) = connected(&client, vip());
    stage.serve_from(&[]);
    until_closed(&socket);
}

/// Waits for the error that the kernel leaves on a destroyed socket.
fn until_closed(socket: &Socket<'_>) {
    let start = Instant::now();
    loop {
        match socket.ask() {
            Err(_) => return,
            Ok(answer) => assert!(start.elapsed() < PATIENCE, "still answered by {}", answer.by),
        }
    }
}

#[test]
fn a_change_before_the_reaper_started_is_made_up_for() {
    let world = World::new().unwrap();
    let mut stage = Stage::new(&world);
    let client = Client::start(&stage.node.host().unwrap()).unwrap();
    let (socket, first) = connected(&client, vip());
    let other = stage.end(&first);
    assert_eq!(socket.ask().unwrap().by, first, "nobody moves it");
    let _reaper = Reaper::start(&stage.node).unwrap();
    until_answered_by(&socket, other);
}

#[test]
fn a_socket_whose_slot_was_taken_moves_as_well_and_one_that_dialled_the_pod_stays() {
    let world = World::new().unwrap();
    let mut stage = Stage::with_slots(&world, 1);
    let pod = stage.node.pod("client").unwrap();
    let client = Client::start(&pod.place).unwrap();
    let stream = client.open(Kind::Tcp, vip());
    stream.connect(vip()).unwrap();
    let (early, first) = connected(&client, vip());
    let (late, _) = connected_to(&client, &first);
    let pod_address = backend_address(stage.server(&first));
    let (direct, _) = connected(&client, pod_address);

    let other = stage.end(&first);
    assert_eq!(early.ask().unwrap().by, first, "nobody moves it");
    let _reaper = Reaper::start(&stage.node).unwrap();
    until_answered_by(&early, other);
    until_answered_by(&late, other);
    stage.serve_from(&[&first]);
    until_answered_by(&late, &first);
    until_answered_by(&early, &first);
    assert_eq!(late.peer_name().unwrap(), vip(), "the application does not notice");
    stage.end(&first);
    until_answered_by(&late, other);
    assert_eq!(direct.ask().unwrap().by, first, "who dialled the pod stays with it");
    assert_eq!(stage.protocol_in_slot(), 6, "none of them had the slot");
}

#[test]
fn a_socket_that_was_disconnected_and_dialled_the_pod_is_not_touched() {
    let world = World::new().unwrap();
    let mut stage = Stage::new(&world);
    let client = Client::start(&stage.node.host().unwrap()).unwrap();
    let _reaper = Reaper::start(&stage.node).unwrap();
    let (socket, first) = connected(&client, vip());
    let (witness, _) = connected_to(&client, &first);
    let pod_address = backend_address(stage.server(&first));
    socket.disconnect().unwrap();
    socket.connect(pod_address).unwrap();
    let other = stage.end(&first);
    until_answered_by(&witness, other);
    assert_eq!(socket.ask().unwrap().by, first);
    assert_eq!(socket.peer_name().unwrap(), pod_address);
}

/// A connected socket whose backend is `name`.
fn connected_to<'a>(client: &'a Client, name: &str) -> (Socket<'a>, String) {
    loop {
        let (socket, by) = connected(client, vip());
        if by == name {
            return (socket, by);
        }
    }
}

#[test]
fn sockets_of_a_deleted_service_stay_until_another_one_takes_its_address() {
    let world = World::new().unwrap();
    let mut stage = Stage::new(&world);
    stage.datapath.apply(&publish(&stage.datapath.capacity(), 3, udp(54), 1)).unwrap();
    let client = Client::start(&stage.node.host().unwrap()).unwrap();
    let (socket, first) = connected(&client, vip());
    let witness = client.open(Kind::Udp, vip());
    witness.connect(SocketAddr::new(VIP.into(), 54)).unwrap();
    let _reaper = Reaper::start(&stage.node).unwrap();

    let tables = stage.datapath.capacity();
    stage.datapath.apply(&[withdraw(&tables, 2, &udp(53))]).unwrap();
    let other = stage.end(&first);
    until_answered_by(&witness, other);
    // A second look, so that the first one is over.
    stage.serve_from(&[]);
    until_closed(&witness);
    assert_eq!(socket.ask().unwrap().by, first, "nothing is cleaned up");
    assert_eq!(socket.peer_name().unwrap(), vip());

    let mut ops = another_service(stage.server(other));
    ops.extend(publish(&tables, 4, udp(53), 2));
    stage.datapath.apply(&ops).unwrap();
    until_answered_by(&socket, other);
}

/// Service port 2, whose one backend is `pod`.
fn another_service(pod: &Pod) -> Vec<Op> {
    let mut ops = vec![Op::Backend { id: 3, value: backend(backend_address(pod), 2), fresh: true }];
    ops.extend(switch(2, 100, 100, vec![3]));
    ops
}

#[test]
fn a_second_reaper_is_refused_and_an_absent_one_is_a_note_of_check() {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    let pin_dir = stage.node.pin_dir().display().to_string();
    assert!(stage.check().contains("connected UDP sockets stay with a backend that stopped serving"));
    let reaper = Reaper::start(&stage.node).unwrap();
    assert!(stage.check().contains(&format!("runs as process {}", reaper.id())));
    assert!(!stage.check().contains("without CAP_SYS_PTRACE"));
    let second = proxy_tests::agent::sluice(&stage.node, &["reap", "--pin-dir", &pin_dir]).unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("a sluice reap already runs"));
    drop(stage.datapath);
    let cleanup = proxy_tests::agent::sluice(&stage.node, &["cleanup", "--pin-dir", &pin_dir]).unwrap();
    let said = String::from_utf8_lossy(&cleanup.stderr).into_owned();
    let refusal = format!("a sluice reap already runs on pin folder {pin_dir}, as process {}", reaper.id());
    assert!(!cleanup.status.success() && said.contains(&refusal), "{said}");
}
