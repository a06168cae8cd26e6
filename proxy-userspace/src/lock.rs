//! One agent, and one reaper, per pin folder.
//!
//! In: the pin folder and a [`Role`]. Out: a [`Lock`] that lasts as long as the process, or the pid of whoever holds it. The kernel frees
//! the lock of a process that is gone, so a stale file never stops anybody.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FOLDER: &str = "/run/sluice";

/// What a process does for a pin folder; there is at most one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `sluice run`.
    Agent,
    /// `sluice reap`.
    Reap,
}

impl Role {
    pub const ALL: [Self; 2] = [Self::Agent, Self::Reap];

    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Reap => "reap",
        }
    }
}

/// The held lock; dropping it, or dying, frees it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("a sluice {role} already runs on pin folder {pin_dir}, as process {holder}: stop it first, or use another --pin-dir")]
    Held { role: &'static str, pin_dir: PathBuf, holder: String },
    #[error("lock file {path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Who holds the lock of a pin folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// A pid as its holder sees it, or a word when there is none.
    Process(String),
}

impl Lock {
    /// Takes the lock of `pin_dir`.
    pub fn take(role: Role, pin_dir: &Path) -> Result<Self, LockError> {
        let path = path(role, pin_dir);
        let fail = |source| LockError::File { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(FOLDER).map_err(fail)?;
        let mut file = open_and_lock(&path).map_err(|failure| match failure {
            Failure::Held(holder) => LockError::Held { role: role.name(), pin_dir: pin_dir.to_owned(), holder },
            Failure::File(source) => fail(source),
        })?;
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(fail)?;
        Ok(Self { _file: file })
    }
}

enum Failure {
    Held(String),
    File(io::Error),
}

/// Opens and locks the file, again when somebody removed it in between: a lock on a removed file locks nothing.
fn open_and_lock(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    loop {
        let mut file = options.open(path).map_err(Failure::File)?;
        match file.try_lock() {
            Ok(()) if is_still_there(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Failure::Held(read_holder(&mut file))),
            Err(TryLockError::Error(source)) => return Err(Failure::File(source)),
        }
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(inode).ok() == fs::metadata(path).map(inode).ok()
}

/// Who holds the lock of `pin_dir` now.
pub fn holder(role: Role, pin_dir: &Path) -> io::Result<Holder> {
    let mut file = match File::open(path(role, pin_dir)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => Ok(Holder::Process(read_holder(&mut file))),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read_holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    if read.is_err() || text.is_empty() { "unknown".to_owned() } else { text }
}

/// Removes the lock file, and the folder when it was the last; says what went.
pub fn remove(role: Role, pin_dir: &Path) -> io::Result<Option<PathBuf>> {
    let path = path(role, pin_dir);
    if role == Role::Reap {
        // There only when a reaper ran.
        let _ = fs::remove_file(bell_path(pin_dir));
    }
    match fs::remove_file(&path) {
        Ok(()) => {
            // Other nodes' lock files may be in it.
            let _ = fs::remove_dir(FOLDER);
            Ok(Some(path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the reaper listens, see [`crate::bell`].
pub fn bell_path(pin_dir: &Path) -> PathBuf {
    path(Role::Reap, pin_dir).with_extension("bell")
}

/// The lock file. It is outside of the BPF filesystem, which has no ordinary files.
fn path(role: Role, pin_dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(pin_dir).unwrap_or_else(|_| pin_dir.to_owned());
    // Without a slash at the end.
    let absolute: PathBuf = absolute.components().collect();
    Path::new(FOLDER).join(format!("{:016x}.{}.lock", fnv1a(absolute.as_os_str().as_bytes()), role.name()))
}

/// FNV-1a, because the name has to stay the same over releases and `std`'s hasher does not promise that.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pin_folder_has_a_lock_file_of_its_own() {
        let path = |pin_dir| path(Role::Agent, Path::new(pin_dir));
        assert_ne!(path("/sys/fs/bpf/a"), path("/sys/fs/bpf/b"));
        assert_eq!(path("/sys/fs/bpf/a"), path("/sys/fs/bpf/a/"));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
