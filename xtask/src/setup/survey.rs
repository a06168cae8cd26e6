//! What is there, what would help, and what cannot be had. Looks only.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::compiler;
use crate::kubernetes;
use crate::linker::{self, Linker};
use crate::places::Places;
use crate::setup::packages::Apt;
use crate::setup::{Need, Remedy};

/// The LLVM of the distribution compiler that set-up installs.
const DISTRIBUTION_LLVM: u32 = 22;

/// Compilers with `core` for BPF, the shorter way first.
const COMPILER_PACKAGES: [&[&str]; 2] = [&["rustc-web", "libstd-rust-web-dev-bpf"], &["rustc-web", "rust-web-src"]];

const LLVM_PACKAGES: [(u32, &[&str]); 3] = [
    (22, &["llvm-22-dev", "libpolly-22-dev"]),
    (23, &["llvm-23-dev", "libpolly-23-dev"]),
    (21, &["llvm-21-dev", "libpolly-21-dev"]),
];

const COMPILER_ADVICE: &str = "a rustc that can build for BPF: rustup toolchain install nightly --component rust-src \
     (or Debian's rustc-web with libstd-rust-web-dev-bpf, or another compiler with its library sources, named by SLUICE_BPF_RUSTC)";

/// What the namespace tests and the demo run, and the packages that hold it.
const TOOLS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("bpftool", "bpftool"),
    ("strace", "strace"),
    ("ethtool", "ethtool"),
];

/// What fetching and booting other kernels runs.
const GUEST_TOOLS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
];

/// The answer of one look at the machine.
pub(crate) struct Survey<'a> {
    pub(crate) found: Vec<String>,
    pub(crate) remedies: Vec<Remedy>,
    pub(crate) missing: Vec<String>,
    places: &'a Places,
    apt: Apt,
    packages: Vec<&'static str>,
}

impl<'a> Survey<'a> {
    /// `again` once package lists and the like have been refreshed in this run.
    pub(crate) fn of(places: &'a Places, needs: &[Need], again: bool) -> Result<Self> {
        let mut survey = Self {
            found: Vec::new(),
            remedies: Vec::new(),
            missing: Vec::new(),
            places,
            apt: Apt::find(),
            packages: Vec::new(),
        };
        for need in needs {
            survey.look_for(*need)?;
        }
        survey.settle_packages(again);
        Ok(survey)
    }

    fn look_for(&mut self, need: Need) -> Result<()> {
        match need {
            Need::Ebpf => self.ebpf()?,
            Need::Lints => self.lints(),
            Need::Namespaces => self.tools(&TOOLS),
            Need::Guests => self.tools(&GUEST_TOOLS),
            Need::Go => self.go(),
            Need::Kubernetes => {}
        }
        Ok(())
    }

    fn ebpf(&mut self) -> Result<()> {
        let compiler = compiler::find()?;
        let llvm = compiler.as_ref().map_or(DISTRIBUTION_LLVM, |compiler| compiler.llvm);
        match compiler {
            Some(found) => self.found.push(format!(
                "compiler for BPF: {} ({}, {})",
                found.version,
                found.rustc.display(),
                found.origin
            )),
            None => self.compiler(),
        }
        match linker::find(self.places, llvm) {
            Linker::Ready(path) => self.found.push(format!("bpf-linker: {}", path.display())),
            Linker::Buildable(build) => self.remedies.push(Remedy::BuildLinker(build)),
            Linker::Missing => self.llvm(llvm),
        }
        Ok(())
    }

    fn compiler(&mut self) {
        if let Some(packages) = COMPILER_PACKAGES.into_iter().find(|packages| self.apt.offers(packages)) {
            self.packages.extend(packages);
        } else if program("rustup").is_some() {
            self.remedies.push(Remedy::Install { command: nightly(), root: false });
        } else {
            self.cannot(COMPILER_ADVICE.to_owned());
        }
    }

    fn llvm(&mut self, at_least: u32) {
        let packages = LLVM_PACKAGES.into_iter().filter(|(llvm, _)| *llvm >= at_least);
        match packages.map(|(_, packages)| packages).find(|packages| self.apt.offers(packages)) {
            Some(packages) => self.packages.extend(packages),
            None => self.cannot(format!(
                "LLVM {at_least} or newer with its headers (Debian: llvm-{at_least}-dev libpolly-{at_least}-dev), to build bpf-linker; \
                 or a ready bpf-linker on the PATH or in SLUICE_BPF_LINKER"
            )),
        }
    }

    fn lints(&mut self) {
        for tool in ["cargo-fmt", "cargo-clippy"] {
            if program(tool).is_none() {
                self.cannot(format!("{tool} (with rustup: rustup component add rustfmt clippy)"));
            }
        }
    }

    fn tools(&mut self, tools: &[(&str, &'static str)]) {
        for &(tool, package) in tools {
            match program(tool) {
                Some(_) => {}
                None if self.packages.contains(&package) => {}
                None if self.apt.offers(&[package]) => self.packages.push(package),
                None => self.cannot(format!("the program {tool} (Debian: {package})")),
            }
        }
    }

    fn go(&mut self) {
        match kubernetes::go_version() {
            _ if kubernetes::all_ready(self.places) => {}
            Some(version) => self.found.push(format!("Go: {version}")),
            None => self.cannot("Go 1.26 or newer, to build the Kubernetes programs for the API tests".to_owned()),
        }
    }

    fn cannot(&mut self, what: String) {
        self.missing.push(what);
    }

    /// One installation for all packages; package lists first on a machine that has none yet.
    fn settle_packages(&mut self, again: bool) {
        if !self.missing.is_empty() && self.apt.is_present() && !again && !Apt::has_lists() {
            self.remedies = vec![Remedy::Install { command: Apt::update(), root: true }];
            self.missing.clear();
        } else if !self.packages.is_empty() {
            let command = Apt::install(&self.packages);
            self.remedies.insert(0, Remedy::Install { command, root: true });
        }
    }
}

fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    command
}

/// Looked for on the PATH and where administrators' tools lie, which a user's PATH often leaves out.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(name)).find(|file| Path::is_file(file))
}
