//! What `cargo xtask demo` shows.

use std::path::Path;

use anyhow::{Result, bail};

/// Runs the demo with the agent at `sluice`.
pub(crate) fn run(sluice: &Path) -> Result<()> {
    bail!("the demo is not written yet; the agent is at {}", sluice.display())
}
