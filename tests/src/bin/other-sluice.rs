//! `sluice run` of another version: one whose programs keep flows with other fields.
//!
//! Only its programs are another version's. What of the agent reads flows, the collector, sees nothing that it would forget.

use anyhow::{Context as _, Result, bail, ensure};
use proxy_tests::hooks::other_object;
use proxy_userspace::agent;
use proxy_userspace::args::{self, Command};
use proxy_userspace::attach::object::INSTEAD;
use proxy_userspace::config::Config;

fn main() -> Result<()> {
    ensure!(INSTEAD.set(other_object()?).is_ok(), "the programs are set once");
    let Command::Run(run) = args::parse(std::env::args_os())?.command else { bail!("only `run`") };
    agent::run(&Config::new(&run, "other").context("read the arguments")?)?;
    Ok(())
}
