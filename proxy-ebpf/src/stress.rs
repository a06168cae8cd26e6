//! A test program, never part of a release: one choice per run, checked on the spot.
//!
//! The test writes services as the agent does and notes in `EPOCHS` which set of endpoints is being switched to and
//! which one is in place. An endpoint's address says whose it is and of which set; what a choice must be is known here,
//! between two reads of those notes. Outcomes are counted in `FINDINGS`.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use proxy_common::abi::AffinityKey;
use proxy_common::balance::{Choice, Client, Origin, Verdict, balance};
use proxy_common::policy::Place;
use proxy_common::reason::Reason;
use proxy_common::stress::{FRONTENDS, Finding, decode, frontend};

use crate::maps::{Kernel, epochs, found};

/// Four namespaces that dial in turn.
struct Anybody(u32);

impl Client for Anybody {
    #[inline(always)]
    fn place(&self) -> Place {
        Place::Node
    }

    #[inline(always)]
    fn origin(&self) -> Origin {
        Origin::OfTheNode
    }

    #[inline(always)]
    fn affinity(&self, service: u32) -> AffinityKey {
        AffinityKey::namespace(1 + u64::from(self.0 >> 24 & 3), service)
    }

    /// Asked between the look at a version and the look at its slots: the moment in which it hurts when a slot is given
    /// away too early. Now and then it takes long.
    #[inline(always)]
    fn random(&self) -> u32 {
        let random = random();
        if random >> 19 == 0 {
            linger();
        }
        random
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "a helper call without pointers")]
fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
#[expect(unsafe_code, reason = "a helper call without pointers")]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Half a millisecond or so, in which services change.
#[inline(never)]
fn linger() {
    for _ in 0..1024 {
        [(); 16].map(|()| now());
    }
}

#[xdp]
pub(crate) fn stress(_context: XdpContext) -> u32 {
    let client = Anybody(random());
    let number = client.0 % FRONTENDS;
    let in_place = epochs(number).in_place;
    let verdict = balance(&Kernel(()), &client, &frontend(number));
    found(judge(number, &verdict, in_place, epochs(number).begun));
    XDP_PASS
}

#[inline(always)]
fn judge(number: u32, verdict: &Verdict, in_place: u32, begun: u32) -> Finding {
    match verdict {
        Verdict::To(choice) => judge_choice(number, choice, in_place, begun),
        Verdict::Leave | Verdict::Refuse(Reason::UndefinedPort) => Finding::Absent,
        Verdict::Refuse(Reason::TablesChanging) => Finding::Changing,
        _ => Finding::Refused,
    }
}

#[inline(always)]
fn judge_choice(number: u32, choice: &Choice, in_place: u32, begun: u32) -> Finding {
    match decode(choice) {
        None => Finding::Mixed,
        Some((owner, _)) if owner != number => Finding::Foreign,
        // Who came with a set is in the next one too.
        Some((_, epoch)) if epoch + 1 < in_place || epoch > begun => Finding::Outdated,
        Some(_) => Finding::Right,
    }
}
