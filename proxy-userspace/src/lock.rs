//! One agent, and one reaper, per pin folder.
//!
//! In: the pin folder and a [`Role`]. Out: a [`Lock`] that lasts as long as the process, or the pid of whoever holds it.
//! The kernel frees the lock of a process that is gone, so a stale file never stops anybody.
//!
//! A file below `/run` holds the pid. Containers that do not share `/run` still share the BPF filesystem, so the agent
//! locks the pin folder itself too.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const FOLDER: &str = "/run/sluice";

/// Who holds the lock of a pin folder and has its file in a `/run` of its own.
const ELSEWHERE: &str = "unknown (in another container)";

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
    file: File,
    folder: Option<File>,
}

impl Drop for Lock {
    /// Closing would leave the lock to a child that is between fork and exec just then.
    fn drop(&mut self) {
        for file in iter::once(&self.file).chain(&self.folder) {
            let _ = file.unlock();
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "a sluice {role} already runs on pin folder {pin_dir}, as process {holder}: stop it first, or use another --pin-dir"
    )]
    Held { role: &'static str, pin_dir: PathBuf, holder: String },
    #[error("locking {path}: {source}")]
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
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::File { path, source }
        };
        let held = |holder| LockError::Held { role: role.name(), pin_dir: pin_dir.to_owned(), holder };
        make_folder().map_err(fail(Path::new(FOLDER)))?;
        let path = path(role, pin_dir);
        let Some(mut file) = lock(&path, open_file).map_err(fail(&path))? else {
            return Err(held(read_holder(&path)));
        };
        let folder = match shared_folder(role, pin_dir) {
            Some(folder) => match lock(folder, open_folder).map_err(fail(folder))? {
                None => return Err(held(ELSEWHERE.to_owned())),
                locked => locked,
            },
            None => None,
        };
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(fail(&path))?;
        Ok(Self { file, folder })
    }
}

fn make_folder() -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(FOLDER)?;
    fs::set_permissions(FOLDER, fs::Permissions::from_mode(0o700))
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn open_folder(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// What the agent locks besides its file. The reaper does not: two of them do no harm, and one folder has one lock.
fn shared_folder(role: Role, pin_dir: &Path) -> Option<&Path> {
    (role == Role::Agent && pin_dir.exists()).then_some(pin_dir)
}

/// Opens and locks `path`, `None` when somebody holds it.
///
/// Again when somebody removed it in between, as a lock on a removed file locks nothing, and when only [`holder`] was
/// looking, which is over at once.
fn lock(path: &Path, open: fn(&Path) -> io::Result<File>) -> io::Result<Option<File>> {
    loop {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) if is_still_there(&file, path) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if is_held(&file)? => return Ok(None),
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(source),
        }
    }
}

/// Whether somebody has the lock and does not just look. Leaves a shared lock on `file` when not.
fn is_held(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(inode).ok() == fs::metadata(path).map(inode).ok()
}

/// Who holds the lock of `pin_dir` now.
pub fn holder(role: Role, pin_dir: &Path) -> io::Result<Holder> {
    let path = path(role, pin_dir);
    if is_path_held(&path)? {
        return Ok(Holder::Process(read_holder(&path)));
    }
    match shared_folder(role, pin_dir) {
        Some(folder) if is_path_held(folder)? => Ok(Holder::Process(ELSEWHERE.to_owned())),
        _ => Ok(Holder::Nobody),
    }
}

fn is_path_held(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(file) => is_held(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_holder(path: &Path) -> String {
    fs::read_to_string(path).ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
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
    fn looking_who_holds_a_lock_does_not_stop_whoever_takes_it() {
        let path = std::env::temp_dir().join(format!("sluice-lock-{}", std::process::id()));
        let file = open_file(&path).unwrap();
        assert!(!is_path_held(&path).unwrap());
        assert!(!is_held(&file).unwrap());
        assert!(!is_held(&open_file(&path).unwrap()).unwrap(), "two may look");
        drop(file);
        let taken = lock(&path, open_file).unwrap();
        assert!(taken.is_some());
        assert!(lock(&path, open_file).unwrap().is_none());
        assert!(is_path_held(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_dropped_lock_is_free_also_while_a_child_has_its_descriptor() {
        let path = std::env::temp_dir().join(format!("sluice-drop-{}", std::process::id()));
        let file = lock(&path, open_file).unwrap().unwrap();
        let inherited = file.try_clone().unwrap();
        drop(Lock { file, folder: None });
        assert!(lock(&path, open_file).unwrap().is_some());
        drop(inherited);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_taker_goes_on_when_somebody_stops_looking() {
        let path = std::env::temp_dir().join(format!("sluice-look-{}", std::process::id()));
        let looking = open_file(&path).unwrap();
        assert!(!is_held(&looking).unwrap());
        let taken = std::thread::scope(|scope| {
            let taker = scope.spawn(|| lock(&path, open_file).unwrap().is_some());
            drop(looking);
            taker.join().unwrap()
        });
        assert!(taken);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
