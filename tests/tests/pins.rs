//! What stays in the kernel without a process: pins made, taken over, rebuilt under load, and removed.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use proxy_common::abi::{Affinity, AffinityKey, Backend, Config, Frontend};
use proxy_common::addr::{Addr, Be16};
use proxy_common::index;
use proxy_common::tables::{ABSENT_WORDS, Capacity, name};
use proxy_tests::agent::sluice;
use proxy_tests::array_with_lock;
use proxy_tests::hooks::frontend;
use proxy_tests::node::{Node, Pod};
use proxy_tests::ops::{backend, publish, switch};
use proxy_tests::pins::{self, names};
use proxy_tests::probe::{Client, Kind, Load, PATIENCE, Server, Traffic};
use proxy_tests::world::{PINS, World};
use proxy_userspace::attach::object::HOOKS;
use proxy_userspace::attach::{AttachError, Datapath, Options};
use proxy_userspace::maps::pinned::{Pinned, layouts};
use proxy_userspace::maps::{MapStore, Snapshot};
use proxy_userspace::plan::Op;
use proxy_userspace::sys::bpf::{Pin, link_info, map_info, pin};
use serde_json::Value;

/// Tables small enough for many tests at once.
const SMALL: Capacity = Capacity {
    frontends: 256,
    services: 128,
    versions: 256,
    slots: 1024,
    backends: 256,
    sources: 64,
    affinity: 128,
    sockets: 128,
    flows: 64,
};

/// The service address of all tests, and the port its backends listen on.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const PORT: u16 = 8080;

fn vip() -> SocketAddr {
    SocketAddr::new(VIP.into(), 80)
}

fn options(node: &Node) -> Options {
    pins::options(node, SMALL)
}

/// The service with one backend, as an agent would write it.
fn service(address: Ipv4Addr) -> Vec<Op> {
    let config = Op::Config { value: Box::new(Config { udp_timeout: 30, ..Config::default() }) };
    let value = backend(SocketAddr::new(address.into(), PORT), 1);
    let mut ops = vec![config, Op::Backend { id: 1, value, fresh: true }];
    ops.extend(switch(1, 1, 2, vec![1]));
    ops.extend(publish(&SMALL, 1, frontend("tcp 10.96.0.1:80"), 1));
    ops
}

fn open(node: &Node) -> Datapath {
    Datapath::open(&options(node)).unwrap()
}

/// With new tables as large as they may become, which nobody uses yet.
fn open_anew(options: &Options) -> Datapath {
    let mut datapath = Datapath::open(options).unwrap();
    assert!(!datapath.is_live(), "there was nothing to take over");
    datapath.grow(&options.limit).unwrap();
    datapath
}

/// What a first agent does.
fn serve(node: &Node, backend: Ipv4Addr) -> Datapath {
    let mut datapath = open_anew(&options(node));
    datapath.apply(&service(backend)).unwrap();
    datapath.go_live().unwrap();
    datapath
}

/// A first agent that has come and gone.
fn served(node: &Node) {
    drop(serve(node, Ipv4Addr::new(10, 0, 0, 1)));
}

/// Link id and program id by name of the hook.
fn links(node: &Node) -> BTreeMap<String, (u32, u32)> {
    let folder = node.pin_dir().join("links");
    names(&folder).into_iter().map(|name| (name.clone(), link_ids(&folder.join(name)))).collect()
}

fn link_ids(path: &Path) -> (u32, u32) {
    let info = link_info(Pin::open(path).unwrap().fd.as_fd()).unwrap();
    (info.id, info.program_id)
}

/// Links stay, and each has another program than before.
fn assert_swapped(node: &Node, before: &BTreeMap<String, (u32, u32)>) {
    let after = links(node);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (hook, (link, program)) in before {
        assert_eq!(after[hook].0, *link, "{hook} keeps its link");
        assert_ne!(after[hook].1, *program, "{hook} has a new program");
    }
}

