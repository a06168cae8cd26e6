//! Who is who, in both families.

use std::string::{String, ToString as _};
use std::vec::Vec;

use crate::addr::{Addr, Be16, Family};

/// Name, IPv4 and IPv6 address.
const NAMES: &[(&str, &str, &str)] = &[
    ("client", "198.51.100.7", "2001:db8:51::7"),
    ("stranger", "198.51.100.8", "2001:db8:51::8"),
    ("router", "192.0.2.1", "2001:db8:2::1"),
    ("node", "192.0.2.10", "2001:db8:2::10"),
    ("second", "192.0.2.11", "2001:db8:2::11"),
    ("bridge", "10.244.1.1", "fd00:10:244:1::1"),
    ("pod", "10.244.1.20", "fd00:10:244:1::20"),
    ("farpod", "10.244.2.20", "fd00:10:244:2::20"),
    ("local", "10.244.1.5", "fd00:10:244:1::5"),
    ("remote", "10.244.2.5", "fd00:10:244:2::5"),
    ("vip", "10.96.0.1", "fd00:10:96::1"),
    ("other", "10.96.0.2", "fd00:10:96::2"),
    ("nobody", "10.96.0.99", "fd00:10:96::99"),
    ("external", "203.0.113.1", "2001:db8:113::1"),
    ("lb", "203.0.113.2", "2001:db8:113::2"),
    ("web", "192.0.2.200", "2001:db8:2::200"),
    ("loopback", "127.0.0.1", "::1"),
    ("any", "0.0.0.0", "::"),
    ("multicast", "224.0.0.5", "ff02::5"),
    ("broadcast", "255.255.255.255", "ff02::1"),
];

/// The address of a name, or the one that stands there itself.
pub(super) fn addr(name: &str, family: Family) -> Addr {
    let known = NAMES.iter().find(|(known, ..)| *known == name);
    let text = known.map_or(name, |(_, v4, v6)| if family == Family::V4 { v4 } else { v6 });
    let parsed = text.parse::<core::net::IpAddr>();
    Addr::from(parsed.unwrap_or_else(|_| panic!("who is {name:?}?")))
}

/// Everybody of a family.
pub(super) fn everybody(family: Family) -> Vec<Addr> {
    NAMES.iter().map(|(name, ..)| addr(name, family)).collect()
}

pub(super) fn name(addr: &Addr) -> String {
    let text = addr.to_string();
    let known = NAMES.iter().find(|(_, v4, v6)| *v4 == text || *v6 == text);
    known.map_or(text, |(name, ..)| (*name).into())
}

/// `client:4000`.
pub(super) fn endpoint(text: &str, family: Family) -> (Addr, Be16) {
    let (name, port) = text.rsplit_once(':').unwrap_or((text, "0"));
    (addr(name, family), Be16::new(port.parse().unwrap()))
}

/// `client:4000 > vip:80`.
pub(super) fn route(text: &str, family: Family) -> ((Addr, Be16), (Addr, Be16)) {
    let (from, to) = text.split_once(" > ").unwrap_or_else(|| panic!("{text:?} is no \"a:1 > b:2\""));
    (endpoint(from, family), endpoint(to, family))
}
