//! Fragments: only the first one of a datagram has ports, the others do as it did.
//!
//! What a hook remembers is what it saw, under the addresses it saw: the two hooks on a packet's way each have their own
//! record. The first fragment is recorded after it was translated, so nobody fills the table with what is not ours.

use crate::abi::{FragmentKey, FragmentPorts};
use crate::packet::ip::{DatagramId, Header, Ip, Part};
use crate::packet::parse::{Parsed, Tuple};
use crate::packet::{Host, Node, tcp};

/// Seconds in which all fragments of a datagram arrive (`net.ipv4.ipfrag_time`); after that the number is used again.
const LIFETIME: u32 = 30;

/// Gives a later fragment the ports of the first one; false if that did not come by.
#[inline(always)]
pub fn recall<A: Ip>(node: &impl Node<A>, parsed: &mut Parsed<A>) -> bool {
    let Part::Later(id) = parsed.header.part else { return false };
    let found = node.fragment(&key(&parsed.header, id)).filter(|ports| is_young(node, ports));
    let Some(FragmentPorts { src_port, dst_port, proto, .. }) = found else { return false };
    (parsed.tuple.src_port, parsed.tuple.dst_port, parsed.tuple.proto) = (src_port, dst_port, proto);
    parsed.flags = tcp::ACK;
    true
}

#[inline(always)]
fn is_young(host: &impl Host, ports: &FragmentPorts) -> bool {
    host.seconds().saturating_sub(ports.seen) <= LIFETIME
}

/// Remembers what the first fragment said; does nothing for whole packets.
#[inline(always)]
pub fn keep<A: Ip>(node: &mut impl Node<A>, parsed: &Parsed<A>) {
    if let Part::First(id) = parsed.header.part {
        let Tuple { src_port, dst_port, proto, .. } = parsed.tuple;
        let ports = FragmentPorts { src_port, dst_port, seen: node.seconds(), proto, pad: 0, pad2: 0 };
        node.keep_fragment(&key(&parsed.header, id), &ports);
    }
}

#[inline(always)]
fn key<A: Ip>(header: &Header<A>, id: DatagramId) -> FragmentKey<A> {
    FragmentKey { src: header.src, dst: header.dst, id: id.id, proto: id.proto, pad: 0, pad2: 0 }
}
