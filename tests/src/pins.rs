//! What is pinned on a node, and how a test without an agent opens it.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;
use proxy_common::tables::Capacity;
use proxy_userspace::attach::Options;
use proxy_userspace::maps::pinned::layouts;
use proxy_userspace::sys::bpf::{Pin, map_info};

use crate::node::Node;

/// What is in a folder, sorted; nothing where there is none.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// The tables that serve, each with the kernel's id of it.
pub fn tables(node: &Node) -> Result<Vec<(&'static str, u32)>> {
    let folder = node.pin_dir().join("v1");
    let id = |name: &str| -> Result<u32> { Ok(map_info(Pin::open(&folder.join(name))?.fd.as_fd())?.id) };
    layouts().map(|layout| Ok((layout.name, id(layout.name)?))).collect()
}

/// For a datapath on this node, with tables up to `limit`.
pub fn options(node: &Node, limit: Capacity) -> Options {
    Options {
        pin_dir: node.pin_dir(),
        cgroup_root: Some(node.cgroup.clone()),
        limit,
        netns: Some(node.netns.path().into()),
        ..Options::default()
    }
}
