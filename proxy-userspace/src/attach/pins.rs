//! The pin folder: everything of ours that outlives a process.
//!
//! ```text
//! <pin-dir>/v1/NAME       the tables of this ABI version, complete
//! <pin-dir>/v1-new/NAME   tables that are being filled; nothing uses them yet
//! <pin-dir>/v1-old/NAME   tables that others have succeeded, until all is brought; v1-old2 and so on came to that later
//! <pin-dir>/links/NAME    what is attached, whichever tables it uses: frozen over ABI versions
//! ```
//!
//! A folder gets its final name in one rename after its tables were filled, so whatever is found under that name is a
//! complete state. In: the folder's path. Out: paths and checks. Refuses to know programs.

use std::cmp::Reverse;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};
use proxy_common::abi::SLOTS_PER_PAIR;
use proxy_common::tables::{ABI_VERSION, Capacity, OLDEST_ALIKE, name};

use super::object::DEVICE_HOOKS;
use crate::maps::described::described;
use crate::maps::pinned::{Entries, Layout, layouts};
use crate::maps::shape::Shape;
use crate::sys::CallError;
use crate::sys::bpf::{Kind, MapInfo, Pin, map_info, open_pin, pin, pin_anew};

const LINKS: &str = "links";
const STAGING: &str = "-new";
const SUPERSEDED: &str = "-old";

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "pin folder {path} is not on a BPF filesystem: mount one (`mount -t bpf bpf /sys/fs/bpf`; in a pod mount the node's /sys/fs/bpf), or name a folder on one with --pin-dir"
    )]
    NotBpffs { path: PathBuf },
    #[error("pin folder {path} is read-only: mount the BPF filesystem writable (`mount -o remount,rw /sys/fs/bpf`)")]
    ReadOnly { path: PathBuf },
    #[error(
        "pin folder {path} is the BPF filesystem itself: name a folder inside of it with --pin-dir, for example {path}/sluice"
    )]
    WholeFilesystem { path: PathBuf },
    #[error("pin folder {path} has a dot in its name, which a BPF filesystem does not take: name another --pin-dir")]
    Dot { path: PathBuf },
    #[error(
        "pin folder {path} holds {entry:?}, which sluice did not put there: name another --pin-dir, or remove it if nobody needs it"
    )]
    Foreign { path: PathBuf, entry: String },
    #[error("pin folder {path} belongs to user {owner}: name another --pin-dir")]
    Owner { path: PathBuf, owner: u32 },
    #[error("{action} {path}: permission denied: run as root")]
    Denied { action: &'static str, path: PathBuf },
    #[error("{action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why pinned tables cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// They are not what our programs need.
    #[error("{0}")]
    Unfit(String),
    /// One of them could not be looked at.
    #[error(transparent)]
    Call(#[from] CallError),
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => PinError::ReadOnly { path },
        io::ErrorKind::PermissionDenied => PinError::Denied { action, path },
        _ => PinError::Io { action, path, source },
    }
}

