//! `sluice cleanup`: removes everything sluice has put into the kernel and into `/run`.
//!
//! In: the pin folder. Out: what was removed. May be repeated; leaves what is not ours.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::PinDir;
use crate::attach::devices;
use crate::attach::pins::Folder;
use crate::lock::{self, Lock, Role};
use crate::ports;
use crate::sys::net::inside;

/// Remove programs, tables and lock files; Services stop being served on this node.
#[derive(Clone, Debug, clap::Args)]
pub struct CleanupArgs {
    #[command(flatten)]
    pub pins: PinDir,

    /// The network namespace that is this node (default: this process's own).
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,

    /// Even while an agent or a reaper runs; it will not notice.
    #[arg(long)]
    pub force: bool,
}

pub fn run(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let pin_dir = &args.pins.pin_dir;
    // Held until the end, so that nobody starts on what is being removed.
    let take = |role| if args.force { Ok(None) } else { Lock::take(role, pin_dir).map(Some) };
    let _locks = [take(Role::Agent)?, take(Role::Reap)?];
    let folder = Folder::at(pin_dir);
    // Filters outlive their pins, and so does what was set beside them.
    inside(args.netns.as_deref(), || devices::remove_all(&folder.links()))?.context("detach from devices")?;
    if let Some(range) = ports::in_use(&folder.current()) {
        ports::give_back(args.netns.as_deref(), range)?;
    }
    let (mut removed, foreign) = folder.remove_all()?;
    for role in Role::ALL {
        let lock_file = lock::remove(role, pin_dir).context("remove the lock file")?;
        // Our own lock is nothing that was left here.
        removed.extend(lock_file.filter(|_| !removed.is_empty()));
    }
    for path in &removed {
        println!("removed {}", path.display());
    }
    for path in &foreign {
        eprintln!("left {}: sluice did not put it there", path.display());
    }
    if removed.is_empty() {
        println!("nothing to remove in {}", pin_dir.display());
    }
    Ok(ExitCode::SUCCESS)
}
