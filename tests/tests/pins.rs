//! What stays in the kernel without a process: pins made, taken over, rebuilt and removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use proxy_common::abi::{Backend, Config, Frontend, FrontendKey, Version};
use proxy_common::addr::{Addr, Be16};
use proxy_common::tables::Capacity;
use proxy_tests::node::Node;
use proxy_tests::world::World;
use proxy_userspace::attach::{Datapath, Options};
use proxy_userspace::maps::kernel::KernelStore;
use proxy_userspace::maps::MapStore;
use proxy_userspace::plan::Op;
use proxy_userspace::sys::bpf::{Pin, link_info};

/// Tables small enough for many tests at once.
const SMALL: Capacity = Capacity {
    frontends: 256,
    services: 128,
    versions: 256,
    slots: 1024,
    backends: 256,
    addrs: 64,
    sources: 64,
    affinity: 128,
    sockets: 128,
};

fn options(node: &Node) -> Options {
    Options { pin_dir: node.pin_dir(), cgroup_root: Some(node.cgroup.clone()), capacity: SMALL, netns: None }
}

/// One service port with one backend, as the agent would write it.
fn service(frontend: [u8; 4], backend: [u8; 4]) -> Vec<Op> {
    let key = FrontendKey { addr: Addr::v4(frontend), port: Be16::new(80), proto: 6, pad: 0 };
    let flags = Backend::IN_CLUSTER_SET | Backend::SERVING;
    let backend = Backend { addr: Addr::v4(backend), port: Be16::new(8080), flags, service: 1, generation: 1, zone: 0 };
    let range = |len| proxy_common::abi::Range { start: 1, len };
    let version = Version {
        cluster: range(1),
        local: range(0),
        affinity_seconds: 0,
        flags: Version::HAS_ANY,
        service: 1,
        scheduler: Version::SCHEDULER_RANDOM,
    };
    vec![
        Op::Config { value: Box::new(Config { udp_timeout: 30, ..Config::default() }) },
        Op::Backend { id: 1, value: backend, fresh: true },
        Op::Slots { start: 1, backends: vec![1] },
        Op::Version { number: 1, value: version },
        Op::Service { id: 1, word: 1 },
        Op::Frontend { id: 1, value: Frontend { key, service: 1, kind: Frontend::KIND_CLUSTER_IP } },
        Op::Publish { key, id: 1 },
    ]
}

fn open(node: &Node) -> (Datapath, KernelStore, bool) {
    Datapath::open(&options(node)).unwrap()
}

/// A first agent that has come and gone.
fn served(node: &Node) {
    let (mut datapath, mut store, adopted) = open(node);
    assert!(!adopted);
    store.apply(&service([10, 96, 0, 1], [10, 0, 0, 1])).unwrap();
    datapath.go_live().unwrap();
}

/// Link id and program id by name of the hook.
fn links(node: &Node) -> BTreeMap<String, (u32, u32)> {
    let folder = node.pin_dir().join("links");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| (name.clone(), link_ids(&folder.join(name)))).collect()
}

fn link_ids(path: &Path) -> (u32, u32) {
    let info = link_info(Pin::open(path).unwrap().fd.as_fd()).unwrap();
    (info.id, info.program_id)
}

#[test]
fn a_fresh_start_attaches_one_program_per_hook_once_the_tables_are_filled() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let (mut datapath, mut store, adopted) = open(&node);
    assert!(!adopted);
    assert!(!node.pin_dir().join("links").exists());
    store.apply(&service([10, 96, 0, 1], [10, 0, 0, 1])).unwrap();
    datapath.go_live().unwrap();
    println!("{:?}", links(&node));
    println!("{:?}", store.read().unwrap());
    let _: Option<PathBuf> = None;
}

#[test]
fn a_restart_keeps_tables_and_links_and_swaps_the_programs() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    served(&node);
    let before = links(&node);
    let (_datapath, store, adopted) = open(&node);
    assert!(adopted);
    assert_eq!(store.read().unwrap().service, [(1, 1)]);
    let after = links(&node);
    for (name, (link, program)) in &before {
        assert_eq!(after[name].0, *link, "{name}");
        assert_ne!(after[name].1, *program, "{name}");
    }
    assert_eq!(after.len(), before.len());
}
