//! What the stress test and its kernel program agree on.

use crate::abi::FrontendKey;
use crate::addr::{Addr, Be16};
use crate::balance::Choice;
use crate::socket::TCP;

/// Frontends that are dialled and changed.
pub const FRONTENDS: u32 = 16;

/// EPOCHS, by number of a frontend. An epoch is one set of endpoints; epochs of a frontend only grow. A set is what came
/// with its epoch and with the one before, as in a rolling update.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Epochs {
    /// The latest one that its switch was begun for.
    pub begun: u32,
    /// The latest one that is certainly in place.
    pub in_place: u32,
}

/// MOMENT, one entry: time and chance for the packet hooks, where a test wants to know them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Moment {
    /// `CLOCK_MONOTONIC` in nanoseconds; 0 for what they really are.
    pub now: u64,
    pub random: u32,
    pub pad: u32,
}

/// AGAIN, one entry: what a packet is made anew of before each run of a program that changes it, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// What it begins with: link header, network header, TCP. IPv4 has fewer.
    pub bytes: [u8; Self::LEN + 2],
    /// 0 for IPv4.
    pub is_v6: u32,
    /// Where the last byte of the client's address is, and the client's port; and what they are in flow number 0.
    pub host_at: u32,
    pub host: u32,
    pub port_at: u32,
    pub port: u32,
    /// Where the checksum is that a translation changes, and what it is before, as it lies in memory.
    pub sum_at: u32,
    pub sum: u32,
    /// The program that is run: index into MEASURED.
    pub program: u32,
    /// Flows that runs go through, less one; a power of two less one.
    pub flows_mask: u32,
    /// Runs so far, and the flow of the latest one.
    pub run: u32,
    pub number: u32,
    /// Runs before the latest one that changed the checksum.
    pub changed: u32,
}

impl Again {
    /// Bytes of all headers with IPv6 and with IPv4.
    pub const LEN: usize = 14 + 40 + 20;
    pub const LEN_V4: usize = 14 + 20 + 20;
    /// Ports of a client's address.
    pub const PORTS: u32 = 32_768;

    /// The flow of run number `run`: each once, in an order that no cache foresees.
    #[inline(always)]
    pub const fn flow(&self, run: u32) -> u32 {
        run.wrapping_mul(0x9e37_79b1) & self.flows_mask
    }

    /// What is looked up in the name of flow number `number`, where that is all there is.
    #[inline(always)]
    pub const fn addr(number: u32) -> Addr {
        Addr::from_words([prefixed(0xfd, 1), 0, 0, number])
    }
}

/// What a choice turned out to be; the number is the index into FINDINGS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An endpoint of a set that was valid during the choice.
    Right,
    /// Nothing is published under the frontend: one Service has gone and the next has not come yet.
    Absent,
    /// Refused for a reason that never holds in the test.
    Refused,
    /// Tables contradicted each other: refused.
    Changing,
    /// An endpoint of another service.
    Foreign,
    /// Fields of different endpoints.
    Mixed,
    /// An endpoint of a set that was not valid any more, or not yet.
    Outdated,
}

impl Finding {
    pub const ALL: [Self; 7] =
        [Self::Right, Self::Absent, Self::Refused, Self::Changing, Self::Foreign, Self::Mixed, Self::Outdated];
}

/// Frontend number `number`.
#[inline(always)]
pub const fn frontend(number: u32) -> FrontendKey {
    let addr = Addr::from_words([prefixed(0xfc, number), 0, 0, 0]);
    FrontendKey { addr, port: Be16::new(80), proto: TCP, pad: 0 }
}

/// The endpoint `member` that came with set `epoch` of frontend `number`: every part of its address can be checked.
#[inline(always)]
pub const fn endpoint(number: u32, epoch: u32, member: u32) -> Addr {
    Addr::from_words([prefixed(0xfd, number), epoch, member, check(number, epoch, member)])
}

/// The port of all endpoints that came with one set.
#[inline(always)]
pub const fn port(epoch: u32) -> Be16 {
    Be16::new(1 + (epoch & 0x7fff) as u16)
}

/// Number and epoch of the endpoint that was chosen; None when its parts do not belong together.
#[inline(always)]
pub const fn decode(choice: &Choice) -> Option<(u32, u32)> {
    let [first, epoch, member, sum] = choice.addr.words();
    let number = first.to_ne_bytes()[3] as u32;
    let whole = first == prefixed(0xfd, number)
        && sum == check(number, epoch, member)
        && choice.port.get() == port(epoch).get();
    if whole { Some((number, epoch)) } else { None }
}

/// The first word of an address: a prefix that keeps it an ordinary one, and a number.
#[inline(always)]
const fn prefixed(prefix: u8, number: u32) -> u32 {
    u32::from_ne_bytes([prefix, 0, 0, number as u8])
}

#[inline(always)]
const fn check(number: u32, epoch: u32, member: u32) -> u32 {
    (number ^ epoch.rotate_left(11) ^ member.rotate_left(23)).wrapping_mul(0x9e37_79b1)
}
