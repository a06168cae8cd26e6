//! New flows: decided, given a source port, stored in both directions.
//!
//! The reply entry is claimed first: it says whether the backend can tell this flow from all others. Then the request entry;
//! of two CPUs that begin one flow at once the second gives its claim back and adopts what the first one stored.

use crate::abi::{Backend, Device, Flow, FlowKey, FrontendKey, PacketSettings, address, direct};
use crate::addr::{Addr, Be16};
use crate::balance::{Choice, Client, Found, Verdict, find_at, has_detector, serve};
use crate::packet::caller::{Caller, address_flags};
use crate::packet::ip::Ip;
use crate::packet::parse::{Parsed, SCTP, Tuple};
use crate::packet::ports::{HELD_TRIES, TRIES};
use crate::packet::state::State;
use crate::packet::tcp::{self, seen};
use crate::packet::track::{self, hold};
use crate::packet::{Host, Node, NotAdded, Stop, Table, spoof};
use crate::policy::{Settings, Target, replaces_source};
use crate::reason::Reason;
use crate::socket::TCP;
use crate::tables::Tables;

/// Finds the frontend of a request that no flow is known for.
#[inline(always)]
pub fn dial<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Result<(), Stop> {
    let State { parsed, class, source, .. } = state;
    let tuple = &parsed.tuple;
    let src = tuple.src.addr();
    *source = address_flags(node, &src).unwrap_or(0);
    let caller = Caller::new(node, tuple, *source);
    let dialled = FrontendKey { addr: tuple.dst.addr(), port: tuple.dst_port, proto: tuple.proto, pad: 0 };
    let found = find_at(node, &caller, &dialled, *class);
    if !parsed.may_begin() {
        // It names no backend that could be chosen for it again: its flow was forgotten, or never was ours.
        let is_frontend = matches!(found, Found::Frontend(_));
        return Err(if is_frontend { Stop::Leave(Reason::TcpWithoutFlow) } else { Stop::Pass });
    }
    match found {
        Found::Frontend(frontend) => (state.has_frontend, state.frontend) = (true, frontend),
        // Who was served a moment ago is told.
        Found::Nothing(Verdict::Unreachable(reason)) if state.moved => return Err(Stop::Reject(reason)),
        Found::Nothing(Verdict::Leave | Verdict::To(_)) if state.moved => {
            return Err(Stop::Reject(Reason::NoEndpoints));
        }
        Found::Nothing(Verdict::Unreachable(reason)) => {
            (state.has_frontend, state.stop) = (false, Stop::Drop(reason));
        }
        Found::Nothing(Verdict::Refuse(reason)) => (state.has_frontend, state.stop) = (false, Stop::Reject(reason)),
        Found::Nothing(Verdict::Leave | Verdict::To(_)) => return Err(Stop::Pass),
    }
    Ok(())
}

/// Refuses sources that no honest packet has, before anything else is said. What the node itself sends has come from no device.
#[inline(always)]
pub fn vet<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Result<(), Stop> {
    if !state.is_own {
        let Tuple { src, dst, .. } = &state.parsed.tuple;
        spoof::refuse(node, &src.addr(), state.source, &dst.addr())?;
    }
    if state.has_frontend { Ok(()) } else { Err(state.stop) }
}

/// Chooses a backend for the frontend that was dialled.
#[inline(always)]
pub fn choose<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Result<(), Stop> {
    let caller = Caller::new(node, &state.parsed.tuple, state.source);
    let verdict = serve(node, &caller, Found::Frontend(state.frontend));
    decided(state, verdict)
}

#[inline(always)]
fn decided<A: Ip>(state: &mut State<A>, verdict: Verdict) -> Result<(), Stop> {
    match verdict {
        Verdict::To(choice) => {
            state.choice = choice;
            Ok(())
        }
        Verdict::Leave => Err(Stop::Pass),
        Verdict::Refuse(reason) => Err(Stop::Reject(reason)),
        Verdict::Unreachable(reason) => Err(Stop::Drop(reason)),
    }
}

