//! The only file that knows every stage: wake on changes, converge, back off, clean up when idle.

use crate::config::Config;

/// Runs until the process is ended by a signal; what it put into the kernel stays and keeps serving.
pub fn run(_config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("`sluice run` is not wired up yet")
}
