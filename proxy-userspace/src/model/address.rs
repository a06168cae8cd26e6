//! Addresses, prefixes and ports as people write them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use proxy_common::addr::Family;

/// Reads an address as kube-proxy does: an IPv4 octet may have leading zeros and stays decimal; a v4-mapped IPv6
/// address is the IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip = text.parse().ok().or_else(|| parse_padded_ipv4(text))?;
    Some(ip.to_canonical())
}

fn parse_padded_ipv4(text: &str) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let digits = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *octet = digits.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// Reads `address/bits`; the bits behind the prefix are cleared.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, bits) = text.split_once('/')?;
    let ip = address.parse().ok().or_else(|| parse_padded_ipv4(address))?;
    let bits = bits.bytes().all(|byte| byte.is_ascii_digit()).then(|| bits.parse().ok())??;
    Some(IpNet::new(ip, bits).ok()?.trunc())
}

pub fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

pub fn cidr_family(cidr: &IpNet) -> Family {
    family_of(cidr.addr())
}

/// A port as the API writes it: 1 to 65535.
pub fn parse_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// Why nobody may dial `ip` as a Service, if so: such an address means something else on every node.
pub fn unfit_for_frontend(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("the unspecified address"),
        _ if ip.is_loopback() => Some("a loopback address"),
        _ if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}

/// Why `ip` cannot be an endpoint, if so (the API refuses the same ones).
pub fn unfit_for_endpoint(ip: IpAddr) -> Option<&'static str> {
    unfit_for_frontend(ip).or_else(|| is_link_local(ip).then_some("a link-local address"))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_like_kube_proxy_reads_them() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.08", Some("10.0.0.8")),
            ("fd00:0::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("+10.0.0.1", None),
            (" 10.0.0.1", None),
            ("10.0.0.1/32", None),
            ("example.org", None),
            ("", None),
        ] {
            assert_eq!(parse_ip(text), expected.map(|ip| ip.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn prefixes_are_cut_to_their_length() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
        ] {
            assert_eq!(parse_cidr(text), expected.map(|cidr| cidr.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn addresses_that_mean_something_else_are_no_endpoints() {
        for text in
            ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "169.254.1.1", "fe80::1", "255.255.255.255"]
        {
            assert!(unfit_for_endpoint(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in ["10.0.0.1", "fd00::1", "203.0.113.9", "2001:db8::1"] {
            assert_eq!(unfit_for_endpoint(text.parse().unwrap()), None, "{text}");
        }
    }
}
