//! What the hooks of a device do with a packet that comes in, and with one that goes out.
//!
//! ```text
//! ingress:  read -> may its destination be of any concern? a reply to us? of a flow? -> follow ---> translate
//!                   of none yet: is its destination of concern? -> dial -> vet -> choose -> begin -> pick -> store '
//!                   its destination is of none: is it like what a flow of ours sends? -> begin
//!                   or a reply of a flow that goes past the stack? -> forward
//! egress:   read -> is it for the link? does it leave from one of our ports? is it a reply of a flow? -> follow -----> translate
//!                   does the node itself send it to a destination of any concern? -> as at ingress
//!                   does it send it from one of our ports? -> begin, or follow, as at ingress
//! ```
//!
//! Each stage is a function of its own, never inlined, and what it learns goes into [`State`]: so none of them needs more
//! stack than a kernel program has, and the verifier, which forgets what is in memory, meets each one in few states.

use crate::abi::{Flow, FlowKey, PacketSettings, PortRange, Succession, address, direct};
use crate::addr::Addr;
use crate::balance::{Choice, is_reserved};
use crate::packet::caller::address_flags;
use crate::packet::flow::Point;
use crate::packet::ip::Ip;
use crate::packet::open;
use crate::packet::parse::{Content, Parsed, SCTP, parse};
use crate::packet::state::{Form, Next, State};
use crate::packet::tcp::{self, seen};
use crate::packet::track::{self, Found, Standing};
use crate::packet::{Action, Broken, Host, Node, Packet, Stop, Table, Way, answer, fragment, redirect, rewrite, spoof};
use crate::reason::Reason;
use crate::socket::TCP;
use crate::tables::Tables;

/// A packet comes in on a device. `state` knows where its network header, of the version of `A`, begins ([`State::at`]).
#[inline(always)]
pub fn ingress<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>) -> Action {
    let mut next = read(node, packet, state);
    if next == Next::Find {
        next = arrive(node, state);
    }
    if next == Next::Request {
        next = request(node, state);
    }
    if next == Next::Ask && leads_elsewhere(node, state) && !state.moved {
        next = aside(node, state);
    }
    if next == Next::Past {
        next = past(node, state);
    }
    let action = finish(node, packet, state, next);
    if action == Action::Translated {
        node.note_translated(Way::In);
    }
    action
}

/// A packet goes out on a device.
#[inline(always)]
pub fn egress<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>) -> Action {
    let mut next = read(node, packet, state);
    if next == Next::Find && node.drops_redirects() && state.parsed.content == Content::Link {
        next = redirect(node, packet, state);
    }
    if next == Next::Find {
        next = depart(node, state);
    }
    if next == Next::Own {
        next = own(node, state);
    }
    if next == Next::Request {
        next = request(node, state);
    }
    let action = finish(node, packet, state, next);
    if action == Action::Translated {
        node.note_translated(Way::Out);
    }
    action
}

#[inline(always)]
fn finish<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>, mut next: Next) -> Action {
    if next == Next::Ask {
        next = ask(node, state);
    }
    if next == Next::Dial {
        next = dial(node, state);
    }
    if next == Next::Vet {
        next = vet(node, state);
    }
    if next == Next::Choose {
        next = choose(node, state);
    }
    if next == Next::Begin {
        next = begin(node, state);
    }
    if next == Next::Pick {
        next = pick(node, state);
    }
    if next == Next::Store {
        next = store(node, state);
    }
    if next == Next::Follow {
        next = follow(node, state);
    }
    if next == Next::Promote {
        next = promote(node, state);
    }
    if next == Next::Translate {
        next = translate(node, packet, state);
    }
    if next == Next::Done { state.action } else { settle(node, packet, state) }
}

#[inline(never)]
fn read<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>) -> Next {
    // By way of memory, so that the verifier does not go through all of it once for each link header.
    let start = state.parsed.start;
    let read = parse(packet, start, &mut state.parsed);
    if read.is_ok() {
        state.form = form(node, &mut state.parsed);
    }
    state.after(read.map(|()| Next::Find).map_err(Stop::from))
}

