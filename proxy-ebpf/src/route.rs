//! Sends on by another device what the node itself sent to a Service, what it is answered, and what goes past the stack.
//!
//! A request left by the route to what was dialled, and has to go by the one to its backend; a reply came by the one and has
//! to come by the other, which is where strict `rp_filter` looks for it. So both find their device by a look at the routes.
//!
//! In: a translated packet and what its hook knows of it. Out: what the kernel is to do with it.

use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use proxy_common::abi::{Device, Flow, near};
use proxy_common::addr::Family;
use proxy_common::packet::flow::Point;
use proxy_common::packet::ip::Ip;
use proxy_common::packet::state::State;
use proxy_common::packet::sum::Change;
use proxy_common::packet::{Broken, Packet as _};
use proxy_common::reason::Reason;
use proxy_common::socket::TCP;

use crate::maps::count;
use crate::maps::packets::{self, device};
use crate::packet::Skb;

/// The loopback device of every network namespace. What the node itself sends comes from there, to rules of routing.
const LOOPBACK: u32 = 1;

/// A route, as `bpf_fib_lookup` leaves it: the words of its parameters.
struct Route([u32; 16]);

impl Route {
    const DEVICE: usize = 2;
    const DESTINATION: usize = 8;
    /// Two bytes of the device's address, then four.
    const OWN_LINK_ADDRESS: usize = 13;

    /// The route to `to`, and how the kernel ended its search.
    #[inline(always)]
    fn to<A: Ip>(skb: Skb, to: &A) -> (Self, u32) {
        Self::of(skb, LOOPBACK, &A::ANY, to, 0)
    }

