//! What a socket dialled and where it went: flows, from the first dial to the release of the socket.
//!
//! In: what a hook sees, a [`Socket`] and [`Tables`]. Out: a [`Steering`] on the way out, the dialled address on the way
//! back. Refuses to know contexts and map handles.
//!
//! A socket has one slot in SOCKETS (its cookie under a mask). When another socket holds that slot, and for the second
//! and later frontends of a UDP socket, flows live in `SOCKETS_MORE`, which the kernel frees with the socket. Hooks of one
//! socket run under its lock: only the claim of a free slot has competitors.

use crate::abi::{Backend, FrontendKey, SocketFlow};
use crate::addr::{Addr, Be16};
use crate::balance::{Choice, Client, NANOSECONDS, Verdict, balance};
use crate::reason::Reason;
use crate::tables::{ABI_VERSION, FLOWS_MORE, Tables};

/// IANA number of TCP.
pub const TCP: u8 = 6;
/// IANA number of UDP.
pub const UDP: u8 = 17;

/// Flows beyond the slot; `cookie` is 0 in a free one.
pub type More = [SocketFlow; FLOWS_MORE];

/// The state that one socket has in the kernel tables.
pub trait Socket {
    /// Unique for the life of the machine, never 0.
    fn cookie(&self) -> u64;
    /// The slot of SOCKETS for this cookie, whoever holds it. Every call looks at memory again.
    fn slot(&mut self) -> Option<&mut SocketFlow>;
    /// Lets the slot, which no cache has for a new socket, come from memory while something else is looked up.
    fn fetch_slot(&self);
    fn more(&mut self) -> Option<&mut More>;
    /// As [`Self::more`], made when absent. None when memory is short.
    fn more_or_new(&mut self) -> Option<&mut More>;
    /// One more connection or flow to `backend`.
    fn count_flow(&self, backend: u32);
    /// The gauge of open connections and flows of `backend`.
    fn count_open(&self, backend: u32);
    fn count_closed(&self, backend: u32);
    fn count(&self, reason: Reason);
}

/// What a hook on the way out does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// Not ours.
    Leave,
    /// Continue with this destination.
    To(Addr, Be16),
    /// ECONNREFUSED.
    Refuse,
    /// EHOSTUNREACH.
    Unreachable,
}

/// `connect()`: one decision for the life of the connection. UDP continues a flow that the socket has.
#[inline(always)]
pub fn connect(
    tables: &impl Tables,
    client: &impl Client,
    socket: &mut impl Socket,
    dialled: &FrontendKey,
) -> Steering {
    socket.fetch_slot();
    match route(tables, client, socket, dialled) {
        Route::Flow(flow, reason) => {
            disconnect(tables, socket);
            steer(tables, socket, &SocketFlow { flags: flow.flags | SocketFlow::CONNECTED, ..flow }, reason)
        }
        Route::Leave => {
            // From now on the peer is what was dialled, also when an earlier connect went to a backend.
            disconnect(tables, socket);
            Steering::Leave
        }
        Route::Denied(steering, reason) => deny(socket, steering, reason),
    }
}

/// A datagram with a destination: follows the flow of its socket to that frontend, or starts one.
#[inline(always)]
pub fn send(tables: &impl Tables, client: &impl Client, socket: &mut impl Socket, dialled: &FrontendKey) -> Steering {
    match route(tables, client, socket, dialled) {
        Route::Flow(flow, reason) => steer(tables, socket, &flow, reason),
        Route::Leave => Steering::Leave,
        Route::Denied(steering, reason) => deny(socket, steering, reason),
    }
}

/// A datagram arrived from `addr`:`port`: what the application dialled to get it. Of two frontends that share a backend
/// the one used last answers; the datagram does not tell them apart.
#[inline(always)]
pub fn receive(
    tables: &impl Tables,
    client: &impl Client,
    socket: &mut impl Socket,
    addr: Addr,
    port: Be16,
) -> Option<(Addr, Be16)> {
    let flow = newest(socket, |flow| flow.came_from(&addr, port))?;
    record(tables, socket, &SocketFlow { flags: flow.flags | SocketFlow::REPLIED, used: client.now(), ..flow });
    Some((flow.frontend_addr, flow.frontend_port))
}

/// `getpeername()` is about to answer `addr`:`port`: what was dialled, if that is where connect was sent.
#[inline(always)]
pub fn peer(socket: &mut impl Socket, addr: Addr, port: Be16) -> Option<(Addr, Be16)> {
    let flow = newest(socket, |flow| flow.flags & SocketFlow::CONNECTED != 0 && flow.came_from(&addr, port))?;
    Some((flow.frontend_addr, flow.frontend_port))
}

