//! Measurements, each a program of the tests crate that runs as root.

use anyhow::Result;

use crate::build_ebpf::{self, Flavour};
use crate::places::Places;
use crate::{privilege, product};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// What it costs to remember a socket's flow, by place (docs/socket-state.md).
    Sockets,
}

pub(crate) fn run(places: &Places, what: What) -> Result<()> {
    match what {
        What::Sockets => sockets(places),
    }
}

fn sockets(places: &Places) -> Result<()> {
    build_ebpf::run(places, Flavour::Tests)?;
    let bench = product::test_program(places, "socket-costs")?;
    privilege::run_as_root("the benchmark attaches kernel programs to a cgroup of its own", &bench, &[])
}
