//! Puts the kernel programs in their place and keeps them there.
//!
//! ```text
//! open     lock, check the pin folder, load the programs
//!            compatible tables pinned -> adopt them, swap programs at once
//!            refused by the verifier  -> new tables in a staging folder, with all rows; swap programs at once
//!            else                     -> tables in a staging folder, at least as large as the caller says, with the rows of
//!                                        those pinned that have our layout; what is attached keeps serving
//!            the kernel lacks something just now -> nothing changes; the caller tries again
//! grow     larger tables in a staging folder, with all rows of those of now; whatever is large enough is the same map
//! (the agent fills the first tables; what has grown goes live before the next write)
//! go_live  the staging folder takes its place, links swap to the new programs, superseded pins go
//! ```
//!
//! While links are swapped one after another, old programs run over old tables and new ones over new tables; both hold
//! the same, since nobody writes meanwhile, and what belongs to sockets and flows is in tables that both share. Flows that
//! another version keeps in another layout are brought over, while `succession` lets every packet meet a program that knows it.
//!
//! In: [`Options`]. Out: a [`Datapath`], the [`MapStore`] to write to. Nothing here detaches anything on exit: programs and
//! maps live in their pins, with or without an agent.

pub mod cgroup;
#[cfg(feature = "debug")]
mod debug;
pub mod devices;
pub mod links;
pub mod object;
pub mod pins;
pub mod rights;
pub mod succession;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use proxy_common::abi::{Bucket, Frontend};
use proxy_common::policy::Steered;
use proxy_common::reason::Reason;
use proxy_common::tables::{Capacity, UNSTEERED_CAPACITY, name};
use tracing::{debug, info, warn};

use crate::bell::Rope;
use crate::lock::{Lock, LockError, Role};
use crate::maps::carry::{self, Copied};
use crate::maps::described::describe;
use crate::maps::kernel::KernelStore;
use crate::maps::pinned::{Pinned, layouts, read};
use crate::maps::reasons::Reasons;
use crate::maps::reshape::{Flows, Which};
use crate::maps::{ApplyError, GrowError, MapError, MapStore, Published, Snapshot};
use crate::plan::{Op, growth};
use crate::sys::bpf::{Pin, map_info};
use crate::sys::{CallError, failed_call, net, passes};
use crate::unsteered;
use cgroup::{Cgroup, CgroupError};
use devices::follow::Hooks;
use object::{Constants, Object, ObjectError};
use pins::{Folder, PinError, TableError, TablePin, kept_programs};
use rights::RightsError;
use succession::Succession;

