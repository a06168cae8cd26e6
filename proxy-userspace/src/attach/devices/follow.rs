//! The thread that follows the devices of the node.
//!
//! In: a network namespace. Out: programs stand at the devices that are chosen, and whoever asks learns of addresses. A
//! thread of its own, since a large change of tables keeps the agent busy for longer than packets may wait.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::DeviceHooks;
use crate::devices::{Choice, Role, Settings, Snapshot, choose};
use crate::netdev::{self, Host};

/// No message tells of a TCX program that somebody detached, which is to be back within half a second. Looking at one costs a
/// few microseconds.
const AUDIT: Duration = Duration::from_millis(400);

/// What the thread keeps.
pub type Hooks = Arc<Mutex<DeviceHooks>>;

/// Starts to follow `netns`, the thread's own namespace otherwise, for as long as somebody wants to know the addresses.
pub async fn start(netns: Option<&Path>, settings: Settings, hooks: Hooks) -> Result<watch::Receiver<Host>> {
    let (started, starts) = oneshot::channel();
    let netns = netns.map(Path::to_owned);
    let work = move || {
        let runtime = match enter(netns.as_deref()) {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        runtime.block_on(follow(&settings, &hooks, started));
    };
    thread::Builder::new().name("devices".to_owned()).spawn(work).context("start a thread")?;
    starts.await.unwrap_or_else(|_| Err(anyhow!("the thread that follows devices ended")))
}

fn enter(netns: Option<&Path>) -> Result<tokio::runtime::Runtime> {
    if let Some(path) = netns {
        let enter = || format!("--netns {}: enter this network namespace", path.display());
        let namespace = File::open(path).with_context(enter)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(enter)?;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}

async fn follow(settings: &Settings, hooks: &Hooks, started: oneshot::Sender<Result<watch::Receiver<Host>>>) {
    let mut snapshots = match netdev::follow(None).await {
        Ok(snapshots) => snapshots,
        Err(error) => return drop(started.send(Err(error))),
    };
    let first = snapshots.borrow_and_update().clone();
    let mut removals = first.removals;
    let (host, receiver) = watch::channel(Host::of(&first));
    heed(settings, hooks, &first);
    let _ = started.send(Ok(receiver));
    let mut audits = interval(AUDIT);
    audits.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
                let snapshot = snapshots.borrow_and_update().clone();
                let now = Host::of(&snapshot);
                host.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
                heed(settings, hooks, &snapshot);
                if std::mem::replace(&mut removals, snapshot.removals) != snapshot.removals {
                    lock(hooks).audit();
                }
            }
            _ = audits.tick(), if settings.wants_any() => lock(hooks).audit(),
            () = host.closed() => return,
        }
    }
}

fn heed(settings: &Settings, hooks: &Hooks, snapshot: &Snapshot) {
    let choices = choose(snapshot, settings);
    let chosen = |choice: &&Choice| choice.role() != Role::LeftAlone;
    debug!(devices = choices.len(), chosen = choices.iter().filter(chosen).count(), "devices of this node");
    lock(hooks).want(&choices);
}

/// What a panic left behind is asked of the kernel again.
fn lock(hooks: &Hooks) -> std::sync::MutexGuard<'_, DeviceHooks> {
    hooks.lock().unwrap_or_else(PoisonError::into_inner)
}