/// The pin folder of one node.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Names the folder without touching it.
    pub fn at(pin_dir: &Path) -> Self {
        Self { root: pin_dir.to_owned() }
    }

    /// Makes the folder, or checks that what is there is ours.
    pub fn prepare(pin_dir: &Path) -> Result<Self, PinError> {
        let folder = Self::at(pin_dir);
        folder.check_filesystem()?;
        make(pin_dir)?;
        folder.check_ours()?;
        fs::set_permissions(pin_dir, fs::Permissions::from_mode(0o700)).map_err(fail("restricting", pin_dir))?;
        Ok(folder)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The complete tables of our ABI version.
    pub fn current(&self) -> PathBuf {
        self.root.join(version_name(""))
    }

    fn staging(&self) -> PathBuf {
        self.root.join(version_name(STAGING))
    }

    pub fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    /// Refuses what is not a BPF filesystem that we may write to.
    pub fn check_filesystem(&self) -> Result<(), PinError> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let kind = statfs(existing).map_err(|errno| fail("looking at", existing)(errno.into()))?.filesystem_type();
        if kind != BPF_FS_MAGIC {
            return Err(PinError::NotBpffs { path: self.root.clone() });
        }
        // The kernel would say that it is not permitted.
        if self.root.strip_prefix(existing).is_ok_and(|new| new.to_string_lossy().contains('.')) {
            return Err(PinError::Dot { path: self.root.clone() });
        }
        access(existing, AccessFlags::W_OK).map_err(|errno| fail("writing to", existing)(errno.into()))?;
        if existing == self.root && is_mount_point(existing) {
            return Err(PinError::WholeFilesystem { path: self.root.clone() });
        }
        Ok(())
    }

    fn check_ours(&self) -> Result<(), PinError> {
        let owner = fs::metadata(&self.root).map_err(fail("looking at", &self.root))?.uid();
        if owner != nix::unistd::geteuid().as_raw() {
            return Err(PinError::Owner { path: self.root.clone(), owner });
        }
        match self.entries()?.into_iter().find(|entry| !is_ours(entry)) {
            Some(entry) => Err(PinError::Foreign { path: self.root.clone(), entry }),
            None => Ok(()),
        }
    }

    fn entries(&self) -> Result<Vec<String>, PinError> {
        names(&self.root).map_err(fail("reading", &self.root))
    }

    /// Whether complete tables with our layout are pinned: `Ok(false)` when there are none.
    pub fn check_current(&self) -> Result<bool, TableError> {
        let current = self.current();
        match fs::symlink_metadata(&current) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            looked => looked.map_err(|error| CallError::new("look at", current.display(), error))?,
        };
        for layout in layouts() {
            check_table(&current, layout)?;
        }
        Ok(true)
    }

    /// The folder of tables that new ones succeed: those of our version, or of the last one before it that meant the same by
    /// what looks alike.
    pub fn superseded(&self) -> Result<Option<PathBuf>, PinError> {
        let versions = self.entries()?.into_iter().filter_map(|entry| entry.strip_prefix('v')?.parse::<u16>().ok());
        let newest = versions.filter(|version| (OLDEST_ALIKE..=ABI_VERSION).contains(version)).max();
        Ok(newest.map(|version| self.root.join(format!("v{version}"))))
    }

    /// Folders of complete tables that others have succeeded, the last ones first.
    pub fn left_behind(&self) -> Result<Vec<PathBuf>, PinError> {
        let is_left = |entry: &String| {
            is_ours(entry) && *entry != LINKS && *entry != version_name("") && !entry.ends_with(STAGING)
        };
        let mut left: Vec<String> = self.entries()?.into_iter().filter(is_left).collect();
        left.sort_by_key(|entry| Reverse((entry.len(), entry.clone())));
        Ok(left.into_iter().map(|entry| self.root.join(entry)).collect())
    }

    /// After a process that died: tables that had just stepped aside come back, unfinished ones go.
    pub fn recover(&self) -> Result<(), PinError> {
        let current = self.current();
        if fs::symlink_metadata(&current).is_err()
            && let Some(last) = self.stepped_aside().last()
        {
            fs::rename(last, &current).map_err(fail("renaming", last))?;
        }
        self.remove_staging()
    }

    /// Folders of our version that others have succeeded, one after the other.
    fn stepped_aside(&self) -> Vec<PathBuf> {
        let folders = (0..).map(|number| self.place_aside(number));
        folders.take_while(|folder| fs::symlink_metadata(folder).is_ok()).collect()
    }

    /// Where number `number` of them is: `v1-old`, `v1-old2` and so on.
    fn place_aside(&self, number: usize) -> PathBuf {
        let number = if number == 0 { String::new() } else { (number + 1).to_string() };
        self.root.join(version_name(SUPERSEDED) + &number)
    }

    /// The tables of now: those that are being filled, else the current ones.
    pub fn pins(&self) -> Result<Vec<TablePin>, CallError> {
        let staging = self.staging();
        let folder = if staging.exists() { staging } else { self.current() };
        layouts().map(|layout| TablePin::open(&folder, layout)).collect()
    }

    pub fn remove_staging(&self) -> Result<(), PinError> {
        remove(&self.staging())
    }

    /// An empty staging folder; what an interrupted start left there goes.
    pub fn make_staging(&self) -> Result<PathBuf, PinError> {
        let staging = self.staging();
        remove(&staging)?;
        make(&staging)?;
        Ok(staging)
    }

    /// Gives the staging folder the name of the current one. Nothing to do when there is no staging folder.
    ///
    /// The folder that was current steps aside first; should we die in between, [`Self::recover`] brings it back.
    pub fn promote_staging(&self) -> Result<(), PinError> {
        let (staging, current) = (self.staging(), self.current());
        if !staging.exists() {
            return Ok(());
        }
        if fs::symlink_metadata(&current).is_ok() {
            // Where there is one already, who made the current ones died before they had all that is in there.
            let old = self.place_aside(self.stepped_aside().len());
            fs::rename(&current, &old).map_err(fail("renaming", &current))?;
        }
        fs::rename(&staging, &current).map_err(fail("renaming", &staging))
    }

    /// Keeps programs at devices where their successors find them, at ingress and at egress: a link does not show its program
    /// to everybody.
    pub fn keep_programs(&self, programs: [BorrowedFd<'_>; 2]) -> Result<(), CallError> {
        for (name, program) in DEVICE_HOOKS.into_iter().zip(programs) {
            pin_anew(program, &self.current().join(name))?;
        }
        Ok(())
    }

    /// Forgets them, where none stand at devices any more.
    pub fn forget_programs(&self) -> Result<(), PinError> {
        DEVICE_HOOKS.iter().try_for_each(|name| remove(&self.current().join(name)))
    }

    /// The folder of the links.
    pub fn make_links(&self) -> Result<PathBuf, PinError> {
        let links = self.links();
        if fs::symlink_metadata(&links).is_ok_and(|found| !found.is_dir()) {
            remove(&links)?;
        }
        make(&links)?;
        Ok(links)
    }

    /// Removes the tables and programs of other versions, and links that are none of `programs`.
    pub fn remove_superseded(&self, programs: &[String]) -> Result<(), PinError> {
        // In this order what is still there after a death means what it did: the last ones first, and no flows that nobody
        // describes.
        for left in self.left_behind()? {
            let of_devices = name::OF_FLOWS.into_iter().chain(DEVICE_HOOKS);
            of_devices.map(|pin| left.join(pin)).try_for_each(|pin| remove(&pin))?;
            remove(&left)?;
        }
        self.remove_staging()?;
        name::OF_SUCCESSION.iter().try_for_each(|table| remove(&self.current().join(table)))?;
        let links = self.links();
        for entry in names(&links).map_err(fail("reading", &links))? {
            if !programs.contains(&entry) && entry != super::devices::FOLDER {
                remove(&links.join(entry))?;
            }
        }
        Ok(())
    }

    /// Removes everything of ours, links first so that hooks end before their pins do; says what went and what was not
    /// ours and stays. Nothing there is fine.
    pub fn remove_all(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>), PinError> {
        if fs::symlink_metadata(&self.root).is_err() {
            return Ok((Vec::new(), Vec::new()));
        }
        self.check_filesystem()?;
        let mut entries = self.entries()?;
        entries.sort_by_key(|entry| (entry != LINKS, entry.clone()));
        let (ours, foreign): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| is_ours(entry));
        let mut removed = Vec::new();
        for entry in ours {
            let path = self.root.join(entry);
            remove(&path)?;
            removed.push(path);
        }
        if foreign.is_empty() {
            fs::remove_dir(&self.root).map_err(fail("removing", &self.root))?;
            removed.push(self.root.clone());
        }
        Ok((removed, foreign.into_iter().map(|entry| self.root.join(entry)).collect()))
    }
}

