//! One function per stage: the command that is the proof.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::{Context, Result};

use super::lanes::LANES;
use crate::places::Places;
use crate::privilege::Privilege;
use crate::product::Executable;
use crate::step::{self, Outcome};

/// Names the files that `cargo fmt --all` would change.
pub(super) fn format(places: &Places) -> Result<()> {
    step::run("cargo fmt --check", places.cargo().args(["fmt", "--all", "--check", "--", "-l"])).map(drop)
}

/// Without the feature `io` there is no kube client, no aya and no tokio to reach for.
pub(super) fn lint_core(places: &Places) -> Result<()> {
    let mut cargo = places.cargo();
    cargo.args([
        "clippy",
        "--package",
        "proxy-userspace",
        "--no-default-features",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    step::run("cargo clippy, the core alone", &mut cargo).map(drop)
}

pub(super) fn lint(places: &Places) -> Result<()> {
    let mut cargo = places.cargo();
    cargo.args(["clippy", "--workspace", "--exclude", "proxy-ebpf", "--all-targets", "--", "-D", "warnings"]);
    step::run("cargo clippy", &mut cargo).map(drop)
}

pub(super) fn unit_tests(places: &Places) -> Result<Outcome> {
    step::observe("cargo test", places.cargo().args(["test", "--no-fail-fast"]))
}

/// Nothing here runs nearly as long; a program that hangs must not eat the time of those behind it.
const LIMIT_SECONDS: u32 = 15 * 60;

/// Runs a test program as root; it learns from the environment which agent and which Kubernetes programs to start.
pub(super) fn run_as_root(
    test: &Executable,
    privilege: Privilege,
    sluice: &Path,
    programs: &[(&'static str, PathBuf)],
) -> Result<Outcome> {
    let mut command = privilege.command("env");
    command.arg(format!("SLUICE_BIN={}", sluice.display()));
    command.args(programs.iter().map(|(variable, path)| format!("{variable}={}", path.display())));
    command.arg(format!("RUST_TEST_THREADS={}", threads()?));
    // In the foreground, so that Ctrl-C reaches the tests.
    command.args(["timeout", "--foreground", "--kill-after=10", &LIMIT_SECONDS.to_string()]).arg(&test.path);
    step::observe(&format!("{} tests", test.name), &mut command)
}

/// These tests wait for the kernel (grace periods, timers) more than they compute: two for each CPU, whatever the lane.
fn threads() -> Result<usize> {
    Ok((2 * available_parallelism().context("count the CPUs")?.get()).div_ceil(LANES))
}
