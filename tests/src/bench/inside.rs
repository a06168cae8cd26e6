//! How long the program of a hook runs, as the kernel itself counts it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{ProgramInfo, loaded_programs};
use proxy_userspace::sys::bpf;

/// One program that is loaded.
#[derive(Debug)]
pub struct Inside(OwnedFd);

impl Inside {
    /// The program of the link that is pinned at `pin`.
    pub fn of_link(pin: &Path) -> Result<Self> {
        let link = bpf::open_pin(pin)?;
        let id = bpf::link_info(link.as_fd())?.program_id;
        let program = loaded_programs().flatten().find(|program| program.id() == id);
        Self::of(&program.with_context(|| format!("no program {id} behind {}", pin.display()))?)
    }

    pub fn of(program: &ProgramInfo) -> Result<Self> {
        Ok(Self(program.fd()?.as_fd().try_clone_to_owned()?))
    }

    /// The program that is pinned at `pin`.
    pub fn of_pin(pin: &Path) -> Result<Self> {
        Ok(Self(bpf::open_pin(pin)?))
    }

    /// Stands still unless somebody holds `enable_stats`.
    pub fn so_far(&self) -> Result<Time> {
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let number = |name: &str| {
            let line = told.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no number `{name}` in {told}"))
        };
        Ok(Time { spent: Duration::from_nanos(number("run_time_ns:")?), runs: number("run_cnt:")? })
    }
}

/// All runs of a program so far.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    spent: Duration,
    runs: u64,
}

impl Time {
    /// Nanoseconds of each run since `before`; not a number without one.
    pub fn per_run_since(self, before: Self) -> f64 {
        let runs = u32::try_from(self.runs - before.runs).unwrap_or(u32::MAX);
        self.spent.saturating_sub(before.spent).as_secs_f64() * 1e9 / f64::from(runs)
    }
}
