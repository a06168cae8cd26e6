//! How long flows last, as the command line says it.

use jiff::SignedDuration;

use super::{Result, invalid};
use crate::args;
use crate::timeouts::Asked;

pub(super) fn timeouts(run: &args::Run) -> Result<Asked> {
    Ok(Asked {
        tcp_established: seconds("conntrack-tcp-timeout-established", &run.conntrack_tcp_timeout_established)?,
        tcp_close_wait: seconds("conntrack-tcp-timeout-close-wait", &run.conntrack_tcp_timeout_close_wait)?,
        udp: seconds("conntrack-udp-timeout", &run.conntrack_udp_timeout)?,
        udp_stream: seconds("conntrack-udp-timeout-stream", &run.conntrack_udp_timeout_stream)?,
    })
}

/// A duration as Go writes it, in whole seconds.
fn seconds(flag: &'static str, typed: &str) -> Result<u32> {
    let duration = if typed == "0" { Ok(SignedDuration::ZERO) } else { typed.parse::<SignedDuration>() };
    let duration = duration.ok().filter(|duration| !duration.is_negative());
    match duration.and_then(|duration| u32::try_from(duration.as_secs()).ok()) {
        Some(seconds) => Ok(seconds),
        None => invalid(flag, format!("{typed:?} is not a duration such as 24h, 90m or 0")),
    }
}
