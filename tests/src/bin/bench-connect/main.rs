//! What a Service costs the one who dials it (`cargo xtask bench connect`).
//!
//! In: the same Services, programmed by Sluice and by the real kube-proxy, and a pod without a Service. Out: a report.
//!
//! ```text
//! client pod --- veth --- node --- veth --- server pod        one such network without rules: direct, and Sluice
//!                                                             one more for each kube-proxy
//! ```
//!
//! One process on one CPU is client and server: each socket is made in its pod's network namespace and in the cgroup of
//! who is measured, so packets go all the way inside of the system call and no scheduler is in between. A batch for
//! each lane, in another order every round; what is compared are tenth percentiles of batches. The first lane comes
//! once more under another name: how much these differ is the noise.

mod figures;
mod floors;
mod lane;
mod scene;

use anyhow::{Context, Result};
use aya::sys::{Stats, enable_stats};
use proxy_tests::bench::{Kind, Options, Report, in_turn};

use lane::{Lane, Metric, STREAMED};
use scene::Scene;

const ROUNDS: usize = 600;
/// Rounds in which the kernel counts the time inside of programs.
const INSIDE_ROUNDS: usize = 100;
const QUICK_ROUNDS: usize = 3;

/// Services in the clusters that are measured.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) one: u32,
    pub(crate) some: u32,
    pub(crate) many: u32,
    pub(crate) most: u32,
}

const SIZES: Sizes = Sizes { one: 1, some: 1_000, many: 10_000, most: 50_000 };
const QUICK_SIZES: Sizes = Sizes { one: 1, some: 10, many: 20, most: 30 };

fn main() -> Result<()> {
    let options = Options::parse();
    let (rounds, sizes) = if options.quick { (QUICK_ROUNDS, QUICK_SIZES) } else { (ROUNDS, SIZES) };
    let mut report = Report::begin("connect", &options)?;
    let beside = report.beside_kube_proxy()?;
    let scene = Scene::build(sizes, beside)?;
    let samples = scene.measure(rounds)?;
    let inside = scene.measure_inside(INSIDE_ROUNDS.min(rounds))?;
    report.note(format!(
        "One process on one CPU, {rounds} rounds; in each, every lane has its batch: {}.",
        Metric::ALL.map(Metric::batch_text).join(", ")
    ));
    report.note("Every Service has ten endpoints: one pod that has as many addresses.");
    let measured = Measured { lanes: scene.lanes(), samples, inside };
    figures::fill(&mut report, &measured, sizes, beside);
    drop(scene);
    report.finish(&options)
}

/// By lane, by metric: what each batch took per operation, in nanoseconds.
pub(crate) type Samples = Vec<[Vec<f64>; Metric::ALL.len()]>;

/// All that was measured, by lane.
pub(crate) struct Measured {
    pub(crate) lanes: Vec<(String, Kind)>,
    pub(crate) samples: Samples,
    /// What each batch took inside of the program of connect, in nanoseconds per connect. Empty without one.
    pub(crate) inside: Vec<Vec<f64>>,
}

/// Runs every lane's batches.
pub(crate) fn rounds(lanes: &mut [Lane], count: usize) -> Result<Samples> {
    let mut samples: Samples = lanes.iter().map(|_| Default::default()).collect();
    // One for all: lanes shall not differ in the memory that they stream from.
    let mut buffer = vec![0; STREAMED];
    in_turn(lanes.len(), count, |lane| {
        for (metric, nanoseconds) in lanes[lane].batch(&mut buffer)? {
            samples[lane][metric as usize].push(nanoseconds);
        }
        Ok(())
    })?;
    Ok(samples)
}

/// Runs every lane's connects while the kernel counts, which makes the system calls themselves dearer.
pub(crate) fn rounds_inside(lanes: &mut [Lane], count: usize) -> Result<Vec<Vec<f64>>> {
    let _counting = enable_stats(Stats::RunTime).context("let the kernel count the time in programs")?;
    let mut inside = vec![Vec::new(); lanes.len()];
    in_turn(lanes.len(), count, |lane| {
        inside[lane].extend(lanes[lane].inside()?);
        Ok(())
    })?;
    Ok(inside)
}
