//! Where things are: the checkout, its `target/`, and the cache that outlives both.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The folders that every action needs.
pub(crate) struct Places {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// `target/` of the checkout, also where `CARGO_TARGET_DIR` points elsewhere: the agent's build script looks here.
    pub(crate) target: PathBuf,
    /// Finished tools and Kubernetes programs: `SLUICE_CACHE`, else `sluice` in the user's cache folder.
    pub(crate) cache: PathBuf,
}

impl Places {
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?.to_owned();
        refuse_sudo(&root)?;
        Ok(Self { target: root.join("target"), cache: cache_folder()?, root })
    }

    /// The kernel programs as the agent embeds them.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf/sluice.bpf.o")
    }

    /// The kernel programs with those that only tests load.
    pub(crate) fn bpf_test_object(&self) -> PathBuf {
        self.target.join("bpf/sluice-test.bpf.o")
    }

    /// The kernel programs of another version, for tests.
    pub(crate) fn bpf_other_object(&self) -> PathBuf {
        self.target.join("bpf/sluice-other.bpf.o")
    }

    /// Cargo in the checkout, free of what a caller's environment would change about the result.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        for leaking in ["RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_BOOTSTRAP"] {
            cargo.env_remove(leaking);
        }
        cargo
    }
}

fn cache_folder() -> Result<PathBuf> {
    if let Some(explicit) = env::var_os("SLUICE_CACHE") {
        return std::path::absolute(&explicit).with_context(|| format!("SLUICE_CACHE={}", explicit.display()));
    }
    let user = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let user = user.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    Ok(user.context("no cache folder: set SLUICE_CACHE or HOME")?.join("sluice"))
}

/// Cargo under sudo leaves files in `target/` that its owner cannot remove.
fn refuse_sudo(root: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = root.metadata().with_context(|| root.display().to_string())?.uid();
    let caller = env::var("SUDO_UID").ok().and_then(|uid| uid.parse::<u32>().ok());
    if nix::unistd::geteuid().is_root() && owner != 0 && caller == Some(owner) {
        bail!("run this as yourself, without sudo: it asks before it uses sudo, and only for what needs root");
    }
    Ok(())
}
