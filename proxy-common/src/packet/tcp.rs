//! What TCP shows of a connection's life, and how long its flow outlives the last packet.
//!
//! Each direction keeps bits of what it has shown; the state follows from both. No bit needs sequence numbers: who
//! translates every packet need not judge any (specification B11).

use crate::abi::TcpTimeouts;

/// Where the flags are in a TCP header.
pub const FLAGS: usize = 13;
pub const FIN: u8 = 1;
pub const SYN: u8 = 1 << 1;
pub const RST: u8 = 1 << 2;
pub const ACK: u8 = 1 << 4;

/// What one direction of a flow has shown.
pub mod seen {
    /// Anything at all.
    pub const SPOKE: u8 = 1;
    pub const SYN: u8 = 1 << 1;
    /// An acknowledgement that is no part of opening a connection. Of protocols without states: the client spoke after the
    /// backend had.
    pub const ACK: u8 = 1 << 2;
    pub const FIN: u8 = 1 << 3;
    pub const RST: u8 = 1 << 4;
    /// It acknowledged after the other direction's FIN.
    pub const ACK_AFTER_FIN: u8 = 1 << 5;
    /// It acknowledged after both directions' FIN.
    pub const ACK_AFTER_BOTH: u8 = 1 << 6;
    /// Somebody else's connection has the same addresses and ports at the backend: the next SYN takes another port.
    pub const CONTESTED: u8 = 1 << 7;
}

/// The states of conntrack (`nf_conntrack_tcp`), less those that need sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
}

/// What a direction has shown after a segment with `flags`; `own` is what it had shown before, `other` what the other
/// direction has.
#[inline(always)]
pub const fn shown(flags: u8, own: u8, other: u8) -> u8 {
    let mut shown = own | seen::SPOKE;
    if flags & RST != 0 {
        return shown | seen::RST;
    }
    // Who goes on talking was not reset: somebody else sent that segment in its name.
    shown &= !seen::RST;
    if flags & SYN != 0 {
        return shown | seen::SYN;
    }
    if flags & ACK != 0 {
        shown |= seen::ACK;
        if other & seen::FIN != 0 {
            shown |= seen::ACK_AFTER_FIN;
            if own & seen::FIN != 0 {
                shown |= seen::ACK_AFTER_BOTH;
            }
        }
    }
    if flags & FIN != 0 { shown | seen::FIN } else { shown }
}

/// A segment that asks for a new connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

#[inline(always)]
pub const fn state(request: u8, reply: u8) -> State {
    let either = request | reply;
    if either & seen::RST != 0 {
        State::Close
    } else if request & reply & seen::FIN != 0 {
        if either & seen::ACK_AFTER_BOTH != 0 { State::TimeWait } else { State::LastAck }
    } else if either & seen::FIN != 0 {
        if either & seen::ACK_AFTER_FIN != 0 { State::CloseWait } else { State::FinWait }
    } else if request & seen::ACK != 0 && reply & seen::SPOKE != 0 {
        State::Established
    } else if reply & seen::SYN != 0 {
        State::SynRecv
    } else {
        State::SynSent
    }
}

/// [`State::is_over`] of [`state`], whichever way round, without a branch: the verifier would follow all that comes after
/// once for each state.
#[inline(always)]
pub const fn is_over(request: u8, reply: u8) -> bool {
    let either = request | reply;
    let is_reset = either / seen::RST;
    let have_both_ended = ((request & reply) / seen::FIN) & (either / seen::ACK_AFTER_BOTH);
    (is_reset | have_both_ended) & 1 != 0
}

impl State {
    #[inline(always)]
    pub const fn timeout(self, timeouts: &TcpTimeouts) -> u32 {
        match self {
            Self::SynSent => timeouts.syn_sent,
            Self::SynRecv => timeouts.syn_recv,
            Self::Established => timeouts.established,
            Self::FinWait => timeouts.fin_wait,
            Self::CloseWait => timeouts.close_wait,
            Self::LastAck => timeouts.last_ack,
            Self::TimeWait => timeouts.time_wait,
            Self::Close => timeouts.close,
        }
    }

