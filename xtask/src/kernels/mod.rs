//! `cargo xtask kernels`: the kernel programs and the tests that need nothing outside of a machine, on other kernels.
//!
//! ```text
//! fetch     Debian's kernel packages                 -> image and drivers, in the cache
//! declared  what guests run, and what not, and why   -> tests of each guest
//! image     first process, drivers, plan             -> an initial RAM file system
//! guest     QEMU on both, with the host's files      -> lines of the serial console
//! report    those lines                              -> what failed, and tables
//! ```

mod declared;
mod document;
mod fetch;
mod guest;
mod image;
mod report;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::build_ebpf;
use crate::places::Places;
use crate::product::{self, Executable};
use crate::step;
use declared::{Breadth, LeftOut};
use fetch::{Kernel, SERIES};
use report::{Expected, Findings};

pub(crate) use fetch::Series;

/// The program that says what the verifier did.
const LOADER: &str = "verifier";

/// Tests of one program at a time: most of them wait for something most of the time.
const THREADS: usize = 4;
/// As [`THREADS`], where more tests run: what a dozen clients leave of an emulated processor is too little for another test.
const FEW_THREADS: usize = 1;

/// Guests at a time, of two processors each.
const GUESTS: usize = 2;

/// From the start of QEMU to its end: several times what a guest takes, for machines that are busy. Half of it is for one
/// test program, which is ended then, so that its tests can be named.
const LIFE: Duration = Duration::from_mins(20);
/// As [`LIFE`], where more tests run.
const LONG_LIFE: Duration = Duration::from_hours(2);

/// Which kernels and tests: all kernels, and what `declared` says of them.
#[derive(Default, clap::Args)]
pub(crate) struct Choice {
    /// Lines of kernels.
    #[arg(value_name = "KERNEL", value_parser = series)]
    kernels: Vec<Series>,
    /// Every test on the oldest kernel, and more on the others (xtask/src/kernels/declared.rs).
    #[arg(long)]
    all: bool,
    /// All tests of these programs, such as `hooks`, also of those that are left out in all guests.
    #[arg(long = "only", value_name = "PROGRAM")]
    programs: Vec<String>,
    /// Tests by their full names, of those programs.
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Put the tables between the marks that name this command in this Markdown file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "all", "programs", "tests"])]
    docs: Option<PathBuf>,
}

impl Choice {
    fn names_tests(&self) -> bool {
        !(self.programs.is_empty() && self.tests.is_empty())
    }

    fn wants(&self, program: &str, test: &str, series: Series) -> bool {
        let named = |names: &[String], name: &str| names.is_empty() || names.iter().any(|one| one == name);
        let breadth = if self.all { Breadth::All } else { Breadth::Usual };
        let chosen = self.names_tests() || declared::runs(program, test, series, breadth);
        chosen && named(&self.programs, program) && named(&self.tests, test)
    }

    /// Who names something wants to see it although it takes its time.
    fn forbids(&self, left_out: &LeftOut) -> bool {
        left_out.before.is_some() || !self.names_tests()
    }

    fn is_long(&self) -> bool {
        self.all || self.names_tests()
    }

    fn life(&self) -> Duration {
        if self.is_long() { LONG_LIFE } else { LIFE }
    }

    fn threads(&self) -> usize {
        if self.is_long() { FEW_THREADS } else { THREADS }
    }
}

fn series(name: &str) -> Result<Series, String> {
    let known = SERIES.map(|series| series.name).join(", ");
    SERIES.into_iter().find(|series| series.name == name).ok_or_else(|| format!("known lines of kernels: {known}"))
}

pub(crate) fn run(places: &Places, choice: &Choice) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "other kernels are fetched for x86_64 only: run this on such a machine");
    choice.docs.as_deref().map_or(Ok(()), document::check)?;
    let started = Instant::now();
    let wanted = if choice.kernels.is_empty() { &SERIES[..] } else { &choice.kernels };
    let kernels = wanted.iter().map(|series| fetch::kernel(places, series)).collect::<Result<Vec<_>>>()?;
    let plan = Plan::make(places, choice)?;
    let findings = all(&kernels, |kernel| boot(kernel, &plan))?;
    println!("{}\n\n{}", report::loads(&findings), report::tests(&findings));
    println!("\nLeft out:\n\n{}\n", report::left_out(&plan.programs));
    println!("{} kernels in {}", findings.len(), step::seconds(started.elapsed()));
    for bad in findings.iter().filter(|findings| !findings.fine()) {
        eprintln!("kernel {}:\n{}", bad.kernel, bad.complaints.join("\n"));
    }
    let bad: Vec<_> = findings.iter().filter(|findings| !findings.fine()).map(|bad| bad.kernel.as_str()).collect();
    ensure!(bad.is_empty(), "not everything works on kernel {}", bad.join(", "));
    choice.docs.as_ref().map_or(Ok(()), |file| document::put(file, &document::text(&findings, &plan.programs)))
}

