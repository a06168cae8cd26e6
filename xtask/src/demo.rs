//! What `cargo xtask demo` shows: builds the program `demo` of the tests crate and runs it as root.
//!
//! The demo itself is `tests/src/bin/demo`: it needs namespaces, pods and probes, which the tests have.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::places::Places;
use crate::privilege::Privilege;
use crate::product::executables;
use crate::step;

/// Runs the demo with the agent at `sluice`.
pub(crate) fn run(places: &Places, sluice: &Path) -> Result<()> {
    let mut command = program(places, sluice)?;
    let by_hand = format!("to run it by hand: sudo {}", step::shown(&command));
    if Privilege::obtain("the demo makes network namespaces and loads kernel programs").context(by_hand)?
        == Privilege::Sudo
    {
        command = under_sudo(&command);
    }
    let status = command.status().with_context(|| format!("run {}", step::shown(&command)))?;
    ensure!(status.success(), "the demo failed: {status}");
    Ok(())
}

/// The built demo and where its agent is. Its helper `probe` is built beside it.
fn program(places: &Places, sluice: &Path) -> Result<Command> {
    let mut cargo = places.cargo();
    cargo.args(["build", "--package", "proxy-tests", "--bins", "--message-format", "json-render-diagnostics"]);
    let outcome = step::run("build the demo", &mut cargo)?;
    let demo = executables(&outcome.output).into_iter().find(|built| built.name == "demo");
    let mut command = Command::new("env");
    command.arg(format!("SLUICE_BIN={}", sluice.display())).arg(demo.context("cargo names no program `demo`")?.path);
    Ok(command)
}

fn under_sudo(command: &Command) -> Command {
    let mut sudo = Privilege::Sudo.command("env");
    sudo.args(command.get_args());
    sudo
}