/// A table that is held on to, wherever it is pinned next.
#[derive(Debug)]
pub struct TablePin {
    pub layout: &'static Layout,
    pub entries: u32,
    fd: OwnedFd,
}

impl TablePin {
    /// The table of this layout in `folder`, unless what is there has another one.
    pub fn open_fitting(folder: &Path, layout: &'static Layout) -> Result<Self, TableError> {
        check_table(folder, layout)?;
        Ok(Self::open(folder, layout)?)
    }

    fn open(folder: &Path, layout: &'static Layout) -> Result<Self, CallError> {
        let path = folder.join(layout.name);
        let fd = open_pin(&path)?;
        let info = map_info(fd.as_fd()).map_err(|error| CallError::new("look at", path.display(), error))?;
        Ok(Self { layout, entries: info.max_entries, fd })
    }

    /// Whether it stays the same map whatever becomes of others: what is in it lives as long as a socket or a flow, and cannot
    /// all be copied while programs write.
    pub fn stays(&self) -> bool {
        [name::SOCKETS, name::SOCKETS_MORE].contains(&self.layout.name) || name::OF_FLOWS.contains(&self.layout.name)
    }

    /// `sizes` with which its rows find room.
    pub fn at_least(&self, sizes: Capacity) -> Capacity {
        let mut larger = sizes;
        match self.layout.name {
            name::FRONTEND => larger.frontends = sizes.frontends.max(self.entries),
            name::SERVICE => larger.services = sizes.services.max(self.entries),
            name::VERSION => larger.versions = sizes.versions.max(self.entries),
            name::SLOTS => larger.slots = sizes.slots.max(self.entries.saturating_mul(SLOTS_PER_PAIR)),
            name::BACKENDS | name::STATS => larger.backends = sizes.backends.max(self.entries),
            name::SOURCES => larger.sources = sizes.sources.max(self.entries),
            name::AFFINITY => larger.affinity = sizes.affinity.max(self.entries),
            // It stays as it is.
            name::FLOWS4 => larger.flows = self.entries / 2,
            _ => {}
        }
        larger
    }