/// The socket is gone. What is in `SOCKETS_MORE` goes with it.
#[inline(always)]
pub fn release(tables: &impl Tables, socket: &mut impl Socket) {
    let Some(slot) = own_slot(socket) else { return };
    let (backend, generation) = (slot.backend, slot.generation);
    slot.cookie = 0;
    closed(tables, socket, backend, generation);
}

/// Where a dial goes.
enum Route {
    /// To the backend of this flow, which is not stored yet.
    Flow(SocketFlow, Reason),
    Leave,
    Denied(Steering, Reason),
}

#[inline(always)]
fn route(tables: &impl Tables, client: &impl Client, socket: &mut impl Socket, dialled: &FrontendKey) -> Route {
    // Also who has flows from before the setting changed: from now on its datagrams are served at devices.
    if !client.is_steered() {
        return Route::Leave;
    }
    if dialled.proto == UDP
        && let Some(flow) = continued(tables, client, socket, dialled)
    {
        return Route::Flow(flow, Reason::FollowedFlow);
    }
    match balance(tables, client, dialled) {
        Verdict::To(choice) => Route::Flow(begun(client, socket, dialled, &choice), Reason::Translated),
        Verdict::Leave => Route::Leave,
        Verdict::Refuse(reason) => Route::Denied(Steering::Refuse, reason),
        Verdict::Unreachable(reason) => Route::Denied(Steering::Unreachable, reason),
    }
}

/// The flow of this socket to `dialled`, while it is young and its backend serves (specification C1: ready or not).
#[inline(always)]
fn continued(
    tables: &impl Tables,
    client: &impl Client,
    socket: &mut impl Socket,
    dialled: &FrontendKey,
) -> Option<SocketFlow> {
    let flow = newest(socket, |flow| flow.went_to(dialled))?;
    let backend = tables.backend(flow.backend).filter(|backend| backend.generation == flow.generation)?;
    let config = tables.config()?;
    let seconds = if flow.flags & SocketFlow::REPLIED == 0 { config.udp_timeout } else { config.udp_stream_timeout };
    let now = client.now();
    let young = now.saturating_sub(flow.used) < u64::from(seconds) * NANOSECONDS;
    (young && backend.flags & KEEPS_FLOWS != 0).then_some(SocketFlow { used: now, ..flow })
}

/// A backend that has one of these keeps the flows it has.
pub const KEEPS_FLOWS: u16 = Backend::SERVING | Backend::IN_CLUSTER_SET | Backend::IN_LOCAL_SET;

#[inline(always)]
fn begun(client: &impl Client, socket: &impl Socket, dialled: &FrontendKey, choice: &Choice) -> SocketFlow {
    SocketFlow {
        cookie: socket.cookie(),
        used: client.now(),
        frontend_addr: dialled.addr,
        backend_addr: choice.addr,
        frontend_port: dialled.port,
        backend_port: choice.port,
        proto: dialled.proto,
        flags: 0,
        abi: ABI_VERSION,
        backend: choice.backend,
        generation: choice.generation,
    }
}

/// Stores the flow and goes along it. A flow that cannot be stored is not begun: its replies would be misread.
#[inline(always)]
fn steer(tables: &impl Tables, socket: &mut impl Socket, flow: &SocketFlow, reason: Reason) -> Steering {
    if !record(tables, socket, flow) {
        return deny(socket, Steering::Refuse, Reason::SocketTableFull);
    }
    if reason == Reason::Translated {
        socket.count_flow(flow.backend);
    }
    socket.count(reason);
    Steering::To(flow.backend_addr, flow.backend_port)
}

#[inline(always)]
fn deny(socket: &impl Socket, steering: Steering, reason: Reason) -> Steering {
    socket.count(reason);
    steering
}

/// Forgets what the socket was connected to.
#[inline(always)]
fn disconnect(tables: &impl Tables, socket: &mut impl Socket) {
    release(tables, socket);
    if let Some(more) = socket.more() {
        for flow in more.iter_mut().filter(|flow| flow.flags & SocketFlow::CONNECTED != 0) {
            flow.cookie = 0;
            flow.flags = 0;
        }
    }
}

/// What a free slot holds.
pub(crate) const NO_FLOW: SocketFlow = SocketFlow {
    cookie: 0,
    used: 0,
    frontend_addr: Addr::UNSPECIFIED_V6,
    backend_addr: Addr::UNSPECIFIED_V6,
    frontend_port: Be16::new(0),
    backend_port: Be16::new(0),
    proto: 0,
    flags: 0,
    abi: 0,
    backend: 0,
    generation: 0,
};

