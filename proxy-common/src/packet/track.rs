//! Flows that exist: found, followed, promoted, closed.
//!
//! A flow has two entries in one table. Packets of a direction look at their own entry only; when it shows something new,
//! about once a second, and always where the table would forget one of them within a second ([`crate::packet::rush`]), they
//! tell the other entry. So both are young to the LRU while either direction is used, an entry that was evicted comes back,
//! and one whose partner's key was taken by another flow goes.

use crate::abi::{Config, Flow, FlowKey, PortRange};
use crate::balance::NANOSECONDS;
use crate::packet::ip::Ip;
use crate::packet::parse::Parsed;
use crate::packet::state::State;
use crate::packet::tcp::{self, seen};
use crate::packet::{Host, Node, NotAdded, Table};
use crate::socket::{KEEPS_FLOWS, TCP, UDP};
use crate::tables::Tables;

/// A copy of an entry, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<A> {
    pub table: Table,
    pub flow: Flow<A>,
}

/// Division by a constant, which the kernel's virtual machine does no faster than any: 40 cycles and more where a multiplication
/// takes three. Right below 2^62, a hundred years.
#[inline(always)]
pub const fn whole_seconds(nanoseconds: u64) -> u32 {
    // 2^50 / 10^9 and 2^51 / 5^9, both rounded down. The first is low by a millionth and less, the second by one at most.
    let most = ((nanoseconds >> 20) * 1_125_899) >> 30;
    let rest = nanoseconds - most * NANOSECONDS;
    let more = ((rest >> 9) * 1_152_921_504) >> 51;
    let rest = rest - more * NANOSECONDS;
    // A bit and no comparison, of which the verifier would follow both ends.
    let one_more = (rest + (1 << 31) - NANOSECONDS) >> 31;
    (most + more + one_more) as u32
}

/// The ports that are ours, none where nothing is set.
#[inline(always)]
pub fn own_ports(host: &impl Host) -> PortRange {
    host.settings().map_or(PortRange::default(), |settings| settings.ports)
}

/// Copies the flow that `key` files to `found`, of which nothing counts if there is none.
#[inline(always)]
pub fn find<A: Ip>(node: &mut impl Node<A>, key: &FlowKey<A>, found: &mut Found<A>) -> bool {
    look(node, Table::Established, key, found) || look(node, Table::Embryonic, key, found)
}

#[inline(always)]
fn look<A: Ip>(node: &mut impl Node<A>, table: Table, key: &FlowKey<A>, found: &mut Found<A>) -> bool {
    let Some(flow) = node.flow(table, key) else { return false };
    found.table = table;
    found.flow.set(flow);
    found.flow.is_sealed() && found.flow.is_at(key)
}

/// What becomes of a flow when a request finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The request belongs to it.
    Continues,
    /// The request is the first one of a new flow.
    Over,
    /// As [`Standing::Over`], and the backend must not see the client's port again.
    Contested,
    /// As [`Standing::Over`], since the backend stopped serving.
    Unserved,
}

/// Asked of the flow that was found.
#[inline(always)]
pub fn standing<A: Ip>(node: &impl Node<A>, state: &State<A>) -> Standing {
    let State { key, found: Found { flow, .. }, parsed: Parsed { flags, .. }, now, .. } = state;
    if !is_alive(node, key, flow, *now) {
        return Standing::Over;
    }
    match flow.proto {
        TCP if tcp::opens(*flags) && flow.seen_other & seen::CONTESTED != 0 => Standing::Contested,
        TCP if tcp::opens(*flags) && flow.tcp_state(key).is_over() => Standing::Over,
        UDP if !flow.is_foreign() && !is_served(node, flow) => Standing::Unserved,
        _ => Standing::Continues,
    }
}

/// How firmly a flow holds its reply key against one that wants it: the lower, the sooner it gives way.
pub mod hold {
    /// Nobody uses it any more.
    pub const NONE: u32 = 0;
    /// Added to the second of its last packet where nobody spoke after an answer yet. Without it: of a connection that ended.
    pub const EMBRYONIC: u32 = 1 << 31;
    /// It gives way to nobody.
    pub const FIRM: u32 = u32::MAX;
}

/// Seconds in which a datagram may still be answered: to give its port away before that misdirects the answer.
const ANSWERS_WITHIN: u32 = 2;

/// [`hold`] of the flow that `key`, a reply key, files in `table`. A connection that ended goes first, though its port is kept
/// from others for as long as there are better ones: the backend may remember it. Then those that may never become one: who
/// floods a service takes ports from the flood.
#[inline(always)]
pub(super) fn hold<A: Ip>(node: &impl Node<A>, table: Table, key: &FlowKey<A>, flow: &Flow<A>) -> u32 {
    let now = node.seconds();
    // Before it is forgotten by the verifier which state it was.
    let is_over = tcp::is_over(flow.seen, flow.seen_other);
    if !is_alive(node, key, flow, now) {
        return hold::NONE;
    }
    // A second that is never NONE, EMBRYONIC or FIRM.
    let used = flow.used.clamp(1, hold::EMBRYONIC - 2);
    if flow.proto == TCP && is_over {
        return used;
    }
    let may_be_answered = flow.proto != TCP && now.saturating_sub(flow.used) < ANSWERS_WITHIN;
    if table == Table::Established || may_be_answered { hold::FIRM } else { hold::EMBRYONIC | used }
}