/// A node with a service on a pod, its client and both ends of their traffic.
struct Stage {
    node: Node,
    client: Pod,
    server: Pod,
    _server: Server,
}

impl Stage {
    fn new(world: &World) -> Self {
        let node = world.node("one").unwrap();
        let (client, server) = (node.pod("client").unwrap(), node.pod("server").unwrap());
        let listen = SocketAddr::new(server.v4.into(), PORT);
        let process = Server::start(&server.place, "server", &[listen]).unwrap();
        Self { node, client, server, _server: process }
    }

    fn load(&self) -> Load {
        let mut load = Load::start(&self.client.place, Traffic::Tcp, vip()).unwrap();
        load.after(50).unwrap();
        load
    }
}

/// Opens a datapath on pins that cannot be used, fills the new tables and goes live, all under counted load.
fn rebuilt_under_load(damage: impl FnOnce(&Path)) {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    drop(serve(&stage.node, stage.server.v4));
    let before = links(&stage.node);
    let mut load = stage.load();

    damage(&stage.node.pin_dir());
    let mut datapath = open_anew(&options(&stage.node));
    load.after(50).unwrap();
    datapath.apply(&service(stage.server.v4)).unwrap();
    datapath.go_live().unwrap();
    load.after(50).unwrap();

    let report = load.stop().unwrap();
    assert_eq!((report.failed, &report.errors), (0, &BTreeMap::new()));
    assert_eq!(names(&stage.node.pin_dir()), ["links", "v1"]);
    assert_swapped(&stage.node, &before);
    drop(datapath);
    let datapath = open(&stage.node);
    assert!(datapath.is_live(), "what was rebuilt is complete");
    assert_eq!(datapath.read().unwrap().service, [(1, 1)]);
}

#[test]
fn a_fresh_start_attaches_one_program_per_hook_once_the_tables_are_filled() {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    let mut datapath = open_anew(&options(&stage.node));
    datapath.apply(&service(stage.server.v4)).unwrap();
    assert_eq!(names(&stage.node.pin_dir()), ["v1-new"], "nothing is attached before the tables are filled");
    datapath.go_live().unwrap();

    assert_eq!(names(&stage.node.pin_dir()), ["links", "v1"]);
    assert_eq!(links(&stage.node).keys().collect::<Vec<_>>(), HOOKS.iter().collect::<Vec<_>>());
    let answer = Client::start(&stage.client.place).unwrap().dial(Kind::Tcp, vip()).unwrap();
    assert_eq!((answer.by.as_str(), answer.from), ("server", Some(vip())));
}

#[test]
fn folders_are_for_root_alone_and_so_is_every_pin() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.pin_dir()), 0o700);
    for folder in ["links", "v1"].map(|name| node.pin_dir().join(name)) {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for pin in names(&folder) {
            assert_eq!(mode(&folder.join(&pin)), 0o600, "{pin}");
        }
    }
}

#[test]
fn a_restart_keeps_tables_and_links_and_swaps_the_programs_under_load() {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    let datapath = serve(&stage.node, stage.server.v4);
    let (before, tables) = (links(&stage.node), datapath.read().unwrap());
    let mut load = stage.load();
    drop(datapath);
    load.after(50).unwrap();

    let datapath = open(&stage.node);
    assert!(datapath.is_live());
    assert_eq!(datapath.read().unwrap(), tables);
    assert_swapped(&stage.node, &before);
    load.after(50).unwrap();
    assert_eq!(load.stop().unwrap().failed, 0);
}

#[test]
fn pinned_tables_keep_their_size_whatever_is_asked_for() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let larger = Capacity { backends: 512, sockets: 1000, ..SMALL };
    let datapath = Datapath::open(&Options { limit: larger, ..options(&node) }).unwrap();
    assert!(datapath.is_live());
    assert_eq!(datapath.capacity(), SMALL);
}

