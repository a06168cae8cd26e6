//! Raw system calls: the one room for `unsafe` in user space.
//!
//! In: descriptors, plain values. Out: safe types and [`CallError`]s that name the call, the thing and the errno.
//! Refuses to know: what a table means, what a hook does. What aya or nix offer safely is used from there instead.

pub mod bpf;
pub mod mapped;
pub mod net;
pub mod netlink;
mod program;

use std::io;

use proxy_common::balance::NANOSECONDS;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {thing}: {source}")]
pub struct CallError {
    pub call: &'static str,
    /// What the call was about: a path, a table, a socket.
    pub thing: String,
    #[source]
    pub source: io::Error,
}

impl CallError {
    pub fn new(call: &'static str, thing: impl std::fmt::Display, source: impl Into<io::Error>) -> Self {
        Self { call, thing: thing.to_string(), source: source.into() }
    }
}

/// Whether a call failed for want of something that comes back by itself, so that it says nothing about what it was about.
pub fn passes(error: &io::Error) -> bool {
    use libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
    matches!(error.raw_os_error(), Some(EAGAIN | EINTR | EMFILE | ENFILE | ENOBUFS | ENOMEM | ENOSPC))
}

/// The failed system call behind `error`, or itself.
pub fn failed_call<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut causes = std::iter::successors(Some(error), |cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref::<io::Error>().filter(|error| error.raw_os_error().is_some()))
}

/// Nanoseconds of the clock that the hooks stamp with (`bpf_ktime_get_ns`).
pub fn monotonic_nanos() -> u64 {
    let now = nix::time::ClockId::CLOCK_MONOTONIC.now().expect("every kernel has this clock");
    now.tv_sec().cast_unsigned() * NANOSECONDS + now.tv_nsec().cast_unsigned()
}

/// The same in whole seconds, in which flows count.
pub fn monotonic_seconds() -> u32 {
    (monotonic_nanos() / NANOSECONDS) as u32
}

/// Rust catches the signals of memory faults in order to name a stack overflow, and lets one that somebody sent pass by.
/// From here on they end the process at once, whoever sent them.
#[expect(unsafe_code, reason = "setting a signal's effect is unsafe in nix: handlers may do anything")]
pub fn end_by_fault_signals() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for fault in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default effect runs no code of ours.
        unsafe { signal(fault, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Differs between nodes and between boots, and is the same after a restart; 0 without proc.
pub fn number_of_this_boot() -> u32 {
    let told = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    told.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Set in a process that took the place of one that could not go on.
const BEGUN_AGAIN: &str = "SLUICE_BEGUN_AGAIN";

/// Whether this process is the second try of another.
pub fn has_begun_again() -> bool {
    std::env::var_os(BEGUN_AGAIN).is_some()
}

/// Runs the same command in the place of this process, under its number. Comes back only with an error.
pub fn begin_again() -> io::Error {
    use std::os::unix::process::CommandExt;
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    std::process::Command::new("/proc/self/exe").arg0(program).args(words).env(BEGUN_AGAIN, "1").exec()
}

/// Lets large blocks go back to the system as soon as they are free, and keeps all threads to one heap: left alone, the C
/// library holds on to what a cold start took for as long as the agent lives.
#[expect(unsafe_code, reason = "settings of the C library")]
pub fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE_BLOCK)] {
        // SAFETY: no memory is passed, and no other thread runs yet.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Bytes from which on a block is mapped by itself.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: libc::c_int = 256 << 10;

/// Gives memory back to the system that is out of use, also the parts of the program that ran until now: worth a walk
/// over the heap, and a fault for what runs again, when most of both is not needed any more.
#[expect(unsafe_code, reason = "a request to the C library")]
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no memory is passed; only what is free is touched.
    unsafe {
        libc::malloc_trim(0);
    }
    program::unmap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_passes_and_a_refusal_does_not() {
        let passing = |errno| passes(&io::Error::from_raw_os_error(errno));
        for errno in [libc::ENOMEM, libc::EAGAIN, libc::EMFILE, libc::ENFILE, libc::EINTR, libc::ENOSPC, libc::ENOBUFS]
        {
            assert!(passing(errno), "{errno}");
        }
        for errno in [libc::EACCES, libc::EPERM, libc::EINVAL, libc::E2BIG, libc::ENOENT, libc::EEXIST, libc::EBADF] {
            assert!(!passing(errno), "{errno}");
        }
        assert!(!passes(&io::Error::other("not a map")));
    }

    #[test]
    fn the_failed_call_is_found_behind_any_number_of_causes() {
        let call = CallError::new("open pin", "/sys/fs/bpf/x", io::Error::from_raw_os_error(libc::EMFILE));
        let wrapped = crate::attach::AttachError::from(call);
        assert_eq!(failed_call(&wrapped).and_then(io::Error::raw_os_error), Some(libc::EMFILE));
        assert!(failed_call(&io::Error::other("not a map")).is_none());
    }
}