/// Makes the flow to the backend that was chosen; it has no port yet and is not stored.
#[inline(always)]
pub fn begin<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Result<(), Stop> {
    let State { parsed: Parsed { tuple, flags, .. }, choice, .. } = state;
    let caller = Caller::new(node, tuple, state.source);
    let masquerade = state.is_own || !state.is_foreign && replaces_source_of(node, &caller, tuple, choice);
    state.found.flow = begun(tuple, choice, masquerade, *flags);
    if state.is_foreign {
        state.found.flow.flags |= Flow::<A>::FOREIGN;
        state.found.flow.source.set(&tuple.src);
    } else if state.is_own {
        begin_from_node(node, &choice.addr, &mut state.found.flow);
    } else if node.has_fast_path() && goes_past_stack(node, choice, &state.found.flow) {
        state.found.flow.flags |= Flow::<A>::PAST_STACK;
    }
    let flow = &mut state.found.flow;
    flow.used = node.seconds();
    if flow.proto == SCTP && (flow.is_masqueraded() || flow.backend_port != flow.frontend_port) {
        return Err(Stop::Drop(Reason::SctpPort));
    }
    Ok(())
}

/// A flow of the node itself.
#[inline(always)]
fn begin_from_node<A: Ip>(tables: &impl Tables, backend: &Addr, flow: &mut Flow<A>) {
    flow.flags |= Flow::<A>::FROM_NODE;
    if address_flags(tables, backend).unwrap_or(0) & address::OWN != 0 {
        flow.flags |= Flow::<A>::TO_NODE;
        flow.source = flow.frontend;
    }
}

/// Whether no rule is to be expected that hides the client from the backend: those of CNIs let packets to pods pass.
#[inline(always)]
fn may_pass_rules<A: Ip>(host: &impl Host, choice: &Choice, flow: &Flow<A>) -> bool {
    let is_pod = |settings: &PacketSettings| {
        let pods = settings.pods_of(A::FAMILY);
        pods.prefix_len != 0 && pods.contains(&choice.addr)
    };
    flow.is_masqueraded() || choice.flags & Backend::ON_THIS_NODE != 0 || host.settings().is_some_and(is_pod)
}

/// Both ways or neither: netfilter would take half a connection for an invalid one.
#[inline(always)]
fn goes_past_stack<A: Ip>(host: &impl Host, choice: &Choice, flow: &Flow<A>) -> bool {
    host.device().is_some_and(Device::has_link_header)
        && may_pass_rules(host, choice, flow)
        && host.has_plain_ways(flow)
}

#[inline(always)]
fn replaces_source_of<A: Ip, N: Node<A>>(
    node: &N,
    caller: &Caller<'_, A, N>,
    tuple: &Tuple<A>,
    choice: &Choice,
) -> bool {
    let flags = node.settings().map_or(0, |settings| settings.flags);
    let settings = Settings {
        detector: has_detector(node, A::FAMILY),
        masquerade_all: flags & PacketSettings::MASQUERADE_ALL != 0,
    };
    let target = if choice.addr == tuple.src.addr() {
        Target::TheClient
    } else if choice.flags & Backend::ON_THIS_NODE != 0 {
        Target::OnThisNode
    } else {
        Target::Elsewhere
    };
    replaces_source(choice.kind, choice.policies, caller.place(), settings, target)
}

