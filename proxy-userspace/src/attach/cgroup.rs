//! Where the socket hooks go: the root of the cgroup2 tree, or the cgroup the user named.
//!
//! In: the mount table. Out: an open [`Cgroup`] with its id. A program sees the sockets of its cgroup and all below, so
//! anything less than the true root would miss pods silently: that is refused with the mount to add.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

/// The inode number, and so the cgroup id, of the root of the tree (kernfs numbers its root 1). The root of a private
/// cgroup namespace or of a bind mount is an ordinary cgroup with another number.
const ROOT_ID: u64 = 1;

/// A cgroup to attach to.
#[derive(Debug)]
pub struct Cgroup {
    pub path: PathBuf,
    /// As links report it.
    pub id: u64,
    folder: File,
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup2 filesystem is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or name one with --cgroup-root"
    )]
    NotMounted,
    #[error(
        "{0} is the root of a private cgroup namespace, not of the node: programs there would miss the other pods. \
         Mount the node's /sys/fs/cgroup into this container (hostPath /sys/fs/cgroup) and name it with --cgroup-root"
    )]
    PrivateNamespace(PathBuf),
    #[error("--cgroup-root {0} is not a cgroup2 folder: name one below a cgroup2 mount (`findmnt -t cgroup2`)")]
    NotCgroup2(PathBuf),
    #[error("cgroup {path}: {source}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Cgroup {
    /// Opens `explicit`, or finds the root of the tree in the mount table.
    pub fn find(explicit: Option<&Path>) -> Result<Self, CgroupError> {
        let Some(path) = explicit else { return Self::find_root() };
        Self::open(path)?.ok_or_else(|| CgroupError::NotCgroup2(path.to_owned()))
    }

    fn find_root() -> Result<Self, CgroupError> {
        let table = Path::new("/proc/self/mountinfo");
        let mounts =
            fs::read_to_string(table).map_err(|source| CgroupError::Open { path: table.to_owned(), source })?;
        let mut private = None;
        for path in cgroup2_mounts(&mounts) {
            match Self::open(&path) {
                Ok(Some(cgroup)) if cgroup.id == ROOT_ID => return Ok(cgroup),
                Ok(Some(_)) => private = Some(path),
                // Another mount covers this one.
                Ok(None) | Err(_) => {}
            }
        }
        Err(private.map_or(CgroupError::NotMounted, CgroupError::PrivateNamespace))
    }

    /// The cgroup with this id, as a link names it; `None` when no mount shows it.
    pub fn with_id(id: u64) -> io::Result<Option<PathBuf>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let has_id = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.ino() == id);
        Ok(cgroup2_mounts(&mounts).find_map(|mount| tree(mount).find(has_id)))
    }

    /// `None` when `path` is not on cgroup2.
    fn open(path: &Path) -> Result<Option<Self>, CgroupError> {
        let fail = |source| CgroupError::Open { path: path.to_owned(), source };
        let folder = File::open(path).map_err(fail)?;
        let metadata = folder.metadata().map_err(fail)?;
        let filesystem = fstatfs(&folder).map_err(|errno| fail(errno.into()))?.filesystem_type();
        let usable = metadata.is_dir() && filesystem == CGROUP2_SUPER_MAGIC;
        Ok(usable.then(|| Self { path: path.to_owned(), id: metadata.ino(), folder }))
    }

    pub fn is_root(&self) -> bool {
        self.id == ROOT_ID
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// A folder and all below it; those that vanish meanwhile are left out.
pub fn tree(folder: PathBuf) -> impl Iterator<Item = PathBuf> {
    let mut ahead = vec![folder];
    std::iter::from_fn(move || {
        let folder = ahead.pop()?;
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        ahead.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
        Some(folder)
    })
}

/// Mount points of type cgroup2 in the text of a mountinfo file (proc(5)).
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        let point = left.split(' ').nth(4)?;
        (kind == "cgroup2").then(|| PathBuf::from(unescape(point)))
    })
}

/// Undoes the octal escapes of white space and backslashes.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_by_type_wherever_it_is_mounted() {
        let text = "25 30 0:23 / /proc rw,nosuid - proc proc rw\n\
                    33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw\n\
                    52 31 0:38 /pods /mnt/with\\040space rw - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = cgroup2_mounts(text).collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/unified"), PathBuf::from("/mnt/with space")]);
    }

    #[test]
    fn a_folder_outside_of_cgroup2_is_refused_by_name() {
        let error = Cgroup::find(Some(Path::new("/proc"))).unwrap_err();
        assert!(error.to_string().starts_with("--cgroup-root /proc is not a cgroup2 folder"), "{error}");
    }
}
