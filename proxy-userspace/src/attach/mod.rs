//! Puts the kernel programs in their place and keeps them there.
//!
//! ```text
//! open   lock, check the pin folder, load the object
//!          compatible maps pinned -> adopt them, swap programs at once
//!          else                   -> new maps in a staging folder; what is attached keeps serving
//! (the agent fills the maps)
//! go_live  staging folder takes its place, links swap to the new programs, superseded pins go
//! ```
//!
//! In: [`Options`]. Out: a [`Datapath`] and the [`KernelStore`] to write to. Nothing here detaches anything on exit:
//! programs and maps live in their pins, with or without an agent.

pub mod cgroup;
#[cfg(feature = "debug")]
mod debug;
pub mod links;
pub mod object;
pub mod pins;
pub mod rights;

use std::path::{Path, PathBuf};

use proxy_common::tables::Capacity;
use tracing::{info, warn};

use crate::bell::Rope;
use crate::lock::{Lock, LockError, Role};
use crate::maps::kernel::KernelStore;
use crate::maps::pinned::Pinned;
use crate::sys::{CallError, net};
use cgroup::{Cgroup, CgroupError};
use object::{Object, ObjectError};
use pins::{Folder, PinError};
use rights::RightsError;

/// Where the datapath goes and how large it is.
#[derive(Clone, Debug)]
pub struct Options {
    pub pin_dir: PathBuf,
    /// The cgroup to attach to; `None` finds the root of the cgroup2 tree.
    pub cgroup_root: Option<PathBuf>,
    /// Used when tables are made; pinned tables keep the size they have.
    pub capacity: Capacity,
    /// The node's network namespace; `None` is the one we run in.
    pub netns: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Rights(#[from] RightsError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("attaching program {program} to cgroup {cgroup}: {reason}")]
    Attach { program: String, cgroup: PathBuf, reason: String },
}

/// The programs of one node, the pins that keep them and the lock that makes us their only writer.
#[derive(Debug)]
pub struct Datapath {
    folder: Folder,
    cgroup: Cgroup,
    object: Object,
    live: bool,
    _lock: Lock,
}

impl Datapath {
    /// Takes over what is pinned, or makes everything anew beside it. True: adopted, and already live.
    pub fn open(options: &Options) -> Result<(Self, KernelStore, bool), AttachError> {
        rights::check()?;
        let cgroup = Cgroup::find(options.cgroup_root.as_deref())?;
        let folder = Folder::prepare(&options.pin_dir)?;
        let lock = Lock::take(Role::Agent, &options.pin_dir)?;
        let cookie = net::netns_cookie(options.netns.as_deref())?;
        let taken_over = take_over(&folder, &options.capacity, cookie);
        let adopted = taken_over.is_some();
        let maps_in = if adopted { folder.current() } else { folder.make_staging()? };
        let object = match taken_over {
            Some(object) => object,
            None => Object::load(&maps_in, &options.capacity, cookie)?,
        };
        let store = open_store(&maps_in, Rope::new(&options.pin_dir), !adopted)?;
        let mut datapath = Self { folder, cgroup, object, live: false, _lock: lock };
        if adopted {
            datapath.switch_links()?;
            info!(folder = %maps_in.display(), "took over the pinned tables");
        }
        Ok((datapath, store, adopted))
    }

    /// Makes the filled tables the ones that serve. Does nothing when they already are; may be repeated after an error.
    pub fn go_live(&mut self) -> Result<(), AttachError> {
        if self.live {
            return Ok(());
        }
        self.folder.promote_staging()?;
        self.switch_links()
    }

    /// After this exactly one program of ours is at each hook, and nothing superseded is left.
    fn switch_links(&mut self) -> Result<(), AttachError> {
        let links = self.folder.make_links()?;
        for program in self.object.programs() {
            links::ensure(&links, program, &self.cgroup)?;
        }
        self.folder.remove_superseded(&self.object.program_names())?;
        self.live = true;
        Ok(())
    }
}

/// The programs over the pinned tables, when every one is there and is what they need; says why not.
fn take_over(folder: &Folder, capacity: &Capacity, netns_cookie: Option<u64>) -> Option<Object> {
    let load = || Object::load(&folder.current(), capacity, netns_cookie).map_err(|error| error.to_string());
    let loaded = folder.check_current().and_then(|found| found.then(load).transpose());
    loaded.unwrap_or_else(|reason| {
        warn!(%reason, folder = %folder.current().display(), "pinned tables cannot be used, making new ones");
        None
    })
}

fn open_store(folder: &Path, rope: Rope, fresh: bool) -> Result<KernelStore, AttachError> {
    let maps = Pinned::open(folder)?;
    Ok((if fresh { KernelStore::fresh(maps, rope) } else { KernelStore::new(maps, rope) })
        .map_err(|error| CallError::new("prepare grace periods for", "the tables", error))?)
}