#[inline(always)]
fn is_alive<A: Ip>(node: &impl Node<A>, key: &FlowKey<A>, flow: &Flow<A>, now: u32) -> bool {
    // Nothing is over within a second of its last packet.
    if now <= flow.used {
        return true;
    }
    let udp = node.config().map_or((0, 0), Config::udp_timeouts);
    node.settings().is_some_and(|settings| flow.is_alive(key, settings, udp, now))
}

/// The backend still serves what it has (specification C1: ready or not). Asked for UDP only; TCP is left alone.
#[inline(always)]
fn is_served<A: Ip>(tables: &impl Tables, flow: &Flow<A>) -> bool {
    let backend = tables.backend(flow.backend_id).filter(|backend| backend.generation == flow.generation);
    backend.is_some_and(|backend| backend.flags & KEEPS_FLOWS != 0)
}

/// The packet shows TCP flags `flags` (0 for other protocols) of its flow's direction. True when the client spoke after the
/// backend had answered: the flow is to be promoted.
#[inline(always)]
pub fn follow<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> bool {
    let flow = &state.found.flow;
    let is_answered = state.key.direction() == FlowKey::<A>::REQUEST && flow.seen_other & seen::SPOKE != 0;
    let shown = match flow.proto {
        TCP => tcp::shown(state.parsed.flags, flow.seen, flow.seen_other),
        _ if is_answered => flow.seen | seen::SPOKE | seen::ACK,
        _ => flow.seen | seen::SPOKE,
    };
    note(node, state, shown);
    is_answered && state.found.table == Table::Embryonic
}

/// The packet's flow has now shown `shown` in the packet's direction: written to its entry, and to the partner of that where
/// it does not know yet.
#[inline(always)]
pub fn note<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>, shown: u8) {
    let State { key, found: Found { table, flow }, now, .. } = state;
    let now = *now;
    let is_told = shown == flow.seen && now == flow.used;
    if is_told && !node.rush(*table).is_some_and(|rush| rush.is_on(now)) {
        return;
    }
    (flow.seen, flow.used) = (shown, now);
    if let Some(own) = node.flow(*table, key).filter(|own| own.seal == flow.seal) {
        own.seen = shown;
        own.used = now;
    }
    let partner_key = flow.partner_key(key, own_ports(node));
    match node.flow(*table, &partner_key) {
        Some(partner) if partner.seal == flow.seal => {
            partner.seen_other = shown;
            partner.used = now;
        }
        _ => mend(node, state),
    }
}

/// The other half was evicted. If its key is another flow's now, this one goes too: half a flow misdirects. Added first and
/// looked after, as where flows begin: one of two sees the other. Never inlined: nearly no packet gets here, and registers are
/// for those that do not.
#[inline(never)]
fn mend<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) {
    let State { key, found: Found { table, flow }, rival, .. } = state;
    let partner_key = flow.partner_key(key, own_ports(node));
    rival.flow = flow.mirrored();
    if node.add_flow(*table, &partner_key, &rival.flow) == Err(NotAdded::Full) {
        return;
    }
    for other in [Table::Established, Table::Embryonic] {
        if node.flow(other, &partner_key).is_some_and(|holder| holder.seal != flow.seal) {
            forget(node, *table, flow.seal, &partner_key);
            node.remove_flow(*table, key);
        }
    }
}

/// Puts the flow of a request out of reach of a flood. The reply entry comes first and goes last, so that a request never
/// passes without a way back.
#[inline(always)]
pub fn promote<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) {
    let State { key: request, found: Found { flow, .. }, rival, .. } = state;
    rival.flow = flow.mirrored();
    let reply = flow.reply_key(own_ports(node));
    if let Err(NotAdded::Full) = node.add_flow(Table::Established, &reply, &rival.flow) {
        return;
    }
    if let Err(NotAdded::Full) = node.add_flow(Table::Established, request, flow) {
        node.remove_flow(Table::Established, &reply);
        return;
    }
    node.remove_flow(Table::Embryonic, request);
    node.remove_flow(Table::Embryonic, &reply);
    added(node, Table::Established, flow.used);
}

/// A flow is new in this table.
#[inline(always)]
pub fn added<A: Ip>(node: &mut impl Node<A>, table: Table, now: u32) {
    let room = node.room();
    if let Some(rush) = node.rush(table) {
        rush.add(now, room);
    }
}

/// Forgets a flow, both halves of it, and nobody else's.
#[inline(always)]
pub fn close<A: Ip>(node: &mut impl Node<A>, found: &Found<A>) {
    let Found { table, flow } = found;
    forget(node, *table, flow.seal, &flow.request_key());
    forget(node, *table, flow.seal, &flow.reply_key(own_ports(node)));
}

#[inline(always)]
fn forget<A: Ip>(node: &mut impl Node<A>, table: Table, seal: u32, key: &FlowKey<A>) {
    if node.flow(table, key).is_some_and(|flow| flow.seal == seal) {
        node.remove_flow(table, key);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn seconds_are_what_a_division_says(nanoseconds in 0_u64..1 << 62) {
            prop_assert_eq!(whole_seconds(nanoseconds), (nanoseconds / NANOSECONDS) as u32);
        }

        #[test]
        fn seconds_begin_and_end_on_the_nanosecond(second in 1_u32..u32::MAX) {
            let begins = u64::from(second) * NANOSECONDS;
            prop_assert_eq!([begins - 1, begins].map(whole_seconds), [second - 1, second]);
        }
    }
}
