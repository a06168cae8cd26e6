//! What becomes of a packet: translated, answered, dropped, or none of our business.
//!
//! ```text
//!                RequestIn                      RequestOut
//! client C:c --> ingress   C:s -> B:b   ---->   egress     S:s -> B:b --> backend
//!       C:c -> V:v                 the stack forwards                        |
//! client C:c <-- egress    B:b -> C:s   <----   ingress    B:b -> S:s <-------
//!                ReplyOut  V:v -> C:c           ReplyIn
//! ```
//!
//! The destination is translated where the client is, the address of the source where the backend is: netfilter, `rp_filter`
//! and policies of the node see client and backend in both directions, and the stack routes. The *port* of the source
//! changes with the destination, so that what is in between is unique too.
//!
//! A process of the node itself, where no hook sees its socket, is a client that never enters. Netfilter has seen its packet
//! go to the Service, and is to see the answer come from there, so all in between is behind the device:
//!
//! ```text
//!             RequestIn, the route to B     RequestOut
//! node N:c --> egress   N:s -> B:b  ----->  egress      S:s -> B:b --> backend
//!       N:c -> V:v                                                        |
//! node N:c <-- ingress  V:v -> N:c  <-----  ingress     B:b -> S:s <------
//!              of the device on the route to V            ReplyHome
//! ```
//!
//! Where the node is the backend too, both packets turn round at the device, and the backend sees the Service's address:
//! the stack takes no packet from outside that has its own for a source.
//!
//! In: bytes through [`Packet`], the node's tables through [`Node`]. Out: an [`Action`]. Refuses to know kernel contexts and
//! map handles: the same body runs under tc, under XDP and on byte slices. Who gets what is decided by [`crate::balance`],
//! as it is for sockets.

pub mod answer;
pub mod caller;
#[cfg(any(test, feature = "cases"))]
pub mod cases;
pub mod expiry;
pub mod flow;
pub mod fragment;
pub mod hook;
pub mod ip;
pub mod open;
pub mod parse;
pub mod ports;
pub mod redirect;
pub mod rewrite;
pub mod rush;
pub mod spoof;
pub mod state;
pub mod sum;
pub mod tcp;
pub mod track;

use crate::abi::{Device, Flow, FlowKey, FragmentKey, FragmentPorts, PacketSettings, Succession};
use crate::packet::ip::Ip;
use crate::packet::rush::Rush;
use crate::packet::sum::Change;
use crate::packet::track::whole_seconds;
use crate::reason::Reason;
use crate::tables::Tables;

/// A packet that ends before it should, or contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The bytes of a packet, from its link header (or network header, on devices without one) on. Offsets are in bytes.
pub trait Packet {
    fn load<const N: usize>(&self, at: usize) -> Result<[u8; N], Broken>;

    /// As [`Packet::load`], of what nearly every packet is asked for and has in the first part of its memory.
    #[inline(always)]
    fn look<const N: usize>(&self, at: usize) -> Result<[u8; N], Broken> {
        self.load(at)
    }

    fn store<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Broken>;

    /// As [`Packet::store`], of what no checksum in the same header makes up for: an address of IPv6. A sum of the device over
    /// the whole packet (`CHECKSUM_COMPLETE`) has to learn it here, since the one that [`Packet::adjust_transport`] tells of
    /// a pseudo header believes that one does.
    #[inline(always)]
    fn store_bare<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Broken> {
        self.store(at, bytes)
    }

    /// Tells a sum of the device over the whole packet what [`Packet::store`] wrote that [`Packet::store_bare`] would have been for.
    #[inline(always)]
    fn adjust_whole(&mut self, _change: Change) {}

    /// Keeps the `keep` bytes from `at` on, puts `room` zero bytes before them, and drops what follows. What is before `at`
    /// stays.
    fn quote(&mut self, at: usize, keep: usize, room: usize) -> Result<(), Broken>;

    /// Tells the checksum of an IPv4 header.
    #[inline(always)]
    fn adjust_header(&mut self, at: usize, change: Change) -> Result<(), Broken> {
        let sum = self.load(at)?;
        self.store(at, change.applied(sum))
    }

    /// Tells the checksum of a transport header. `pseudo` changed outside of what it covers in the packet (addresses), `rest`
    /// inside: a checksum that the device will complete (`CHECKSUM_PARTIAL`) holds only the first.
    #[inline(always)]
    fn adjust_transport(&mut self, at: usize, zero: Zero, pseudo: Change, rest: Change) -> Result<(), Broken> {
        let sum = self.load(at)?;
        self.store(at, zero.applied(sum, pseudo.and(rest)))
    }
}

