//! `sluice reap`: ends of sockets that no hook sees.
//!
//! ```text
//! stale, displaced    connected UDP flows whose backend no longer serves (specification C1), with a slot and without one
//!     -> diag   their sockets, by cookie, in every network namespace
//!     -> owners who has them open
//!     -> steer  a copy of the descriptor dials the frontend again: the hook picks another backend, in place
//!        else   SOCK_DESTROY: the application gets an error and opens a new socket
//! sweep        slots whose socket is gone, and the count of open connections
//! pressure     how full the tables are that only programs write
//! ```
//!
//! As in kube-proxy nothing is done for a frontend that no Service has any more. A frontend that another Service took over
//! goes to that one.
//!
//! A process of its own, because only this needs the right to reach into other processes. Sockets without a record in
//! either table, such as those that dialled a pod, are never touched; nor is TCP.

mod diag;
mod displaced;
mod owners;
mod pressure;
mod stale;
mod steer;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use proxy_common::abi::SocketFlow;
use tracing::{debug, info, warn};

use crate::attach::pins::Folder;
use crate::bell::Bell;
use crate::cli::PinDir;
use crate::lock::{Lock, Role};
use crate::maps::pinned::Pinned;
use crate::plan::Alarm;
use displaced::Displaced;
use owners::may_look_into_processes;
use sweep::{Sweeper, Swept};

/// Move connected UDP sockets away from backends that stopped serving, and free what closed sockets left behind.
#[derive(Clone, Debug, clap::Args)]
pub struct ReapArgs {
    #[command(flatten)]
    pub pins: PinDir,

    /// Time between two looks for slots whose socket is gone; two in a row must agree.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u64).range(1..))]
    pub sweep_interval: u64,
}

/// How long a change may go unnoticed when the bell was missed.
const PATROL: Duration = Duration::from_secs(1);

pub fn run(args: &ReapArgs) -> anyhow::Result<ExitCode> {
    let pin_dir = &args.pins.pin_dir;
    // Nobody else logs in this process; a second start would be a programming error without consequence.
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).try_init();
    let _lock = Lock::take(Role::Reap, pin_dir)?;
    let bell = Bell::hang(pin_dir).context("listen for changes")?;
    let folder = Folder::at(pin_dir).current();
    let mut reaper = Reaper::default();
    if !may_look_into_processes() {
        warn!(
            "without CAP_SYS_PTRACE sockets are closed, not moved, and only in this namespace and those in /run/netns; \
             those without a slot in SOCKETS stay"
        );
    }
    let (swept, interval) = (Folder::at(pin_dir), Duration::from_secs(args.sweep_interval));
    thread::spawn(move || sweep(&swept, interval));
    info!(pin_dir = %pin_dir.display(), "ready");
    // As if: who knows what happened before.
    let mut rung = true;
    loop {
        // Opened anew each time: an agent may have rebuilt the tables.
        match Pinned::open(&folder) {
            Ok(maps) => reaper.patrol(&maps, rung),
            Err(error) => debug!(%error, "no tables yet"),
        }
        rung = bell.wait(PATROL).context("listen for changes")?;
    }
}

/// On a thread of its own: a look at many namespaces takes longer than a socket may wait.
fn sweep(folder: &Folder, interval: Duration) -> ! {
    let (mut sweeper, mut alarm) = (Sweeper::default(), Alarm::default());
    let mut obstacle = String::new();
    let mut look = |maps: &Pinned| {
        pressure::tell(&mut alarm, maps)?;
        sweeper.look(folder, maps)
    };
    loop {
        match Pinned::open(&folder.current()).map(|maps| look(&maps)) {
            Ok(Ok(Swept { slots: 0, gauges: 0 })) => {}
            Ok(Ok(Swept { slots, gauges })) => {
                info!(slots, gauges, "freed slots, put counts of open connections right");
            }
            Ok(Err(error)) if obstacle != error.to_string() => {
                obstacle = error.to_string();
                warn!(error = format!("{error:#}"), "cannot tell which slots belong to sockets that are gone");
            }
            Ok(Err(_)) => {}
            Err(error) => debug!(%error, "no tables yet"),
        }
        thread::sleep(interval);
    }
}

/// Remembers what could not be moved, so that it is not tried every second.
#[derive(Debug, Default)]
struct Reaper {
    settled: HashSet<SettledKey>,
    displaced: Displaced,
}

/// A flow that was dealt with: its socket, backend and generation.
type SettledKey = (u64, u32, u32);

fn settled_key(flow: &SocketFlow) -> SettledKey {
    (flow.cookie, flow.backend, flow.generation)
}

impl Reaper {
    fn patrol(&mut self, maps: &Pinned, rung: bool) {
        self.look_at_slots(maps);
        if rung && let Err(error) = self.displaced.resteer(maps) {
            warn!(error = format!("{error:#}"), "cannot look for stale flows of sockets without a slot");
        }
    }

    fn look_at_slots(&mut self, maps: &Pinned) {
        let stale = match stale::stale_flows(maps) {
            Ok(stale) => stale,
            Err(error) => return warn!(%error, "cannot look for stale flows"),
        };
        let still: HashSet<SettledKey> = stale.iter().map(settled_key).collect();
        self.settled.retain(|key| still.contains(key));
        let new = stale.into_iter().filter(|flow| !self.settled.contains(&settled_key(flow)));
        let wanted: HashMap<u64, SocketFlow> = new.map(|flow| (flow.cookie, flow)).collect();
        if !wanted.is_empty() {
            steer::resteer(maps, &wanted);
            self.settled.extend(wanted.values().map(settled_key));
        }
    }
}
