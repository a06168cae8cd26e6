//! What Services cost where packets pass a device (`cargo xtask bench packet`).
//!
//! Out: a report of two parts: what the programs take for each packet, and what a client outside of a node has of that, beside
//! kube-proxy.

mod outside;
mod programs;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use proxy_tests::bench::{Options, Report};
use proxy_tests::world::World;

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds that the programs take for a packet.
    Programs,
    /// A client outside of the node dials a node port.
    Outside,
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Measure only this; may be given more than once.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
}

fn main() -> Result<()> {
    let Arguments { options, only } = Arguments::parse();
    let wants = |part| only.is_empty() || only.contains(&part);
    let mut report = Report::begin("packet", &options)?;
    let world = World::new()?;
    if wants(Part::Outside) {
        let beside = report.beside_kube_proxy()?;
        outside::measure(&mut report, &world, options.quick, beside)?;
    }
    if wants(Part::Programs) {
        programs::measure(&mut report, options.quick)?;
    }
    report.finish(&options)
}