/// The latest flow of this socket that matches. A copy, not a position: positions are states that the verifier walks.
#[inline(always)]
fn newest(socket: &mut impl Socket, matches: impl Fn(&SocketFlow) -> bool) -> Option<SocketFlow> {
    let mut newest = own_slot(socket).filter(|flow| matches(flow)).copied().unwrap_or(NO_FLOW);
    if let Some(more) = socket.more() {
        for flow in more.iter() {
            if flow.cookie != 0 && newest.used <= flow.used && matches(flow) {
                newest = *flow;
            }
        }
    }
    (newest.cookie != 0).then_some(newest)
}

#[inline(always)]
fn own_slot(socket: &mut impl Socket) -> Option<&mut SocketFlow> {
    let cookie = socket.cookie();
    socket.slot().filter(|flow| flow.cookie == cookie && flow.abi == ABI_VERSION)
}

/// Stores `flow` in the slot if it is this flow's or free, else beside it.
#[inline(always)]
fn record(tables: &impl Tables, socket: &mut impl Socket, flow: &SocketFlow) -> bool {
    record_in_slot(tables, socket, flow) || record_more(socket, flow)
}

/// False where the slot is another socket's, or holds what this socket is connected to.
#[inline(always)]
fn record_in_slot(tables: &impl Tables, socket: &mut impl Socket, flow: &SocketFlow) -> bool {
    let Some(slot) = socket.slot() else { return false };
    if slot.cookie == 0 {
        return claim(socket, flow);
    }
    if slot.cookie != flow.cookie || !slot.gives_way_to(flow) {
        return false;
    }
    let (backend, generation) = (slot.backend, slot.generation);
    *slot = *flow;
    if (backend, generation) != (flow.backend, flow.generation) {
        closed(tables, socket, backend, generation);
        socket.count_open(flow.backend);
    }
    true
}

/// There is no compare-and-swap below kernel 5.12: write the record, then the cookie, and look whose it is.
#[inline(always)]
fn claim(socket: &mut impl Socket, flow: &SocketFlow) -> bool {
    if let Some(slot) = socket.slot() {
        *slot = SocketFlow { cookie: 0, ..*flow };
    }
    if let Some(slot) = socket.slot() {
        slot.cookie = flow.cookie;
    }
    let won = socket.slot().is_some_and(|slot| slot.cookie == flow.cookie);
    if won {
        socket.count_open(flow.backend);
    }
    won
}

/// Stores `flow` in the place it has, else in a free one, else in the oldest.
#[inline(always)]
fn record_more(socket: &mut impl Socket, flow: &SocketFlow) -> bool {
    let Some(more) = socket.more_or_new() else { return false };
    // Three plain searches: one search with three results costs the verifier the square of the places for each field.
    let vacant =
        more.iter().position(|old| old.gives_way_to(flow)).or_else(|| more.iter().position(SocketFlow::is_free));
    let place = vacant.unwrap_or_else(|| oldest(more));
    // The place is in bounds; the mask says so to the verifier.
    more[place % FLOWS_MORE] = *flow;
    if vacant.is_none() {
        socket.count(Reason::SocketFlowEvicted);
    }
    true
}

/// Where the flow is that was used least recently; what the socket is connected to comes last.
#[inline(always)]
fn oldest(more: &More) -> usize {
    let mut oldest = (u64::MAX, 0);
    for (place, flow) in more.iter().enumerate() {
        if flow.flags & SocketFlow::CONNECTED == 0 && flow.used < oldest.0 {
            oldest = (flow.used, place);
        }
    }
    oldest.1
}

/// A backend id that was given away since counts for somebody else.
#[inline(always)]
fn closed(tables: &impl Tables, socket: &impl Socket, backend: u32, generation: u32) {
    if tables.backend(backend).is_some_and(|now| now.generation == generation) {
        socket.count_closed(backend);
    }
}

impl SocketFlow {
    #[inline(always)]
    fn went_to(&self, dialled: &FrontendKey) -> bool {
        self.frontend_port == dialled.port && self.proto == dialled.proto && self.frontend_addr == dialled.addr
    }

    #[inline(always)]
    fn same_frontend(&self, other: &Self) -> bool {
        self.frontend_port == other.frontend_port && self.frontend_addr == other.frontend_addr && self.cookie != 0
    }

    #[inline(always)]
    fn came_from(&self, addr: &Addr, port: Be16) -> bool {
        self.backend_port == port && self.backend_addr == *addr
    }

    /// A datagram never takes the place of what the socket is connected to: getpeername still asks for it.
    #[inline(always)]
    fn gives_way_to(&self, flow: &Self) -> bool {
        self.same_frontend(flow) && self.flags & SocketFlow::CONNECTED <= flow.flags & SocketFlow::CONNECTED
    }

    #[inline(always)]
    fn is_free(&self) -> bool {
        self.cookie == 0
    }
}

#[cfg(test)]
mod tests;
