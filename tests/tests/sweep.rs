//! `sluice reap` frees slots of sockets that are gone, and no others, and puts counts of open connections right.

use std::collections::BTreeSet;

use proxy_common::abi::{BackendStats, SocketFlow};
use proxy_tests::agent::{AT_SOCKETS, Agent};
use proxy_tests::has_mptcp;
use proxy_tests::manifest::{Proto, endpoints, service};
use proxy_tests::probe::{Client, Kind, Socket};
use proxy_tests::reaper::Reaper;
use proxy_tests::stage::{Stage, VIP4, VIP6, dialled, eventually, web, web_endpoints};
use proxy_userspace::attach::pins::Folder;
use proxy_userspace::maps::pinned::Pinned;
use proxy_userspace::sys::mapped::Mapped;

/// A look every second.
const OFTEN: [&str; 1] = ["--sweep-interval=1"];

/// The tables of the stage's node.
struct Tables(Pinned);

impl Tables {
    fn of(stage: &Stage) -> Self {
        Self(Pinned::open(&Folder::at(&stage.node.pin_dir()).current()).unwrap())
    }

    /// Cookies of the sockets that have a slot.
    fn taken(&self) -> BTreeSet<u64> {
        let sockets = Mapped::new(&self.0.sockets).unwrap();
        sockets.values().map(|(_, flow)| flow.cookie).filter(|cookie| *cookie != 0).collect()
    }

    /// Connections that are counted as open, over all backends.
    fn open(&self) -> u32 {
        self.0.stats.entries().unwrap().iter().fold(0, |sum: u32, (_, stats)| sum.wrapping_add(stats.open))
    }

    /// Leaves a slot behind whose socket is gone, as a connection of Multipath TCP does. A kernel without that gets back
    /// the record of a socket that was just closed, as if the hook had not been there.
    fn leave_slot_behind(&self, client: &Client) {
        if has_mptcp() {
            client.dial(Kind::Mptcp, dialled(VIP4)).unwrap();
            return;
        }
        let before = self.taken();
        let closed = connected(client, Kind::Udp);
        let sockets = Mapped::new(&self.0.sockets).unwrap();
        let is_new = |flow: &SocketFlow| flow.cookie != 0 && !before.contains(&flow.cookie);
        let (slot, flow) = sockets.values().find(|(_, flow)| is_new(flow)).unwrap();
        drop(closed);
        let counted = self.0.stats.get(&flow.backend).unwrap().unwrap();
        self.0.stats.set(&flow.backend, &BackendStats { open: counted.open + 1, ..counted }).unwrap();
        self.0.sockets.set(&slot, &flow).unwrap();
    }

    /// Lets two looks pass: a slot that was left behind goes with the second one.
    fn let_two_looks_pass(&self, client: &Client) {
        let before = self.taken();
        self.leave_slot_behind(client);
        assert_ne!(self.taken(), before, "the slot stays behind");
        eventually("the slot that was left behind is free", || self.taken() == before);
    }
}

/// A socket that is connected to the Service and was answered.
fn connected(client: &Client, kind: Kind) -> Socket<'_> {
    let socket = client.open(kind, dialled(VIP4));
    socket.connect(dialled(VIP4)).unwrap();
    socket.ask().unwrap();
    socket
}

fn serve(stage: &Stage) -> (Agent, Tables) {
    let agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    (agent, Tables::of(stage))
}

#[test]
fn a_slot_is_freed_when_its_socket_is_gone_and_kept_while_it_lives() {
    let stage = Stage::new().unwrap();
    let (_agent, tables) = serve(&stage);
    let _reaper = Reaper::start_with(&stage.node, &OFTEN).unwrap();
    let (inside, host) = (stage.pod_client().unwrap(), stage.host_client().unwrap());
    // Its namespace has no process any more, and no name: only the sockets keep it.
    let elsewhere = stage.node.pod("elsewhere").unwrap();
    let hidden = Client::start(&elsewhere.place).unwrap();

    let kinds = if has_mptcp() { vec![Kind::Tcp, Kind::Udp, Kind::Mptcp] } else { vec![Kind::Tcp, Kind::Udp] };
    let dialling =
        [&inside, &host, &hidden].into_iter().flat_map(|client| kinds.iter().map(move |kind| (client, *kind)));
    let _living: Vec<_> = dialling.map(|(client, kind)| connected(client, kind)).collect();
    let datagrams = inside.open(Kind::Udp, dialled(VIP6));
    datagrams.ask_at(dialled(VIP6)).unwrap();
    hidden.leave_namespace().unwrap();
    let (living, count) = (tables.taken(), 3 * kinds.len() as u32 + 1);
    assert_eq!((living.len() as u32, tables.open()), (count, count));

    for _ in 0..2 {
        tables.let_two_looks_pass(&inside);
        assert_eq!(tables.taken(), living);
        eventually("as many are counted as open", || tables.open() == count);
    }
}