#[test]
fn a_socket_table_that_is_no_power_of_two_is_rounded_up() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let capacity = Capacity { sockets: 1000, ..SMALL };
    let datapath = open_anew(&Options { limit: capacity, ..options(&node) });
    assert_eq!(datapath.capacity().sockets, 1024);
}

#[test]
fn a_missing_table_is_rebuilt_without_a_gap() {
    rebuilt_under_load(|pins| fs::remove_file(pins.join("v1").join(name::SLOTS)).unwrap());
}

#[test]
fn a_table_of_another_shape_is_rebuilt_without_a_gap() {
    rebuilt_under_load(|pins| {
        let tables = pins.join("v1");
        fs::rename(tables.join(name::FRONTEND), tables.join(name::SERVICE)).unwrap();
    });
}

#[test]
fn a_foreign_map_in_the_place_of_a_table_that_only_programs_use_is_rebuilt_without_a_gap() {
    for table in [name::SOCKETS_MORE, name::REASONS] {
        rebuilt_under_load(|pins| {
            let tables = pins.join("v1");
            fs::rename(tables.join(name::CONFIG), tables.join(table)).unwrap();
            copy_pin(&tables.join(table), &tables.join(name::CONFIG));
        });
        rebuilt_under_load(|pins| fs::remove_file(pins.join("v1").join(table)).unwrap());
    }
}

/// Pins the map at `from` a second time.
fn copy_pin(from: &Path, to: &Path) {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    assert!(Command::new("bpftool").args(["map", "pin", "pinned", &from, &to]).status().unwrap().success());
}

#[test]
fn something_that_is_no_table_is_rebuilt_without_a_gap() {
    rebuilt_under_load(|pins| {
        let table = pins.join("v1").join(name::BACKENDS);
        fs::remove_file(&table).unwrap();
        fs::create_dir(&table).unwrap();
    });
    rebuilt_under_load(|pins| {
        fs::remove_dir_all(pins.join("v1")).unwrap();
        symlink("/dev/urandom", pins.join("v1")).unwrap();
    });
}

#[test]
fn tables_of_another_abi_version_are_succeeded_without_a_gap() {
    for version in ["v0", "v99"] {
        rebuilt_under_load(|pins| fs::rename(pins.join("v1"), pins.join(version)).unwrap());
    }
}

/// What the tables that follow hold, once `damage` was done to those of a service.
fn followed(damage: impl FnOnce(&Path)) -> (Snapshot, Snapshot) {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let before = serve(&node, Ipv4Addr::new(10, 0, 0, 1)).read().unwrap();
    damage(&node.pin_dir());
    (before, open_anew(&options(&node)).read().unwrap())
}

#[test]
fn of_tables_that_cannot_be_used_as_they_are_those_with_our_layout_are_taken_over() {
    for (what, damage) in [
        ("one is missing", (|pins| fs::remove_file(pins.join("v1").join(name::SLOTS)).unwrap()) as fn(&Path)),
        ("they are of an earlier version, and one is missing", |pins| {
            fs::remove_file(pins.join("v1").join(name::SLOTS)).unwrap();
            fs::rename(pins.join("v1"), pins.join("v0")).unwrap();
        }),
    ] {
        let (before, after) = followed(damage);
        assert_eq!(after, Snapshot { slots: Vec::new(), ..before }, "{what}");
    }
    let (_, after) = followed(|pins| fs::rename(pins.join("v1"), pins.join("v99")).unwrap());
    let index = vec![[0; index::WORDS]; index::buckets(SMALL.frontends) as usize];
    let nothing = Snapshot { index, absent: vec![0; ABSENT_WORDS as usize], ..Snapshot::default() };
    assert_eq!(after, nothing, "what a later version means nobody knows");
}

