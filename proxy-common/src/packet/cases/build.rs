//! Packets by name or address: `syn("client:4000 > vip:80")`. Checksums and lengths are right unless a case says otherwise.

use std::boxed::Box;
use std::string::String;
use std::vec::Vec;

use super::Bytes;
use super::names::route;
use super::read::checksum;
use crate::addr::{Addr, Be16, Family};
use crate::packet::ip::Ip;
use crate::packet::tcp;

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Build {
    route: String,
    content: Content,
    payload: usize,
    fragment: Option<(u32, usize, bool)>,
    /// IPv4 options in words, IPv6 extension headers by number.
    options: usize,
    extensions: Vec<u8>,
    /// Of routing headers.
    stops_left: u8,
    pub link_header: bool,
    /// Of the VLAN tag that the kernel keeps beside it, 0 for none.
    pub vlan: u16,
    padding: usize,
}

#[derive(Clone, Debug)]
enum Content {
    Tcp(u8),
    Udp {
        sum: bool,
    },
    Sctp,
    /// Type of each family.
    Icmp([u8; 2]),
    /// Type and code of each family, and how much of the packet is quoted.
    Error([[u8; 2]; 2], Box<Build>, usize),
    /// Of a router: the packet, and whether it tells its own link-layer address.
    Redirect(Box<Build>, bool),
    Raw(u8),
}

fn build(route: impl Into<String>, content: Content) -> Build {
    Build {
        route: route.into(),
        content,
        payload: 11,
        fragment: None,
        options: 0,
        extensions: Vec::new(),
        stops_left: 0,
        link_header: true,
        vlan: 0,
        padding: 0,
    }
}

/// A segment with ACK in the middle of a connection.
pub fn tcp(route: impl Into<String>) -> Build {
    build(route, Content::Tcp(tcp::ACK))
}

/// A segment that opens one.
pub fn syn(route: impl Into<String>) -> Build {
    tcp(route).flags(tcp::SYN)
}

pub fn udp(route: impl Into<String>) -> Build {
    build(route, Content::Udp { sum: true })
}

pub fn sctp(route: impl Into<String>) -> Build {
    build(route, Content::Sctp)
}

pub fn ping(route: impl Into<String>) -> Build {
    build(route, Content::Icmp([8, 128]))
}

/// ICMP of this type in IPv4 and IPv6.
pub fn icmp(route: impl Into<String>, types: [u8; 2]) -> Build {
    build(route, Content::Icmp(types))
}

/// Any other protocol, with nothing that we know inside.
pub fn raw(route: impl Into<String>, proto: u8) -> Build {
    build(route, Content::Raw(proto))
}

/// "Fragmentation needed", "packet too big".
pub fn too_big(route: impl Into<String>, about: Build) -> Build {
    build(route, Content::Error([[3, 4], [2, 0]], Box::new(about), usize::MAX))
}

/// "Host unreachable", "no route".
pub fn unreachable(route: impl Into<String>, about: Build) -> Build {
    build(route, Content::Error([[3, 1], [1, 0]], Box::new(about), usize::MAX))
}

/// "Time exceeded".
pub fn expired(route: impl Into<String>, about: Build) -> Build {
    build(route, Content::Error([[11, 0], [3, 0]], Box::new(about), usize::MAX))
}

/// "Redirect", where a link-layer address is known and where none is.
pub fn redirect(route: impl Into<String>, about: Build, link_address: bool) -> Build {
    build(route, Content::Redirect(Box::new(about), link_address))
}

impl Build {
    #[must_use]
    pub fn flags(mut self, flags: u8) -> Self {
        self.content = Content::Tcp(flags);
        self
    }

    #[must_use]
    pub fn without_sum(mut self) -> Self {
        self.content = Content::Udp { sum: false };
        self
    }

    #[must_use]
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// `offset` and the payload that follows are in bytes.
    #[must_use]
    pub fn fragment(mut self, id: u32, offset: usize, more: bool) -> Self {
        self.fragment = Some((id, offset, more));
        self
    }

    #[must_use]
    pub fn options(mut self, words: usize) -> Self {
        self.options = words;
        self
    }

    /// In IPv6 only.
    #[must_use]
    pub fn extensions(mut self, numbers: &[u8]) -> Self {
        self.extensions = numbers.to_vec();
        self
    }

    /// Its routing header names so many more destinations.
    #[must_use]
    pub fn stops_left(mut self, stops: u8) -> Self {
        self.stops_left = stops;
        self
    }

    /// An error quotes no more than this of the packet.
    #[must_use]
    pub fn quoting(mut self, bytes: usize) -> Self {
        if let Content::Error(_, _, quoted) = &mut self.content {
            *quoted = bytes;
        }
        self
    }

    #[must_use]
    pub fn without_link_header(mut self) -> Self {
        self.link_header = false;
        self
    }

    #[must_use]
    pub fn of_vlan(mut self, number: u16) -> Self {
        self.vlan = number;
        self
    }

    /// Bytes behind the datagram, as Ethernet pads.
    #[must_use]
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    pub fn start(&self) -> usize {
        if self.link_header { 14 } else { 0 }
    }

    pub fn bytes<A: Ip>(&self) -> Bytes {
        let mut frame = Vec::new();
        if self.link_header {
            frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            frame.extend(A::ETHERTYPE);
        }
        frame.extend(self.datagram::<A>());
        frame.extend(std::iter::repeat_n(0xee, self.padding));
        Bytes(frame)
    }

