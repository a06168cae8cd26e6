//! `cargo xtask test`: the cheapest proof first, and a table at the end of what ran, what passed and what was left out.

mod lanes;
mod report;
mod stages;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::build_ebpf::{self, Flavour};
use crate::places::Places;
use crate::privilege::Privilege;
use crate::product::{self, Executable};
use crate::setup::{self, Consent, Need};
use crate::{kernels, kubernetes};
use lanes::Job;
pub(crate) use report::Counts;
use report::Report;

/// Kinds of tests, by what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// No root: format, lints, the pure core, everything beside the code, the static release.
    Unit,
    /// Root: real sockets between network namespaces.
    Netns,
    /// QEMU: the kernel programs and what they do on other kernels.
    Kernels,
    /// Root: a real API server, and kube-proxy beside us.
    Api,
}

/// What a stage that could not run means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    Lenient,
    NothingLeftOut,
}

impl Strictness {
    pub(crate) fn of_ci_variable() -> Self {
        if setup::is_ci() { Self::NothingLeftOut } else { Self::Lenient }
    }
}

/// The test targets that need programs of Kubernetes; every other one is a namespace test.
const API_TARGETS: [&str; 2] = ["api", "beside"];

pub(crate) fn run(places: &Places, part: Option<Part>, consent: Consent, strictness: Strictness) -> ExitCode {
    let parts = part.map_or_else(|| vec![Part::Unit, Part::Netns, Part::Kernels, Part::Api], |part| vec![part]);
    let mut report = Report::default();
    // What needs nothing of it is still worth running; the table says what could not be had.
    if let Err(error) = setup::run(places, &[Need::Ebpf, Need::Lints], consent) {
        report.left_out("set-up", format!("{error:#}"));
    }
    let (mut jobs, is_all) = (Vec::new(), part.is_none());
    for part in parts {
        match part {
            Part::Unit => unit(places, is_all, &mut report),
            Part::Netns => jobs.extend(namespaces(places, consent, &mut report)),
            Part::Kernels => jobs.extend(other_kernels(places, consent, &mut report)),
            Part::Api => jobs.extend(api(places, consent, &mut report)),
        }
    }
    lanes::run(jobs, &mut report);
    report.conclude(strictness)
}

/// What is to be had without root; where tests that need it come after, they are built meanwhile.
fn unit(places: &Places, more_to_come: bool, report: &mut Report) {
    report.check("format", || stages::format(places));
    report.check("kernel programs", || {
        build_ebpf::run(places, Flavour::Release)?;
        if more_to_come { build_ebpf::for_tests(places) } else { Ok(()) }
    });
    // Cargo builds one thing at a time in a folder, and each profile has its own: the release is built beside the rest.
    let mut jobs = vec![
        Job::check("static release", || {
            product::check_static(&product::release(places)?).map(|said| eprintln!("  {said}"))
        }),
        Job::check("lints of the pure core", || stages::lint_core(places)),
        Job::check("lints", || stages::lint(places)),
        Job::tests("unit tests", || stages::unit_tests(places)),
    ];
    if more_to_come {
        jobs.push(Job::check("tests that need root", || product::root_tests(places).map(drop)));
    }
    lanes::run(jobs, report);
}

fn namespaces<'a>(places: &'a Places, consent: Consent, report: &mut Report) -> Vec<Job<'a>> {
    let privilege = ready(places, "namespace tests", &[Need::Namespaces], consent, report);
    privilege.map_or_else(Vec::new, |privilege| {
        targets(places, privilege, report, &[], |target| !API_TARGETS.contains(&target))
    })
}

fn other_kernels<'a>(places: &'a Places, consent: Consent, report: &mut Report) -> Option<Job<'a>> {
    let ready = setup::run(places, &[Need::Ebpf, Need::Guests], consent);
    let ready = ready.map_err(|error| report.left_out("other kernels", format!("{error:#}")));
    ready.ok().map(|()| Job::check("other kernels", || kernels::run(places, &kernels::Choice::default())))
}

fn api<'a>(places: &'a Places, consent: Consent, report: &mut Report) -> Vec<Job<'a>> {
    let needs = [Need::Namespaces, Need::Go];
    let Some(privilege) = ready(places, "API server tests", &needs, consent, report) else { return Vec::new() };
    let mut programs = Vec::new();
    report.check("Kubernetes programs", || kubernetes::programs(places).map(|found| programs = found));
    if programs.is_empty() {
        report.left_out("API server tests", "the Kubernetes programs could not be built".to_owned());
        return Vec::new();
    }
    targets(places, privilege, report, &programs, |target| API_TARGETS.contains(&target))
}

/// Set-up and root for the tests called `name`; without them they are left out, and the report says why.
fn ready(places: &Places, name: &str, needs: &[Need], consent: Consent, report: &mut Report) -> Option<Privilege> {
    let answer = setup::run(places, needs, consent).and_then(|()| Privilege::obtain(name));
    answer.map_err(|error| report.left_out(name, format!("{error:#}"))).ok()
}

/// Builds the targets of proxy-tests; those that `wanted` names are a stage each.
fn targets<'a>(
    places: &'a Places,
    privilege: Privilege,
    report: &mut Report,
    programs: &[(&'static str, PathBuf)],
    wanted: impl Fn(&str) -> bool,
) -> Vec<Job<'a>> {
    let mut built = None;
    report.check("build the tests that need root", || {
        build_ebpf::for_tests(places)?;
        built = Some((product::release(places)?, product::root_tests(places)?));
        Ok(())
    });
    let Some((sluice, tests)) = built else { return Vec::new() };
    let job = |test: Executable| {
        let (sluice, programs) = (sluice.clone(), programs.to_vec());
        let title = test.name.clone();
        Job::tests(&title, move || stages::run_as_root(&test, privilege, &sluice, &programs))
    };
    tests.into_iter().filter(|test| wanted(&test.name)).map(job).collect()
}