    pub fn pin_in(&self, folder: &Path) -> Result<(), CallError> {
        pin(self.fd.as_fd(), &folder.join(self.layout.name))
    }
}

/// The programs at devices that are kept beside the tables in `folder`, at ingress and at egress.
pub fn kept_programs(folder: &Path) -> [Option<OwnedFd>; 2] {
    DEVICE_HOOKS.map(|name| open_pin(&folder.join(name)).ok())
}

/// Compares a pinned table with what our programs need.
fn check_table(folder: &Path, layout: &Layout) -> Result<(), TableError> {
    let name = layout.name;
    let path = folder.join(name);
    let pin = Pin::open(&path)?;
    if pin.kind != Kind::Map {
        return Err(TableError::Unfit(format!("{name} is not a map")));
    }
    let info = map_info(pin.fd.as_fd()).map_err(|error| CallError::new("look at", path.display(), error))?;
    let wanted = (layout.map_type, layout.key_size, layout.value_size, layout.flags);
    let found = (info.map_type, info.key_size, info.value_size, info.flags);
    if found != wanted {
        let reason = format!("{name} has (type, key, value, flags) {found:?}, expected {wanted:?}");
        return Err(TableError::Unfit(reason));
    }
    check_entries(&info, layout)?;
    check_shape(folder, layout)
}

/// What nobody has described is told by its sizes.
fn check_shape(folder: &Path, layout: &Layout) -> Result<(), TableError> {
    let Some(family) = layout.flows_of else { return Ok(()) };
    let text = described(folder)?;
    let fits = text.is_none_or(|text| Shape::read(&text, family) == Shape::ours(family));
    fits.then_some(()).ok_or_else(|| TableError::Unfit(format!("{} has other fields", layout.name)))
}

/// Any size a user may have chosen is fine; where nobody chooses there is one right size.
fn check_entries(info: &MapInfo, layout: &Layout) -> Result<(), TableError> {
    let fits = match layout.entries {
        Entries::Fixed(entries) => info.max_entries == entries,
        Entries::Chosen(_) if layout.name == name::SOCKETS => info.max_entries.is_power_of_two(),
        Entries::Chosen(_) => true,
    };
    let unfit = || TableError::Unfit(format!("{} has {} entries", layout.name, info.max_entries));
    fits.then_some(()).ok_or_else(unfit)
}

/// `v1`, `v1-new`, `v1-old` (a BPF filesystem takes no dots).
fn version_name(stage: &str) -> String {
    format!("v{ABI_VERSION}{stage}")
}

/// True for names that some version of us gives: `links`, `v<number>`, `v<number>-new`, `v<number>-old`, `v<number>-old2`.
fn is_ours(name: &str) -> bool {
    let Some(version) = name.strip_prefix('v') else { return name == LINKS };
    let (number, which) =
        version.split_once(SUPERSEDED).unwrap_or_else(|| (version.strip_suffix(STAGING).unwrap_or(version), ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    !number.is_empty() && is_number(number) && is_number(which)
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(path) != device(&path.join(".."))
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn make(folder: &Path) -> Result<(), PinError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail("making", folder))
}

/// Removes a pin or a folder of pins; nothing there is fine.
fn remove(path: &Path) -> Result<(), PinError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        // What should be a folder may be no folder.
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(fail("removing", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_some_version_of_sluice_gives_are_ours() {
        for name in ["links", "v1", "v1-new", "v1-old", "v1-old2", "v27"] {
            assert!(is_ours(name), "{name}");
        }
        for name in [
            "",
            "v",
            "vx",
            "v1-tmp",
            "v1-new-new",
            "v1-old-new",
            "v1-new-old",
            "v1-older",
            "v-old2",
            "tc",
            "cilium",
            "Links",
            "v-new",
        ] {
            assert!(!is_ours(name), "{name}");
        }
    }

    #[test]
    fn a_folder_outside_of_a_bpf_filesystem_is_refused_before_anything_is_made() {
        let error = Folder::prepare(Path::new("/proc/sluice-pins")).unwrap_err();
        assert!(error.to_string().contains("is not on a BPF filesystem: mount one"), "{error}");
    }
}
