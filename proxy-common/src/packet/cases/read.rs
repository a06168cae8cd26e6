//! Reads a packet for a test: who, whom, what. Written for its own sake, not with the parser, so that both must be right.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::names::name;
use crate::addr::Addr;

/// RFC 1071, with the pseudo header of these addresses and this protocol.
pub(super) fn checksum(bytes: &[u8], pseudo: Option<(&Addr, &Addr, u8)>) -> [u8; 2] {
    let mut covered = bytes.to_vec();
    if covered.len() % 2 == 1 {
        covered.push(0);
    }
    if let Some((src, dst, proto)) = pseudo {
        for addr in [src, dst] {
            if addr.is_v4() { covered.extend(addr.v4_octets()) } else { covered.extend(addr.octets()) }
        }
        covered.extend((bytes.len() as u32).to_be_bytes());
        covered.extend([0, proto]);
    }
    let mut sum: u32 = covered.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

struct Datagram<'a> {
    src: Addr,
    dst: Addr,
    proto: u8,
    /// Offset in bytes, more to come.
    fragment: Option<(usize, bool)>,
    body: &'a [u8],
}

/// `client:4000 > local:8080 tcp S`. Panics where anything in the packet is wrong.
pub(super) fn describe(frame: &[u8], link_header: bool) -> String {
    let datagram = if link_header { &frame[14..] } else { frame };
    let end = if datagram[0] >> 4 == 4 { be16(datagram, 2) } else { 40 + be16(datagram, 4) };
    sentence(&datagram[..end], true)
}

fn sentence(datagram: &[u8], whole: bool) -> String {
    let read = if datagram[0] >> 4 == 4 { v4(datagram) } else { v6(datagram) };
    let Datagram { src, dst, proto, fragment, body } = read;
    let covered = whole && fragment.is_none();
    let (from, to) = (name(&src), name(&dst));
    if let Some((offset @ 1.., _)) = fragment {
        return format!("{from} > {to} fragment at {offset}");
    }
    let ports = |what: String| format!("{from}:{} > {to}:{} {what}", be16(body, 0), be16(body, 2));
    let first = if fragment.is_some() { " first fragment" } else { "" };
    match proto {
        6 => {
            assert!(!covered || checksum(body, Some((&src, &dst, 6))) == [0, 0], "TCP checksum of {from} > {to}");
            let flags = body.get(13).map_or(String::new(), |flags| flag_names(*flags));
            ports(format!("tcp{flags}{first}"))
        }
        17 => {
            let is_right = body[6..8] == [0, 0] || checksum(body, Some((&src, &dst, 17))) == [0, 0];
            assert!(!covered || is_right, "UDP checksum of {from} > {to}");
            let none = if body[6..8] == [0, 0] { " without checksum" } else { "" };
            ports(format!("udp{none}{first}"))
        }
        132 => {
            assert!(body[4..].iter().take(8).all(|byte| *byte == 9), "nobody touched tag and CRC of {from} > {to}");
            ports("sctp".into())
        }
        1 | 58 => {
            let pseudo = (proto == 58).then_some((&src, &dst, 58));
            assert!(!covered || checksum(body, pseudo) == [0, 0], "ICMP checksum of {from} > {to}");
            format!("{from} > {to} {}", icmp(proto, body))
        }
        proto => format!("{from} > {to} protocol {proto}"),
    }
}

fn flag_names(flags: u8) -> String {
    let names = [(2, 'S'), (16, 'A'), (1, 'F'), (4, 'R')];
    let set: String = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { set } else { format!(" {set}") }
}

fn icmp(proto: u8, body: &[u8]) -> String {
    let what = match (proto, body[0], body[1]) {
        (1, 8, _) | (58, 128, _) => "echo request",
        (1, 0, _) | (58, 129, _) => "echo reply",
        (1, 3, 3) | (58, 1, 4) => "port unreachable",
        (1, 3, 4) | (58, 2, _) => "too big",
        (1, 3, 1) | (58, 1, 0) => "unreachable",
        (1, 11, _) | (58, 3, _) => "expired",
        _ => return format!("icmp type {}", body[0]),
    };
    if what.starts_with("echo") {
        return what.into();
    }
    // Quoted in full, the quoted checksum must be right as well; cut short, nobody can tell.
    let quoted = &body[8..];
    let len = if quoted[0] >> 4 == 4 { be16(quoted, 2) } else { 40 + be16(quoted, 4) };
    format!("{what} ({})", sentence(quoted, quoted.len() == len))
}

fn v4(datagram: &[u8]) -> Datagram<'_> {
    let len = 4 * usize::from(datagram[0] & 15);
    assert_eq!(checksum(&datagram[..len], None), [0, 0], "IPv4 header checksum of {datagram:02x?}");
    let addr = |at: usize| Addr::v4(datagram[at..at + 4].try_into().unwrap());
    let part = be16(datagram, 6);
    let fragment = (part & 0x3fff != 0).then_some((8 * (part & 0x1fff), part & 0x2000 != 0));
    Datagram { src: addr(12), dst: addr(16), proto: datagram[9], fragment, body: &datagram[len..] }
}

fn v6(datagram: &[u8]) -> Datagram<'_> {
    let addr = |at: usize| Addr::new(datagram[at..at + 16].try_into().unwrap());
    let (mut proto, mut at, mut fragment) = (datagram[6], 40, None);
    while [0, 43, 44, 60].contains(&proto) && !matches!(fragment, Some((1.., _))) {
        if proto == 44 {
            fragment = Some((be16(datagram, at + 2) & !7, datagram[at + 3] & 1 != 0));
        }
        let len = if proto == 44 { 8 } else { 8 * (1 + usize::from(datagram[at + 1])) };
        (proto, at) = (datagram[at], at + len);
    }
    Datagram { src: addr(8), dst: addr(24), proto, fragment, body: &datagram[at..] }
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Every name of a reason that was counted, sorted.
pub(super) fn joined(mut reasons: Vec<&'static str>) -> String {
    reasons.sort_unstable();
    reasons.join(", ")
}