#[test]
fn tables_that_the_programs_do_not_load_over_are_succeeded_by_ones_that_hold_the_same() {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    let datapath = serve(&stage.node, stage.server.v4);
    let (before, snapshot) = (links(&stage.node), datapath.read().unwrap());
    drop(datapath);
    let tables = stage.node.pin_dir().join("v1");
    let maps = || Pinned::open(&tables).unwrap();
    let client = AffinityKey::namespace(7, 1);
    let remembered = Affinity { backend: 1, generation: 1, used: 5 };
    maps().affinity.set(&client, &remembered).unwrap();
    let (sockets, sockets_more) = (maps().sockets, maps().sockets_more);
    let dialling = Client::start(&stage.client.place).unwrap();
    let socket = dialling.open(Kind::Tcp, vip());
    socket.connect(vip()).unwrap();
    let mut load = stage.load();

    // The right layout, but a lock where programs count.
    fs::remove_file(tables.join(name::STATS)).unwrap();
    let stats = layouts().find(|layout| layout.name == name::STATS).unwrap();
    let foreign = array_with_lock(stats.value_size, SMALL.backends, stats.flags).unwrap();
    pin(foreign.as_fd(), &tables.join(name::STATS)).unwrap();
    let datapath = open(&stage.node);
    assert!(datapath.is_live());
    load.after(50).unwrap();

    let report = load.stop().unwrap();
    assert_eq!((report.failed, &report.errors), (0, &BTreeMap::new()));
    assert_eq!((datapath.read().unwrap(), datapath.capacity()), (snapshot, SMALL));
    assert_eq!(maps().affinity.get(&client).unwrap(), Some(remembered));
    assert!(maps().sockets.is(&sockets) && maps().sockets_more.is(&sockets_more), "what sockets have they keep");
    assert_eq!(socket.peer_name().unwrap(), vip());
    assert_eq!(names(&stage.node.pin_dir()), ["links", "v1"]);
    assert_swapped(&stage.node, &before);
    drop(datapath);
    let stats = maps().stats;
    assert!(open(&stage.node).is_live());
    assert!(maps().stats.is(&stats), "what was made is what the next one takes over");
}

#[test]
fn what_an_interrupted_start_left_is_cleared_away() {
    rebuilt_under_load(|pins| {
        fs::create_dir(pins.join("v1-new")).unwrap();
        fs::rename(pins.join("v1").join(name::SLOTS), pins.join("v1-new").join(name::SLOTS)).unwrap();
        fs::rename(pins.join("v1"), pins.join("v1-old")).unwrap();
    });
}

#[test]
fn a_link_that_is_missing_or_no_link_is_made_again() {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    drop(serve(&stage.node, stage.server.v4));
    let folder = stage.node.pin_dir().join("links");
    fs::remove_file(folder.join("connect6")).unwrap();
    fs::rename(folder.join("connect4"), folder.join("unknown")).unwrap();
    fs::create_dir(folder.join("connect4")).unwrap();

    let datapath = open(&stage.node);
    assert!(datapath.is_live());
    assert_eq!(links(&stage.node).keys().collect::<Vec<_>>(), HOOKS.iter().collect::<Vec<_>>());
    assert_eq!(Client::start(&stage.client.place).unwrap().dial(Kind::Tcp, vip()).unwrap().by, "server");
}

#[test]
fn another_cgroup_is_attached_before_the_old_one_is_let_go() {
    let world = World::new().unwrap();
    let stage = Stage::new(&world);
    drop(serve(&stage.node, stage.server.v4));
    let before = links(&stage.node);
    let mut load = stage.load();
    let above = Options { cgroup_root: Some(world.cgroup().to_owned()), ..options(&stage.node) };
    let datapath = Datapath::open(&above).unwrap();
    assert!(datapath.is_live());
    load.after(50).unwrap();
    assert_eq!(load.stop().unwrap().failed, 0);
    let after = links(&stage.node);
    assert_eq!(after.len(), before.len());
    assert!(before.iter().all(|(hook, (link, _))| after[hook].0 != *link), "a link cannot move to another cgroup");
}

