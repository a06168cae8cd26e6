//! What the loopback device needs besides a program, where packets turn round: answers of a Service at an address of the node
//! come in there with that address for their source, which IPv4 takes only if it is told to.
//!
//! In: a network namespace (the calling thread's). Out: `accept_local` of its loopback device, and a note where that is our
//! doing. No packet comes to this device from outside of the node.

use std::fs;
use std::io;
use std::path::Path;

use super::{is_noted, note};

const ACCEPTS: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";

/// Lets it take addresses of the node. `made` then notes that it did not before.
pub(super) fn accept_own(made: &Path) -> io::Result<()> {
    if fs::read_to_string(ACCEPTS)?.trim() != "0" {
        return Ok(());
    }
    note(made)?;
    fs::write(ACCEPTS, "1").map_err(|error| {
        let told =
            format!("{ACCEPTS} could not be written ({error}); set net.ipv4.conf.lo.accept_local=1 on this node");
        io::Error::new(error.kind(), told)
    })
}

/// Leaves it as it was.
pub(super) fn as_before(made: &Path) -> io::Result<()> {
    if is_noted(made) { fs::write(ACCEPTS, "0") } else { Ok(()) }
}
