//! Which flow a packet belongs to, as far as the packet says.
//!
//! In: bytes. Out: [`Parsed`]: the tuple of TCP, UDP and SCTP, that of a packet in an ICMP error, or what else it is. It is
//! filled in its place: the verifier forgets what is in memory, and so does not follow each way through a header by itself.
//! Everything that a translation rewrites has been read here, so that no translation ends half way.

use crate::abi::{NearDevice, near};
use crate::addr::{Be16, Family};
use crate::packet::ip::{Header, Ip, Part, V4, V6, is_extension};
use crate::packet::{Broken, Packet, tcp};
use crate::socket::{TCP, UDP};

/// IANA number of SCTP.
pub const SCTP: u8 = 132;

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;
const ETHERTYPE: usize = 12;

/// Who to whom, with ports. Of a fragment other than the first, the ports come from the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub src_port: Be16,
    pub dst_port: Be16,
    pub proto: u8,
}

impl<A> Tuple<A> {
    /// Both ports, as they lie in a packet.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        let ([a, b], [c, d]) = (self.src_port.raw().to_ne_bytes(), self.dst_port.raw().to_ne_bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// What answers it.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, proto: self.proto }
    }
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<A> {
    /// Where the network header begins.
    pub start: usize,
    pub header: Header<A>,
    pub content: Content,
    /// Who to whom: of an ICMP error, the direction that the error goes in. Ports are 0 where none are known.
    pub tuple: Tuple<A>,
    /// Of a TCP header, else 0.
    pub flags: u8,
    /// Counts in an ICMP error: the packet that it is about.
    pub quoted: Quoted<A>,
}

impl<A> Parsed<A> {
    /// False for a segment in the middle of a connection: all else with ports may be the first packet of a flow.
    #[inline(always)]
    pub fn may_begin(&self) -> bool {
        self.tuple.proto != TCP || tcp::opens(self.flags)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A segment or datagram, or the first fragment of one.
    Transport,
    /// A later fragment.
    Fragment,
    /// An ICMP error about a packet that has ports.
    Error,
    /// An ICMP echo request.
    Echo,
    /// ICMP that concerns neighbours and routers: never answered, never translated.
    Link,
    /// Any other protocol.
    Other,
}

/// The packet inside of an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Where its network header begins.
    pub start: usize,
    pub header: Header<A>,
}

/// The version of a packet and where its network header begins; `None` for what is not ours: other protocols, and packets of a
/// VLAN, which the hooks of its own device see without tag. The kernel keeps a tag beside the packet: `vlan` is the number that
/// it says, 0 for none (or for a priority only). A second one is in the packet.
#[inline(always)]
pub fn version(packet: &impl Packet, device: NearDevice, vlan: u16) -> Result<Option<(Family, usize)>, Broken> {
    if vlan != 0 && !near::has_vlans(device) {
        return Ok(None);
    }
    if !near::has_link_header(device) {
        let [first] = packet.load(0)?;
        return Ok(match first >> 4 {
            4 => Some((Family::V4, 0)),
            6 => Some((Family::V6, 0)),
            _ => None,
        });
    }
    Ok(match packet.look(ETHERTYPE)? {
        V4::ETHERTYPE => Some((Family::V4, ETHERNET)),
        V6::ETHERTYPE => Some((Family::V6, ETHERNET)),
        _ => None,
    })
}

/// Reads the packet whose network header is at `start` into `parsed`, of which nothing counts before.
#[inline(always)]
pub fn parse<A: Ip>(packet: &impl Packet, start: usize, parsed: &mut Parsed<A>) -> Result<(), Broken> {
    parsed.start = start;
    A::header(packet, start, &mut parsed.header)?;
    let header = &parsed.header;
    let none = Be16::new(0);
    parsed.tuple = Tuple { src: header.src, dst: header.dst, src_port: none, dst_port: none, proto: header.proto };
    parsed.flags = 0;
    parsed.content = match header.part {
        Part::Later(_) => Content::Fragment,
        Part::Whole | Part::First(_) => content(packet, parsed)?,
    };
    Ok(())
}

#[inline(always)]
fn content<A: Ip>(packet: &impl Packet, parsed: &mut Parsed<A>) -> Result<Content, Broken> {
    let at = parsed.header.next;
    match parsed.header.proto {
        TCP => {
            // The checksum of TCP reaches furthest of what is rewritten.
            let header = packet.look::<18>(at)?;
            parsed.flags = header[tcp::FLAGS];
            transport(packet, parsed, 20)
        }
        UDP => transport(packet, parsed, 8),
        SCTP => transport(packet, parsed, 12),
        proto if proto == A::ICMP => icmp(packet, parsed),
        // Not the last header: whoever is asked for must not be answered on behalf of something in between.
        proto if A::FAMILY == Family::V6 && is_extension(proto) => Ok(Content::Link),
        _ => Ok(Content::Other),
    }
}

/// Ports, of a header of `len` bytes that must be there as a whole: behind its end there is only padding.
#[inline(always)]
fn transport<A: Ip>(packet: &impl Packet, parsed: &mut Parsed<A>, len: usize) -> Result<Content, Broken> {
    if parsed.header.next + len > parsed.header.end {
        return Err(Broken);
    }
    (parsed.tuple.src_port, parsed.tuple.dst_port) = ports(packet, parsed.header.next)?;
    Ok(Content::Transport)
}

/// Source and destination, the first four of eight bytes that must be there: all transports have as many.
#[inline(always)]
fn ports(packet: &impl Packet, at: usize) -> Result<(Be16, Be16), Broken> {
    let [a, b, c, d, ..] = packet.look::<8>(at)?;
    Ok((Be16::from_raw(u16::from_ne_bytes([a, b])), Be16::from_raw(u16::from_ne_bytes([c, d]))))
}

/// Bytes of an ICMP header of either version; in an error, the packet it is about follows.
pub(super) const ICMP_HEADER: usize = 8;

#[inline(always)]
fn icmp<A: Ip>(packet: &impl Packet, parsed: &mut Parsed<A>) -> Result<Content, Broken> {
    let at = parsed.header.next;
    let [kind, ..] = packet.load::<ICMP_HEADER>(at)?;
    match (A::FAMILY, kind) {
        (Family::V4, 3 | 4 | 11 | 12) | (Family::V6, 1..=4) => quoted(packet, at + ICMP_HEADER, parsed),
        (Family::V4, 8) | (Family::V6, 128) => Ok(Content::Echo),
        // Redirects are for who is on the link; IPv6 has all of its neighbour discovery here, and other errors.
        (Family::V4, 5 | 9 | 10) | (Family::V6, 0..=127 | 130..=137) => Ok(Content::Link),
        _ => Ok(Content::Other),
    }
}

/// An error quotes at least 8 bytes behind the network header: the ports of everything that has ports. What it quotes of a
/// later fragment, or of an error, is of no flow.
#[inline(always)]
pub(super) fn quoted<A: Ip>(packet: &impl Packet, start: usize, parsed: &mut Parsed<A>) -> Result<Content, Broken> {
    parsed.quoted.start = start;
    let inner = &mut parsed.quoted.header;
    A::header(packet, start, inner)?;
    if !matches!(inner.proto, TCP | UDP | SCTP) || matches!(inner.part, Part::Later(_)) {
        return Ok(Content::Link);
    }
    let (src_port, dst_port) = ports(packet, inner.next)?;
    let (src, dst) = (inner.dst, inner.src);
    parsed.tuple = Tuple { src, dst, src_port: dst_port, dst_port: src_port, proto: inner.proto };
    Ok(Content::Error)
}
