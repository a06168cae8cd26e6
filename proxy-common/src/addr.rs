//! Addresses and ports whose byte order lives in the type.
//!
//! Every table uses one 16-byte address for both families; IPv4 is IPv4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291 section
//! 2.5.5.2). So an IPv6 socket that dials a mapped address meets the same entry as an IPv4 socket, with no twin tables.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 (mapped) or IPv6 address in network byte order. All zero means "no address".
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr(pub [u8; 16]);

/// The address families a Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Addr {
    /// `::`, in IPv6 the address of "any".
    pub const UNSPECIFIED_V6: Self = Self([0; 16]);
    /// `::ffff:0.0.0.0`, in IPv4 the address of "any".
    pub const UNSPECIFIED_V4: Self = Self::v4([0; 4]);

    /// The IPv4 address `octets`, mapped.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The family this address belongs to on the wire.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..])
    }

    /// The last four octets: the IPv4 address when [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// "Any" in the family of this address: the address part of a node-port frontend.
    #[inline(always)]
    pub const fn unspecified(family: Family) -> Self {
        match family {
            Family::V4 => Self::UNSPECIFIED_V4,
            Family::V6 => Self::UNSPECIFIED_V6,
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::v4(ip.octets()),
            IpAddr::V6(ip) => Self(ip.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.family() {
            Family::V4 => Self::V4(Ipv4Addr::from(addr.v4_octets())),
            Family::V6 => Self::V6(Ipv6Addr::from(addr.0)),
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
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Be16(pub [u8; 2]);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be_bytes())
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
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
        let mapped = Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]);
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
    fn ports_are_stored_in_network_order() {
        assert_eq!(Be16::new(80).0, [0, 80]);
        assert_eq!(Be16([0x1f, 0x90]).get(), 8080);
    }
}