#[inline(always)]
fn form<A: Ip>(node: &impl Node<A>, parsed: &mut Parsed<A>) -> Form {
    match parsed.content {
        Content::Transport => Form::Transport,
        Content::Error => Form::Error,
        Content::Fragment => {
            if fragment::recall(node, parsed) {
                Form::LaterFragment
            } else {
                Form::WithoutPorts
            }
        }
        Content::Echo | Content::Link | Content::Other => Form::WithoutPorts,
    }
}

#[inline(never)]
fn arrive<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let found = flow_in(node, state);
    state.after(found)
}

/// The flow of a packet that came in, if it is a reply.
#[inline(always)]
fn flow_in<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<Next, Stop> {
    spoof::refuse_loopback(&state.parsed.header)?;
    let is_of_concern = may_be_of_concern(node, state);
    if !is_of_concern && !may_be_direct(node, state) {
        return unconcerned(node);
    }
    (state.is_own, state.is_foreign, state.point) = (false, false, Point::RequestIn);
    let ports = track::own_ports(node);
    let may_be_reply =
        is_of_concern && state.form != Form::WithoutPorts && ports.contains(state.parsed.tuple.dst_port.get());
    Ok(if may_be_reply && is_reply_in(node, ports, state) { heard_in(node, state) } else { Next::Request })
}

/// What becomes of a packet whose destination is of no concern.
#[inline(always)]
fn unconcerned<A: Ip>(node: &impl Node<A>) -> Result<Next, Stop> {
    if node.has_fast_path() { Ok(Next::Past) } else { Err(Stop::Pass) }
}

/// Whether a packet to no Service may be one of a client to the backend that it has a flow to, by the same port.
#[inline(always)]
fn may_be_direct<A: Ip>(node: &mut impl Node<A>, state: &State<A>) -> bool {
    let Parsed { tuple, flags, .. } = &state.parsed;
    match state.form {
        Form::WithoutPorts => false,
        Form::Transport if tuple.proto == TCP && tcp::opens(*flags) => true,
        _ => node.direct(tuple.proto).is_some_and(|word| *word != direct::PASS),
    }
}

#[inline(never)]
fn aside<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let asked = if is_taken(node, state) { Ok(Next::Ask) } else { unconcerned(node) };
    state.after(asked)
}

/// Whether what begins here, to no Service, would be the same to its destination as a flow of ours. Then it becomes a flow
/// itself, which has another port.
#[inline(always)]
fn is_taken<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> bool {
    let Parsed { tuple, .. } = &state.parsed;
    let begins = state.form == Form::Transport && tuple.proto != SCTP && state.parsed.may_begin();
    if !begins || node.was_translated(Way::In) {
        return false;
    }
    state.key = tuple.reversed().reply_key(track::own_ports(node));
    state.is_foreign =
        track::find(node, &state.key, &mut state.found) && state.found.flow.client == state.parsed.tuple.src;
    if state.is_foreign {
        dial_as_it_is(state);
    }
    state.is_foreign
}

/// The destination is what is dialled.
#[inline(always)]
fn dial_as_it_is<A: Ip>(state: &mut State<A>) {
    let (addr, port) = (state.parsed.tuple.dst.addr(), state.parsed.tuple.dst_port);
    state.choice = Choice { backend: 0, generation: 0, addr, port, kind: 0, flags: 0, policies: 0 };
}

#[inline(never)]
fn past<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let found = reply_past(node, state);
    state.after(found)
}