    /// A SYN begins a new connection instead of belonging to this one.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Segment {
        Client(u8),
        Backend(u8),
    }
    use Segment::{Backend, Client};

    fn after(segments: &[Segment]) -> State {
        let (mut request, mut reply) = (0, 0);
        for segment in segments {
            match segment {
                Client(flags) => request = shown(*flags, request, reply),
                Backend(flags) => reply = shown(*flags, reply, request),
            }
        }
        state(request, reply)
    }

    #[test]
    fn states_are_those_of_conntrack() {
        const OPEN: [Segment; 3] = [Client(SYN), Backend(SYN | ACK), Client(ACK)];
        let fin = FIN | ACK;
        for (sentence, segments, expected) in [
            ("a SYN", &[Client(SYN)][..], State::SynSent),
            ("a SYN, twice", &[Client(SYN), Client(SYN)], State::SynSent),
            ("a SYN and its answer", &OPEN[..2], State::SynRecv),
            ("a whole handshake", &OPEN, State::Established),
            ("a refused SYN", &[Client(SYN), Backend(RST | ACK)], State::Close),
            (
                "a simultaneous open",
                &[Client(SYN), Backend(SYN), Client(SYN | ACK), Backend(SYN | ACK)],
                State::SynRecv,
            ),
            ("the client closes", &[OPEN[0], OPEN[1], OPEN[2], Client(fin)], State::FinWait),
            ("the backend closes", &[OPEN[0], OPEN[1], OPEN[2], Backend(fin)], State::FinWait),
            (
                "the client closes and the backend goes on",
                &[OPEN[0], OPEN[1], OPEN[2], Client(fin), Backend(ACK)],
                State::CloseWait,
            ),
            (
                "the backend closes and the client goes on",
                &[OPEN[0], OPEN[1], OPEN[2], Backend(fin), Client(ACK)],
                State::CloseWait,
            ),
            ("both close", &[OPEN[0], OPEN[1], OPEN[2], Client(fin), Backend(ACK), Backend(fin)], State::LastAck),
            (
                "both close and the last FIN is acknowledged",
                &[OPEN[0], OPEN[1], OPEN[2], Client(fin), Backend(fin), Client(ACK)],
                State::TimeWait,
            ),
            ("a reset in mid-flow", &[OPEN[0], OPEN[1], OPEN[2], Backend(RST)], State::Close),
            (
                "a reset that was not the backend's own",
                &[OPEN[0], OPEN[1], OPEN[2], Backend(RST), Backend(ACK)],
                State::Established,
            ),
        ] {
            assert_eq!(after(segments), expected, "{sentence}");
        }
    }

    #[test]
    fn a_connection_is_over_in_the_states_that_say_so() {
        for request in 0..=u8::MAX {
            for reply in 0..=u8::MAX {
                assert_eq!(is_over(request, reply), state(request, reply).is_over(), "{request:#x}, {reply:#x}");
            }
        }
    }

    #[test]
    fn only_a_bare_syn_opens_a_connection() {
        for flags in 0..=u8::MAX {
            let bare = flags & SYN != 0 && flags & (ACK | RST | FIN) == 0;
            assert_eq!(opens(flags), bare, "flags {flags:#x}");
        }
    }

    #[test]
    fn every_state_has_the_timeout_of_its_name() {
        let timeouts = TcpTimeouts {
            syn_sent: 1,
            syn_recv: 2,
            established: 3,
            fin_wait: 4,
            close_wait: 5,
            last_ack: 6,
            time_wait: 7,
            close: 8,
        };
        let states = [
            State::SynSent,
            State::SynRecv,
            State::Established,
            State::FinWait,
            State::CloseWait,
            State::LastAck,
            State::TimeWait,
            State::Close,
        ];
        for (state, expected) in states.into_iter().zip(1..) {
            assert_eq!(state.timeout(&timeouts), expected, "{state:?}");
        }
    }
}
