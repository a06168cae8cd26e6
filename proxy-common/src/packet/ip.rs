//! Both versions of the internet protocol. An address is the type parameter of the whole packet half: one body, two
//! programs that each know the size of their headers.
//!
//! In: a packet and where its network header begins. Out: a [`Header`]: who to whom, what follows and where.

use crate::addr::{Addr, Family};
use crate::packet::sum::Change;
use crate::packet::{Broken, Packet};

/// An IPv4 address as packets and the tables of IPv4 flows have it: a word as it lies in memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct V4(u32);

/// An IPv6 address as packets and the tables of IPv6 flows have it. Words of 64 bits as they lie in memory, since the kernel's
/// virtual machine copies and compares as much at once as the type promises.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct V6([u64; 2]);

/// What the packet half has to know about a version.
pub trait Ip: Copy + PartialEq + core::fmt::Debug + core::hash::Hash + Eq + 'static {
    const FAMILY: Family;
    /// Nobody's address.
    const ANY: Self;
    const ETHERTYPE: [u8; 2];
    /// Bytes of a header without options and extensions.
    const HEADER: usize;
    /// Where addresses are in a header.
    const SOURCE: usize;
    const DESTINATION: usize;
    /// IANA number of this version's ICMP.
    const ICMP: u8;

    fn addr(&self) -> Addr;
    fn of(addr: &Addr) -> Self;
    /// Takes every word of the address, as it lies in memory, to `fold`; of 64 bits where it has so many. Not an iterator: its
    /// state is memory of a stack that has 512 bytes.
    fn fold<T>(&self, start: T, fold: impl Fn(T, u64) -> T) -> T;
    /// Becomes `to`, word by word: a whole address would be moved by a call, byte by byte.
    fn set(&mut self, to: &Self);
    /// Itself, or nobody's address. Word by word, as [`Ip::set`].
    #[must_use]
    fn only_if(&self, kept: bool) -> Self;
    /// What a checksum over this address learns when it becomes `to`.
    fn change(&self, to: &Self) -> Change;
    fn load(packet: &impl Packet, at: usize) -> Result<Self, Broken>;
    fn store(self, packet: &mut impl Packet, at: usize) -> Result<(), Broken>;
    /// Writes checksum, addresses and ports (as they lie in memory) at once: in a packet whose header at `at` has no options they
    /// lie in a row behind each other, and each store is a call.
    fn store_row(
        packet: &mut impl Packet,
        at: usize,
        addresses: (Self, Self),
        ports: u32,
        change: Change,
    ) -> Result<(), Broken>;
    /// Reads the header at `at` into `header`, of which nothing counts before.
    fn header(packet: &impl Packet, at: usize, header: &mut Header<Self>) -> Result<(), Broken>;
    /// Where the header's own checksum is, if this version has one.
    const CHECKSUM: Option<usize>;

    /// What a sum learns that has this address in it.
    #[inline(always)]
    fn sum(&self) -> Change {
        self.fold(Change::NONE, |sum, word| sum.and(Change::with(word as u32)).and(Change::with((word >> 32) as u32)))
    }
}

/// The part of a datagram that a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// It begins here: ports and all.
    First(DatagramId),
    /// It goes on here: no ports.
    Later(DatagramId),
}

/// What fragments of one datagram have in common, besides their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramId {
    pub id: u32,
    /// The protocol as the fragments name it; in IPv6 an extension header may come first.
    pub proto: u8,
}

/// A network header, extensions included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<A> {
    pub src: A,
    pub dst: A,
    /// IANA number of what begins at `next`.
    pub proto: u8,
    /// Where the next header begins, in bytes from the start of the packet.
    pub next: usize,
    /// Where the datagram ends as the header says: behind it there may be padding. `usize::MAX` where the header does not
    /// say: jumbograms, and segments that the device will cut.
    pub end: usize,
    pub part: Part,
}

impl Ip for V4 {
    const FAMILY: Family = Family::V4;
    const ANY: Self = Self(0);
    const ETHERTYPE: [u8; 2] = [0x08, 0x00];
    const HEADER: usize = 20;
    const SOURCE: usize = 12;
    const DESTINATION: usize = 16;
    const ICMP: u8 = 1;
    const CHECKSUM: Option<usize> = Some(10);

    #[inline(always)]
    fn addr(&self) -> Addr {
        Addr::v4(self.0.to_ne_bytes())
    }

