//! Where and with what a benchmark ran: named beside every figure.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use crate::process::sluice_binary;

/// Nobody is to move us: what is measured happens on one CPU.
pub fn pin_to_one_cpu() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("a process may run somewhere")?)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("stay on one CPU")
}

/// The machine of a run, and the versions of what was measured on it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub virtual_machine: bool,
    pub kernel: String,
    pub load_before: String,
    pub load_after: String,
    /// Names and versions.
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// Reads everything but the load afterwards. Compiler and commit are what `cargo xtask bench` says they are.
    pub fn look() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let mut machine = Self {
            cpu: cpuinfo_field(&cpuinfo, "model name").unwrap_or("unknown CPU").to_owned(),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: cpuinfo_field(&cpuinfo, "flags").is_some_and(|flags| flags.contains("hypervisor")),
            kernel: kernel.trim_end().to_owned(),
            load_before: load()?,
            load_after: String::new(),
            versions: Vec::new(),
        };
        machine.version("sluice", first_line(Command::new(sluice_binary()?).arg("--version"))?);
        for (name, variable) in [("commit", "SLUICE_COMMIT"), ("compiler", "SLUICE_RUSTC")] {
            machine.version(name, std::env::var(variable).unwrap_or_else(|_| "unknown".to_owned()));
        }
        Ok(machine)
    }

    /// Names the version of something that is measured.
    pub fn version(&mut self, name: &str, version: String) {
        self.versions.push((name.to_owned(), version));
    }

    /// Asks a program for its version.
    pub fn program(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.version(name, first_line(command)?);
        Ok(())
    }

    pub(super) fn finished(&mut self) -> Result<()> {
        self.load_after = load()?;
        Ok(())
    }

    /// One paragraph for people.
    pub(super) fn text(&self) -> String {
        let kind = if self.virtual_machine { "one virtual machine" } else { "one machine" };
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "{kind}, {} CPUs ({}), kernel {}; load {} before, {} after\n{}",
            self.cpus,
            self.cpu,
            self.kernel,
            self.load_before,
            self.load_after,
            versions.join("; ")
        )
    }
}

fn cpuinfo_field<'a>(cpuinfo: &'a str, field: &str) -> Option<&'a str> {
    let line = cpuinfo.lines().find(|line| line.starts_with(field))?;
    line.split_once(": ").map(|(_, value)| value.trim())
}

/// Load averages of 1, 5 and 15 minutes.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn first_line(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    // `sluice 0.1.0` and `Kubernetes v1.36.3` name themselves already.
    let line = text.lines().next().unwrap_or_default();
    Ok(line.split_once(' ').map_or(line, |(_, version)| version).to_owned())
}