    /// The route of what comes in by `device`; `len` are bytes that have to fit, or 0 for as many as the packet has.
    #[inline(always)]
    fn of<A: Ip>(skb: Skb, device: u32, from: &A, to: &A, len: u32) -> (Self, u32) {
        let family = match A::FAMILY {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let ([e, f, g, h], [a, b, c, d]) = (words(from), words(to));
        let mut words = [family, len << 16, device, 0, e, f, g, h, a, b, c, d, 0, 0, 0, 0];
        let end = skb.route(&mut words);
        (Self(words), end)
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        self.0[Self::DEVICE]
    }

    /// Who is next, as `bpf_redirect_neigh` takes it: a gateway may be of the other family.
    #[inline(always)]
    fn neighbour(&self) -> [u32; 5] {
        let [a, b, c, d] = [0, 1, 2, 3].map(|word| self.0[Self::DESTINATION + word]);
        [self.0[0] & 0xff, a, b, c, d]
    }

    /// The first six bytes are the device's own address.
    #[inline(always)]
    fn link_address(&self) -> [u8; 6] {
        let ([a, b, c, d], [e, f, ..]) =
            (self.0[Self::OWN_LINK_ADDRESS].to_ne_bytes(), self.0[Self::OWN_LINK_ADDRESS + 1].to_ne_bytes());
        [a, b, c, d, e, f]
    }
}

/// An address as the kernel wants it.
#[inline(always)]
fn words<A: Ip>(address: &A) -> [u32; 4] {
    let [a, b, c, d] = address.addr().words();
    match A::FAMILY {
        Family::V4 => [d, 0, 0, 0],
        Family::V6 => [a, b, c, d],
    }
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// As [`proxy_common::packet::Host::find_local`]: the address of the device on the route, or where that has no program (a bridge,
/// whose ports do) of the one by which the packet came.
#[inline(never)]
pub(crate) fn find_local<A: Ip>(skb: Skb, to: &A, found: &mut A) {
    let (route, _) = Route::to(skb, to);
    found.set(&A::ANY);
    if let Some(device) = device(route.device()).or_else(|| device(skb.device())) {
        found.set(&A::of(device.source(A::FAMILY)));
    }
}

/// Out, to its flow's backend. The hook of that device gives it its source.
#[inline(never)]
pub(crate) fn out<A: Ip>(skb: Skb, state: &State<A>) -> i32 {
    let (route, end) = Route::to(skb, &state.found.flow.backend);
    // Too large: it is for the device to cut, or for the network to refuse.
    if !matches!(end, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        return lost();
    }
    if !has_link_header(route.device()) {
        return skb.redirect(route.device(), 0);
    }
    if state.parsed.start == 0 && skb.add_link_header().is_err() {
        return lost();
    }
    if skb.drop_route().is_err() {
        return lost();
    }
    skb.redirect_to(route.device(), &mut route.neighbour())
}

/// As [`proxy_common::packet::Host::has_plain_ways`]. Replies are looked for where the request leaves.
#[inline(always)]
pub(crate) fn has_plain_ways<A: Ip>(skb: Skb, flow: &Flow<A>) -> bool {
    if !is_for_stack(skb) {
        return false;
    }
    let there = plain_way(skb, skb.device(), &flow.client, &flow.backend);
    there != 0 && plain_way(skb, there, &flow.backend, &flow.client) != 0
}

/// The device by which what comes in by `device` leaves to a neighbour that is known, in a frame; 0 if it does not. Without one
/// the stack finds out whether there is one, and tells the sender if not.
#[inline(never)]
fn plain_way<A: Ip>(skb: Skb, device: u32, from: &A, to: &A) -> u32 {
    let (route, end) = Route::of(skb, device, from, to, 1);
    if end == BPF_FIB_LKUP_RET_SUCCESS && has_link_header(route.device()) { route.device() } else { 0 }
}

/// Out past the stack, with a life less. What the stack has to refuse, to cut or to send otherwise is left to it. No neighbour is
/// no such reason: he is looked for here too, and netfilter sees no single packet of the flow.
#[inline(never)]
pub(crate) fn forward<A: Ip>(skb: Skb, state: &State<A>) -> i32 {
    let flow = &state.found.flow;
    // Who sends an error may be neither.
    let (from, to) =
        (&state.parsed.header.src, if state.point == Point::RequestIn { &flow.backend } else { &flow.client });
    let Ok([lives]) = skb.look(state.parsed.start + lives_at::<A>()) else { return TC_ACT_UNSPEC };
    if lives <= 1 || !is_for_stack(skb) {
        return TC_ACT_UNSPEC;
    }
    let (route, end) = Route::of(skb, skb.device(), from, to, largest(skb, state));
    if !matches!(end, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH) || !has_link_header(route.device()) {
        return TC_ACT_UNSPEC;
    }
    if age::<A>(skb, state.parsed.start, lives).is_err() {
        count(Reason::BrokenPacket);
        return TC_ACT_SHOT;
    }
    skb.redirect_to(route.device(), &mut route.neighbour())
}

/// Whether the stack would take it for a packet of its own: frames for others come by too, where a network does not know yet
/// whom they are for. What a pod sends has the bridge's address or that of another pod, where its device is a bridge's port.
#[inline(never)]
fn is_for_stack(skb: Skb) -> bool {
    let is_ours = match skb.kind() {
        PACKET_HOST => true,
        PACKET_OTHERHOST => device(skb.device()).is_some_and(|device| device.flags & Device::FACES_POD != 0),
        _ => false,
    };
    is_ours && !skb.is_tagged()
}

const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// Bytes of the packet, or of each that a device will make of a large segment, from the network header on: a number of 16 bits.
#[inline(never)]
fn largest<A: Ip>(skb: Skb, state: &State<A>) -> u32 {
    let (header, start, payload) = (&state.parsed.header, state.parsed.start, skb.part());
    let len = if payload == 0 {
        (header.end - start) as u32
    } else {
        // Of a header that cannot be read no packet is made.
        let words =
            if header.proto == TCP { skb.load(header.next + 12).map_or(5, |[words]: [u8; 1]| words >> 4) } else { 2 };
        (header.next - start) as u32 + u32::from(words) * 4 + payload
    };
    len.min(u16::MAX.into())
}

/// Where a network header says how many nodes may forward it.
#[inline(always)]
const fn lives_at<A: Ip>() -> usize {
    match A::FAMILY {
        Family::V4 => 8,
        Family::V6 => 7,
    }
}

#[inline(always)]
fn age<A: Ip>(mut skb: Skb, start: usize, lives: u8) -> Result<(), Broken> {
    match A::CHECKSUM {
        Some(at) => {
            skb.store(start + lives_at::<A>(), [lives - 1])?;
            skb.adjust_header(start + at, Change::of_two([lives, 0], [lives - 1, 0]))
        }
        None => skb.store_bare(start + lives_at::<A>(), [lives - 1]),
    }
}

/// In, by the device by which a packet to its flow's frontend leaves.
#[inline(never)]
pub(crate) fn home<A: Ip>(skb: Skb, state: &State<A>) -> i32 {
    let (mut route, end) = Route::to(skb, &state.found.flow.frontend);
    // An address of the node: it left by the loopback device, whose link address is zero.
    if end == BPF_FIB_LKUP_RET_NOT_FWDED {
        route.0[Route::DEVICE] = LOOPBACK;
    }
    if route.device() == skb.device() {
        return TC_ACT_UNSPEC;
    }
    let is_linked = match end {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FRAG_NEEDED => true,
        // The device's link address is not told either. Where there is none, nobody misses it.
        BPF_FIB_LKUP_RET_NO_NEIGH => false,
        _ => return lost(),
    };
    if has_link_header(route.device())
        && (!is_linked || link::<A>(skb, state.parsed.start, route.link_address()).is_err())
    {
        return lost();
    }
    skb.redirect(route.device(), BPF_F_INGRESS)
}

/// Makes it a frame for who has this link address.
#[inline(always)]
fn link<A: Ip>(mut skb: Skb, start: usize, to: [u8; 6]) -> Result<(), Broken> {
    if start == 0 {
        skb.add_link_header()?;
        skb.store(12, A::ETHERTYPE)?;
    }
    skb.store(0, to)
}

/// Devices without programs of ours are bridges, the loopback device and others with a link header.
#[inline(always)]
fn has_link_header(index: u32) -> bool {
    packets::near(index).is_none_or(near::has_link_header)
}

#[inline(always)]
fn lost() -> i32 {
    count(Reason::NoRoute);
    TC_ACT_SHOT
}
