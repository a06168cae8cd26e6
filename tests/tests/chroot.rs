//! The one static file, alone in its root (issue section 1.3).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::node_object;
use proxy_tests::name_server;
use proxy_tests::replay::{Lists, Replay};
use proxy_tests::world::{PINS, World};

/// Where a resolver asks that has no configuration.
const NAME_SERVER: &str = "127.0.0.1:53";
const API: &str = "127.0.0.1:6443";

/// Shows `folder` at the same path below `root`.
fn show(root: &Path, folder: &Path) {
    let place = root.join(folder.strip_prefix("/").unwrap());
    fs::create_dir_all(&place).unwrap();
    mount(Some(folder), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn alone_in_its_root_the_agent_resolves_the_name_of_the_api_server() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    name_server::start(&node.netns, address(NAME_SERVER), Ipv4Addr::LOCALHOST).unwrap();
    let server = Replay::start(&node.netns, address(API), Lists::Paged).unwrap();
    server.apply(&node_object(&node));

    // The world's own `/run` goes away with it, and so does what is mounted below.
    let root = PathBuf::from("/run/root");
    for needed in [Path::new(PINS), &node.cgroup, Path::new("/proc")] {
        show(&root, needed);
    }
    Agent::start_in_root(&node, &root, "--master=http://api.example:6443").unwrap();
}
