//! Programs at devices by TCX links (kernel 6.6 and newer), each pinned.
//!
//! A filter of ours that stood there before goes as soon as the link is there, and before its pin does.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Done, Hook, Order, Site, clsact, fresh, is_of_filter};
use crate::sys::bpf::{self, Kind, Pin, TcxLinkInfo, link_update, pin, program_id, tcx, tcx_attach, tcx_link_info};
use crate::sys::passes;

/// Whether this kernel has them.
pub(super) fn works() -> bool {
    const LOOPBACK: u32 = 1;
    bpf::tcx_programs(LOOPBACK, tcx::INGRESS).is_ok()
}

/// Makes `program` the one of ours at `site`. A link that still holds on to it is kept: others have arranged themselves
/// around its position. Only where that was chosen by another order does a new link come, and the old one goes after that:
/// for a moment packets meet both, and what the first one has translated is not the other one's any more.
pub(super) fn ensure(site: &Site, program: BorrowedFd<'_>, order: Order) -> io::Result<Done> {
    let old = standing(site)?;
    let runs = old.as_ref().map(|link| tcx_link_info(link.fd.as_fd())).transpose()?.map(|info| info.program_id);
    if runs == Some(program_id(program)?) {
        return Ok(Done::Stood);
    }
    // A link that nobody came to put in its place goes with its pin.
    let fresh = fresh(&site.pin);
    if let Some(link) = &old
        && site.order() == order
    {
        link_update(link.fd.as_fd(), program)?;
        return Ok(Done::Swapped);
    }
    let link = tcx_attach(program, site.device, attach_type(site.hook), position(site.hook, order))?;
    pin(link.as_fd(), &fresh).map_err(|error| error.source)?;
    if is_of_filter(&site.pin)? {
        clsact::remove(site)?;
    }
    fs::rename(&fresh, &site.pin)?;
    site.note_order(order)?;
    old.map_or(Ok(()), |link| bpf::link_detach(link.fd.as_fd()))?;
    Ok(Done::Attached)
}

/// The link pinned for `site`, unless it is defunct or no such link.
fn standing(site: &Site) -> io::Result<Option<Pin>> {
    let link = match Pin::open(&site.pin) {
        Ok(link) if link.kind == Kind::Link => link,
        Err(error) if passes(&error.source) => return Err(error.source),
        _ => return Ok(None),
    };
    let info = tcx_link_info(link.fd.as_fd())?;
    let found = (info.link_type, info.device, info.attach_type);
    Ok((found == (TcxLinkInfo::TCX, site.device, attach_type(site.hook))).then_some(link))
}

/// Detaches the link pinned for `site`, if it is one. The pin stays.
pub(super) fn remove(site: &Site) -> io::Result<()> {
    standing(site)?.map_or(Ok(()), |link| bpf::link_detach(link.fd.as_fd()))
}

/// Whether the program with this id runs there.
pub(super) fn runs(device: u32, hook: Hook, id: u32) -> bool {
    bpf::tcx_programs(device, attach_type(hook)).is_ok_and(|ids| ids.contains(&id))
}

/// The id of the program of ours at `site`, and those of all programs there in the order in which they run.
pub(super) fn look(site: &Site) -> io::Result<Option<(u32, Vec<u32>)>> {
    let Some(link) = standing(site)? else { return Ok(None) };
    let own = tcx_link_info(link.fd.as_fd())?.program_id;
    Ok(Some((own, bpf::tcx_programs(site.device, attach_type(site.hook))?)))
}

fn attach_type(hook: Hook) -> u32 {
    match hook {
        Hook::Ingress => tcx::INGRESS,
        Hook::Egress => tcx::EGRESS,
    }
}

fn position(hook: Hook, order: Order) -> u32 {
    if order.is_first(hook) { tcx::FIRST } else { tcx::LAST }
}
