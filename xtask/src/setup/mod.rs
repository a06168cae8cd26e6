//! Finds what building and testing needs and gets what is missing.
//!
//! A survey looks and changes nothing. What it misses becomes commands, which are printed before they run; those that
//! change the system wait for a yes, and sudo is asked for by name. Then the survey looks again, until nothing is missing.

mod packages;
mod survey;

use std::env;
use std::io::{self, IsTerminal};
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::places::Places;
use crate::privilege::{Privilege, agreed};
use crate::setup::survey::Survey;
use crate::{kubernetes, step};

/// What an action needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compiling the kernel programs.
    Ebpf,
    /// `cargo fmt` and `cargo clippy`.
    Lints,
    /// Building and looking at namespaces, as root.
    Namespaces,
    /// Booting other kernels.
    Guests,
    /// A Go toolchain.
    Go,
    /// The Kubernetes programs themselves.
    Kubernetes,
}

impl Need {
    pub(crate) const ALL: [Self; 6] =
        [Self::Ebpf, Self::Lints, Self::Namespaces, Self::Guests, Self::Go, Self::Kubernetes];
}

/// Whether the user has agreed to commands that change the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    Given,
    Ask,
}

/// One thing to do about something missing.
pub(crate) enum Remedy {
    /// Changes the system or the user's toolchains; `root` where it needs more rights than a user has.
    Install { command: Command, root: bool },
    /// Fills the cache.
    BuildLinker(crate::linker::Build),
}

pub(crate) fn run(places: &Places, needs: &[Need], consent: Consent) -> Result<()> {
    let consent = if is_ci() { Consent::Given } else { consent };
    let mut done = Vec::new();
    loop {
        let survey = Survey::of(places, needs, !done.is_empty())?;
        // Nobody waits for a build to hear afterwards that something else cannot be had.
        if survey.remedies.is_empty() || !survey.missing.is_empty() {
            return finish(places, needs, &survey);
        }
        remedy(places, &survey.remedies, consent, &mut done)?;
    }
}

/// True where `CI` says that nobody is there to answer.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

fn finish(places: &Places, needs: &[Need], survey: &Survey) -> Result<()> {
    for found in &survey.found {
        eprintln!("  {found}");
    }
    if !survey.missing.is_empty() {
        bail!(
            "set-up cannot get these here; install them and run the command again:\n  - {}",
            survey.missing.join("\n  - ")
        );
    }
    if needs.contains(&Need::Kubernetes) {
        kubernetes::programs(places)?;
    }
    Ok(())
}

fn remedy(places: &Places, remedies: &[Remedy], consent: Consent, done: &mut Vec<String>) -> Result<()> {
    eprintln!("Set-up will run:");
    let lines: Vec<String> = remedies.iter().map(|remedy| remedy.shown(places)).collect();
    for line in &lines {
        eprintln!("    {line}");
        ensure!(!done.contains(line), "this ran already and what it should bring is still missing: {line}");
    }
    agree(remedies, consent)?;
    for remedy in remedies {
        remedy.apply(places)?;
    }
    done.extend(lines);
    Ok(())
}

fn agree(remedies: &[Remedy], consent: Consent) -> Result<()> {
    let terminal = io::stdin().is_terminal();
    let sudo = remedies.iter().any(Remedy::wants_sudo);
    let system = remedies.iter().any(|remedy| matches!(remedy, Remedy::Install { .. }));
    match consent {
        Consent::Given if sudo && !terminal => {
            bail!("not root, and nobody to ask about sudo: run the commands above yourself")
        }
        Consent::Given if !sudo => Ok(()),
        Consent::Ask if !system => Ok(()),
        Consent::Ask if !terminal => bail!("nobody to ask: run the commands above yourself, or say --yes"),
        _ => {
            ensure!(agreed("Go on?")?, "stopped: nothing was changed");
            Ok(())
        }
    }
}

impl Remedy {
    fn wants_sudo(&self) -> bool {
        matches!(self, Self::Install { root: true, .. }) && !nix::unistd::geteuid().is_root()
    }

    fn shown(&self, places: &Places) -> String {
        match self {
            Self::Install { command, .. } if self.wants_sudo() => format!("sudo {}", step::shown(command)),
            Self::Install { command, .. } => step::shown(command),
            Self::BuildLinker(build) => build.shown(places),
        }
    }

    fn apply(&self, places: &Places) -> Result<()> {
        match self {
            Self::Install { command, .. } => {
                let privilege = if self.wants_sudo() { Privilege::sudo()? } else { Privilege::Own };
                let mut run = privilege.command(&command.get_program().to_string_lossy());
                step::run(&step::shown(command), run.args(command.get_args())).map(drop)
            }
            Self::BuildLinker(build) => build.run(places),
        }
    }
}