#[test]
fn a_socket_without_a_connection_may_lose_its_slot_and_dials_again() {
    let stage = Stage::new().unwrap();
    let nobody = service("nobody").cluster_ips(&[VIP4]).port(Proto::Tcp, 81);
    let nobody_there = endpoints("nobody").port(Proto::Tcp, 81, 81).pod(&stage.a.pod);
    let _agent = stage.serve(&[&web(), &stage.both(), &nobody, &nobody_there]).unwrap();
    let tables = Tables::of(&stage);
    let client = stage.pod_client().unwrap();
    let refused = client.open(Kind::Tcp, dialled(VIP4));
    assert_eq!(refused.connect((VIP4, 81).into()), Err("ECONNREFUSED".to_owned()));
    let disconnected = connected(&client, Kind::Udp);
    disconnected.disconnect().unwrap();
    assert_eq!(tables.taken().len(), 2);

    let _reaper = Reaper::start_with(&stage.node, &OFTEN).unwrap();
    eventually("both slots are free", || tables.taken().is_empty());
    assert_eq!(tables.open(), 0);
    for socket in [&refused, &disconnected] {
        socket.connect(dialled(VIP4)).unwrap();
        socket.ask().unwrap();
        assert_eq!(socket.peer_name().unwrap(), dialled(VIP4));
    }
    assert_eq!((tables.taken().len(), tables.open()), (2, 2));
}

#[test]
fn a_wrong_count_of_open_connections_is_put_right() {
    let stage = Stage::new().unwrap();
    let agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    let tables = Tables::of(&stage);
    let client = stage.pod_client().unwrap();
    let _open = [Kind::Tcp, Kind::Udp].map(|kind| connected(&client, kind));
    let stats = tables.0.stats.entries().unwrap();
    for (id, right) in stats.into_iter().filter(|(_, stats)| stats.open != 0) {
        let wrong = BackendStats { open: right.open.wrapping_sub(5), ..right };
        tables.0.stats.set(&id, &wrong).unwrap();
    }
    assert_ne!(tables.open(), 2);
    let _reaper = Reaper::start_with(&stage.node, &OFTEN).unwrap();
    eventually("the count is right", || tables.open() == 2);
    tables.let_two_looks_pass(&client);
    assert_eq!((tables.taken().len(), tables.open()), (2, 2), "{}", agent.log());
}

#[test]
fn who_is_in_another_pid_namespace_frees_nothing_and_names_the_setting() {
    let stage = Stage::new().unwrap();
    let (_agent, tables) = serve(&stage);
    tables.leave_slot_behind(&stage.pod_client().unwrap());
    let left = tables.taken();
    let reaper = Reaper::in_pid_namespace(&stage.node, &OFTEN).unwrap();
    assert!(reaper.beginning.contains("without CAP_SYS_PTRACE"), "though it may look into process 1, itself");
    let said = reaper.logged("cannot tell which slots belong to sockets that are gone").unwrap();
    assert!(said.contains("processes of the node are out of sight: run in its PID namespace (hostPID)"), "{said}");
    assert_eq!((left.len(), tables.taken()), (1, left));
}

#[test]
fn a_table_of_sockets_that_becomes_nearly_full_is_named_and_again_only_after_it_was_not() {
    let stage = Stage::new().unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    let _agent =
        Agent::start_with(&stage.node, &stage.manifests, &[&AT_SOCKETS[..], &["--max-sockets=64"]].concat()).unwrap();
    let (tables, client) = (Tables::of(&stage), stage.pod_client().unwrap());
    let reaper = Reaper::start_with(&stage.node, &OFTEN).unwrap();
    for _ in 0..2 {
        let mut sockets = Vec::new();
        // Some meet a slot that is taken.
        while tables.taken().len() < 52 {
            sockets.push(connected(&client, Kind::Udp));
        }
        reaper.logged("table SOCKETS is nearly full: 52 of 64 entries").unwrap();
        drop(sockets);
        eventually("every slot is free", || tables.taken().is_empty());
        tables.let_two_looks_pass(&client);
    }
}

#[test]
fn who_may_not_look_into_every_process_frees_nothing() {
    let stage = Stage::new().unwrap();
    let (_agent, tables) = serve(&stage);
    let client = stage.pod_client().unwrap();
    tables.leave_slot_behind(&client);
    let left = tables.taken();
    assert_eq!(left.len(), 1);
    let reaper = Reaper::without_ptrace(&stage.node, &OFTEN).unwrap();
    let said = reaper.logged("cannot tell which slots belong to sockets that are gone").unwrap();
    assert!(said.contains("is closed to us: grant CAP_SYS_PTRACE"), "{said}");
    assert_eq!(tables.taken(), left);
}