#[test]
fn two_nodes_on_one_kernel_do_not_see_each_other() {
    let world = World::new().unwrap();
    let (one, two) = (world.node("one").unwrap(), world.node("two").unwrap());
    let (near, far) = (one.pod("near").unwrap(), two.pod("far").unwrap());
    let listen = |pod: &Pod| SocketAddr::new(pod.v4.into(), PORT);
    let _near = Server::start(&near.place, "near", &[listen(&near)]).unwrap();
    let _far = Server::start(&far.place, "far", &[listen(&far)]).unwrap();
    let _one = serve(&one, near.v4);
    let _two = serve(&two, far.v4);

    let dial = |node: &Node| Client::start(&node.host().unwrap()).unwrap().dial(Kind::Tcp, vip()).map(|a| a.by);
    assert_eq!((dial(&one).as_deref(), dial(&two).as_deref()), (Ok("near"), Ok("far")));
    cleanup(&one, &["--force"]);
    assert_eq!(dial(&two).as_deref(), Ok("far"));
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let _first = open(&node);
    let error = Datapath::open(&options(&node)).unwrap_err();
    assert!(matches!(error, AttachError::Lock(_)), "{error}");
    assert!(error.to_string().contains(&format!("as process {}", std::process::id())), "{error}");
    let refused = sluice(&node, &["cleanup", "--pin-dir", &node.pin_dir().display().to_string()]).unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("already runs"));
}

#[test]
fn an_agent_in_a_container_with_a_run_folder_of_its_own_is_refused_too() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let _first = open(&node);
    let mut other = node.host().unwrap().command("/usr/bin/unshare").unwrap();
    let script = "mount -t tmpfs none /run && exec \"$0\" cleanup --pin-dir \"$1\"";
    other
        .args(["--mount", "sh", "-ec", script])
        .arg(proxy_tests::process::sluice_binary().unwrap())
        .arg(node.pin_dir());
    let refused = other.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("already runs") && said.contains("in another container"),
        "{said}"
    );
}

#[test]
fn lock_files_are_for_root_alone() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = Path::new("/run/sluice");
    assert_eq!(mode(folder), 0o700);
    assert!(names(folder).iter().all(|file| mode(&folder.join(file)) == 0o600));
}

#[test]
fn the_lock_of_a_process_that_is_gone_is_taken() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let locks = names(Path::new("/run/sluice"));
    fs::write(Path::new("/run/sluice").join(&locks[0]), "1").unwrap();
    assert!(open(&node).is_live());
}

fn cleanup(node: &Node, more: &[&str]) -> String {
    let pin_dir = node.pin_dir().display().to_string();
    let output = sluice(node, &[&["cleanup", "--pin-dir", &pin_dir], more].concat()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the kernel has no object of this kind and id; it frees them in the background.
fn wait_until_gone(kind: &str, id: u32) {
    let start = Instant::now();
    let mut bpftool = Command::new("bpftool");
    bpftool.args([kind, "show", "id", &id.to_string()]);
    while bpftool.output().unwrap().status.success() {
        assert!(start.elapsed() < PATIENCE, "{kind} {id} is still there");
    }
}

#[test]
fn cleanup_leaves_nothing_and_may_be_repeated() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let tables = node.pin_dir().join("v1");
    let id = |table: &String| map_info(Pin::open(&tables.join(table)).unwrap().fd.as_fd()).unwrap().id;
    let maps: Vec<u32> = names(&tables).iter().map(id).collect();
    let programs: Vec<u32> = links(&node).values().map(|(_, program)| *program).collect();

    let said = cleanup(&node, &[]);
    assert!(said.contains(&format!("removed {}", node.pin_dir().display())), "{said}");
    assert!(!node.pin_dir().exists());
    assert!(!Path::new("/run/sluice").exists());
    for id in programs {
        wait_until_gone("prog", id);
    }
    for id in maps {
        wait_until_gone("map", id);
    }
    assert!(cleanup(&node, &[]).contains("nothing to remove"));
}

#[test]
fn cleanup_leaves_what_others_pinned() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    fs::create_dir(node.pin_dir().join("precious")).unwrap();
    let pin_dir = node.pin_dir().display().to_string();
    let output = sluice(&node, &["cleanup", "--pin-dir", &pin_dir]).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("precious: sluice did not put it there"));
    assert_eq!(names(&node.pin_dir()), ["precious"]);
}

