//! One pinned link per hook, its program replaced in place.
//!
//! In: a loaded program and the cgroup. Out: exactly one program of ours at that hook. A link that is already there and
//! still holds on to the right cgroup has its program swapped by the kernel in one step; any other one is succeeded by a
//! new link, which is attached before the old one goes, so that no connection meets a hook without a program.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use tracing::{debug, info};

use super::AttachError;
use super::cgroup::Cgroup;
use super::object::LoadedProgram;
use crate::sys::bpf::{Kind, LinkInfo, Pin, link_info, link_update};

/// Makes `program` the one at its hook in `cgroup`, with its link pinned in `folder`.
pub(super) fn ensure(folder: &Path, mut program: LoadedProgram<'_>, cgroup: &Cgroup) -> Result<(), AttachError> {
    let pin = folder.join(program.name);
    if swap(&pin, &program, cgroup) {
        debug!(program = program.name, "swapped in place");
        return Ok(());
    }
    let fail = |program: &str, reason: String| AttachError::Attach {
        program: program.to_owned(),
        cgroup: cgroup.path.clone(),
        reason,
    };
    // The dash keeps it apart from every program name; a pin of this name is what a dead process left.
    let fresh = folder.join(format!("{}-new", program.name));
    let _ = fs::remove_file(&fresh);
    program.attach(cgroup, &fresh).map_err(|reason| fail(program.name, reason))?;
    if fs::symlink_metadata(&pin).is_ok_and(|found| found.is_dir()) {
        let _ = fs::remove_dir_all(&pin);
    }
    fs::rename(&fresh, &pin).map_err(|error| fail(program.name, format!("pinning at {}: {error}", pin.display())))?;
    info!(program = program.name, cgroup = %cgroup.path.display(), "attached");
    Ok(())
}

/// Swaps the program of the link pinned at `pin`; false when there is no such link, or when it belongs elsewhere.
fn swap(pin: &Path, program: &LoadedProgram<'_>, cgroup: &Cgroup) -> bool {
    let Ok(link) = Pin::open(pin) else { return false };
    let (Kind::Link, Ok(info), Ok(program)) = (link.kind, link_info(link.fd.as_fd()), program.fd()) else {
        return false;
    };
    // A defunct link reports cgroup 0. The kernel refuses a program of another attach type.
    info.link_type == LinkInfo::CGROUP && info.cgroup_id == cgroup.id && link_update(link.fd.as_fd(), program).is_ok()
}
