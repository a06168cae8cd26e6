//! Measurements, each a program of the tests crate that runs as root, of the release build.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::build_ebpf::{self, Flavour};
use crate::places::Places;
use crate::setup::Need;
use crate::{kubernetes, privilege, product};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// What it costs to remember a socket's flow, by place (docs/socket-state.md).
    Sockets,
    /// What Services cost where packets pass a device, also through kube-proxy (docs/performance.md).
    Packet,
    /// What it costs to look for flows that are over (docs/performance.md).
    Collector,
    /// What a Service costs who dials it, through Sluice and through kube-proxy (docs/performance.md).
    Connect,
    /// How fast changes of the cluster reach the kernel, through Sluice and through kube-proxy (docs/performance.md).
    Sync,
}

impl What {
    pub(crate) const fn needs(self) -> &'static [Need] {
        match self {
            Self::Sockets | Self::Collector => &[Need::Ebpf, Need::Namespaces],
            Self::Packet | Self::Connect | Self::Sync => &[Need::Ebpf, Need::Namespaces, Need::Go],
        }
    }
}

/// What every benchmark takes; they say the same in `tests/src/bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A smoke run: everything once, too few samples for a figure.
    #[arg(long)]
    quick: bool,
    /// Write every figure to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the plots (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Put the report between the two marks that name this benchmark in this Markdown file.
    #[arg(long, value_name = "FILE")]
    docs: Option<PathBuf>,
    /// Put what it comes to, a sentence or two, between such marks in this Markdown file.
    #[arg(long, value_name = "FILE")]
    headline: Option<PathBuf>,
    /// Measure only this part; may be given more than once. `bench sync` and `bench packet` have parts and name them when one is
    /// unknown.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
}

impl Options {
    fn arguments(&self) -> Vec<String> {
        let file =
            |name: &str, path: &Option<PathBuf>| path.as_ref().map(|path| format!("--{name}={}", path.display()));
        let quick = self.quick.then(|| "--quick".to_owned());
        let only = self.only.iter().map(|part| format!("--only={part}"));
        quick
            .into_iter()
            .chain(file("json", &self.json))
            .chain(file("plots", &self.plots))
            .chain(file("docs", &self.docs))
            .chain(file("headline", &self.headline))
            .chain(only)
            .collect()
    }
}

pub(crate) fn run(places: &Places, what: What, options: &Options) -> Result<()> {
    match what {
        What::Sockets => sockets(places, options),
        What::Collector => collector(places, options),
        What::Packet => beside_tests(places, "bench-packet", options),
        What::Connect => beside_tests(places, "bench-connect", options),
        What::Sync => beside(places, "bench-sync", options, &kubernetes::programs(places)?),
    }
}

/// The real kube-proxy gets the same to do in the same run. Each program comes with the variable that names it.
fn beside(places: &Places, program: &str, options: &Options, programs: &[(&str, PathBuf)]) -> Result<()> {
    let why = "the benchmark makes network namespaces and attaches kernel programs to cgroups of its own";
    let named = programs.iter().map(|(variable, path)| format!("{variable}={}", path.display()));
    measure(places, program, why, options, named.collect())
}

/// As [`beside`], with programs of the test object in it and kube-proxy alone.
fn beside_tests(places: &Places, program: &str, options: &Options) -> Result<()> {
    build_ebpf::run(places, Flavour::Tests)?;
    beside(places, program, options, &[kubernetes::program(places, "kube-proxy")?])
}

fn sockets(places: &Places, options: &Options) -> Result<()> {
    build_ebpf::run(places, Flavour::Tests)?;
    let why = "the benchmark attaches kernel programs to a cgroup of its own";
    measure(places, "socket-costs", why, options, Vec::new())
}

/// What the agent does runs in the benchmark itself.
fn collector(places: &Places, options: &Options) -> Result<()> {
    build_ebpf::run(places, Flavour::Tests)?;
    let bench = product::released_test_program(places, "bench-collector")?;
    let why = "the benchmark loads kernel programs and pins their tables in a file system of its own";
    run_beside_agent(places, &bench, why, options, Vec::new())
}

/// Builds the benchmark and runs it.
fn measure(places: &Places, program: &str, why: &str, options: &Options, more: Vec<String>) -> Result<()> {
    let bench = product::test_program(places, program)?;
    run_beside_agent(places, &bench, why, options, more)
}

/// Builds the agent as users get it and runs the benchmark, which is told what it cannot see itself.
fn run_beside_agent(places: &Places, bench: &Path, why: &str, options: &Options, more: Vec<String>) -> Result<()> {
    let sluice = product::release(places)?;
    let told = [
        format!("SLUICE_BIN={}", sluice.display()),
        format!("SLUICE_COMMIT={}", said(Command::new("git").args(["describe", "--always", "--dirty"]))),
        format!("SLUICE_RUSTC={}", said(Command::new("rustc").arg("--version"))),
    ];
    privilege::run_as_root(why, bench, &options.arguments(), &[told.to_vec(), more].concat())
}

/// What a program says in one line, if it is there.
fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
