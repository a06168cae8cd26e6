//! The capabilities that putting programs into the kernel takes, and which of them this process lacks.
//!
//! In: the text of `/proc/self/status`. Out: names. Asked before anything is made, so that who may not leaves nothing.

use std::fs;

/// A capability that some part of Sluice needs.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    pub name: &'static str,
    bit: u32,
    /// The one that it replaced, which is as good.
    instead: Option<u32>,
}

const CAP_SYS_ADMIN: u32 = 21;

/// What the agent needs. Without `CAP_PERFMON` the verifier follows what a processor may only guess, and refuses programs for it.
pub const NEEDED: [Capability; 3] = [
    Capability { name: "CAP_BPF", bit: 39, instead: Some(CAP_SYS_ADMIN) },
    Capability { name: "CAP_PERFMON", bit: 38, instead: Some(CAP_SYS_ADMIN) },
    Capability { name: "CAP_NET_ADMIN", bit: 12, instead: None },
];

/// What moving sockets of other processes takes.
pub const SYS_PTRACE: Capability = Capability { name: "CAP_SYS_PTRACE", bit: 19, instead: None };

#[derive(Debug, thiserror::Error)]
#[error("this process lacks {}: run it as root with its capabilities, or grant what is missing", missing.join(" and "))]
pub struct RightsError {
    missing: Vec<&'static str>,
}

impl Capability {
    /// Whether a process with this status has it.
    pub fn is_in(&self, status: &str) -> bool {
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        let has = |bit: u32| mask & (1 << bit) != 0;
        has(self.bit) || self.instead.is_some_and(has)
    }
}

/// Refuses a process without the rights; without `/proc` the kernel will say it.
pub(super) fn check() -> Result<(), RightsError> {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return Ok(()) };
    let missing: Vec<_> = NEEDED.iter().filter(|needed| !needed.is_in(&status)).map(|needed| needed.name).collect();
    if missing.is_empty() { Ok(()) } else { Err(RightsError { missing }) }
}