fn refusal(options: &Options) -> String {
    Datapath::open(options).unwrap_err().to_string()
}

#[test]
fn a_pin_folder_that_is_not_ours_is_refused_with_the_way_out() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    fs::create_dir_all(node.pin_dir().join("tc")).unwrap();
    let error = refusal(&options(&node));
    assert!(error.contains(r#"holds "tc", which sluice did not put there: name another --pin-dir"#), "{error}");

    let whole = refusal(&Options { pin_dir: PINS.into(), ..options(&node) });
    assert!(whole.contains("name a folder inside of it with --pin-dir"), "{whole}");
    let dotted = refusal(&Options { pin_dir: node.pin_dir().join("sluice.d"), ..options(&node) });
    assert!(dotted.contains("has a dot in its name"), "{dotted}");
    let elsewhere = refusal(&Options { pin_dir: "/run/pins".into(), ..options(&node) });
    assert!(elsewhere.contains("is not on a BPF filesystem: mount one (`mount -t bpf"), "{elsewhere}");
}

#[test]
fn a_read_only_bpf_filesystem_is_refused_with_the_way_out() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, PINS, None::<&str>, flags, None::<&str>).unwrap();
    let error = refusal(&options(&node));
    assert!(error.contains("is read-only: mount the BPF filesystem writable"), "{error}");
}

#[test]
fn without_a_bpf_filesystem_the_error_says_how_to_mount_one() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    // The machine may have one of its own below ours.
    while umount(PINS).is_ok() {}
    let error = refusal(&options(&node));
    assert!(error.contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
}

/// What `sluice check` says about one item, run by a shell after `prepare`.
fn check(node: &Node, prepare: &str, item: &str) -> Value {
    let binary = proxy_tests::process::sluice_binary().unwrap();
    let mut shell = node.host().unwrap().command("/usr/bin/unshare").unwrap();
    let script = format!("{prepare}\nexec \"$0\" check -o json");
    shell.args(["--mount", "--cgroup", "sh", "-ec", &script]).arg(binary);
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    findings.into_iter().find(|finding| finding["item"] == item).unwrap()
}

/// Unmounts cgroup2 wherever it is.
const NO_CGROUP2: &str =
    "awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts | while read -r m; do umount -l \"$m\"; done";

#[test]
fn inside_a_private_cgroup_namespace_the_mount_to_add_is_named() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let prepare = format!("{NO_CGROUP2}\nmount -t cgroup2 none /mnt");
    let finding = check(&node, &prepare, "cgroup2");
    assert_eq!(finding["status"], "problem");
    let detail = finding["detail"].as_str().unwrap();
    assert!(
        detail.contains("root of a private cgroup namespace") && detail.contains("hostPath /sys/fs/cgroup"),
        "{detail}"
    );
}

#[test]
fn without_cgroup2_the_error_says_how_to_mount_it() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let finding = check(&node, NO_CGROUP2, "cgroup2");
    let detail = finding["detail"].as_str().unwrap();
    assert!(detail.contains("no cgroup2 filesystem is mounted: mount one"), "{detail}");
}

#[test]
fn missing_capabilities_are_named() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let binary = proxy_tests::process::sluice_binary().unwrap();
    let mut bare = node.host().unwrap().command("/usr/bin/setpriv").unwrap();
    bare.args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"])
        .arg(binary)
        .args(["check", "-o", "json"]);
    let output = bare.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("grant CAP_BPF") && said.contains("grant CAP_NET_ADMIN"), "{said}");
}

