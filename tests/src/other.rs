//! An agent of another version: its programs were built with another order of fields in flows (feature `other-layout` of
//! proxy-common), and its tables say so.

use std::path::Path;

use anyhow::{Context, Result};
use proxy_common::addr::Family;
use proxy_userspace::maps::described::say;
use proxy_userspace::maps::shape::Shape;

use crate::agent::Agent;
use crate::manifest::Folder;
use crate::node::Node;

/// Starts the agent of `node`, and waits until it serves.
pub fn start(node: &Node, manifests: &Folder, arguments: &[&str]) -> Result<Agent> {
    let agent = Agent::start_other(node, manifests, arguments)?;
    describe(&node.pin_dir().join("v1"))?;
    Ok(agent)
}

/// Says how its programs keep flows: as ours do, but for `pad`, which is behind the ports. Its user space was built with ours.
fn describe(tables: &Path) -> Result<()> {
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        let mut shape = Shape::ours(family);
        let end = shape.flow.iter().find(|field| field.name == "source_port").context("a source port")?.at.end;
        for field in shape.flow.iter_mut().filter(|field| field.at.start >= end) {
            let at = if field.name == "pad" { end } else { field.at.start + size_of::<u32>() };
            field.at = at..at + field.at.len();
        }
        text += &shape.text(family);
    }
    Ok(say(tables, &text)?)
}