/// The flow of a first packet, with the client's port.
#[inline(always)]
fn begun<A: Ip>(tuple: &Tuple<A>, choice: &Choice, masquerade: bool, flags: u8) -> Flow<A> {
    Flow {
        client: tuple.src,
        frontend: tuple.dst,
        backend: A::of(&choice.addr),
        source: A::ANY,
        client_port: tuple.src_port,
        frontend_port: tuple.dst_port,
        backend_port: choice.port,
        source_port: tuple.src_port,
        backend_id: choice.backend,
        generation: choice.generation,
        seal: 0,
        used: 0,
        seen: if tuple.proto == TCP { tcp::shown(flags, 0, 0) } else { seen::SPOKE },
        seen_other: 0,
        flags: if masquerade { Flow::<A>::MASQUERADED } else { 0 },
        proto: tuple.proto,
        pad: 0,
    }
}

/// Gives the flow the port that the backend sees: one that tells it from all other flows there. Of those tried, the first
/// that nobody has, else the one whose owner gives way soonest.
#[inline(always)]
pub fn pick<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Result<(), Stop> {
    let may_keep = state.is_foreign || !state.found.flow.is_masqueraded();
    if may_keep && state.contested == 0 {
        state.key = state.found.flow.reply_key(track::own_ports(node));
        if held(node, state) == hold::NONE {
            return Ok(());
        }
    }
    // Other ports than those among which the contested one was found.
    let seed = node.settings().map_or(0, |settings| settings.seed) ^ u32::from(state.contested);
    state.hash = state.found.flow.request_hash(seed);
    state.loosest = (hold::FIRM, 0);
    node.find_local(&state.found.flow.backend, &mut state.local);
    for number in 0..TRIES {
        if !try_port(node, state, number) {
            continue;
        }
        if number >= HELD_TRIES {
            if is_filed(node, &state.key) {
                continue;
            }
            seal(state);
            return Ok(());
        }
        let held = held(node, state);
        if held == hold::NONE {
            return Ok(());
        }
        if held < state.loosest.0 {
            state.loosest = (held, number);
        }
    }
    let (held, number) = state.loosest;
    if held == hold::FIRM || !try_port(node, state, number) {
        return Err(Stop::Reject(Reason::PortsExhausted));
    }
    node.count(Reason::PortTakenOver);
    seal(state);
    Ok(())
}

/// Gives the flow its candidate `number`, and makes the reply key that goes with it [`State::key`]. False where there is
/// none, or somebody who is no flow of ours has the port.
#[inline(never)]
fn try_port<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>, number: u32) -> bool {
    let (ports, flow) = (track::own_ports(node), &mut state.found.flow);
    let wanted = if state.contested == 0 { flow.client_port.get() } else { 0 };
    let Some(candidate) = ports.candidate(wanted, state.hash, number) else { return false };
    flow.source_port = Be16::new(candidate);
    state.key = flow.reply_key(ports);
    candidate != state.contested && !node.has_socket(flow, &state.local)
}

#[inline(always)]
fn seal<A: Ip>(state: &mut State<A>) {
    state.found.flow.seal = state.found.flow.seal_of_fields();
}

#[inline(always)]
fn is_filed<A: Ip>(node: &mut impl Node<A>, key: &FlowKey<A>) -> bool {
    node.flow(Table::Established, key).is_some() || node.flow(Table::Embryonic, key).is_some()
}

/// Seals the flow and says how firmly another one holds the reply key at [`State::key`].
#[inline(never)]
fn held<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> u32 {
    seal(state);
    let is_filed = glance(node, Table::Established, state) || glance(node, Table::Embryonic, state);
    if is_filed { firmness(node, state) } else { hold::NONE }
}

/// As much of the flow at the key as tells whose it is and how old, to [`State::rival`].
#[inline(always)]
fn glance<A: Ip, N: Node<A>>(node: &mut N, table: Table, state: &mut State<A>) -> bool {
    let Some(&mut Flow { seal, used, seen, seen_other, .. }) = node.flow(table, &state.key) else { return false };
    let track::Found { table: found_in, flow } = &mut state.rival;
    *found_in = table;
    (flow.seal, flow.used, flow.seen, flow.seen_other, flow.proto) =
        (seal, used, seen, seen_other, state.found.flow.proto);
    true
}