#[test]
fn a_full_table_is_named_with_the_option_that_makes_it_larger() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let mut datapath = open_anew(&options(&node));
    let key = frontend("tcp 10.96.0.1:80");
    let value = Frontend { key, service: 1, kind: Frontend::KIND_CLUSTER_IP };
    let ops: Vec<Op> = (0..=SMALL.frontends).map(|id| Op::Frontend { id, value }).collect();
    let failure = datapath.apply(&ops).unwrap_err();
    assert_eq!(failure.applied, SMALL.frontends as usize);
    let text = failure.to_string();
    assert!(text.contains("key 256") && text.contains("full (256 entries): raise --max-frontends"), "{text}");
}

#[test]
fn a_quarter_of_a_million_endpoints_take_less_than_a_second_to_write_and_to_read() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let mut datapath = open_anew(&Options { limit: Capacity::DEFAULT, ..options(&node) });
    let count = 250_000;
    let backend = |id: u32| {
        let [_, a, b, c] = id.to_be_bytes();
        let addr = Addr::v4([10, a, b, c]);
        let value = Backend { addr, port: Be16::new(1), flags: 1, service: 1, generation: 1, zone: 0 };
        Op::Backend { id, value, fresh: true }
    };
    let mut ops: Vec<Op> = (1..=count).map(backend).collect();
    ops.push(Op::Slots { start: 0, backends: (1..=count).collect() });

    let start = cpu_time();
    datapath.apply(&ops).unwrap();
    let written = cpu_time().checked_sub(start).unwrap();
    let start = cpu_time();
    let snapshot = datapath.read().unwrap();
    let read = cpu_time().checked_sub(start).unwrap();
    assert_eq!((snapshot.backends.len(), snapshot.slots.len()), (count as usize, count as usize));
    println!("written in {written:?}, read in {read:?}");
    assert!(written.as_secs() < 1 && read.as_secs() < 1, "written in {written:?}, read in {read:?}");
}

/// What this thread has used, in user space and in the kernel: other tests keep the processors busy.
fn cpu_time() -> Duration {
    nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap().into()
}

#[test]
fn list_and_check_need_nothing_but_the_pins() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let rows = proxy_tests::agent::list(&node).unwrap();
    assert_eq!(rows[0]["frontend"], "10.96.0.1:80");
    assert_eq!(rows[0]["backends"][0]["backend"], "10.0.0.1:8080");

    let (pin_dir, cgroup) = (node.pin_dir().display().to_string(), node.cgroup.display().to_string());
    let output = sluice(&node, &["check", "--pin-dir", &pin_dir, "--cgroup-root", &cgroup]).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("connect4") && said.contains("not running: what is pinned keeps serving"), "{said}");
}

#[test]
fn pins_are_recognised_without_proc() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let mut bare = node.host().unwrap().command("/usr/bin/unshare").unwrap();
    let script = "mount -t tmpfs none /proc && \"$0\" list --pin-dir \"$1\" && \"$0\" check --pin-dir \"$1\"";
    bare.args(["--mount", "sh", "-c", script]).arg(proxy_tests::process::sluice_binary().unwrap()).arg(node.pin_dir());
    let said = String::from_utf8(bare.output().unwrap().stdout).unwrap();
    assert!(said.contains("10.96.0.1:80") && said.contains("connect4"), "{said}");
    assert!(!said.contains("is not a link") && !said.contains("not a map"), "{said}");
}

#[test]
fn tables_name_their_fields_in_bpftool() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    for (table, field) in [(name::VERSION, "affinity_seconds"), (name::BACKENDS, "generation")] {
        let pin = node.pin_dir().join("v1").join(table);
        let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("\"{field}\"")), "{table}");
    }
}

#[test]
fn list_says_so_when_nothing_is_pinned() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let output = sluice(&node, &["list", "--pin-dir", &node.pin_dir().display().to_string()]).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Nothing is pinned"));
}
