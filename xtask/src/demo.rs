//! What `cargo xtask demo` shows: builds the program `demo` of the tests crate and runs it as root.
//!
//! The demo itself is `tests/src/bin/demo`: it needs namespaces, pods and probes, which the tests have.

use std::path::Path;

use anyhow::Result;

use crate::places::Places;
use crate::privilege;
use crate::product;

/// Runs the demo with the agent at `sluice`.
pub(crate) fn run(places: &Places, sluice: &Path) -> Result<()> {
    let demo = product::test_program(places, "demo")?;
    let why = "the demo makes network namespaces and loads kernel programs";
    privilege::run_as_root(why, &demo, &[], &[format!("SLUICE_BIN={}", sluice.display())])
}
