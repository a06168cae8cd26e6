//! Addresses and ports whose byte order lives in the type.
//!
//! Every table uses one 16-byte address for both families; IPv4 is IPv4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291 section
//! 2.5.5.2). So an IPv6 socket that dials a mapped address meets the same entry as an IPv4 socket, with no twin tables.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 (mapped) or IPv6 address in network byte order. All zero means "no address". Four words, since the kernel's
/// virtual machine copies and compares whole words only where the type promises them.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Addr([u32; 4]);

/// The address families a Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Addr {
    /// `::`, in IPv6 the address of "any".
    pub const UNSPECIFIED_V6: Self = Self([0; 4]);
    /// `::ffff:0.0.0.0`, in IPv4 the address of "any".
    pub const UNSPECIFIED_V4: Self = Self::v4([0; 4]);

    /// The address with these octets.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        let (words, _) = octets.as_chunks::<4>();
        Self([word(words[0]), word(words[1]), word(words[2]), word(words[3])])
    }

    /// The address whose words in memory are these, as the kernel hands them out.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The inverse of [`Self::from_words`].
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address `octets`, mapped.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, word(octets)])
    }

    pub const fn octets(&self) -> [u8; 16] {
        self.bits().to_be_bytes()
    }

    /// The family this address belongs to on the wire.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, [0, 0, MAPPED, _])
    }

    /// "Any", in either family: nobody's address.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        matches!(self.0, [0, 0, 0 | MAPPED, 0])
    }

    /// An address that stays inside a machine: 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.0 {
            [0, 0, MAPPED, v4] => v4.to_ne_bytes()[0] == 127,
            words => matches!(words, [0, 0, 0, LAST]),
        }
    }

    /// Nobody sends from it: multicast of either family, broadcast and the reserved rest of IPv4 (240.0.0.0/4).
    #[inline(always)]
    pub const fn is_no_source(&self) -> bool {
        match self.0 {
            [0, 0, MAPPED, v4] => v4.to_ne_bytes()[0] >= 224,
            [first, ..] => first.to_ne_bytes()[0] == 0xff,
        }
    }

    /// The last four octets: the IPv4 address when [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }

    /// The address as a number: network order is numeric order.
    #[inline(always)]
    pub const fn bits(&self) -> u128 {
        let (high, low) = self.halves();
        (high as u128) << 64 | low as u128
    }

    /// Both 64-bit halves of [`Self::bits`]: what the kernel's virtual machine compares in one step each.
    #[inline(always)]
    pub const fn halves(&self) -> (u64, u64) {
        let [a, b, c, d] = self.0;
        (half(a, b), half(c, d))
    }

    /// "Any" in the family of this address: the address part of a node-port frontend.
    #[inline(always)]
    pub const fn unspecified(family: Family) -> Self {
        // One word differs. Two whole constants would become a call of `memset`: a function and a loop to verify.
        let mapped = match family {
            Family::V4 => MAPPED,
            Family::V6 => 0,
        };
        Self([0, 0, mapped, 0])
    }
}

/// `::ffff` as a word in memory.
const MAPPED: u32 = word([0, 0, 0xff, 0xff]);
/// The last word of `::1`.
const LAST: u32 = word([0, 0, 0, 1]);

#[inline(always)]
const fn word(octets: [u8; 4]) -> u32 {
    u32::from_ne_bytes(octets)
}

#[inline(always)]
const fn half(high: u32, low: u32) -> u64 {
    (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64
}

/// As the octets are ordered, so that sorted lists read naturally.
impl Ord for Addr {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.bits().cmp(&other.bits())
    }
}

impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(ip.octets()),
            IpAddr::V6(ip) => Self::new(ip.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.family() {
            Family::V4 => Self::V4(Ipv4Addr::from(addr.v4_octets())),
            Family::V6 => Self::V6(Ipv6Addr::from(addr.octets())),
        }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// A port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Be16(u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The port whose two bytes in memory are these, as the kernel hands them out.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The inverse of [`Self::from_raw`].
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// As numbers, so that sorted lists read naturally.
impl Ord for Be16 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl PartialOrd for Be16 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped = Addr::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]);
        assert_eq!(mapped, Addr::from(IpAddr::from([10, 96, 0, 1])));
        assert_eq!(mapped.family(), Family::V4);
        assert_eq!(IpAddr::from(mapped), IpAddr::from([10, 96, 0, 1]));
    }

    #[test]
    fn ipv6_addresses_round_trip() {
        for ip in ["::", "::1", "fd00::1", "2001:db8::ffff:a00:1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
    }

    #[test]
    fn octets_lie_in_memory_in_network_order() {
        let octets = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let addr = Addr::new(octets);
        assert_eq!(addr.words().map(u32::to_ne_bytes).as_flattened(), octets);
        assert_eq!(addr.octets(), octets);
        assert_eq!(addr.halves(), (0x2001_0db8_0000_0000, 9));
    }

    #[test]
    fn addresses_and_ports_sort_as_people_read_them() {
        let v4 = |octets| Addr::v4(octets);
        assert!(v4([10, 0, 0, 2]) < v4([10, 0, 1, 1]));
        assert!(Be16::new(80) < Be16::new(256));
    }

    #[test]
    fn some_addresses_are_never_seen_on_the_wire_as_a_source() {
        for (ip, is_loopback, is_no_source) in [
            ("127.0.0.1", true, false),
            ("127.255.0.3", true, false),
            ("128.0.0.1", false, false),
            ("::1", true, false),
            ("::2", false, false),
            ("1::1", false, false),
            ("223.255.255.255", false, false),
            ("224.0.0.1", false, true),
            ("255.255.255.255", false, true),
            ("ff02::1", false, true),
            ("fe80::1", false, false),
        ] {
            let addr = Addr::from(ip.parse::<IpAddr>().unwrap());
            assert_eq!((addr.is_loopback(), addr.is_no_source()), (is_loopback, is_no_source), "{ip}");
        }
    }

    #[test]
    fn ports_are_stored_in_network_order() {
        assert_eq!(Be16::new(80).raw().to_ne_bytes(), [0, 80]);
        assert_eq!(Be16::from_raw(u16::from_ne_bytes([0x1f, 0x90])).get(), 8080);
    }
}
