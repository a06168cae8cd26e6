//! bpf-linker: named by the environment, on the PATH, or built once into the cache against an installed LLVM.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::places::Places;
use crate::{cache, step};

const VERSION: &str = "0.13.0";
/// The LLVM versions that this bpf-linker can be built against.
const OLDEST_LLVM: u32 = 21;
pub(crate) const NEWEST_LLVM: u32 = 23;
/// Names a ready bpf-linker.
const VARIABLE: &str = "SLUICE_BPF_LINKER";

/// A bpf-linker that is there, or what it takes to get one.
pub(crate) enum Linker {
    Ready(PathBuf),
    /// An LLVM to build against is installed.
    Buildable(Build),
    /// Neither a linker nor an LLVM.
    Missing,
}

/// How bpf-linker is built here.
pub(crate) struct Build {
    llvm: u32,
    prefix: PathBuf,
}

/// Looks for a linker that reads what a compiler with this LLVM writes (bitcode is readable by newer LLVMs only).
pub(crate) fn find(places: &Places, compiler_llvm: u32) -> Linker {
    if let Some(named) = env::var_os(VARIABLE) {
        return Linker::Ready(named.into());
    }
    let build = (compiler_llvm.max(OLDEST_LLVM)..=NEWEST_LLVM).find_map(installed_llvm);
    let built = build.as_ref().and_then(|build| build.finished(places));
    match (built.or_else(on_path), build) {
        (Some(linker), _) => Linker::Ready(linker),
        (None, Some(build)) => Linker::Buildable(build),
        (None, None) => Linker::Missing,
    }
}

impl Build {
    /// What will be run, for the user to read; the root is a temporary name until the build is complete.
    pub(crate) fn shown(&self, places: &Places) -> String {
        step::shown(&self.command(places, &places.cache.join(self.name())))
    }

    pub(crate) fn run(&self, places: &Places) -> Result<()> {
        cache::get_or_build(&places.cache, &self.name(), |folder| {
            step::run(&format!("build bpf-linker {VERSION}"), &mut self.command(places, folder)).map(drop)
        })
        .map(drop)
    }

    fn command(&self, places: &Places, root: &Path) -> Command {
        let mut command = places.cargo();
        // The checkout's cargo configuration (static binaries) is not for this tool: it loads LLVM dynamically.
        command.current_dir("/").env_remove("CARGO_TARGET_DIR");
        command.env("LLVM_PREFIX", &self.prefix).env(format!("LLVM_SYS_{}1_PREFIX", self.llvm), &self.prefix);
        command.args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            VERSION,
            "--no-default-features",
            "--features",
        ]);
        command.arg(self.feature()).arg("--root").arg(root);
        command
    }

    fn feature(&self) -> String {
        format!("llvm-{}", self.llvm)
    }

    fn name(&self) -> String {
        cache::name("bpf-linker", VERSION, &[&self.feature(), &self.prefix.to_string_lossy()])
    }

    fn finished(&self, places: &Places) -> Option<PathBuf> {
        Some(cache::finished(&places.cache, &self.name())?.join("bin/bpf-linker"))
    }
}

fn installed_llvm(llvm: u32) -> Option<Build> {
    let prefixes =
        [format!("/usr/lib/llvm-{llvm}"), format!("/usr/lib/llvm{llvm}"), "/usr/local".into(), "/usr".into()];
    let prefix = prefixes.map(PathBuf::from).into_iter().find(|prefix| has_development_files(prefix, llvm))?;
    Some(Build { llvm, prefix })
}

fn has_development_files(prefix: &Path, llvm: u32) -> bool {
    let config = prefix.join("bin/llvm-config");
    let version = Command::new(config).arg("--version").output();
    version.is_ok_and(|answer| String::from_utf8_lossy(&answer.stdout).starts_with(&format!("{llvm}.")))
}

fn on_path() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let linker = env::split_paths(&path).map(|folder| folder.join("bpf-linker")).find(|file| file.is_file())?;
    new_enough(&linker).ok()?.then_some(linker)
}

fn new_enough(linker: &Path) -> Result<bool> {
    let answer = Command::new(linker).arg("--version").output().with_context(|| format!("run {}", linker.display()))?;
    Ok(minor_version(&String::from_utf8_lossy(&answer.stdout))
        .is_some_and(|minor| Some(minor) >= minor_version(VERSION)))
}

/// The y of x.y.z; every bpf-linker so far is a 0.y.
fn minor_version(text: &str) -> Option<u32> {
    text.split_whitespace().last()?.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linker_older_than_ours_is_recognised_by_its_minor_version() {
        assert_eq!(minor_version("bpf-linker 0.13.0\n"), Some(13));
        assert!(minor_version("bpf-linker 0.9.15") < minor_version(VERSION));
        assert_eq!(minor_version(""), None);
    }
}