/// A reply whose client the backend knows, of a flow that goes past the stack: nothing of it is rewritten before it leaves.
#[inline(always)]
fn reply_past<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<Next, Stop> {
    if state.form == Form::WithoutPorts {
        return Err(Stop::Pass);
    }
    (state.point, state.key) = (Point::ReplyIn, state.parsed.tuple.reply_key(track::own_ports(node)));
    let is_reply = track::find(node, &state.key, &mut state.found)
        && !state.found.flow.is_masqueraded()
        && state.found.flow.client == state.parsed.tuple.dst;
    if !is_reply || !is_past(state) || state.form == Form::Transport && is_foreign(state) {
        return Err(Stop::Pass);
    }
    state.action = Action::Forward;
    Ok(Next::Done)
}

/// Whether a packet of the flow that was found goes past the stack. Errors do too: to netfilter they are about no connection,
/// which firewalls drop. One that is sent to somebody else than who sent what it is about does not.
#[inline(always)]
fn is_past<A: Ip>(state: &State<A>) -> bool {
    state.found.flow.is_past_stack() && state.parsed.header.dst == state.parsed.tuple.dst
}

/// True for a reply to an address and a port of ours, which somebody has got for a flow.
#[inline(always)]
fn is_reply_in<A: Ip>(node: &mut impl Node<A>, ports: PortRange, state: &mut State<A>) -> bool {
    state.key = state.parsed.tuple.reply_key(ports);
    track::find(node, &state.key, &mut state.found)
        && state.found.flow.is_masqueraded()
        && state.found.flow.source == state.parsed.tuple.dst
}

/// What comes after such a reply.
#[inline(always)]
fn heard_in<A: Ip>(node: &impl Node<A>, state: &mut State<A>) -> Next {
    let flow = &state.found.flow;
    state.point = if flow.is_from_node() { Point::ReplyHome } else { Point::ReplyIn };
    if flow.is_from_node() || flow.is_foreign() { heard(node, state) } else { Next::Translate }
}

/// What comes after a packet of a known flow, of which no other hook hears.
#[inline(always)]
fn heard<A: Ip>(node: &impl Node<A>, state: &mut State<A>) -> Next {
    if state.form == Form::Error {
        return Next::Translate;
    }
    state.now = node.seconds();
    Next::Follow
}

#[inline(never)]
fn request<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let found = flow_of_request(node, state);
    state.after(found)
}

/// The flow of what may be a request. Its destination is asked about where there is none: whoever has a flow needs no more.
#[inline(always)]
fn flow_of_request<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<Next, Stop> {
    (state.contested, state.moved) = (0, false);
    if state.form == Form::WithoutPorts {
        return Ok(Next::Ask);
    }
    state.key = state.parsed.tuple.request_key();
    if !track::find(node, &state.key, &mut state.found) {
        return Ok(Next::Ask);
    }
    if state.found.flow.is_from_node() && !state.is_own {
        return Err(Stop::Drop(Reason::SpoofedSource));
    }
    if state.form == Form::Error {
        return Ok(Next::Translate);
    }
    state.now = node.seconds();
    match track::standing(node, state) {
        Standing::Continues => return Ok(Next::Follow),
        Standing::Over => {}
        Standing::Contested => state.contested = state.found.flow.source_port.get(),
        Standing::Unserved => state.moved = true,
    }
    track::close(node, &state.found);
    Ok(Next::Ask)
}

#[inline(never)]
fn ask<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let asked = may_dial(node, state);
    state.after(asked)
}

/// Whether a packet that has no flow may begin one.
#[inline(always)]
fn may_dial<A: Ip>(node: &impl Node<A>, state: &State<A>) -> Result<Next, Stop> {
    let begins = match state.form {
        Form::Error => return Err(Stop::Pass),
        Form::WithoutPorts => false,
        _ => state.parsed.may_begin(),
    };
    if is_theirs(node, begins) {
        return Err(Stop::Pass);
    }
    // No Service has port 0: the decision says what that is at this address.
    let screened = if state.form == Form::WithoutPorts { screen(node, state) } else { Ok(()) };
    // To a destination of no concern nobody is dialled.
    screened.map(|()| if state.is_foreign { Next::Begin } else { Next::Dial })
}