/// What guests run: the loader, then test programs.
struct Plan<'a> {
    init: PathBuf,
    loader: PathBuf,
    sluice: PathBuf,
    programs: Vec<TestProgram>,
    choice: &'a Choice,
}

/// One test program and the names of its tests.
struct TestProgram {
    name: String,
    path: PathBuf,
    tests: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Builds what guests run.
    fn make(places: &Places, choice: &'a Choice) -> Result<Self> {
        // Programs of sockets are in the first object, which the agent's build makes; those of devices in this one.
        build_ebpf::for_tests(places)?;
        let sluice = product::release(places)?;
        let (loader, init) = (product::test_program(places, LOADER)?, product::test_program(places, "guest")?);
        let built = product::root_tests(places)?;
        let programs = built.into_iter().filter(|built| built.kind == "test").map(TestProgram::of);
        let programs = programs.collect::<Result<Vec<_>>>()?;
        declared::check(&programs)?;
        let plan = Self { init, loader, sluice, programs, choice };
        let any = SERIES.iter().any(|series| !plan.expected(*series).is_empty());
        ensure!(any, "no test that needs root and that guests can run has such a name");
        Ok(plan)
    }

    /// What a kernel of `series` is asked to show.
    fn expected(&self, series: Series) -> Vec<Expected> {
        let is_left_out = |program: &str, test: &str| {
            declared::of(program, test, series.version()).is_some_and(|line| self.choice.forbids(line))
        };
        let of = |program: &TestProgram| {
            let wanted = program.tests.iter().filter(|test| self.choice.wants(&program.name, test, series)).cloned();
            let (left_out, tests) = wanted.partition(|test| is_left_out(&program.name, test));
            Expected { program: program.name.clone(), tests, left_out }
        };
        self.programs.iter().map(of).filter(|expected| !expected.tests.is_empty()).collect()
    }

    /// As the first process of a guest reads it.
    fn json(&self, expected: &[Expected]) -> Value {
        let environment = json!({
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TMPDIR": "/dev/shm",
            "SLUICE_BIN": self.sluice,
        });
        let loader = json!({ "name": LOADER, "command": [self.loader] });
        let tests = expected.iter().map(|expected| {
            let program = self.programs.iter().find(|program| program.name == expected.program);
            let path = &program.expect("expected of this plan").path;
            let limit = (self.choice.life() / 2).as_secs().to_string();
            let start = ["timeout", "--kill-after=10", &limit].map(str::to_owned).into_iter();
            let options = ["--exact".to_owned(), format!("--test-threads={}", self.choice.threads())];
            let command: Vec<_> = start
                .chain([path.display().to_string()])
                .chain(expected.tests.iter().cloned())
                .chain(options)
                .collect();
            json!({ "name": expected.program, "command": command })
        });
        let programs: Vec<_> = [loader].into_iter().chain(tests).collect();
        json!({ "environment": environment, "programs": programs })
    }
}

impl TestProgram {
    fn of(built: Executable) -> Result<Self> {
        let Executable { name, path, .. } = built;
        let list = step::run(&format!("tests of {name}"), Command::new(&path).args(["--list", "--format", "terse"]))?;
        let tests = list.output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
        Ok(Self { name, path, tests })
    }
}

fn boot(kernel: &Kernel, plan: &Plan<'_>) -> Result<Findings> {
    let name = kernel.series.name;
    let expected = plan.expected(kernel.series);
    let initramfs = image::initramfs(&plan.init, kernel, plan.json(&expected))?;
    let started = Instant::now();
    eprintln!("  kernel {name} ...");
    let lines = guest::run(&kernel.image, &initramfs, plan.choice.life())?;
    let findings = Findings::read(name, &lines, LOADER, &expected, started.elapsed());
    let state = if findings.fine() { "done" } else { "FAILED" };
    eprintln!("  kernel {}: {state} in {}", findings.kernel, step::seconds(started.elapsed()));
    Ok(findings)
}

/// Some at a time; the answers are in the order of the kernels.
fn all(kernels: &[Kernel], boot: impl Fn(&Kernel) -> Result<Findings> + Sync) -> Result<Vec<Findings>> {
    let next = Mutex::new(kernels.iter().enumerate());
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..GUESTS {
            scope.spawn(|| {
                while let Some((number, kernel)) = { next.lock().expect("nobody panics").next() } {
                    let findings = boot(kernel);
                    found.lock().expect("nobody panics").push((number, findings));
                }
            });
        }
    });
    let mut found = found.into_inner()?;
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, findings)| findings).collect()
}
