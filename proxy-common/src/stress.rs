//! What the stress test and its kernel program agree on.

use crate::abi::FrontendKey;
use crate::addr::{Addr, Be16};
use crate::balance::Choice;
use crate::socket::TCP;

/// Frontends that are dialled and changed.
pub const FRONTENDS: u32 = 64;

/// EPOCHS, by number of a frontend. An epoch is one set of endpoints; epochs of a frontend only grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Epochs {
    /// The latest one that its switch was begun for.
    pub begun: u32,
    /// The latest one that is certainly in place.
    pub in_place: u32,
}

/// What a choice turned out to be; the number is the index into FINDINGS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An endpoint of a set that was valid during the choice.
    Right,
    /// Nothing is published under the frontend.
    Absent,
    /// Refused for a reason that never holds in the test.
    Refused,
    /// Tables contradicted each other three times: refused.
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
    FrontendKey { addr: Addr::v4([172, 30, 0, number as u8]), port: Be16::new(80), proto: TCP, pad: 0 }
}

/// Address and port of the endpoint `member` in set `epoch` of frontend `number`: every part of it can be checked.
#[inline(always)]
pub const fn encode(number: u32, epoch: u32, member: u32) -> (Addr, Be16) {
    (Addr::from_words([number, epoch, member, check(number, epoch, member)]), Be16::from_raw(epoch as u16))
}

/// Number and epoch of the endpoint that was chosen; None when its parts do not belong together.
#[inline(always)]
pub const fn decode(choice: &Choice) -> Option<(u32, u32)> {
    let [number, epoch, member, sum] = choice.addr.words();
    let whole = sum == check(number, epoch, member) && choice.port.raw() == epoch as u16;
    if whole { Some((number, epoch)) } else { None }
}

#[inline(always)]
const fn check(number: u32, epoch: u32, member: u32) -> u32 {
    (number ^ epoch.rotate_left(11) ^ member.rotate_left(23)).wrapping_mul(0x9e37_79b1)
}
