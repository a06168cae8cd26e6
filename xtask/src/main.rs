//! Every developer action: `cargo xtask setup | build-ebpf | demo | test | kernels | bench | ci`.
//!
//! Each subcommand makes sure of what it needs (`setup`), does its work and says how long that took. What is decided
//! where: [`places`] knows the folders, [`step`] runs one command with progress, [`cache`] keeps finished components.

mod bench;
mod build_ebpf;
mod cache;
mod compiler;
mod demo;
mod kernels;
mod kubernetes;
mod linker;
mod object_check;
mod places;
mod privilege;
mod product;
mod setup;
mod step;
mod strip;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::build_ebpf::Flavour;
use crate::places::Places;
use crate::setup::{Consent, Need};

/// Build, try and test Sluice.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Find or install what building and testing needs.
    Setup(Answers),
    /// Compile the kernel programs to target/bpf/sluice.bpf.o.
    BuildEbpf {
        /// Log every decision in the kernel (see the feature `debug`).
        #[arg(long)]
        debug: bool,
        /// Make what only tests load: target/bpf/sluice-test.bpf.o and target/bpf/sluice-other.bpf.o.
        #[arg(long, conflicts_with = "debug")]
        test_programs: bool,
        #[command(flatten)]
        answers: Answers,
    },
    /// Show Sluice at work on this machine, in namespaces of its own.
    Demo(Answers),
    /// Run the tests, cheapest first; everything unless a part is named.
    Test {
        part: Option<test::Part>,
        #[command(flatten)]
        answers: Answers,
    },
    /// Load every program and run the tests that need root on kernels from 5.10 to 7, in guests; part of the tests.
    Kernels {
        #[command(flatten)]
        choice: kernels::Choice,
        #[command(flatten)]
        answers: Answers,
    },
    /// Measure something; not part of the tests.
    Bench {
        what: bench::What,
        #[command(flatten)]
        options: bench::Options,
        #[command(flatten)]
        answers: Answers,
    },
    /// What "done" means: set-up and every test, nothing left out.
    Ci,
}

#[derive(clap::Args)]
struct Answers {
    /// Run the printed set-up commands without asking (never sudo).
    #[arg(long)]
    yes: bool,
}

impl Answers {
    fn consent(&self) -> Consent {
        if self.yes { Consent::Given } else { Consent::Ask }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    let places = Places::find()?;
    match action {
        Action::Setup(answers) => setup::run(&places, &Need::ALL, answers.consent())?,
        Action::BuildEbpf { debug, test_programs, answers } => {
            setup::run(&places, &[Need::Ebpf], answers.consent())?;
            match (debug, test_programs) {
                (true, _) => build_ebpf::run(&places, Flavour::Debug)?,
                (_, true) => build_ebpf::for_tests(&places)?,
                _ => build_ebpf::run(&places, Flavour::Release)?,
            }
        }
        Action::Demo(answers) => {
            setup::run(&places, &[Need::Ebpf, Need::Namespaces], answers.consent())?;
            demo::run(&places, &product::release(&places)?)?;
        }
        Action::Test { part, answers } => {
            return Ok(test::run(&places, part, answers.consent(), test::Strictness::of_ci_variable()));
        }
        Action::Kernels { choice, answers } => {
            setup::run(&places, &[Need::Ebpf, Need::Guests], answers.consent())?;
            kernels::run(&places, &choice)?;
        }
        Action::Bench { what, options, answers } => {
            setup::run(&places, what.needs(), answers.consent())?;
            bench::run(&places, what, &options)?;
        }
        Action::Ci => return Ok(test::run(&places, None, Consent::Given, test::Strictness::NothingLeftOut)),
    }
    Ok(ExitCode::SUCCESS)
}
