//! Writes another tuple into a packet, and tells every checksum that covers it.
//!
//! In: what [`super::parse`] has read, so nothing here ends half way on a packet that is too short.

use crate::packet::ip::Ip;
use crate::packet::parse::{ICMP_HEADER, Parsed, Quoted, SCTP, Tuple};
use crate::packet::sum::Change;
use crate::packet::{Broken, Packet, Zero};
use crate::socket::TCP;

/// Rewrites the packet itself. Of a later fragment there are only addresses.
#[inline(always)]
pub fn packet<A: Ip>(
    packet: &mut impl Packet,
    parsed: &Parsed<A>,
    to: &Tuple<A>,
    has_ports: bool,
) -> Result<(), Broken> {
    let from = &parsed.tuple;
    let (pseudo, rest) = (changed(from.src, to.src).and(changed(from.dst, to.dst)), changed_ports(from, to));
    if has_ports && parsed.header.next == parsed.start + A::HEADER {
        A::store_row(packet, parsed.start, (to.src, to.dst), to.ports(), pseudo)?;
    } else {
        addresses(packet, parsed.start, (from.src, from.dst), (to.src, to.dst))?;
        header_checksum::<A>(packet, parsed.start, pseudo)?;
        if !has_ports {
            return Ok(());
        }
        ports(packet, parsed.header.next, from, to)?;
    }
    match checksum(from.proto) {
        Some((at, zero)) => packet.adjust_transport(parsed.header.next + at, zero, pseudo, rest),
        None => Ok(()),
    }
}

/// Rewrites an ICMP error about a packet of the flow: the quoted packet went the other way. The sender of the error stays as
/// it is, unless it is the flow's own end.
#[inline(always)]
pub fn error<A: Ip>(packet: &mut impl Packet, parsed: &Parsed<A>, to: &Tuple<A>) -> Result<(), Broken> {
    let from = &parsed.tuple;
    let inside = inside(packet, &parsed.quoted, &from.reversed(), &to.reversed())?;
    let header = &parsed.header;
    let src = if header.src == from.src { to.src } else { header.src };
    let dst = if header.dst == from.dst { to.dst } else { header.dst };
    let addresses = addresses(packet, parsed.start, (header.src, header.dst), (src, dst))?;
    header_checksum::<A>(packet, parsed.start, addresses)?;
    // ICMP of IPv4 has no pseudo header.
    let pseudo = if A::CHECKSUM.is_some() { Change::NONE } else { addresses };
    packet.adjust_transport(header.next + ICMP_CHECKSUM, Zero::Sum, pseudo, inside)
}

/// Where the checksum is in an ICMP header of either version.
pub(super) const ICMP_CHECKSUM: usize = 2;
const _: () = assert!(ICMP_CHECKSUM + 2 <= ICMP_HEADER, "the checksum is part of the header");

/// Rewrites a quoted packet; what the sum over all of it learns. Its transport checksum is kept right where it is quoted.
#[inline(always)]
fn inside<A: Ip>(
    packet: &mut impl Packet,
    quoted: &Quoted<A>,
    from: &Tuple<A>,
    to: &Tuple<A>,
) -> Result<Change, Broken> {
    let addresses = addresses(packet, quoted.start, (from.src, from.dst), (to.src, to.dst))?;
    let mut total = addresses;
    if let Some(at) = A::CHECKSUM {
        total = total.and(resum(packet, quoted.start + at, Zero::Sum, addresses)?);
    }
    let ports = ports(packet, quoted.header.next, from, to)?;
    total = total.and(ports);
    if let Some((at, zero)) = checksum(from.proto)
        && packet.load::<2>(quoted.header.next + at).is_ok()
    {
        total = total.and(resum(packet, quoted.header.next + at, zero, addresses.and(ports))?);
    }
    Ok(total)
}

/// Changes a checksum that is only data here; what a sum over it learns.
#[inline(always)]
fn resum(packet: &mut impl Packet, at: usize, zero: Zero, change: Change) -> Result<Change, Broken> {
    let before = packet.load(at)?;
    let after = zero.applied(before, change);
    packet.store(at, after)?;
    Ok(Change::of_two(before, after))
}

#[inline(always)]
fn addresses<A: Ip>(packet: &mut impl Packet, start: usize, from: (A, A), to: (A, A)) -> Result<Change, Broken> {
    let src = address(packet, start + A::SOURCE, from.0, to.0)?;
    Ok(src.and(address(packet, start + A::DESTINATION, from.1, to.1)?))
}

#[inline(always)]
fn address<A: Ip>(packet: &mut impl Packet, at: usize, from: A, to: A) -> Result<Change, Broken> {
    if from != to {
        to.store(packet, at)?;
    }
    Ok(changed(from, to))
}

/// What a sum learns of an address, which may be the same.
#[inline(always)]
fn changed<A: Ip>(from: A, to: A) -> Change {
    if from == to { Change::NONE } else { from.change(&to) }
}

#[inline(always)]
fn ports<A: Ip>(packet: &mut impl Packet, at: usize, from: &Tuple<A>, to: &Tuple<A>) -> Result<Change, Broken> {
    let change = changed_ports(from, to);
    if change != Change::NONE {
        packet.store(at, to.ports().to_ne_bytes())?;
    }
    Ok(change)
}

#[inline(always)]
fn changed_ports<A: Ip>(from: &Tuple<A>, to: &Tuple<A>) -> Change {
    let (from, to) = (from.ports(), to.ports());
    if from == to { Change::NONE } else { Change::of_four(from, to) }
}

#[inline(always)]
fn header_checksum<A: Ip>(packet: &mut impl Packet, start: usize, change: Change) -> Result<(), Broken> {
    match A::CHECKSUM {
        Some(at) if change != Change::NONE => packet.adjust_header(start + at, change),
        _ => Ok(()),
    }
}

/// Where a transport header has its checksum. SCTP's covers neither addresses nor anything that we change.
#[inline(always)]
const fn checksum(proto: u8) -> Option<(usize, Zero)> {
    match proto {
        TCP => Some((16, Zero::Sum)),
        SCTP => None,
        _ => Some((6, Zero::NoSum)),
    }
}
