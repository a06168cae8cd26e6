//! Which flows nobody needs any more: for who clears up after the programs, which do not.

use crate::abi::{Flow, FlowKey, PacketSettings};
use crate::packet::ip::Ip;

/// Seconds after which every packet of a flow has told both its entries: one that has been alone for longer stays so.
const TOLD_WITHIN: u32 = 2;

/// When it is, and how long flows may last.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub settings: PacketSettings,
    /// Seconds that a question outlives its last packet, and what went on after an answer.
    pub udp: (u32, u32),
    /// Seconds of `CLOCK_MONOTONIC`.
    pub now: u32,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    /// Its time is up, in both directions.
    Over,
    /// A full table lost its other entry, and nobody has spoken since.
    Alone,
}

impl Clock {
    /// What the entry at `key` says by itself. Its partner may have heard of later packets.
    pub fn is_alive<A: Ip>(&self, key: &FlowKey<A>, entry: &Flow<A>) -> bool {
        entry.is_alive(key, &self.settings, self.udp, self.now)
    }

    /// What becomes of the flow that `entry` at `key` is a half of; `partner` is what is filed under the key of the other one.
    /// An entry that was read while it was given away says nothing.
    pub fn fate<A: Ip>(&self, key: &FlowKey<A>, entry: &Flow<A>, partner: Option<&Flow<A>>) -> Fate {
        if !entry.is_sealed() || !entry.is_at(key) {
            return Fate::Stays;
        }
        let partner_key = entry.partner_key(key, self.settings.ports);
        let is_old = self.now.saturating_sub(entry.used) >= TOLD_WITHIN;
        match partner.filter(|partner| partner.seal == entry.seal) {
            Some(partner) if self.is_alive(&partner_key, partner) => Fate::Stays,
            _ if !self.is_alive(key, entry) => Fate::Over,
            None if is_old => Fate::Alone,
            _ => Fate::Stays,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::PortRange;
    use crate::abi::TcpTimeouts;
    use crate::addr::Be16;
    use crate::packet::flow::tests::{flow, v4, v6};
    use crate::packet::ip::{V4, V6};
    use crate::packet::tcp::seen;

    const NOW: u32 = 100_000;
    const ESTABLISHED: u8 = seen::SPOKE | seen::SYN | seen::ACK;

    fn clock() -> Clock {
        let ports = PortRange { first: 61_000, count: 1000 };
        let settings = PacketSettings { tcp: TcpTimeouts::default(), ports, ..PacketSettings::default() };
        Clock { settings, udp: (30, 120), now: NOW }
    }

    /// Both entries of an established connection that were last used so many seconds ago.
    fn halves<A: Ip>(flow: Flow<A>, ages: (u32, u32)) -> [(FlowKey<A>, Flow<A>); 2] {
        let request = Flow { seen: ESTABLISHED, seen_other: ESTABLISHED, used: NOW - ages.0, ..flow };
        let reply = Flow { used: NOW - ages.1, ..request.mirrored() };
        [(request.request_key(), request), (request.reply_key(clock().settings.ports), reply)]
    }

    fn fates<A: Ip>(halves: [(FlowKey<A>, Flow<A>); 2]) -> [Fate; 2] {
        let [(request_key, request), (reply_key, reply)] = halves;
        [clock().fate(&request_key, &request, Some(&reply)), clock().fate(&reply_key, &reply, Some(&request))]
    }

    #[test]
    fn both_directions_go_together_and_not_before_both_are_over() {
        for (sentence, ages, expected) in [
            ("in use", (0, 0), Fate::Stays),
            ("one direction has heard nothing of the other's packets", (90_000, 1), Fate::Stays),
            ("neither has", (1, 90_000), Fate::Stays),
            ("in time", (86_400, 86_400), Fate::Stays),
            ("too late", (86_401, 86_401), Fate::Over),
        ] {
            assert_eq!(fates(halves(flow::<V4>(v4, 61_234), ages)), [expected; 2], "{sentence}, IPv4");
            assert_eq!(fates(halves(flow::<V6>(v6, 4_000), ages)), [expected; 2], "{sentence}, IPv6");
        }
    }

    #[test]
    fn half_a_flow_goes_once_nobody_makes_the_other_half_again() {
        let other = Flow { client_port: Be16::new(9), ..flow::<V4>(v4, 61_234) }.sealed();
        for (sentence, partner) in [("nothing", None), ("another flow", Some(&other))] {
            for (seconds, expected) in [(0, Fate::Stays), (1, Fate::Stays), (2, Fate::Alone), (90_000, Fate::Over)] {
                for (key, entry) in halves(flow::<V4>(v4, 61_234), (seconds, seconds)) {
                    let fate = clock().fate(&key, &entry, partner);
                    assert_eq!(
                        fate,
                        expected,
                        "{sentence} in its place, after {seconds} s, direction {}",
                        key.direction()
                    );
                }
            }
        }
    }

    #[test]
    fn an_entry_that_is_given_away_while_it_is_read_stays() {
        let [(key, entry), _] = halves(flow::<V4>(v4, 61_234), (90_000, 90_000));
        for (sentence, read) in [
            ("of two flows", Flow { backend_port: Be16::new(9), ..entry }),
            ("of another flow", Flow { client_port: Be16::new(9), ..entry }.sealed()),
        ] {
            assert_eq!(clock().fate(&key, &read, None), Fate::Stays, "{sentence}");
        }
        assert_eq!(clock().fate(&key, &entry, None), Fate::Over);
    }
}