/// What a checksum of zero means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// A sum like any other.
    Sum,
    /// UDP: there is none, and a sum that comes out as zero is written as its other name, all ones (RFC 768).
    NoSum,
}

impl Zero {
    #[inline(always)]
    pub const fn applied(self, sum: [u8; 2], change: Change) -> [u8; 2] {
        match (self, sum) {
            (Self::NoSum, [0, 0]) => sum,
            (Self::NoSum, _) => match change.applied(sum) {
                [0, 0] => [0xff, 0xff],
                changed => changed,
            },
            (Self::Sum, _) => change.applied(sum),
        }
    }
}

/// What a hook does with the packet it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not ours: as it came, on to the next program.
    Pass,
    /// Rewritten, on to the next program and the stack.
    Translated,
    Drop,
    /// Turned round: back to where it came from, which at egress is the node.
    Back,
    /// A request of the node itself: out by the route to its backend.
    Out,
    /// A reply to the node itself: in by the device on the route to what it dialled.
    Home,
    /// Of a flow that goes past the stack: out by the route to its destination, where that is still plain, else on to the stack.
    Forward,
}

/// Whether a packet comes in or goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// Which table a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// FLOWS4, FLOWS6: the client spoke after the backend answered.
    Established,
    /// EMBRYONIC4, EMBRYONIC6: all others. A flood fills this table and no other.
    Embryonic,
}

/// Why an entry was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdded {
    Exists,
    Full,
}

/// The tables of flows and fragments. They are LRUs: what is not looked at goes first, with or without an agent.
pub trait Flows<A> {
    /// Every call looks again. An element may be given to another flow while it is read: see [`Flow::is_sealed`].
    fn flow(&mut self, table: Table, key: &FlowKey<A>) -> Option<&mut Flow<A>>;
    /// Never replaces.
    fn add_flow(&mut self, table: Table, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), NotAdded>;
    fn remove_flow(&mut self, table: Table, key: &FlowKey<A>);
    fn rush(&mut self, table: Table) -> Option<&mut Rush>;
    /// How many flows a table has room for.
    fn room(&self) -> u32;
    /// The word of DIRECT for this protocol.
    fn direct(&mut self, proto: u8) -> Option<&mut u32>;
    /// Whether redirects about flows are looked for.
    fn drops_redirects(&self) -> bool;
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    fn keep_fragment(&mut self, key: &FragmentKey<A>, ports: &FragmentPorts);
}

/// The machine: time, chance, sockets, counters.
pub trait Host {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    fn now(&self) -> u64;
    /// The same in whole seconds: what flows count in.
    #[inline(always)]
    fn seconds(&self) -> u32 {
        whole_seconds(self.now())
    }
    fn random(&self) -> u32;
    fn settings(&self) -> Option<&PacketSettings>;
    /// The one that the packet comes in or goes out by.
    fn device(&self) -> Option<&Device>;
    /// Finds the address with which this node sends to `to`: nobody's where it does not know.
    fn find_local<A: Ip>(&self, to: &A, found: &mut A);
    /// True when a socket of this node would take what the backend of `flow` sends to its source port at `local`.
    fn has_socket<A: Ip>(&self, flow: &Flow<A>, local: &A) -> bool;
    /// Whether flows may go past the stack.
    fn has_fast_path(&self) -> bool;
    /// True when the packet is one that this node would forward, and client and backend of `flow`
    /// reach each other by routes in no tunnel of their own, to devices with link headers and to neighbours that are known.
    fn has_plain_ways<A: Ip>(&self, flow: &Flow<A>) -> bool;
    /// True when [`Host::note_translated`] was said of the packet on this way, and nothing after that: by another device on top of
    /// this one or under it.
    fn was_translated(&self, way: Way) -> bool;
    /// The packet goes on translated.
    fn note_translated(&mut self, way: Way);
    /// What programs of another version still do; `None` where there are none.
    #[inline(always)]
    fn succession(&self) -> Option<&Succession> {
        None
    }
    /// One more flow to `backend`.
    fn count_flow(&self, backend: u32);
    fn count(&self, reason: Reason);
}

/// Everything a hook asks of this node.
pub trait Node<A>: Tables + Flows<A> + Host {}

impl<A, N: Tables + Flows<A> + Host> Node<A> for N {}

/// Why a packet is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Not ours.
    Pass,
    /// Left to the stack, which knows better; counted.
    Leave(Reason),
    Drop(Reason),
    /// Answered with "port unreachable" (specification B5 "reject").
    Reject(Reason),
    /// An echo request that we answer.
    Echo,
}

impl From<Broken> for Stop {
    /// The stack drops what is broken, and counts it where people look for it.
    fn from(_: Broken) -> Self {
        Self::Leave(Reason::BrokenPacket)
    }
}
