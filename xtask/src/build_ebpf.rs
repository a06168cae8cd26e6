//! Compiles proxy-ebpf for the kernel and puts the object where the agent's build script looks for it.
//!
//! It has a target folder and flags of its own: neither reaches the builds for the host.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::compiler::{self, BPF_TARGET, Compiler};
use crate::linker::{self, Linker};
use crate::places::Places;
use crate::{object_check, step, strip};

/// Which programs to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// What the agent embeds.
    Release,
    /// The same, logging every decision.
    Debug,
    /// With the programs that test the tables from inside the kernel, in an object of their own.
    Tests,
    /// As another version would be, which keeps flows in another layout.
    OtherLayout,
}

impl Flavour {
    fn object(self, places: &Places) -> PathBuf {
        match self {
            Self::Release | Self::Debug => places.bpf_object(),
            Self::Tests => places.bpf_test_object(),
            Self::OtherLayout => places.bpf_other_object(),
        }
    }

    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Release => &[],
            Self::Debug => &["--features", "debug"],
            Self::Tests => &["--features", "test-programs"],
            Self::OtherLayout => &["--features", "other-layout"],
        }
    }
}

pub(crate) fn run(places: &Places, flavour: Flavour) -> Result<()> {
    let compiler = compiler::find()?.context("no compiler for BPF: run `cargo xtask setup`")?;
    let Linker::Ready(linker) = linker::find(places, compiler.llvm) else {
        bail!("no bpf-linker: run `cargo xtask setup`")
    };
    step::run("compile the kernel programs", &mut command(places, &compiler, &linker, flavour))?;
    let built = places.target.join("ebpf").join(BPF_TARGET).join("release/sluice-bpf");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let bytes = strip::strip(&bytes).with_context(|| format!("strip {}", built.display()))?;
    let contents = object_check::inspect(&bytes).with_context(|| format!("check {}", built.display()))?;
    let object = flavour.object(places);
    let changed = replace(&object, &bytes)?;
    let state = if changed { "new" } else { "unchanged" };
    eprintln!("  {} ({state}): {} bytes, {contents}", object.display(), bytes.len());
    Ok(())
}

/// All that only tests load.
pub(crate) fn for_tests(places: &Places) -> Result<()> {
    [Flavour::Tests, Flavour::OtherLayout].into_iter().try_for_each(|flavour| run(places, flavour))
}

fn command(places: &Places, compiler: &Compiler, linker: &Path, flavour: Flavour) -> Command {
    let mut cargo = places.cargo();
    for wrapper in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(wrapper);
    }
    cargo.env("RUSTC", &compiler.rustc).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags());
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    cargo.args(["build", "--release", "--package", "proxy-ebpf", "--target", BPF_TARGET, "--target-dir"]);
    cargo.arg(places.target.join("ebpf")).env_remove("CARGO_TARGET_DIR").args(compiler.core.cargo_arguments());
    cargo.args(flavour.features());
    cargo
}

fn flags() -> String {
    format!("--cfg bpf_target_arch=\"{}\" -C debuginfo=2 -C link-arg=--btf -C panic=abort", env::consts::ARCH)
}

/// Puts `bytes` at `path` by one rename; leaves an equal file alone, so that nothing is rebuilt for it.
fn replace(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let folder = path.parent().context("the object lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let new = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    fs::write(&new, bytes).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replace {}", path.display()))?;
    Ok(true)
}