/// Whether programs of another version are asked first, by who let the packet pass: they know flows that we do not.
#[inline(always)]
fn is_theirs(host: &impl Host, begins: bool) -> bool {
    let is_theirs = |succession: &Succession| if begins { succession.begins } else { succession.goes_on };
    host.succession().is_some_and(|succession| is_theirs(succession) != 0)
}

/// What has no ports is refused where it is for a Service, as nftables mode does.
#[inline(always)]
fn screen<A: Ip>(node: &impl Node<A>, state: &State<A>) -> Result<(), Stop> {
    // An address that the node owns is never hijacked.
    if state.class & address::OWN != 0 {
        return Err(Stop::Pass);
    }
    match state.parsed.content {
        Content::Fragment => Err(Stop::Drop(Reason::FragmentBeforeFirst)),
        Content::Echo => refuse_echo(node, state),
        Content::Other => Ok(()),
        _ => Err(Stop::Pass),
    }
}

#[inline(always)]
fn refuse_echo<A: Ip>(node: &impl Node<A>, state: &State<A>) -> Result<(), Stop> {
    let answers = node.settings().is_some_and(|settings| settings.flags & PacketSettings::ANSWER_ECHO != 0);
    if !answers || state.class & (address::CLUSTER_IP | address::EXTERNAL) == 0 {
        return Ok(());
    }
    let (src, dst) = (state.parsed.header.src.addr(), state.parsed.header.dst.addr());
    if !state.is_own {
        spoof::refuse(node, &src, address_flags(node, &src).unwrap_or(0), &dst)?;
    }
    Err(Stop::Echo)
}

/// Whether the destination may be a frontend, or the source of a translation. It is not of most packets, which end here:
/// addresses of all frontends are in the tables.
#[inline(always)]
fn may_be_of_concern<A: Ip>(tables: &impl Tables, state: &mut State<A>) -> bool {
    let dst = state.parsed.tuple.dst.addr();
    (state.class, state.is_classified) = (0, tables.is_absent(&dst));
    !state.is_classified || is_reserved(tables, &dst)
}

/// Whether the destination is of no concern. No entry is looked up twice.
#[inline(always)]
fn leads_elsewhere<A: Ip>(tables: &impl Tables, state: &mut State<A>) -> bool {
    if state.is_classified { !is_reserved(tables, &state.parsed.tuple.dst.addr()) } else { !classify(tables, state) }
}

/// Says what the destination is; whether it is of any concern.
#[inline(never)]
fn classify<A: Ip>(tables: &impl Tables, state: &mut State<A>) -> bool {
    let dst = state.parsed.tuple.dst.addr();
    let flags = tables.address(&dst);
    (state.class, state.is_classified) = (flags.unwrap_or(0), true);
    flags.is_some() || is_reserved(tables, &dst)
}

/// Stages whose bodies [`open`] has, and which one comes after each.
macro_rules! stages {
    ($($stage:ident => $next:ident,)*) => {$(
        #[inline(never)]
        fn $stage<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
            let ended = open::$stage(node, state).map(|()| Next::$next);
            state.after(ended)
        }
    )*};
}

stages! {
    dial => Vet,
    vet => Choose,
    choose => Begin,
    begin => Pick,
    pick => Store,
}

#[inline(never)]
fn store<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let stored = open::store(node, state).map(|()| Next::Translate);
    if stored.is_ok() && state.moved {
        node.count(Reason::FlowMoved);
    }
    state.after(stored)
}

#[inline(never)]
fn redirect<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>) -> Next {
    let stop = redirect::stop(node, packet, state);
    state.after(Err(stop))
}

#[inline(never)]
fn depart<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let found = flow_out(node, state);
    state.after(found)
}