/// How firmly [`State::rival`], unless it is the flow itself, holds the key. Never inlined: it is asked of either table and from
/// a loop, and the verifier walks it once for all.
#[inline(never)]
fn firmness<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> u32 {
    let track::Found { table, flow } = &state.rival;
    if flow.seal == state.found.flow.seal { hold::NONE } else { hold(node, *table, &state.key, flow) }
}

/// Stores the flow, which becomes what is stored: perhaps the one that another CPU stored meanwhile.
///
/// The reply entry is claimed first, at [`State::key`].
#[inline(always)]
pub fn store<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Result<(), Stop> {
    match claim_reply(node, state) {
        Claim::Ours => {}
        Claim::Known => {
            state.found.flow = state.rival.flow;
            return Ok(());
        }
        // Another CPU was faster; the client asks again.
        Claim::Taken => return Err(Stop::Drop(Reason::PortsExhausted)),
        Claim::Full => return Err(Stop::Drop(Reason::FlowTableFull)),
    }
    let flow = &state.found.flow;
    let request = flow.request_key();
    match claim(node, &request, flow) {
        Ok(()) => {
            track::added(node, Table::Embryonic, flow.used);
            if flow.is_like_direct() {
                look_for_direct(node, flow.proto);
            }
            if !state.is_foreign {
                node.count_flow(flow.backend_id);
                node.count(Reason::Translated);
            }
            Ok(())
        }
        Err(not_added) => {
            node.remove_flow(Table::Embryonic, &state.key);
            let is_adopted = not_added == NotAdded::Exists && track::find(node, &request, &mut state.found);
            if is_adopted { Ok(()) } else { Err(Stop::Drop(Reason::FlowTableFull)) }
        }
    }
}

/// From now on packets are looked for that are like those of a flow.
#[inline(always)]
fn look_for_direct<A>(node: &mut impl Node<A>, proto: u8) {
    if let Some(word) = node.direct(proto).filter(|word| **word != direct::LOOK) {
        *word = direct::LOOK;
    }
}

/// What became of a reply key that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Ours,
    /// This very flow has it: only its request entry had been forgotten, and is back now.
    Known,
    /// Another flow has it.
    Taken,
    Full,
}

#[inline(always)]
fn claim_reply<A: Ip, N: Node<A>>(node: &mut N, state: &mut State<A>) -> Claim {
    let State { found: track::Found { flow, .. }, rival, key, .. } = state;
    rival.flow = flow.mirrored();
    match claim(node, key, &rival.flow) {
        Ok(()) => return Claim::Ours,
        Err(NotAdded::Full) => return Claim::Full,
        Err(NotAdded::Exists) => {}
    }
    if !track::find(node, key, rival) {
        return Claim::Taken;
    }
    if rival.flow.has_request_of(flow) && rival.flow.backend_id == flow.backend_id {
        rival.flow.mirror();
        let _ = node.add_flow(rival.table, &flow.request_key(), &rival.flow);
        return Claim::Known;
    }
    if firmness(node, state) == hold::FIRM {
        return Claim::Taken;
    }
    let State { found: track::Found { flow, .. }, rival, key, .. } = state;
    track::close(node, rival);
    rival.flow = flow.mirrored();
    if claim(node, key, &rival.flow).is_ok() { Claim::Ours } else { Claim::Taken }
}

/// Adds an entry that neither table has. A flow that is being promoted is in the other table before it leaves this one: who
/// looks there after adding here cannot miss it.
#[inline(always)]
fn claim<A: Ip, N: Node<A>>(node: &mut N, key: &FlowKey<A>, flow: &Flow<A>) -> Result<(), NotAdded> {
    node.add_flow(Table::Embryonic, key, flow)?;
    if node.flow(Table::Established, key).is_some() {
        node.remove_flow(Table::Embryonic, key);
        return Err(NotAdded::Exists);
    }
    Ok(())
}