/// Where the datapath goes and how large it may become.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub pin_dir: PathBuf,
    /// The cgroup to attach to; `None` finds the root of the cgroup2 tree.
    pub cgroup_root: Option<PathBuf>,
    /// Tables that are larger already stay so.
    pub limit: Capacity,
    /// The node's network namespace; `None` is the one we run in.
    pub netns: Option<PathBuf>,
    /// Whose sockets are steered.
    pub steered: Steered,
    /// Cgroups that are left out of that.
    pub unsteered: Vec<unsteered::Pattern>,
    /// Who keeps programs at devices; `None`: nobody.
    pub devices: Option<Hooks>,
    /// Whether flows may go past the stack.
    pub fast_path: bool,
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
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Table(#[from] TableError),
    /// Nothing was changed; worth another try.
    #[error("what is pinned keeps serving and cannot be taken over now: {0}")]
    NotNow(#[source] Box<Self>),
    #[error("attaching program {program} to cgroup {cgroup}: {reason}")]
    Attach { program: String, cgroup: PathBuf, reason: String },
}

impl AttachError {
    /// Whether the kernel refused a call, rather than settings, rights or this build being wrong.
    pub fn is_of_a_call(&self) -> bool {
        match self {
            Self::Object(error) => !matches!(error, ObjectError::Missing | ObjectError::Kind(_)),
            Self::Table(_) | Self::Call(_) | Self::Map(_) | Self::Attach { .. } | Self::NotNow(_) => true,
            Self::Rights(_) | Self::Lock(_) | Self::Cgroup(_) | Self::Pins(_) => false,
        }
    }

    /// Whether only another process can try again.
    pub fn takes_another_process(&self) -> bool {
        match self {
            Self::NotNow(error) => error.takes_another_process(),
            Self::Object(error) => matches!(error, ObjectError::Unsaid),
            _ => false,
        }
    }

    /// Whether the kernel lacked something that comes back.
    fn is_passing(&self) -> bool {
        // aya makes a table that it cannot open, and meets its pin.
        let could_not_open = |error: &io::Error| error.raw_os_error() == Some(libc::EEXIST);
        self.takes_another_process() || failed_call(self).is_some_and(|error| passes(error) || could_not_open(error))
    }
}

/// The programs of one node, the pins that keep them and the lock that makes us their only writer.
#[derive(Debug)]
pub struct Datapath {
    place: Place,
    limit: Capacity,
    tables: Tables,
    /// The tables that larger ones succeed, until their last program has ended.
    predecessor: Option<Predecessor>,
    live: bool,
    /// Where programs are wanted at devices, they are those over these tables.
    served_devices: bool,
    _lock: Lock,
}

/// Tables that others succeed.
#[derive(Debug)]
struct Predecessor {
    store: KernelStore,
    /// What had been copied from them.
    copied: Copied,
    /// Their successors hold all that they do, and may serve at once.
    is_whole: bool,
}

/// What tables that others have succeeded leave at devices.
#[derive(Debug)]
struct Left {
    /// In those of them that their successors do not share.
    flows: Flows,
    /// Over them, at ingress and at egress.
    programs: [Option<OwnedFd>; 2],
}

/// All of that, and who is asked until it is brought.
#[derive(Debug)]
struct Inheritance {
    left: Vec<Left>,
    succession: Option<Succession>,
}

impl Inheritance {
    /// All hooks have our programs: what begins, begins with them, and few flows are left to be brought.
    fn turn(&self) -> Result<(), AttachError> {
        let Some(succession) = &self.succession else { return Ok(()) };
        // What began while the first ones were read comes with the second time, which is short.
        self.bring(Which::GoingOn)?;
        self.bring(Which::GoingOn)?;
        Ok(succession.turn()?)
    }

    fn bring(&self, which: Which) -> Result<(), CallError> {
        let mut brought = 0;
        for left in &self.left {
            let flows = left.flows.bring(which);
            brought += flows.map_err(|error| CallError::new("bring flows from", "other tables", error))?;
        }
        if brought > 0 {
            info!("took over {} flows of packets from other tables", brought / 2);
        }
        Ok(())
    }
}

/// Where everything goes.
#[derive(Debug)]
struct Place {
    folder: Folder,
    cgroup: Cgroup,
    constants: Constants,
    netns: Option<PathBuf>,
    devices: Option<Hooks>,
}

/// Tables and the programs over them.
#[derive(Debug)]
struct Tables {
    object: Object,
    store: KernelStore,
}

impl Datapath {
    /// Takes over what is pinned, which then serves; else makes the smallest tables beside it.
    ///
    /// [`AttachError::NotNow`] where something serves and may be taken over later.
    pub fn open(options: &Options) -> Result<Self, AttachError> {
        Self::open_sized(options, || growth::smallest(&options.limit))
    }

    /// The same with new tables of other sizes, for which is asked where tables are made; the smallest ones where those
    /// cannot be had.
    pub fn open_sized(options: &Options, sizes: impl FnOnce() -> Capacity) -> Result<Self, AttachError> {
        Self::try_to_open(options, sizes).map_err(|error| {
            let serves = Folder::at(&options.pin_dir).links().exists();
            if serves && error.is_passing() { AttachError::NotNow(Box::new(error)) } else { error }
        })
    }

    fn try_to_open(options: &Options, sizes: impl FnOnce() -> Capacity) -> Result<Self, AttachError> {
        rights::check()?;
        let cgroup = Cgroup::find(options.cgroup_root.as_deref())?;
        let folder = Folder::prepare(&options.pin_dir)?;
        let lock = Lock::take(Role::Agent, &options.pin_dir)?;
        let netns_cookie = net::netns_cookie(options.netns.as_deref())?;
        let constants = Constants {
            netns_cookie,
            steered: options.steered,
            has_unsteered: !options.unsteered.is_empty(),
            fast_path: options.fast_path,
            succeeds: false,
        };
        let (netns, devices) = (options.netns.clone(), options.devices.clone());
        let place = Place { folder, cgroup, constants, netns, devices };
        let limit = options.limit;
        place.folder.recover()?;
        let found = place.find_current()?;
        let takes_over = found.is_some();
        let (tables, predecessor) = match found {
            Some(store) => place.take_over(store)?,
            None => place.begin(&sizes(), &growth::smallest(&limit))?,
        };
        let mut datapath = Self { place, limit, tables, predecessor, live: false, served_devices: false, _lock: lock };
        if takes_over {
            datapath.go_live()?;
            info!(folder = %datapath.place.folder.current().display(), "took over the pinned tables");
        }
        Ok(datapath)
    }

    /// True when what is in the tables is what serves.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Makes the filled tables the ones that serve. Does nothing when they already are; may be repeated after an error.
    pub fn go_live(&mut self) -> Result<(), AttachError> {
        if self.live {
            return Ok(());
        }
        let (Place { folder, cgroup, .. }, Tables { object, store }) = (&self.place, &mut self.tables);
        folder.promote_staging()?;
        describe(&folder.current())?;
        // After this exactly one program of ours is at each hook.
        let links = folder.make_links()?;
        for program in object.programs() {
            links::ensure(&links, program, cgroup)?;
        }
        let inheritance = self.place.inheritance(object)?;
        self.served_devices = self.place.serve_devices(object, &store.capacity()).is_ok();
        if self.served_devices {
            inheritance.turn()?;
        }
        if self.predecessor.is_some() || !inheritance.left.is_empty() {
            store.wait_for_programs()?;
        }
        if let Some(old) = &self.predecessor {
            old.copied.hand_over(old.store.maps(), store.maps())?;
        }
        // Until then theirs may begin flows.
        if self.served_devices {
            self.place.conclude(object, inheritance)?;
        }
        self.live = true;
        let old = self.predecessor.take().filter(|old| old.is_whole);
        if old.is_some_and(|old| old.store.capacity() != store.capacity()) {
            info!("made larger tables");
        }
        Ok(())
    }

    /// Serves devices too, where that is wanted and could not be done when the tables went live. Sockets are served
    /// whatever comes of it. May be repeated.
    pub fn serve_devices(&mut self) -> Result<(), AttachError> {
        if self.live && !self.served_devices {
            let Tables { object, store } = &mut self.tables;
            let inheritance = self.place.inheritance(object)?;
            self.place.serve_devices(object, &store.capacity())?;
            inheritance.turn()?;
            store.wait_for_programs()?;
            self.place.conclude(object, inheritance)?;
            self.served_devices = true;
        }
        Ok(())
    }

    /// The cgroup that the programs for sockets are attached to.
    pub fn cgroup(&self) -> &Path {
        &self.place.cgroup.path
    }

    /// Counts what no program counts.
    pub fn count(&self, reason: Reason, times: u64) {
        let counted = Reasons::open(&self.place.folder.current()).and_then(|mut reasons| reasons.add(reason, times));
        if let Err(error) = counted {
            debug!(%error, reason = reason.name(), "not counted");
        }
    }

    /// Leaves these cgroups out, and no others.
    pub fn leave_out(&self, cgroups: &BTreeSet<u64>) -> Result<(), MapError> {
        let table = name::UNSTEERED;
        let map = &self.tables.store.maps().unsteered;
        let fail = |source| MapError { table, action: "writing", source };
        let known: BTreeSet<u64> = read(table, map)?.into_iter().map(|(cgroup, _)| cgroup).collect();
        known.difference(cgroups).try_for_each(|gone| map.remove(gone)).map_err(fail)?;
        let kept = known.intersection(cgroups).count();
        let room = (UNSTEERED_CAPACITY as usize).saturating_sub(kept);
        let new: Vec<&u64> = cgroups.difference(&known).collect();
        if new.len() > room {
            let fit = kept + room;
            warn!("--socket-lb-exclude names {} cgroups, of which {fit} fit: name those above them", cgroups.len());
        }
        new.into_iter().take(room).try_for_each(|cgroup| map.set(cgroup, &1)).map_err(fail)
    }

    fn make_larger(&mut self, sizes: &Capacity) -> Result<(), AttachError> {
        // The growth before this one, should its switch have failed half way.
        if self.has_whole_successors() {
            self.go_live()?;
        }
        let pins = self.place.folder.pins()?;
        let (tables, copied) = self.place.succeed(&self.tables.store, &pins, sizes).inspect_err(|_| {
            let _ = if self.live {
                self.place.folder.remove_staging().map_err(Into::into)
            } else {
                self.place.pin_again(&pins)
            };
        })?;
        let old = std::mem::replace(&mut self.tables, tables);
        if std::mem::take(&mut self.live) {
            self.predecessor = Some(Predecessor { store: old.store, copied, is_whole: true });
        }
        Ok(())
    }

    /// Whether tables wait to serve that hold all that those do which serve.
    fn has_whole_successors(&self) -> bool {
        self.predecessor.as_ref().is_some_and(|old| old.is_whole)
    }
}

impl Place {
    /// The pinned tables, when every one is there and has our layout; says why not.
    fn find_current(&self) -> Result<Option<KernelStore>, AttachError> {
        let current = self.folder.current();
        match self.folder.check_current().map_err(AttachError::from) {
            Ok(true) => self.open_store(&current).map(Some),
            Ok(false) => Ok(None),
            // Nothing is wrong with them.
            Err(error) if error.is_passing() => Err(error),
            Err(reason) => {
                warn!(%reason, folder = %current.display(), "pinned tables cannot be used, making new ones");
                Ok(None)
            }
        }
    }

    /// The programs over the pinned tables. Where they do not load, new tables of the same sizes and with all rows come
    /// before them; when the programs do not load over those either, it is not the tables' fault: that is an error.
    fn take_over(&self, store: KernelStore) -> Result<(Tables, Option<Predecessor>), AttachError> {
        let current = self.folder.current();
        match self.load_object(&current, &store.capacity(), is_succession_pinned(&current)).map_err(AttachError::from) {
            Ok(object) => Ok((Tables { object, store }, None)),
            Err(error) if error.is_passing() => Err(error),
            Err(reason) => {
                let folder = current.display();
                warn!(%reason, %folder, "the programs do not load over the pinned tables, making new ones with all they hold");
                let (tables, copied) = self.succeed_at_same_sizes(&store)?;
                Ok((tables, Some(Predecessor { store, copied, is_whole: true })))
            }
        }
    }

    /// Keeps the tables of sockets and flows themselves where the programs load over them: what is in them cannot all be copied.
    fn succeed_at_same_sizes(&self, old: &KernelStore) -> Result<(Tables, Copied), AttachError> {
        let (mut pins, sizes) = (self.folder.pins()?, old.capacity());
        pins.retain(TablePin::stays);
        match self.succeed(old, &pins, &sizes) {
            Err(error) if !error.is_passing() => {
                warn!(%error, "sockets with several Services, and those that dial meanwhile, are told their backend's address");
                self.succeed(old, &[], &sizes)
            }
            done => done,
        }
    }

    /// Tables of at least these sizes in the staging folder, with all rows of `old`. What is large enough is not made
    /// again.
    fn succeed(&self, old: &KernelStore, pins: &[TablePin], sizes: &Capacity) -> Result<(Tables, Copied), AttachError> {
        let (current, staging) = (self.folder.current(), self.folder.make_staging()?);
        for table in pins.iter().filter(|table| table.entries >= table.layout.entries.of(sizes)) {
            table.pin_in(&staging)?;
        }
        let new = self.load_after(&current, &staging, sizes)?;
        let copied = carry::copy(old.maps(), new.store.maps())?;
        Ok((new, copied))
    }

    /// New tables in the staging folder, after those that are pinned. Those that are as large as they should be may not be
    /// there to be had.
    fn begin(&self, sizes: &Capacity, smallest: &Capacity) -> Result<(Tables, Option<Predecessor>), AttachError> {
        match self.begin_after_others(sizes) {
            Err(error) if sizes != smallest => {
                warn!(%error, "beginning with the smallest tables");
                self.begin_after_others(smallest)
            }
            done => done,
        }
    }

    /// Nothing of what others hold need be lost because some of it has another layout now: ids stay what they are to flows and
    /// sockets, and what is missing is planned.
    fn begin_after_others(&self, sizes: &Capacity) -> Result<(Tables, Option<Predecessor>), AttachError> {
        let Some(folder) = self.folder.superseded()? else {
            return Ok((self.load(&self.folder.make_staging()?, sizes, false)?, None));
        };
        let pins = fitting(&folder)?;
        let staging = self.folder.make_staging()?;
        pins.iter().filter(|table| table.stays()).try_for_each(|table| table.pin_in(&staging))?;
        let sizes = pins.iter().fold(*sizes, |sizes, table| table.at_least(sizes));
        let new = self.load_after(&folder, &staging, &sizes)?;
        // What does not fit is not looked at.
        let fits = |name: &str| pins.iter().any(|table| table.layout.name == name);
        let old = Pinned::open_each(|name| if fits(name) { &folder } else { &staging })?;
        let copied = carry::copy(&old, new.store.maps())?;
        Ok((new, Some(Predecessor { store: self.store_of(old)?, copied, is_whole: false })))
    }

    /// Tables that are still being filled have no other place than the staging folder.
    fn pin_again(&self, pins: &[TablePin]) -> Result<(), AttachError> {
        let staging = self.folder.make_staging()?;
        pins.iter().try_for_each(|table| Ok(table.pin_in(&staging)?))
    }

    /// Programs over the tables in `folder`; those that are not there are made.
    fn load(&self, folder: &Path, sizes: &Capacity, succeeds: bool) -> Result<Tables, AttachError> {
        let object = self.load_object(folder, sizes, succeeds)?;
        Ok(Tables { object, store: self.open_store(folder)? })
    }

    /// The same, in the place of those in `old`.
    fn load_after(&self, old: &Path, folder: &Path, sizes: &Capacity) -> Result<Tables, AttachError> {
        let is_left = |table: &&str| is_left(&old.join(table), &folder.join(table));
        self.load(folder, sizes, name::OF_FLOWS.iter().any(is_left) || is_succession_pinned(old))
    }

    fn load_object(&self, folder: &Path, sizes: &Capacity, succeeds: bool) -> Result<Object, ObjectError> {
        let constants = Constants { succeeds, ..self.constants };
        Object::load(folder, sizes, &constants, self.hooks_over(sizes).is_some())
    }

    /// What tables leave that the current ones succeed. Not only the last ones: who began that may have died on the way.
    fn inheritance(&self, object: &Object) -> Result<Inheritance, AttachError> {
        let (folders, current) = (self.folder.left_behind()?, self.folder.current());
        let left = |old: &PathBuf| Left { flows: Flows::between(old, &current), programs: kept_programs(old) };
        let left: Vec<Left> = folders.iter().map(left).collect();
        let inheritance = Inheritance { succession: self.succession(object, &left)?, left };
        // Before ours are asked, unless they ask others.
        if inheritance.succession.is_none() {
            inheritance.bring(Which::GoingOn)?;
        }
        Ok(inheritance)
    }

    /// Lets the programs at devices ask those of before about flows that are still to be brought.
    fn succession(&self, object: &Object, left: &[Left]) -> Result<Option<Succession>, CallError> {
        let Some(succession) = Succession::of(object)? else { return Ok(None) };
        let mut asked = left.iter().filter(|left| self.devices.is_some() && left.flows.are_brought());
        let theirs = asked.find_map(|left| match &left.programs {
            [Some(ingress), Some(egress)] => Some([ingress, egress]),
            _ => None,
        });
        Ok(succession.begin(theirs)?.then_some(succession))
    }

    /// Nobody begins flows but our programs: the rest is brought, and what was left behind goes.
    fn conclude(&self, object: &Object, inheritance: Inheritance) -> Result<(), AttachError> {
        inheritance.bring(Which::All)?;
        inheritance.succession.map_or(Ok(()), Succession::end)?;
        Ok(self.folder.remove_superseded(&object.program_names())?)
    }

    /// The hooks at devices, where programs over tables of these sizes serve there. Tables that an agent made that wanted no
    /// devices have no room for flows: larger ones come with the first plan.
    fn hooks_over(&self, sizes: &Capacity) -> Option<&Hooks> {
        self.devices.as_ref().filter(|_| sizes.flows > 0)
    }

    /// Devices are served from the current tables from now on, which have these sizes; or by nobody, where that is wanted.
    fn serve_devices(&self, object: &mut Object, sizes: &Capacity) -> Result<(), AttachError> {
        if self.devices.is_none() {
            self.at_devices(|| devices::remove_all(&self.folder.links()))?;
            return Ok(self.folder.forget_programs()?);
        }
        let Some(hooks) = self.hooks_over(sizes) else { return Ok(()) };
        let programs = object.device_programs(&self.folder.current())?;
        self.folder.keep_programs(programs.both())?;
        self.at_devices(|| hooks.lock().unwrap_or_else(PoisonError::into_inner).serve_by(programs))
    }

    /// Works where the devices are.
    fn at_devices(&self, work: impl FnOnce() -> io::Result<()> + Send) -> Result<(), AttachError> {
        net::inside(self.netns.as_deref(), work)?
            .map_err(|error| CallError::new("attach programs to", "devices", error).into())
    }

    fn open_store(&self, folder: &Path) -> Result<KernelStore, AttachError> {
        self.store_of(Pinned::open(folder)?)
    }

    fn store_of(&self, maps: Pinned) -> Result<KernelStore, AttachError> {
        Ok(KernelStore::new(maps, Rope::new(self.folder.root()))
            .map_err(|error| CallError::new("prepare grace periods for", "the tables", error))?)
    }
}

/// Whether the table pinned at `old` is there, and is not the one at `new`.
fn is_left(old: &Path, new: &Path) -> bool {
    let id = |path: &Path| Pin::open(path).ok().and_then(|pin| map_info(pin.fd.as_fd()).ok()).map(|info| info.id);
    id(old).is_some_and(|old| id(new) != Some(old))
}

/// Whether who made the tables in `folder` died before all flows were in them.
fn is_succession_pinned(folder: &Path) -> bool {
    folder.join(name::SUCCESSION).exists()
}

/// The tables in `folder` that have our layout.
fn fitting(folder: &Path) -> Result<Vec<TablePin>, AttachError> {
    let found = layouts().map(|layout| TablePin::open_fitting(folder, layout).map_err(AttachError::from));
    found.filter(|table| table.as_ref().err().is_none_or(AttachError::is_passing)).collect()
}

impl MapStore for Datapath {
    fn capacity(&self) -> Capacity {
        self.tables.store.capacity()
    }

    fn limit(&self) -> Capacity {
        self.limit.zip(&self.capacity(), u32::max)
    }

    fn grow(&mut self, sizes: &Capacity) -> Result<(), GrowError> {
        self.make_larger(sizes).map_err(|error| GrowError(error.into()))
    }

    fn read(&self) -> Result<Snapshot, MapError> {
        self.tables.store.read()
    }

    fn published(&self) -> Result<Published, MapError> {
        self.tables.store.published()
    }

    fn bucket(&self, number: u32) -> Result<Bucket, MapError> {
        self.tables.store.bucket(number)
    }

    fn frontend(&self, id: u32) -> Result<Frontend, MapError> {
        self.tables.store.frontend(id)
    }

    /// Larger tables go live before anything changes: until then old programs serve from the old ones.
    fn apply(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        if self.has_whole_successors() {
            let fail = |error| MapError {
                table: "(all)",
                action: "switching to larger ones",
                source: io::Error::other(error),
            };
            self.go_live().map_err(|error| ApplyError { applied: 0, error: fail(error) })?;
        }
        self.tables.store.apply(ops)
    }
}
