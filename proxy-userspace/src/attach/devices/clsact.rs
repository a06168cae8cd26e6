//! Programs at devices by filters of the queueing discipline `clsact` (before kernel 6.6).
//!
//! A filter is ours by its handle and name. A pin of the program stands for it, so that it is known without looking at
//! every device; a note says that `clsact` itself was put there by us. One request replaces the program of a filter,
//! and packets see the old one or the new one (`cls_bpf_change`). A link of ours that stood there before goes as soon as
//! the filter is there, and before its pin does.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{Done, Hook, Order, Site, fresh, is_noted, is_of_filter, note, tcx};
use crate::sys::bpf::{pin, program_id};
use crate::sys::netlink::exchange;

const NAME: &str = "sluice";
const HANDLE: TcHandle = TcHandle { major: 0, minor: 0x51CE };
const FIRST: u16 = 1;
/// The kernel numbers downwards from 0xC000 for those who name none.
const LAST: u16 = 0xFFFF;

/// Makes `program` the one of ours at `site`.
pub(super) fn ensure(site: &Site, program: BorrowedFd<'_>, order: Order) -> io::Result<Done> {
    let priority = if order.is_first(site.hook) { FIRST } else { LAST };
    let found = find(site, priority)?;
    if found == Some(program_id(program)?) && is_of_filter(&site.pin)? {
        return Ok(Done::Stood);
    }
    if add_clsact(site.device)? {
        note(&site.made_clsact())?;
    }
    // Before the filter: there is never one that nobody knows of.
    let fresh = fresh(&site.pin);
    pin(program, &fresh).map_err(|error| error.source)?;
    replace(site, priority, program)?;
    tcx::remove(site)?;
    fs::rename(&fresh, &site.pin)?;
    // With another order it stood elsewhere.
    remove_at(site, if priority == FIRST { LAST } else { FIRST })?;
    Ok(if found.is_some() { Done::Swapped } else { Done::Attached })
}

/// Removes our filter, and `clsact` where we put it and nobody else uses it.
pub(super) fn remove(site: &Site) -> io::Result<()> {
    remove_at(site, FIRST)?;
    remove_at(site, LAST)?;
    if is_noted(&site.made_clsact()) && !is_used(site.device)? {
        request(RouteNetlinkMessage::DelQueueDiscipline(clsact(site.device)), 0).or_else(gone)?;
        fs::remove_file(site.made_clsact())?;
    }
    Ok(())
}

/// The id of our program at `site`.
pub(super) fn look(site: &Site) -> io::Result<Option<u32>> {
    Ok(find(site, FIRST)?.or(find(site, LAST)?))
}

fn remove_at(site: &Site, priority: u16) -> io::Result<()> {
    match find(site, priority) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => request(RouteNetlinkMessage::DelTrafficFilter(filter(site, priority)), 0).or_else(gone),
        Err(error) => gone(error),
    }
}

/// The id of our program at this priority.
fn find(site: &Site, priority: u16) -> io::Result<Option<u32>> {
    let (mut name, mut program) = (None, None);
    let asked =
        exchange(NETLINK_ROUTE, RouteNetlinkMessage::GetTrafficFilter(filter(site, priority)), NLM_F_ACK, |message| {
            let RouteNetlinkMessage::NewTrafficFilter(found) = message else { return };
            let options = found.attributes.into_iter().filter_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options),
                _ => None,
            });
            for option in options.flatten() {
                match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(found)) => name = Some(found),
                    TcOption::Bpf(TcFilterBpfOption::ProgId(found)) => program = Some(found),
                    _ => {}
                }
            }
        });
    match asked {
        Ok(()) => Ok(program.filter(|_| name.as_deref() == Some(NAME))),
        // No such filter, or no clsact.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn replace(site: &Site, priority: u16, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = filter(site, priority);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(NAME.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE)
}

/// Our filter as requests name it.
fn filter(site: &Site, priority: u16) -> TcMessage {
    let mut message = all_filters(site.device, site.hook);
    message.header.handle = HANDLE;
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(priority) << 16 | u32::from(every_protocol);
    message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    message
}

fn all_filters(device: u32, hook: Hook) -> TcMessage {
    let minor = match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    };
    let mut message = TcMessage::with_index(device.cast_signed());
    message.header.parent = TcHandle { major: u16::MAX, minor };
    message
}

fn clsact(device: u32) -> TcMessage {
    let mut message = TcMessage::with_index(device.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

/// False when it is there already.
fn add_clsact(device: u32) -> io::Result<bool> {
    match request(RouteNetlinkMessage::NewQueueDiscipline(clsact(device)), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether any filter is there.
fn is_used(device: u32) -> io::Result<bool> {
    let mut any = false;
    for hook in Hook::BOTH {
        let all = RouteNetlinkMessage::GetTrafficFilter(all_filters(device, hook));
        exchange(NETLINK_ROUTE, all, NLM_F_DUMP, |message| {
            any |= matches!(message, RouteNetlinkMessage::NewTrafficFilter(_));
        })?;
    }
    Ok(any)
}

fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    exchange(NETLINK_ROUTE, message, NLM_F_ACK | flags, |_| {})
}

/// What is gone needs no removal.
fn gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV) => Ok(()),
        _ => Err(error),
    }
}