    #[inline(always)]
    fn of(addr: &Addr) -> Self {
        Self(u32::from_ne_bytes(addr.v4_octets()))
    }

    #[inline(always)]
    fn fold<T>(&self, start: T, fold: impl Fn(T, u64) -> T) -> T {
        fold(start, self.0.into())
    }

    #[inline(always)]
    fn set(&mut self, to: &Self) {
        self.0 = to.0;
    }

    #[inline(always)]
    fn only_if(&self, kept: bool) -> Self {
        Self(self.0 & u32::from(kept).wrapping_neg())
    }

    #[inline(always)]
    fn change(&self, to: &Self) -> Change {
        Change::of_four(self.0, to.0)
    }

    #[inline(always)]
    fn load(packet: &impl Packet, at: usize) -> Result<Self, Broken> {
        packet.look(at).map(|octets| Self(u32::from_ne_bytes(octets)))
    }

    #[inline(always)]
    fn store(self, packet: &mut impl Packet, at: usize) -> Result<(), Broken> {
        packet.store(at, self.0.to_ne_bytes())
    }

    #[inline(always)]
    fn store_row(
        packet: &mut impl Packet,
        at: usize,
        (src, dst): (Self, Self),
        ports: u32,
        change: Change,
    ) -> Result<(), Broken> {
        const CHECKSUM: usize = 10;
        let mut row = [0; 14];
        let (sum, words) = row.split_at_mut(2);
        sum.copy_from_slice(&change.applied(packet.look(at + CHECKSUM)?));
        for (place, word) in words.as_chunks_mut().0.iter_mut().zip([src.0, dst.0, ports]) {
            *place = word.to_ne_bytes();
        }
        packet.store(at + CHECKSUM, row)
    }

    #[inline(always)]
    fn header(packet: &impl Packet, at: usize, header: &mut Header<Self>) -> Result<(), Broken> {
        let [first, _, len_high, len_low, id_high, id_low, part_high, part_low, _, proto] = packet.look::<10>(at)?;
        let words = usize::from(first & 0x0f);
        if first >> 4 != 4 || words < 5 {
            return Err(Broken);
        }
        (header.proto, header.next) = (proto, at + 4 * words);
        header.end = end(at, u16::from_be_bytes([len_high, len_low]));
        let id = DatagramId { id: u32::from(u16::from_be_bytes([id_high, id_low])), proto };
        let (offset, more) = (u16::from_be_bytes([part_high & 0x1f, part_low]), part_high & 0x20 != 0);
        header.part = Part::new(offset, more, id);
        header.src = Self::load(packet, at + Self::SOURCE)?;
        header.dst = Self::load(packet, at + Self::DESTINATION)?;
        header.fits()
    }
}

/// Both halves of a word, in the order in which they lie in memory.
#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    let bytes = word.to_ne_bytes();
    let (halves, _) = bytes.as_chunks();
    [u32::from_ne_bytes(halves[0]), u32::from_ne_bytes(halves[1])]
}