/// The flow of a packet that goes out.
#[inline(always)]
fn flow_out<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<Next, Stop> {
    (state.is_own, state.is_foreign) = (false, false);
    if state.form == Form::WithoutPorts {
        return Ok(Next::Own);
    }
    let ports = track::own_ports(node);
    if is_request_out(node, state, ports) {
        state.point = Point::RequestOut;
        return give_source(node, state).map(|()| Next::Translate);
    }
    state.key = state.parsed.tuple.reply_key(ports);
    if !track::find(node, &state.key, &mut state.found) || !is_reply_out(state) {
        return Ok(Next::Own);
    }
    let next = heard(node, state);
    if next == Next::Follow {
        refuse_foreign(node, state)?;
    }
    Ok(next)
}

/// True for a reply of the flow that was found, to its client or to the address that stands for it here.
#[inline(always)]
fn is_reply_out<A: Ip>(state: &mut State<A>) -> bool {
    let flow = &state.found.flow;
    state.is_own = flow.is_to_node();
    let (point, dst) = if state.is_own { (Point::ReplyHome, flow.source) } else { (Point::ReplyOut, flow.client) };
    state.point = point;
    dst == state.parsed.tuple.dst
}

#[inline(never)]
fn own<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    let asked = asked_by_node(node, state);
    state.after(asked)
}

/// What the node itself asks for. All other requests have been translated where they came in.
#[inline(always)]
fn asked_by_node<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<Next, Stop> {
    let is_of_concern = may_be_of_concern(node, state) && (!leads_elsewhere(node, state) || has_flow(node, state));
    if !is_of_concern && !takes_own_port(node, state) {
        return Err(Stop::Pass);
    }
    let (src, dst) = (state.parsed.tuple.src.addr(), state.parsed.tuple.dst.addr());
    // Loopback addresses lead nowhere else.
    state.is_own = !dst.is_loopback() && address_flags(node, &src).unwrap_or(0) & address::OWN != 0;
    state.is_foreign = !is_of_concern;
    state.point = if is_of_concern { Point::RequestIn } else { Point::RequestOut };
    if state.is_own { Ok(Next::Request) } else { Err(Stop::Pass) }
}

/// Whether what goes out is of a flow to a Service that may be gone.
#[inline(never)]
fn has_flow<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> bool {
    state.key = state.parsed.tuple.request_key();
    state.form != Form::WithoutPorts
        && track::find(node, &state.key, &mut state.found)
        && state.found.flow.is_from_node()
}

/// Whether somebody else sends from a port of ours: a process that asked for it, or netfilter, which masquerades with any port
/// that no connection it knows has. It knows none of ours, so such a packet is made a flow that keeps its port from others,
/// or, where the backend knows that port from a flow of ours, leaves by another one.
#[inline(always)]
fn takes_own_port<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> bool {
    let tuple = &state.parsed.tuple;
    let takes = state.form != Form::WithoutPorts
        && tuple.proto != SCTP
        && track::own_ports(node).contains(tuple.src_port.get())
        && !node.was_translated(Way::Out);
    if takes {
        dial_as_it_is(state);
    }
    takes
}

/// True for a request of a masqueraded flow, which is found by its reply entry.
#[inline(always)]
fn is_request_out<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>, ports: PortRange) -> bool {
    let tuple = &state.parsed.tuple;
    if !ports.contains(tuple.src_port.get()) {
        return false;
    }
    state.key = tuple.reversed().reply_key(ports);
    track::find(node, &state.key, &mut state.found)
        && state.found.flow.flags & (Flow::<A>::MASQUERADED | Flow::<A>::FOREIGN) == Flow::<A>::MASQUERADED
        && state.found.flow.client == state.parsed.tuple.src
}

/// The address that a flow leaves with: that of the device by which its first packet leaves, from then on.
#[inline(always)]
fn give_source<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<(), Stop> {
    let Found { table, flow } = &mut state.found;
    if flow.source != A::ANY {
        return Ok(());
    }
    let source = node.device().map_or(Addr::UNSPECIFIED_V6, |device| *device.source(A::FAMILY));
    if source.is_unspecified() {
        return Err(Stop::Drop(Reason::NoSourceAddress));
    }
    flow.source.set(&A::of(&source));
    set_source(node, *table, &state.key, flow);
    set_source(node, *table, &flow.request_key(), flow);
    Ok(())
}

