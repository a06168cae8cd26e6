//! Turns a packet into the answer to it. The stack's own answers are rate limited per peer, so that rejects would become
//! timeouts (specification B5); these are not, and are never longer than what they answer plus one header.

use crate::addr::Family;
use crate::packet::ip::Ip;
use crate::packet::parse::{ICMP_HEADER, Parsed};
use crate::packet::rewrite::ICMP_CHECKSUM;
use crate::packet::sum::Change;
use crate::packet::{Broken, Packet, Zero};
use crate::socket::TCP;

/// Type and code of "port unreachable" (RFC 792, RFC 4443), whatever the protocol (specification B5).
const UNREACHABLE_V4: [u8; 4] = [3, 3, 0, 0];
const UNREACHABLE_V6: [u8; 4] = [1, 4, 0, 0];
/// Echo request and reply, with their code.
const ECHO_V4: ([u8; 2], [u8; 2]) = ([8, 0], [0, 0]);
const ECHO_V6: ([u8; 2], [u8; 2]) = ([128, 0], [129, 0]);

const HOPS: u8 = 64;
/// What is quoted behind the network header: ports, and what identifies a segment to its sender. Of TCP that is more than
/// 8 bytes, since the kernel does not let us cut off a checksum that the device is to complete, as those of pods are
/// (`CHECKSUM_PARTIAL`, `__bpf_skb_min_len` since 4.9).
const QUOTED: usize = 8;
const QUOTED_OF_TCP: usize = 20;
/// The longest quote in words: all that headers may take here and [`QUOTED_OF_TCP`]. What is longer is not quoted, but not
/// answered either.
const WORDS: usize = 32;

/// Answers "port unreachable" in the name of whom the packet was sent to.
#[inline(always)]
pub fn unreachable<A: Ip>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Result<(), Broken> {
    let header = &parsed.header;
    // Whole words: a sum takes no less. What is missing to the last one is behind the datagram, and not quoted.
    let quoted = if header.proto == TCP { QUOTED_OF_TCP } else { QUOTED };
    let keep = (header.end.min(header.next + quoted) - parsed.start) & !3;
    if keep > 4 * WORDS {
        return Err(Broken);
    }
    let quote = quoted_sum(packet, parsed.start, keep)?;
    packet.quote(parsed.start, keep, A::HEADER + ICMP_HEADER)?;
    turn(packet, parsed)?;
    let icmp = parsed.start + A::HEADER;
    let len = (ICMP_HEADER + keep) as u16;
    match A::FAMILY {
        Family::V4 => finish_v4(packet, parsed.start, len, header.src.sum().and(header.dst.sum()))?,
        Family::V6 => finish_v6(packet, parsed.start, len)?,
    }
    let (kind, pseudo) = match A::FAMILY {
        Family::V4 => (UNREACHABLE_V4, Change::NONE),
        Family::V6 => (UNREACHABLE_V6, pseudo_header(&header.src, &header.dst, len)),
    };
    let [high, low] = pseudo.and(quote).and(word(kind)).checksum();
    packet.store(icmp, [kind[0], kind[1], high, low])
}

#[inline(always)]
fn quoted_sum(packet: &impl Packet, at: usize, keep: usize) -> Result<Change, Broken> {
    let mut sum = Change::NONE;
    for number in 0..WORDS {
        if 4 * number >= keep {
            break;
        }
        sum = sum.and(word(packet.load(at + 4 * number)?));
    }
    Ok(sum)
}

#[inline(always)]
const fn word(bytes: [u8; 4]) -> Change {
    Change::with(u32::from_ne_bytes(bytes))
}

/// What the checksum of ICMPv6 covers besides the message (RFC 8200 section 8.1).
#[inline(always)]
fn pseudo_header<A: Ip>(src: &A, dst: &A, len: u16) -> Change {
    let [high, low] = len.to_be_bytes();
    let rest = word([0, 0, high, low]).and(word([0, 0, 0, A::ICMP]));
    src.sum().and(dst.sum()).and(rest)
}

/// Version, length, time to live and checksum; the addresses are in place.
#[inline(always)]
fn finish_v4(packet: &mut impl Packet, start: usize, len: u16, addresses: Change) -> Result<(), Broken> {
    let [high, low] = (len + 20).to_be_bytes();
    let (first, lives) = ([0x45, 0, high, low], [HOPS, 1, 0, 0]);
    let [sum_high, sum_low] = addresses.and(word(first)).and(word(lives)).checksum();
    packet.store(start, first)?;
    packet.store(start + 8, [HOPS, 1, sum_high, sum_low])
}

#[inline(always)]
fn finish_v6(packet: &mut impl Packet, start: usize, len: u16) -> Result<(), Broken> {
    let [high, low] = len.to_be_bytes();
    packet.store(start, [0x60, 0, 0, 0])?;
    packet.store(start + 4, [high, low, 58, HOPS])
}

/// Answers an echo request in the name of whom it was sent to.
#[inline(always)]
pub fn echo<A: Ip>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Result<(), Broken> {
    let header = &parsed.header;
    turn(packet, parsed)?;
    let (request, reply) = match A::FAMILY {
        Family::V4 => ECHO_V4,
        Family::V6 => ECHO_V6,
    };
    packet.store(header.next, reply)?;
    let change = Change::of_two(request, reply);
    packet.adjust_transport(header.next + ICMP_CHECKSUM, Zero::Sum, Change::NONE, change)
}

/// Back to whom it came from, in the name of whom it was sent to.
#[inline(always)]
fn turn<A: Ip>(packet: &mut impl Packet, parsed: &Parsed<A>) -> Result<(), Broken> {
    turn_link_header(packet, parsed.start)?;
    parsed.header.dst.store(packet, parsed.start + A::SOURCE)?;
    parsed.header.src.store(packet, parsed.start + A::DESTINATION)
}

/// Back to the neighbour it came from; devices without link header have nothing before `start`.
#[inline(always)]
pub(super) fn turn_link_header(packet: &mut impl Packet, start: usize) -> Result<(), Broken> {
    if start == 0 {
        return Ok(());
    }
    let (to, from) = (packet.load::<6>(0)?, packet.load::<6>(6)?);
    packet.store(0, from)?;
    packet.store(6, to)
}
