//! Redirects of the node's kernel about packets of flows that leave by the device by which they came.
//!
//! They would tell a client of a shorter way to a backend, whose address it does not know, and a backend of one to a client,
//! to whom it has sent nothing (and who believed them would pass us by). In: a packet that goes out. Out: whether it is such
//! a redirect. A message for the link asks for no Service: it ends here in any case.

use crate::addr::Family;
use crate::packet::ip::Ip;
use crate::packet::parse::{Content, ICMP_HEADER, quoted};
use crate::packet::state::State;
use crate::packet::{Broken, Node, Packet, Stop, track};
use crate::reason::Reason;

const REDIRECT_V4: u8 = 5;
const REDIRECT_V6: u8 = 137;
/// Bytes before the options of a redirect of IPv6: its header, whom to go by, whom to reach (RFC 4861 section 4.5).
const OPTIONS: usize = 40;
/// Bytes of the first option, where the kernel knows the link-layer address of whom to go by: of Ethernet.
const LINK_ADDRESS: usize = 8;
/// Bytes before the packet in the option that quotes it, and the type of that one.
const QUOTE: usize = 8;
const QUOTED_PACKET: u8 = 4;

/// What becomes of a message for the link: dropped where it is a redirect about a packet of a flow.
#[inline(always)]
pub fn stop<A: Ip>(node: &mut impl Node<A>, packet: &impl Packet, state: &mut State<A>) -> Stop {
    let State { parsed, key, found, .. } = state;
    if parsed.header.proto != A::ICMP {
        return Stop::Pass;
    }
    let Ok(Some(start)) = quote(packet, parsed.header.next, A::FAMILY) else { return Stop::Pass };
    if quoted(packet, start, parsed) != Ok(Content::Error) {
        return Stop::Pass;
    }
    let ports = track::own_ports(node);
    *key = parsed.tuple.reply_key(ports);
    let is_of_request = track::find(node, key, found) && found.flow.client == parsed.tuple.dst;
    if !is_of_request {
        *key = parsed.tuple.reversed().reply_key(ports);
        if !track::find(node, key, found) || found.flow.client != parsed.tuple.src {
            return Stop::Pass;
        }
    }
    Stop::Drop(Reason::RedirectDropped)
}

/// Where the packet begins that a redirect at `at` is about.
#[inline(always)]
fn quote(packet: &impl Packet, at: usize, family: Family) -> Result<Option<usize>, Broken> {
    let [kind, ..] = packet.load::<ICMP_HEADER>(at)?;
    match (family, kind) {
        (Family::V4, REDIRECT_V4) => Ok(Some(at + ICMP_HEADER)),
        (Family::V6, REDIRECT_V6) => {
            let option = |at| packet.load::<2>(at).map(|[kind, _]| kind == QUOTED_PACKET);
            let [first, second] = [at + OPTIONS, at + OPTIONS + LINK_ADDRESS];
            Ok(if option(first)? {
                Some(first + QUOTE)
            } else if option(second)? {
                Some(second + QUOTE)
            } else {
                None
            })
        }
        _ => Ok(None),
    }
}
