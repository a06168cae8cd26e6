//! What manifest files say, as [`Change`]s: the source for hosts without a cluster.
//!
//! In: files and folders. Out: the complete list of every kind at first and whenever something changed. A file that cannot
//! be read keeps the objects it had; whatever is wrong is reported once, with file and line.

mod fields;
mod files;
mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

pub use parse::FileError;

use crate::model::objects::{Metadata, OtherNode};
use crate::model::{Change, Event};
use crate::news::News;
use crate::stirred;
use files::Tree;
use parse::Objects;

/// Editors and mounted `ConfigMap`s change files in bursts; this long without another event ends one.
const QUIET: Duration = Duration::from_millis(30);
/// A burst that does not end (somebody writes a log beside the files) is cut here.
const LONGEST_BURST: Duration = Duration::from_millis(500);
/// How often to look for a folder that is gone, whose return nobody announces.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Reads everything, then follows the files for as long as the receiver of `news` lives.
///
/// The first time a file that cannot be read is an error: an agent that starts must not take it for an empty one and
/// delete what its predecessor served.
pub async fn start(paths: &[PathBuf], node_name: &str, news: &Sender<News>) -> Result<(), FileError> {
    let mut tree = Tree::new(paths);
    if let Some(problem) = tree.read().into_iter().next() {
        return Err(problem);
    }
    let objects = merge(tree.objects(), node_name);
    info!("files read: {} ({})", tree.objects().len(), summary(&objects));
    // The receiver is our caller's; it is there.
    let _ = publish(objects.clone(), news).await;
    tokio::spawn(follow(tree, objects, paths.to_vec(), node_name.to_owned(), news.clone()));
    Ok(())
}

async fn follow(mut tree: Tree, mut published: Objects, paths: Vec<PathBuf>, node_name: String, news: Sender<News>) {
    let stirred = Arc::new(Notify::new());
    let mut watcher = watcher(&stirred);
    let mut reported = Vec::new();
    loop {
        let all_there = watch(watcher.as_mut(), &paths);
        // Whatever happened before the watches were in place is found by reading after it.
        let problems = tree.read();
        for problem in problems.iter().filter(|problem| !reported.contains(*problem)) {
            error!("{problem}; what was read before keeps serving");
        }
        reported = problems;
        let objects = merge(tree.objects(), &node_name);
        if objects != published {
            info!("files changed: {}", summary(&objects));
            published = objects.clone();
            if publish(objects, &news).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = burst(&stirred) => {}
            () = sleep(LOOK_AGAIN), if !all_there => {}
            () = news.closed() => return,
        }
    }
}

/// Waits for an event and for the end of the burst that it belongs to.
async fn burst(stirred: &Notify) {
    stirred.notified().await;
    let quiet = async { while timeout(QUIET, stirred.notified()).await.is_ok() {} };
    // Either way it is time to read.
    let _ = timeout(LONGEST_BURST, quiet).await;
}

fn watcher(stirred: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let watcher = stirred::watcher(stirred);
    watcher.inspect_err(|error| warn!("files are looked at every {} s only: {error}", LOOK_AGAIN.as_secs())).ok()
}

/// Watches each path and the folder it is in (for atomic replacement, symlink swaps and its return). False when something
/// could not be watched.
fn watch(watcher: Option<&mut notify::RecommendedWatcher>, paths: &[PathBuf]) -> bool {
    let Some(watcher) = watcher else { return false };
    let mut all = true;
    for path in paths {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        all &= watcher.watch(parent, RecursiveMode::NonRecursive).is_ok();
        all &= watcher.watch(path, RecursiveMode::Recursive).is_ok();
    }
    all
}

/// Everything that all files say: the first file by path wins where two say something about one object.
fn merge(files: &BTreeMap<PathBuf, Objects>, node_name: &str) -> Objects {
    let mut merged = Objects {
        services: distinct("Service", files, |objects| &objects.services, |service| &service.metadata),
        slices: distinct("EndpointSlice", files, |objects| &objects.slices, |slice| &slice.metadata),
        nodes: distinct("Node", files, |objects| &objects.nodes, |node| &node.metadata),
        other_nodes: Vec::new(),
        service_cidrs: distinct("ServiceCIDR", files, |objects| &objects.service_cidrs, |cidr| &cidr.metadata),
    };
    // An API server selects for us (specification A1); files do not.
    merged.services.retain(|service| !service.metadata.labels.contains_key("service.kubernetes.io/service-proxy-name"));
    merged.slices.retain(|slice| !slice.metadata.labels.contains_key("service.kubernetes.io/headless"));
    let others = merged.nodes.extract_if(.., |node| node.metadata.name != node_name);
    merged.other_nodes = others.map(OtherNode).collect();
    merged
}

fn distinct<T: Clone>(
    kind: &str,
    files: &BTreeMap<PathBuf, Objects>,
    list: impl Fn(&Objects) -> &Vec<T>,
    metadata: impl Fn(&T) -> &Metadata,
) -> Vec<T> {
    let mut first: BTreeMap<(String, String), (&Path, T)> = BTreeMap::new();
    for (path, objects) in files {
        for object in list(objects) {
            let key = (metadata(object).namespace.clone(), metadata(object).name.clone());
            if let Some((winner, _)) = first.get(&key) {
                let (namespace, name) = &key;
                warn!(
                    "{}: {kind} {namespace}/{name} is in {} already, which counts; remove one of them",
                    path.display(),
                    winner.display()
                );
            } else {
                first.insert(key, (path, object.clone()));
            }
        }
    }
    first.into_values().map(|(_, object)| object).collect()
}

fn summary(objects: &Objects) -> String {
    let Objects { services, slices, nodes, other_nodes: _, service_cidrs } = objects;
    format!(
        "Services {}, EndpointSlices {}, Nodes of this name {}, ServiceCIDRs {}",
        services.len(),
        slices.len(),
        nodes.len(),
        service_cidrs.len()
    )
}

/// Fails when nobody listens any more.
async fn publish(objects: Objects, news: &Sender<News>) -> Result<(), ()> {
    let heard = Instant::now();
    // Node and ServiceCIDRs first: they do not hold anything up, and what follows them is right at once.
    for change in [
        Change::Node(Event::Reset(objects.nodes)),
        Change::OtherNode(Event::Reset(objects.other_nodes)),
        Change::ServiceCidr(Event::Reset(objects.service_cidrs)),
        Change::Service(Event::Reset(objects.services)),
        Change::EndpointSlice(Event::Reset(objects.slices)),
    ] {
        news.send(News { change, heard }).await.map_err(|_| ())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