/// The word whose halves these are.
#[inline(always)]
fn whole(first: u32, last: u32) -> u64 {
    let mut bytes = [0; 8];
    let (halves, _) = bytes.as_chunks_mut();
    (halves[0], halves[1]) = (first.to_ne_bytes(), last.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// Extension headers of IPv6 that we walk past; RFC 8200 section 4.1 asks for no more than seven.
const EXTENSIONS: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

impl Ip for V6 {
    const FAMILY: Family = Family::V6;
    const ANY: Self = Self([0; 2]);
    const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
    const HEADER: usize = 40;
    const SOURCE: usize = 8;
    const DESTINATION: usize = 24;
    const ICMP: u8 = 58;
    const CHECKSUM: Option<usize> = None;

    #[inline(always)]
    fn addr(&self) -> Addr {
        let [high, low] = self.0.map(halves);
        Addr::from_words([high[0], high[1], low[0], low[1]])
    }

    #[inline(always)]
    fn of(addr: &Addr) -> Self {
        let [a, b, c, d] = addr.words();
        Self([whole(a, b), whole(c, d)])
    }

    #[inline(always)]
    fn fold<T>(&self, start: T, fold: impl Fn(T, u64) -> T) -> T {
        let [high, low] = self.0;
        fold(fold(start, high), low)
    }

    #[inline(always)]
    fn set(&mut self, to: &Self) {
        self.0[0] = to.0[0];
        self.0[1] = to.0[1];
    }

    #[inline(always)]
    fn only_if(&self, kept: bool) -> Self {
        let ([high, low], mask) = (self.0, u64::from(kept).wrapping_neg());
        Self([high & mask, low & mask])
    }

    #[inline(always)]
    fn change(&self, to: &Self) -> Change {
        Change::of_sixteen(self.0, to.0)
    }

    #[inline(always)]
    fn load(packet: &impl Packet, at: usize) -> Result<Self, Broken> {
        let octets = packet.look::<16>(at)?;
        let (words, _) = octets.as_chunks::<8>();
        Ok(Self([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]))
    }

    #[inline(always)]
    fn store(self, packet: &mut impl Packet, at: usize) -> Result<(), Broken> {
        let words = self.0.map(u64::to_ne_bytes);
        let octets: &[u8; 16] = words.as_flattened().first_chunk().ok_or(Broken)?;
        packet.store_bare(at, *octets)
    }

    #[inline(always)]
    fn store_row(
        packet: &mut impl Packet,
        at: usize,
        (src, dst): (Self, Self),
        ports: u32,
        change: Change,
    ) -> Result<(), Broken> {
        let mut row = [0; 36];
        let (words, rest) = row.as_chunks_mut();
        for (place, word) in words.iter_mut().zip([src.0[0], src.0[1], dst.0[0], dst.0[1]]) {
            *place = word.to_ne_bytes();
        }
        rest.copy_from_slice(&ports.to_ne_bytes());
        packet.store(at + Self::SOURCE, row)?;
        packet.adjust_whole(change);
        Ok(())
    }

    #[inline(always)]
    fn header(packet: &impl Packet, at: usize, header: &mut Header<Self>) -> Result<(), Broken> {
        let [first, _, _, _, len_high, len_low, proto, _] = packet.look::<8>(at)?;
        if first >> 4 != 6 {
            return Err(Broken);
        }
        header.src = Self::load(packet, at + Self::SOURCE)?;
        header.dst = Self::load(packet, at + Self::DESTINATION)?;
        // Never on the wire (RFC 4291 section 2.5.5.2), and in our tables the IPv4 address itself.
        if header.src.addr().is_v4() || header.dst.addr().is_v4() {
            return Err(Broken);
        }
        (header.proto, header.next, header.part) = (proto, at + Self::HEADER, Part::Whole);
        header.end = end(header.next, u16::from_be_bytes([len_high, len_low]));
        extensions(packet, header)?;
        header.fits()
    }
}

impl<A> Header<A> {
    /// What follows begins inside of the datagram.
    #[inline(always)]
    fn fits(&self) -> Result<(), Broken> {
        if self.next > self.end { Err(Broken) } else { Ok(()) }
    }
}

/// Walks past extension headers. It ends before what it does not know (and then no port is read), before a routing header
/// that has stops left (the destination is not the last one), and behind the header of a fragment that has no ports.
#[inline(always)]
fn extensions(packet: &impl Packet, header: &mut Header<V6>) -> Result<(), Broken> {
    for _ in 0..EXTENSIONS {
        match header.proto {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let [proto, eights, _, stops_left] = packet.load::<4>(header.next)?;
                if header.proto == ROUTING && stops_left != 0 {
                    break;
                }
                header.next += 8 * (usize::from(eights) + 1);
                header.proto = proto;
            }
            FRAGMENT => {
                let [proto, _, high, low, id @ ..] = packet.load::<8>(header.next)?;
                let offset_and_more = u16::from_be_bytes([high, low]);
                let id = DatagramId { id: u32::from_be_bytes(id), proto };
                header.part = Part::new(offset_and_more >> 3, offset_and_more & 1 != 0, id);
                header.next += 8;
                header.proto = proto;
                if let Part::Later(_) = header.part {
                    break;
                }
            }
            _ => break,
        }
    }
    Ok(())
}

/// True for numbers that name an extension header (or the lack of a next one), not a protocol that gets an answer.
#[inline(always)]
pub(super) const fn is_extension(proto: u8) -> bool {
    matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | NO_NEXT_HEADER | DESTINATION_OPTIONS)
}

#[inline(always)]
fn end(at: usize, len: u16) -> usize {
    if len == 0 { usize::MAX } else { at + usize::from(len) }
}

impl Part {
    #[inline(always)]
    const fn new(offset: u16, more: bool, id: DatagramId) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First(id),
            _ => Self::Later(id),
        }
    }
}
