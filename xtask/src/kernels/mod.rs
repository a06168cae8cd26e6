//! `cargo xtask kernels`: every kernel program on every line of kernels that it is written for.
//!
//! ```text
//! fetch   Debian's kernel packages                 -> image and drivers, in the cache
//! image   first process, drivers, plan             -> an initial RAM file system
//! guest   QEMU on both, with the host's files      -> lines of the serial console
//! report  those lines                              -> what failed, and a table
//! ```

mod fetch;
mod guest;
mod image;
mod report;

use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::build_ebpf::{self, Flavour};
use crate::places::Places;
use crate::{product, step};
use fetch::{Kernel, SERIES};
use report::Findings;

pub(crate) use fetch::Series;

/// The program that says what the verifier did.
const LOADER: &str = "verifier";

/// Guests at a time, of two processors each.
const GUESTS: usize = 2;

/// The line of kernels called `name`.
pub(crate) fn series(name: &str) -> Result<Series, String> {
    let known = SERIES.map(|series| series.name).join(", ");
    SERIES.into_iter().find(|series| series.name == name).ok_or_else(|| format!("known lines of kernels: {known}"))
}

/// Tries the kernels of `only`, or of every line if it names none.
pub(crate) fn run(places: &Places, only: &[Series]) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "other kernels are fetched for x86_64 only: run this on such a machine");
    let started = Instant::now();
    let wanted = if only.is_empty() { &SERIES } else { only };
    let kernels = wanted.iter().map(|series| fetch::kernel(places, series)).collect::<Result<Vec<_>>>()?;
    let plan = plan(places)?;
    let init = product::test_program(places, "guest")?;
    let findings = all(&kernels, |kernel| boot(kernel, &init, &plan))?;
    println!("{}", report::loads(&findings));
    println!("{} kernels in {}", findings.len(), step::seconds(started.elapsed()));
    for bad in findings.iter().filter(|findings| !findings.fine()) {
        eprintln!("kernel {}:\n{}", bad.kernel, bad.complaints.join("\n"));
    }
    let bad: Vec<_> = findings.iter().filter(|findings| !findings.fine()).map(|bad| bad.kernel.as_str()).collect();
    ensure!(bad.is_empty(), "not everything works on kernel {}", bad.join(", "));
    Ok(())
}

/// What every guest runs.
fn plan(places: &Places) -> Result<Value> {
    // Programs of sockets are in the first object, those of devices in the second one.
    build_ebpf::run(places, Flavour::Release)?;
    build_ebpf::run(places, Flavour::Tests)?;
    Ok(json!({
        "environment": { "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": "/dev/shm" },
        "programs": [{ "name": LOADER, "command": [product::test_program(places, LOADER)?] }],
    }))
}

fn boot(kernel: &Kernel, init: &Path, plan: &Value) -> Result<Findings> {
    let initramfs = image::initramfs(init, kernel, plan.clone())?;
    let started = Instant::now();
    eprintln!("  kernel {} ...", kernel.series);
    let findings = Findings::read(kernel.series, &guest::run(&kernel.image, &initramfs)?, LOADER);
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