#[inline(always)]
fn set_source<A: Ip>(node: &mut impl Node<A>, table: Table, key: &FlowKey<A>, flow: &Flow<A>) {
    if let Some(entry) = node.flow(table, key).filter(|entry| entry.seal == flow.seal) {
        entry.source.set(&flow.source);
    }
}

/// The backend talks, but has not answered our SYN: it has another connection with the client's address and port, one that
/// passes us untranslated.
#[inline(always)]
fn is_foreign<A: Ip>(state: &State<A>) -> bool {
    let flow = &state.found.flow;
    flow.proto == TCP && flow.seen & seen::SYN == 0 && state.parsed.flags & (tcp::SYN | tcp::RST) == 0
}

/// The other connection is left alone, and our SYN tries another port when it comes again.
#[inline(always)]
fn refuse_foreign<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Result<(), Stop> {
    if !is_foreign(state) {
        return Ok(());
    }
    let shown = state.found.flow.seen | seen::CONTESTED;
    track::note(node, state, shown);
    Err(Stop::Leave(Reason::ForeignSegment))
}

#[inline(never)]
fn follow<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    if track::follow(node, state) { Next::Promote } else { Next::Translate }
}

#[inline(never)]
fn promote<A: Ip>(node: &mut impl Node<A>, state: &mut State<A>) -> Next {
    track::promote(node, state);
    Next::Translate
}

#[inline(never)]
fn translate<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>) -> Next {
    let to = state.found.flow.translated(state.point, &state.parsed.tuple);
    let written = match state.form {
        Form::Error => rewrite::error(packet, &state.parsed, &to),
        form => rewrite::packet(packet, &state.parsed, &to, form == Form::Transport),
    };
    state.action = direction(node, state);
    let written = written.and_then(|()| match state.action {
        Action::Back => answer::turn_link_header(packet, state.parsed.start),
        _ => Ok(()),
    });
    // Half a translation goes nowhere.
    let written = written.map(|()| Next::Done).map_err(|Broken| Stop::Drop(Reason::BrokenPacket));
    if written.is_ok() && state.form == Form::Transport {
        fragment::keep(node, &state.parsed);
    }
    state.after(written)
}

/// Where a packet goes that was translated.
#[inline(always)]
fn direction<A: Ip>(host: &impl Host, state: &State<A>) -> Action {
    match state.point {
        Point::RequestIn | Point::ReplyIn if host.has_fast_path() && is_past(state) => Action::Forward,
        Point::RequestIn if !state.is_own => Action::Translated,
        Point::RequestIn if !state.found.flow.is_to_node() => Action::Out,
        Point::RequestIn => Action::Back,
        Point::ReplyHome if state.is_own => Action::Back,
        // An error that somebody on the way sends comes from where it comes from.
        Point::ReplyHome if state.parsed.header.src == state.parsed.tuple.src => Action::Home,
        _ => Action::Translated,
    }
}

#[inline(never)]
fn settle<A: Ip>(node: &mut impl Node<A>, packet: &mut impl Packet, state: &mut State<A>) -> Action {
    let (answered, reason) = match state.stop {
        Stop::Pass => return Action::Pass,
        Stop::Leave(reason) => {
            node.count(reason);
            return Action::Pass;
        }
        Stop::Drop(reason) => {
            node.count(reason);
            return Action::Drop;
        }
        Stop::Reject(reason) => (answer::unreachable(packet, &state.parsed), reason),
        Stop::Echo => (answer::echo(packet, &state.parsed), Reason::EchoAnswered),
    };
    node.count(reason);
    // Half an answer goes nowhere.
    if answered.is_ok() { Action::Back } else { Action::Drop }
}
