//! The first process of a guest that `cargo xtask kernels` boots: runs a plan on the machine's own files and powers off.
//!
//! In: `/plan.json` of the initial RAM file system, and the files of the host, read-only. Out, on the console: the
//! kernel, what each program says between `@@ start NAME` and `@@ end NAME SECONDS STATUS`, and `@@ over` at the end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{chdir, chroot};
use serde::Deserialize;

#[derive(Deserialize)]
struct Plan {
    /// Files of kernel modules, in the order in which they need each other.
    modules: Vec<String>,
    environment: BTreeMap<String, String>,
    programs: Vec<Program>,
}

#[derive(Deserialize)]
struct Program {
    name: String,
    command: Vec<String>,
}

fn main() {
    if let Err(error) = run() {
        println!("@@ failed {error:#}");
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    println!("@@ failed to power off: {error}");
}

fn run() -> Result<()> {
    println!("@@ kernel {}", nix::sys::utsname::uname()?.release().display());
    let plan: Plan = serde_json::from_slice(&fs::read("/plan.json")?).context("the plan")?;
    for module in &plan.modules {
        let file = File::open(module).with_context(|| module.clone())?;
        finit_module(file, c"", ModuleInitFlags::empty()).with_context(|| format!("load {module}"))?;
    }
    enter_host().context("the files of the host")?;
    for program in &plan.programs {
        println!("@@ start {}", program.name);
        let started = Instant::now();
        let status = Command::new(&program.command[0])
            .args(&program.command[1..])
            .env_clear()
            .envs(&plan.environment)
            .status()
            .with_context(|| format!("start {:?}", program.command))?;
        println!("@@ end {} {:.1} {}", program.name, started.elapsed().as_secs_f64(), status.code().unwrap_or(-1));
    }
    println!("@@ over");
    Ok(())
}

/// Makes the host's files the root, with kernel file systems and scratch space of our own on top.
fn enter_host() -> Result<()> {
    fs::create_dir("/host")?;
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";
    let read_only = MsFlags::MS_RDONLY;
    mount(Some("host"), "/host", Some("9p"), read_only, Some(options)).context("9p")?;
    for (kind, place) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "run")] {
        put(kind, &format!("/host/{place}"))?;
    }
    fs::create_dir("/host/dev/shm")?;
    put("tmpfs", "/host/dev/shm")?;
    put("cgroup2", "/host/sys/fs/cgroup")?;
    // Hides the types of the kernel: aya 0.14 reads all of them before each load, which costs a test as much as all else
    // it computes, and our programs ask for none.
    put("tmpfs", "/host/sys/kernel/btf")?;
    chdir("/host")?;
    // Not chroot alone: the tests come back into this mount namespace by its root.
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    Ok(chdir(Path::new("/"))?)
}

fn put(kind: &str, place: &str) -> Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>).with_context(|| format!("{kind} at {place}"))
}
