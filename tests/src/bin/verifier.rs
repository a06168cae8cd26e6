//! Loads the kernel programs as the agent does, and prints what the verifier of this kernel had to do for each.
//!
//! Out: one line per program, `NAME INSTRUCTIONS STACK MICROSECONDS`: instructions verified, bytes of stack (of the
//! program and of each of its functions), processor time of the load. Kernels before 5.16 say the first two only in the
//! verifier's log, which the loader asks for when a load fails and never else; so this program listens to its own
//! system calls (see `build.rs`) and adds the wish for a log to each load.
#![expect(unsafe_code, reason = "a room of its own for one system call")]

use std::ffi::{c_int, c_long};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use proxy_common::policy::Steered;
use proxy_common::tables::Capacity;
use proxy_tests::world::{PINS, World};
use proxy_userspace::attach::object::{Constants, DEVICE_HOOKS, HOOKS, Object};

/// Tables have no part in what the verifier does: small ones load sooner.
const CAPACITY: Capacity = Capacity { frontends: 64, services: 64, ..Capacity::DEFAULT };
/// The settings with which the programs do most: the verifier leaves out what a constant rules out.
const CONSTANTS: Constants =
    Constants { netns_cookie: None, steered: Steered::TheNode, has_unsteered: true, fast_path: true, succeeds: true };

fn main() -> Result<()> {
    let _world = World::new()?;
    let folder = Path::new(PINS).join("verifier");
    std::fs::DirBuilder::new().mode(0o700).create(&folder).context("make a pin folder")?;
    // That those for devices are refused is said by who asks for them.
    Object::load(&folder, &CAPACITY, &CONSTANTS, true)?.device_programs(&folder)?;
    let mut loads = std::mem::take(&mut *LOADS.lock().expect("no panic under the lock"));
    loads.sort_by(|a, b| a.program.cmp(&b.program));
    let wanted = HOOKS.len() + DEVICE_HOOKS.len();
    ensure!(loads.len() == wanted, "{} programs were loaded, not {wanted}", loads.len());
    loads.iter().try_for_each(Load::print)
}

/// One program that the kernel took.
struct Load {
    program: String,
    took: Duration,
    log: String,
}

static LOADS: Mutex<Vec<Load>> = Mutex::new(Vec::new());

impl Load {
    fn print(&self) -> Result<()> {
        let after = |words: &str| {
            let rest = self.log.split(words).nth(1).and_then(|rest| rest.split_whitespace().next());
            rest.with_context(|| format!("{}: the verifier does not say {words:?}:\n{}", self.program, self.log))
        };
        let (instructions, stack) = (after("processed ")?, after("stack depth ")?);
        println!("{} {instructions} {stack} {}", self.program, self.took.as_micros());
        Ok(())
    }
}

const BPF_PROG_LOAD: c_long = 5;
/// The level that logs a summary and nothing else (kernel 5.2).
const BPF_LOG_STATS: u32 = 4;

/// The head of `union bpf_attr` of a load.
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

unsafe extern "C" {
    fn __real_syscall(number: c_long, ...) -> c_long;
}

/// Every call of libc's `syscall` in this program; those of less arguments pass what happens to be in the registers.
#[unsafe(no_mangle)]
extern "C" fn __wrap_syscall(
    number: c_long,
    one: c_long,
    two: c_long,
    three: c_long,
    four: c_long,
    five: c_long,
    six: c_long,
) -> c_long {
    // SAFETY: the caller's arguments, handed on as they came.
    let call = || unsafe { __real_syscall(number, one, two, three, four, five, six) };
    if number != libc::SYS_bpf || one as c_int != BPF_PROG_LOAD as c_int {
        return call();
    }
    // SAFETY: the second argument of a load points to its attributes, which the caller does not use meanwhile.
    let attributes = unsafe { &mut *(two as *mut LoadAttributes) };
    let name = String::from_utf8_lossy(&attributes.prog_name).trim_end_matches('\0').to_owned();
    let is_wanted = [&HOOKS[..], &DEVICE_HOOKS[..]].concat().contains(&name.as_str());
    if attributes.log_level == 0 && is_wanted { observed(attributes, name, call) } else { call() }
}

/// Makes the call with a log. One that fails is the caller's business, who asks again with a log of its own.
fn observed(attributes: &mut LoadAttributes, program: String, call: impl Fn() -> c_long) -> c_long {
    let mut log = vec![0_u8; 1 << 16];
    (attributes.log_level, attributes.log_size) = (BPF_LOG_STATS, log.len() as u32);
    attributes.log_buf = log.as_mut_ptr() as u64;
    let started = processor_time();
    let fd = call();
    if fd >= 0 {
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        let log = String::from_utf8_lossy(text).into_owned();
        let load = Load { program, took: processor_time().saturating_sub(started), log };
        LOADS.lock().expect("no panic under the lock").push(load);
    }
    (attributes.log_level, attributes.log_size, attributes.log_buf) = (0, 0, 0);
    fd
}

/// Of this thread: the agent loads all programs at once, more than there are processors.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
