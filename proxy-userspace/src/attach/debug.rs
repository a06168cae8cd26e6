//! What the kernel programs say about every decision, in builds with the feature `debug`: into the agent's own log.
//!
//! In: programs built by `cargo xtask build-ebpf --debug`. Out: log lines, for as long as the agent lives.

use std::os::fd::AsFd;
use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};

/// Passes on what the programs of `ebpf` say, once they are loaded.
pub(super) fn follow(ebpf: &mut Ebpf) {
    match EbpfLogger::init_with_logger(ebpf, AgentLog) {
        Ok(logger) => drop(thread::spawn(move || pass_on(logger))),
        Err(error) => {
            warn!("the kernel programs say nothing ({error}): build them with `cargo xtask build-ebpf --debug`");
        }
    }
}

fn pass_on(mut logger: EbpfLogger<AgentLog>) {
    loop {
        let ready = poll(&mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        if let Err(error) = ready
            && error != Errno::EINTR
        {
            return warn!("what the kernel programs say is no longer read: {error}");
        }
        logger.flush();
    }
}

/// The agent logs through `tracing`, aya through `log`.
struct AgentLog;

impl log::Log for AgentLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        info!("kernel: {}", record.args());
    }

    fn flush(&self) {}
}
