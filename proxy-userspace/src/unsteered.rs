//! Cgroups whose processes are not steered at their sockets (`--socket-lb-exclude`), as they come and go.
//!
//! In: patterns of paths, and the folder that they begin at. Out: the ids of the cgroups that they name, whenever those
//! change. A cgroup stands for all below it: the hooks ask for each level.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{glob, stirred};

/// Nothing should be missed; what is missed is found after this.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A path below the cgroup root whose names may have stars in them: `kubepods.slice/*/kubepods-*-pod0123*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// `None` for what names nothing below the root: an empty path, `.` and `..`.
    pub fn new(text: &str) -> Option<Self> {
        let names: Vec<String> = text.trim_matches('/').split('/').map(str::to_owned).collect();
        let is_name = |name: &String| !matches!(name.as_str(), "" | "." | "..");
        names.iter().all(is_name).then_some(Self(names))
    }

    /// How many levels below the root it leads.
    pub fn depth(&self) -> usize {
        self.0.len()
    }
}

/// What patterns name now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    ids: BTreeSet<u64>,
    /// Where others may appear.
    parents: BTreeSet<PathBuf>,
}

/// Looks now and follows for as long as the receiver lives.
pub fn follow(root: PathBuf, patterns: Vec<Pattern>) -> Result<watch::Receiver<BTreeSet<u64>>> {
    let stirred = Arc::new(Notify::new());
    let watcher = stirred::watcher(&stirred);
    let mut follower =
        Follower { root, patterns, watcher: watcher.context("watch cgroups")?, watched: BTreeSet::new() };
    let (sender, receiver) = watch::channel(follower.look());
    tokio::spawn(async move {
        loop {
            let _ = timeout(LOOK_AGAIN, stirred.notified()).await;
            let ids = follower.look();
            sender.send_if_modified(|known| std::mem::replace(known, ids.clone()) != ids);
            if sender.is_closed() {
                return;
            }
        }
    });
    Ok(receiver)
}

struct Follower {
    root: PathBuf,
    patterns: Vec<Pattern>,
    watcher: notify::RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Follower {
    /// What is there once every place where something may appear is watched: what came before that is seen by looking again.
    fn look(&mut self) -> BTreeSet<u64> {
        loop {
            let Found { ids, parents } = find(&self.root, &self.patterns);
            let new: Vec<_> = parents.difference(&self.watched).cloned().collect();
            // A watch goes with its folder; another one of that name needs another.
            self.watched = parents;
            if new.is_empty() {
                debug!(cgroups = ids.len(), "left out of --socket-lb");
                return ids;
            }
            for folder in new {
                match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
                    Err(error) if folder.exists() => {
                        warn!("{}: looked at every {} s only: {error}", folder.display(), LOOK_AGAIN.as_secs());
                    }
                    _ => {}
                }
            }
        }
    }
}

fn find(root: &Path, patterns: &[Pattern]) -> Found {
    let mut found = Found::default();
    for Pattern(names) in patterns {
        descend(root, names, &mut found);
    }
    found
}

/// What vanishes meanwhile is not there.
fn descend(folder: &Path, names: &[String], found: &mut Found) {
    let Some((name, below)) = names.split_first() else {
        found.ids.extend(fs::metadata(folder).map(|folder| folder.ino()));
        return;
    };
    found.parents.insert(folder.to_owned());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && entry.file_name().to_str().is_some_and(|found| glob::fits(name, found)) {
            descend(&entry.path(), below, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_folders_level_by_level() {
        let root = std::env::temp_dir().join(format!("sluice-cgroups-{}", std::process::id()));
        let id = |path: &str| {
            let folder = root.join(path);
            fs::create_dir_all(&folder).unwrap();
            fs::metadata(folder).unwrap().ino()
        };
        let (mesh, vm) = (id("kubepods.slice/besteffort/pod-mesh-1"), id("machine.slice/vm-1"));
        id("kubepods.slice/besteffort/pod-web-1/pod-mesh-1");
        let named = |texts: &[&str]| {
            let patterns: Vec<_> = texts.iter().map(|text| Pattern::new(text).unwrap()).collect();
            find(&root, &patterns).ids
        };
        assert_eq!(named(&["kubepods.slice/*/pod-mesh-*", "/machine.slice/*/"]), BTreeSet::from([mesh, vm]));
        assert_eq!(named(&["pod-mesh-*", "kubepods.slice/pod-mesh-*", "none/*"]), BTreeSet::new());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_leads_to_no_cgroup_is_no_pattern() {
        for text in ["", "/", "..", "a//b", "a/./b"] {
            assert_eq!(Pattern::new(text), None, "{text:?}");
        }
    }
}
