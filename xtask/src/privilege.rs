//! Root for the few programs that need it, and only for those: never for cargo, which would leave root's files in `target/`.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::step;

/// How a program gets root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// This process has it.
    Own,
    /// The user agreed to sudo.
    Sudo,
}

impl Privilege {
    /// Root for `purpose`: our own, or with the user's word through sudo.
    pub(crate) fn obtain(purpose: &str) -> Result<Self> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::Own);
        }
        if !io::stdin().is_terminal() {
            bail!("needs root, and there is nobody to ask about sudo");
        }
        ensure!(agreed(&format!("{purpose}: this needs root. Use sudo?"))?, "needs root");
        Self::sudo()
    }

    /// Asks for the password now, so that no spinner hides the question.
    pub(crate) fn sudo() -> Result<Self> {
        let status = Command::new("sudo").arg("-v").status().context("run sudo")?;
        ensure!(status.success(), "needs root, and sudo was refused");
        Ok(Self::Sudo)
    }

    pub(crate) fn command(self, program: &str) -> Command {
        match self {
            Self::Own => Command::new(program),
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.arg(program);
                sudo
            }
        }
    }
}

/// Runs a built program as root, its output as it comes. `variables` are `NAME=VALUE`.
pub(crate) fn run_as_root(purpose: &str, program: &Path, arguments: &[String], variables: &[String]) -> Result<()> {
    let (said, told) = (arguments.join(" "), variables.join(" "));
    let by_hand = || format!("to run it by hand: sudo env {told} {} {said}", program.display());
    let mut command = Privilege::obtain(purpose).with_context(by_hand)?.command("env");
    command.args(variables).arg(program).args(arguments);
    let status = command.status().with_context(|| format!("run {}", step::shown(&command)))?;
    ensure!(status.success(), "{}: {status}", program.display());
    Ok(())
}

/// Asks a question on the terminal; anything but yes is no.
pub(crate) fn agreed(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
