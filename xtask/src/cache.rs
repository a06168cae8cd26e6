//! Finished components outside the checkout, one folder per name; the name carries version and flags.
//!
//! A component appears by one rename, so whoever sees the folder sees all of it. A lock per name lets a second
//! builder wait for the first instead of building twice.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A component's folder name: what it is, its version, and everything else that shapes it as a short sum.
pub(crate) fn name(component: &str, version: &str, flags: &[&str]) -> String {
    let sum = flags.iter().flat_map(|flag| flag.bytes().chain([0])).fold(0xcbf2_9ce4_8422_2325, fnv_1a);
    format!("{component}-{version}-{}-{:08x}", std::env::consts::ARCH, sum >> 32)
}

/// The folder of the component if it is finished.
pub(crate) fn finished(cache: &Path, name: &str) -> Option<PathBuf> {
    let folder = cache.join(name);
    folder.is_dir().then_some(folder)
}

/// The component's folder, filled by `build` unless it is there.
pub(crate) fn get_or_build(cache: &Path, name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if let Some(folder) = finished(cache, name) {
        return Ok(folder);
    }
    let _lock = lock(cache, name)?;
    if let Some(folder) = finished(cache, name) {
        return Ok(folder);
    }
    let partial = cache.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove the interrupted {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("make {}", partial.display()))?;
    build(&partial)?;
    let folder = cache.join(name);
    fs::rename(&partial, &folder).with_context(|| format!("finish {}", folder.display()))?;
    Ok(folder)
}

/// Held until dropped; the kernel lets go of it when the process dies.
pub(crate) fn lock(cache: &Path, name: &str) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| format!("make the cache {} (SLUICE_CACHE moves it)", cache.display()))?;
    let path = cache.join(format!("{name}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another process that builds {name}");
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// An empty folder, gone with its handle. What an interrupted process left there is removed: whoever shares the name
/// holds a [`lock`].
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("remove the interrupted {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("  {} stays: {error}", self.0.display());
        }
    }
}

fn fnv_1a(sum: u64, byte: u8) -> u64 {
    (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(test: &str) -> Scratch {
        Scratch::new(&std::env::temp_dir(), &format!("sluice-cache-{test}-{}", std::process::id()))
            .expect("a folder for temporary files")
    }

    #[test]
    fn a_finished_component_is_not_built_again() {
        let scratch = scratch("finished");
        let fill = |folder: &Path| Ok(fs::write(folder.join("tool"), "built")?);
        let first = get_or_build(&scratch.0, "tool-1", fill).expect("builds");
        let second = get_or_build(&scratch.0, "tool-1", |_| panic!("built twice")).expect("finds");
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("tool")).expect("is there"), "built");
    }

    #[test]
    fn a_failed_build_leaves_no_component_and_does_not_spoil_the_next() {
        let scratch = scratch("failed");
        let half = |folder: &Path| {
            fs::write(folder.join("half"), "")?;
            anyhow::bail!("broke")
        };
        get_or_build(&scratch.0, "tool-1", half).expect_err("the build broke");
        assert_eq!(finished(&scratch.0, "tool-1"), None);
        let folder = get_or_build(&scratch.0, "tool-1", |_| Ok(())).expect("builds");
        assert_eq!(fs::read_dir(folder).expect("is there").count(), 0, "what the broken build left is gone");
    }

    #[test]
    fn what_an_interrupted_process_left_in_its_scratch_folder_is_gone() {
        let scratch = scratch("interrupted");
        let interrupted = scratch.0.join("fetch");
        fs::create_dir(&interrupted).expect("a folder");
        fs::write(interrupted.join("half"), "").expect("a file");
        let again = Scratch::new(&scratch.0, "fetch").expect("is made");
        assert_eq!(fs::read_dir(again.path()).expect("is there").count(), 0);
        drop(again);
        assert!(!interrupted.exists(), "gone with its handle");
    }

    #[test]
    fn other_flags_are_another_component() {
        assert_ne!(name("etcd", "v1", &["-s", "-w"]), name("etcd", "v1", &["-s"]));
        assert_ne!(name("etcd", "v1", &["ab", "c"]), name("etcd", "v1", &["a", "bc"]));
        assert_eq!(name("etcd", "v1", &["-s"]), name("etcd", "v1", &["-s"]));
    }
}