    fn datagram<A: Ip>(&self) -> Vec<u8> {
        let ((src, src_port), (dst, dst_port)) = route(&self.route, A::FAMILY);
        let (proto, mut body) = self.body::<A>(&src, &dst, [src_port, dst_port]);
        if let Some((_, offset @ 1.., _)) = self.fragment {
            // A later fragment: somewhere in the payload.
            body = std::iter::repeat_n(0x55, self.payload).collect();
            assert_eq!(offset % 8, 0, "fragments begin at multiples of 8");
        }
        match A::FAMILY {
            Family::V4 => self.v4(proto, &src, &dst, body),
            Family::V6 => self.v6(proto, &src, &dst, body),
        }
    }

    fn body<A: Ip>(&self, src: &Addr, dst: &Addr, ports: [Be16; 2]) -> (u8, Vec<u8>) {
        let ports: Vec<u8> = ports.iter().flat_map(|port| port.raw().to_ne_bytes()).collect();
        let payload = || (0..self.payload).map(|i| i as u8);
        let of = |both: [u8; 2]| both[usize::from(A::FAMILY == Family::V6)];
        let (proto, sum_at, mut body) = match &self.content {
            Content::Tcp(flags) => {
                let rest = [0, 0, 0, 1, 0, 0, 0, 2, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0];
                (6, Some(16), ports.into_iter().chain(rest).chain(payload()).collect::<Vec<u8>>())
            }
            Content::Udp { sum } => {
                let [high, low] = (8 + self.payload as u16).to_be_bytes();
                let body = ports.into_iter().chain([high, low, 0, 0]).chain(payload());
                (17, sum.then_some(6), body.collect())
            }
            // Eight bytes of verification tag and CRC32c, which nothing here may touch.
            Content::Sctp => (132, None, ports.into_iter().chain([9; 8]).chain(payload()).collect()),
            Content::Icmp(kind) => {
                (A::ICMP, Some(2), [of(*kind), 0, 0, 0, 0, 7, 0, 1].into_iter().chain(payload()).collect())
            }
            Content::Error(kinds, about, quoted) => {
                let [kind, code] = kinds[usize::from(A::FAMILY == Family::V6)];
                let about = about.datagram::<A>();
                let quote = about.iter().copied().take(*quoted);
                (A::ICMP, Some(2), [kind, code, 0, 0, 0, 0, 5, 0].into_iter().chain(quote).collect())
            }
            Content::Redirect(about, link_address) => {
                let about = about.datagram::<A>();
                let body = match A::FAMILY {
                    Family::V4 => [&[5, 1, 0, 0, 10, 0, 0, 1], &about[..]].concat(),
                    Family::V6 => {
                        let link_address: &[u8] = if *link_address { &[2, 1, 2, 0, 0, 0, 0, 9] } else { &[] };
                        let words = 1 + about.len() as u8 / 8;
                        let quote = [4, words, 0, 0, 0, 0, 0, 0];
                        [&[137, 0, 0, 0, 0, 0, 0, 0], &[0xfe; 32][..], link_address, &quote, &about].concat()
                    }
                };
                (A::ICMP, Some(2), body)
            }
            Content::Raw(proto) => (*proto, None, payload().collect()),
        };
        if let Some(at) = sum_at {
            let pseudo = proto != 1;
            let sum = checksum(&body, pseudo.then_some((src, dst, proto)));
            let sum = if proto == 17 && sum == [0, 0] { [0xff, 0xff] } else { sum };
            body[at..at + 2].copy_from_slice(&sum);
        }
        (proto, body)
    }

    fn v4(&self, proto: u8, src: &Addr, dst: &Addr, body: Vec<u8>) -> Vec<u8> {
        let words = 5 + self.options;
        let [high, low] = ((4 * words + body.len()) as u16).to_be_bytes();
        let (id, offset, more) = self.fragment.unwrap_or_default();
        let part = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        let mut header = std::vec![0x40 | words as u8, 0, high, low];
        header.extend((id as u16).to_be_bytes());
        header.extend(part.to_be_bytes());
        header.extend([63, proto, 0, 0]);
        header.extend(src.v4_octets());
        header.extend(dst.v4_octets());
        header.extend(std::iter::repeat_n(1, 4 * self.options));
        let sum = checksum(&header, None);
        header[10..12].copy_from_slice(&sum);
        header.extend(body);
        header
    }

    fn v6(&self, proto: u8, src: &Addr, dst: &Addr, body: Vec<u8>) -> Vec<u8> {
        const FRAGMENT: u8 = 44;
        let mut chain = self.extensions.clone();
        chain.extend(self.fragment.map(|_| FRAGMENT));
        chain.push(proto);
        let mut rest = Vec::new();
        for pair in chain.windows(2) {
            rest.push(pair[1]);
            match (pair[0], self.fragment) {
                (FRAGMENT, Some((id, offset, more))) => {
                    rest.push(0);
                    rest.extend((offset as u16 | u16::from(more)).to_be_bytes());
                    rest.extend(id.to_be_bytes());
                }
                // One padding option that fills eight bytes.
                _ => rest.extend([0, 1, 4, 0, 0, 0, 0]),
            }
        }
        // Where an option says how long it is, a routing header says how many stops are left.
        for (at, _) in self.extensions.iter().enumerate().filter(|(_, number)| **number == 43) {
            rest[8 * at + 3] = self.stops_left;
        }
        rest.extend(body);
        let [high, low] = (rest.len() as u16).to_be_bytes();
        let mut header = std::vec![0x60, 0, 0, 0, high, low, chain[0], 63];
        header.extend(src.octets());
        header.extend(dst.octets());
        header.extend(rest);
        header
    }
}
