//! Which rustc compiles the kernel programs. Stable ships no `core` for BPF, so it takes one that brings a ready-made
//! `core` or the sources to build it from: the one named by the environment, a rustup nightly, a system's rustc.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::linker;

/// The kernel's byte order is the host's, and both supported hosts are little endian.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Who names a compiler outright.
const VARIABLES: [&str; 2] = ["SLUICE_BPF_RUSTC", "BPF_RUSTC"];

/// A compiler that can build for BPF.
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    /// Where it was found, for the user.
    pub(crate) origin: String,
    pub(crate) core: Core,
    /// Major version of its LLVM; the linker's must not be older.
    pub(crate) llvm: u32,
    pub(crate) version: String,
}

/// Where `core` for BPF comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    ReadyMade,
    FromSource,
}

impl Core {
    pub(crate) fn cargo_arguments(self) -> &'static [&'static str] {
        match self {
            Self::ReadyMade => &[],
            Self::FromSource => &["-Z", "build-std=core"],
        }
    }
}

/// The first usable compiler in the order of the module's description, if any.
pub(crate) fn find() -> Result<Option<Compiler>> {
    for variable in VARIABLES {
        if let Some(rustc) = env::var_os(variable) {
            return named_by(variable, &rustc).map(Some);
        }
    }
    Ok(nightlies()
        .into_iter()
        .chain(system_compilers())
        .find_map(|(rustc, origin)| inspect(&rustc, &origin).ok().flatten()))
}

/// What the environment names must work: quietly taking another would hide the mistake.
fn named_by(variable: &str, rustc: &OsString) -> Result<Compiler> {
    let origin = format!("named by {variable}");
    match inspect(Path::new(rustc), &origin).with_context(|| format!("{variable}={}", rustc.display()))? {
        Some(compiler) => Ok(compiler),
        None => bail!(
            "{variable}={}: this compiler has neither a ready-made core for {BPF_TARGET} nor the sources of its library, \
             or its LLVM is newer than {}",
            rustc.display(),
            linker::NEWEST_LLVM
        ),
    }
}

fn nightlies() -> Vec<(PathBuf, String)> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".rustup")));
    let folders = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()).into_iter().flatten().flatten();
    let mut nightlies: Vec<_> = folders.map(|folder| folder.path()).filter(|path| is_nightly(path)).collect();
    nightlies.sort();
    nightlies
        .into_iter()
        .map(|path| (path.join("bin/rustc"), format!("rustup toolchain {}", file_name(&path))))
        .collect()
}

fn is_nightly(toolchain: &Path) -> bool {
    file_name(toolchain).starts_with("nightly")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Every other rustc: those on the PATH, and Debian's, which a rustup in the user's PATH hides.
fn system_compilers() -> Vec<(PathBuf, String)> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = vec![PathBuf::from("/usr/bin/rustc")];
    candidates.extend(env::split_paths(&path).map(|folder| folder.join("rustc")));
    candidates.dedup();
    candidates.into_iter().filter(|rustc| rustc.exists()).map(|rustc| (rustc, "system compiler".to_owned())).collect()
}

/// `None` for a compiler without `core` for BPF, or one whose output no linker of ours can read.
fn inspect(rustc: &Path, origin: &str) -> Result<Option<Compiler>> {
    let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());
    let Some(core) = core_in(&sysroot) else { return Ok(None) };
    let verbose = ask(rustc, &["-vV"])?;
    let llvm = llvm_major(&verbose).with_context(|| format!("{} -vV names no LLVM version", rustc.display()))?;
    if llvm > linker::NEWEST_LLVM {
        return Ok(None);
    }
    let version = verbose.lines().next().unwrap_or_default().to_owned();
    Ok(Some(Compiler { rustc: real_compiler(&sysroot, rustc), origin: origin.to_owned(), core, llvm, version }))
}

/// A rustup shim decides anew in every folder and environment; the compiler behind it does not.
fn real_compiler(sysroot: &Path, asked: &Path) -> PathBuf {
    let behind = sysroot.join("bin/rustc");
    if behind.exists() { behind } else { asked.to_owned() }
}

fn core_in(sysroot: &Path) -> Option<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    let ready = fs::read_dir(rustlib.join(BPF_TARGET).join("lib")).into_iter().flatten().flatten();
    if ready.map(|file| file_name(&file.path())).any(|name| name.starts_with("libcore-")) {
        return Some(Core::ReadyMade);
    }
    rustlib.join("src/rust/library/core/Cargo.toml").exists().then_some(Core::FromSource)
}

fn ask(rustc: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(rustc);
    command.args(arguments).env_remove("RUSTUP_TOOLCHAIN").env("RUSTUP_AUTO_INSTALL", "0");
    let answer = command.output().with_context(|| format!("run {}", rustc.display()))?;
    if !answer.status.success() {
        bail!("{} {}: {}", rustc.display(), arguments.join(" "), String::from_utf8_lossy(&answer.stderr).trim());
    }
    Ok(String::from_utf8(answer.stdout)?)
}

fn llvm_major(verbose: &str) -> Option<u32> {
    verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_what_rustc_says_about_itself() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[test]
    fn a_folder_without_a_library_is_no_sysroot_for_bpf() {
        assert_eq!(core_in(Path::new("/nonexistent")), None);
    }
}
