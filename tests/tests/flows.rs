//! Flows of packets in tables that are full, and those that are over (issue 5, line 5).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::Pod;
use proxy_common::abi::{Flow, FlowKey, FragmentKey, PacketSettings};
use proxy_common::addr::Be16;
use proxy_common::packet::ip::{V4, V6};
use proxy_common::packet::tcp::seen;
use proxy_common::tables::name;
use proxy_tests::hooks::alone;
use proxy_tests::manifest::Proto;
use proxy_tests::packets::twin::Tables;
use proxy_tests::packets::wire::{Backend, Wire};
use proxy_tests::world::PINS;
use proxy_tests::{hash, hash_of_each_cpu};
use proxy_userspace::flows::Collector;
use proxy_userspace::maps::described::say;
use proxy_userspace::maps::reshape::{Flows, Which};
use proxy_userspace::sys::bpf::{Map, bytes_of, pin};

/// Removed with everything in it.
struct Pins(PathBuf);

impl Pins {
    fn of<A: Tables>(wire: &mut Wire<A>, name: &str) -> Self
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        FragmentKey<A>: Pod,
    {
        let folder = PathBuf::from(PINS).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        wire.pin(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The entries of a table.
type Halves<A> = Vec<(FlowKey<A>, Flow<A>)>;

/// Those of established flows whose partner is missing, and those of others.
fn alone_in<A: Tables>(wire: &mut Wire<A>) -> [Halves<A>; 2]
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    let ports = wire.own_ports();
    let alone = |entries: HashMap<FlowKey<A>, Flow<A>>| {
        let has_partner = |(key, flow): (&FlowKey<A>, &Flow<A>)| {
            entries.get(&flow.partner_key(key, ports)).is_some_and(|partner| partner.seal == flow.seal)
        };
        let alone = entries.iter().filter(|entry| !has_partner(*entry));
        alone.map(|(key, flow)| (*key, *flow)).collect()
    };
    let established = wire.established().unwrap().iter().collect::<Result<_, _>>().unwrap();
    let embryonic = wire.embryonic().unwrap().iter().collect::<Result<_, _>>().unwrap();
    [established, embryonic].map(alone)
}

/// Every other client speaks UDP.
fn speak<A>(wire: &mut Wire<A>, client: u32) {
    wire.proto = if client.is_multiple_of(2) { Proto::Tcp } else { Proto::Udp };
}

fn lives_through_a_flood<A: Tables>()
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    const ROOM: u32 = 12_288;
    const CONNECTIONS: u32 = 10_000;
    let mut wire = Wire::<A>::to(Backend::Here, ROOM).unwrap();
    for client in 0..CONNECTIONS {
        speak(&mut wire, client);
        wire.connect(client).unwrap();
    }
    let mut taken = 0;
    for stranger in CONNECTIONS..CONNECTIONS + 10 * 2 * ROOM {
        speak(&mut wire, stranger);
        taken += u32::from(wire.dial(stranger).unwrap());
    }
    assert_eq!(taken, 10 * 2 * ROOM, "every one of them is served meanwhile");
    let mut lost = 0;
    for client in 0..CONNECTIONS {
        speak(&mut wire, client);
        lost += u32::from(wire.echo(client).unwrap() != (true, true));
    }
    assert_eq!(lost, 0, "of {CONNECTIONS} connections, {:?}", A::FAMILY);
    assert_eq!(alone_in(&mut wire)[0], [], "of those that are established");
}

#[test]
fn ten_thousand_connections_live_through_a_flood_of_ten_times_the_table() {
    alone("ten_thousand_connections_live_through_a_flood_of_ten_times_the_table", &[], |_| {
        lives_through_a_flood::<V4>();
        lives_through_a_flood::<V6>();
    });
}

/// How many others may begin a flow before one that began, and has not been answered, has to go: the table forgets in the order
/// in which flows came, each of which has two entries. The kernel keeps up to 128 free entries for each processor, and frees as
/// many at once (`LOCAL_FREE_TARGET` of `bpf_lru_list`).
fn may_come_between(room: u32) -> u32 {
    const BATCH: u32 = 128;
    let processors = aya::util::nr_cpus().unwrap() as u32;
    (2 * room - BATCH * (processors + 1)) / 2
}

fn begins_under_a_flood<A: Tables>(proto: Proto)
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    const ROOM: u32 = 4096;
    const AT_ONCE: u32 = 100;
    const ROUNDS: u32 = 10;
    let mut wire = Wire::<A>::to(Backend::Here, ROOM).unwrap();
    wire.proto = proto;
    let mut strangers = AT_ONCE * ROUNDS..;
    let mut flood = |wire: &mut Wire<A>| {
        let come = strangers.by_ref().take((may_come_between(ROOM) - AT_ONCE) as usize);
        come.for_each(|stranger| assert!(wire.dial(stranger).unwrap(), "stranger {stranger}"));
    };
    let mut served = 0;
    for round in 0..ROUNDS {
        let all = || round * AT_ONCE..(round + 1) * AT_ONCE;
        let dialled = all().filter(|client| wire.dial(*client).unwrap()).count();
        flood(&mut wire);
        let accepted = all().filter(|client| wire.accept(*client).unwrap()).count();
        flood(&mut wire);
        let asked = all().filter(|client| wire.echo(*client).unwrap() == (true, true)).count();
        println!(
            "{proto:?}, {:?}: of {AT_ONCE} {dialled} dialled, {accepted} were accepted, {asked} served",
            A::FAMILY
        );
        served += asked as u32;
    }
    assert!(1000 * served >= 999 * ROUNDS * AT_ONCE, "{proto:?}, {:?}: {served} were served", A::FAMILY);
}

#[test]
fn who_begins_under_a_flood_of_the_whole_table_between_any_two_packets_is_served() {
    alone("who_begins_under_a_flood_of_the_whole_table_between_any_two_packets_is_served", &[], |_| {
        for proto in [Proto::Tcp, Proto::Udp] {
            begins_under_a_flood::<V4>(proto);
            begins_under_a_flood::<V6>(proto);
        }
    });
}

#[test]
fn flows_that_are_over_are_forgotten_in_both_directions_and_others_stay() {
    alone("flows_that_are_over_are_forgotten_in_both_directions_and_others_stay", &[], |_| {
        let mut wire = Wire::new(1024).unwrap();
        wire.seconds_ago(60).unwrap();
        wire.dial(1).unwrap();
        wire.connect(2).unwrap();
        wire.connect(3).unwrap();
        wire.seconds_ago(0).unwrap();
        wire.connect(4).unwrap();
        let pins = Pins::of(&mut wire, "over");
        let mut collector = Collector::default();
        let mut look = || collector.look(&pins.0, Duration::ZERO).unwrap().forgotten;
        assert_eq!(look(), 0, "a minute is not too long for any of them");

        // One half of a connection that nobody has used for a while.
        let key = |wire: &mut Wire, client: u16| {
            let keys: Result<Vec<FlowKey<V4>>, _> = wire.established().unwrap().keys().collect();
            let is_its = |key: &FlowKey<V4>| {
                key.direction() == FlowKey::<V4>::REPLY
                    && key.ports.to_ne_bytes()[2..] == (10_000 + client).to_be_bytes()
            };
            keys.unwrap().into_iter().find(is_its).unwrap()
        };
        let reply = key(&mut wire, 3);
        wire.established().unwrap().remove(&reply).unwrap();
        assert_eq!((look(), look()), (0, 1), "two looks have to agree");
        assert_eq!(alone_in(&mut wire), [[], []]);
        assert_eq!(wire.established().unwrap().keys().count(), 4, "two connections");

        wire.settings(|settings: &mut PacketSettings| settings.tcp.established = 59).unwrap();
        assert_eq!(look(), 1, "one has been idle for longer");
        assert_eq!(wire.established().unwrap().keys().count(), 2);
        assert_eq!(wire.echo(4).unwrap(), (true, true));
        assert_eq!(wire.echo(2).unwrap(), (false, false));
    });
}

/// Forgets one entry of each of these flows, in turn that of requests and that of replies, as the kernel may: it takes entries
/// by 128, and where a number of them is odd a flow lies in two parts.
fn forgets_halves<A: Tables>(wire: &mut Wire<A>, of: impl Fn(u32) -> bool)
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    let mut table = wire.established().unwrap();
    let entries = table.iter().collect::<Result<Halves<A>, _>>().unwrap();
    for (key, flow) in entries {
        let client = Wire::<A>::client_of(&flow);
        let direction = if (client / 2).is_multiple_of(2) { FlowKey::<A>::REQUEST } else { FlowKey::<A>::REPLY };
        if of(client) && key.direction() == direction {
            table.remove(&key).unwrap();
        }
    }
}

/// Says of each half that is alone what becomes of it: nobody has used its flow for as long as those `used` lowest clients
/// theirs, and with its next packet there are two again. How many were mended.
fn mends_what_is_alone<A: Tables>(wire: &mut Wire<A>, used: u32) -> u32
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    let ports = wire.own_ports();
    let halves = alone_in(wire);
    println!("{:?}: {:?} entries lost their partner", A::FAMILY, halves.each_ref().map(Vec::len));
    let mut mended = 0;
    for (table, (key, flow)) in
        halves.into_iter().enumerate().flat_map(|(table, of)| of.into_iter().map(move |one| (table, one)))
    {
        let client = Wire::<A>::client_of(&flow);
        assert!(client >= used, "client {client} is in use, and {key:?} is alone");
        let has = |wire: &mut Wire<A>, key: &FlowKey<A>| {
            let entries = if table == 0 { wire.established() } else { wire.embryonic() };
            entries.unwrap().get(key, 0).is_ok_and(|found| found.seal == flow.seal)
        };
        // Those that were made whole took the place of others.
        if !has(wire, &key) {
            continue;
        }
        speak(wire, client);
        let is_request = key.direction() == FlowKey::<A>::REQUEST;
        let passed = if is_request { wire.ask(client) } else { wire.answer(client) };
        assert!(passed.unwrap(), "client {client}: {key:?}");
        let both = [key, flow.partner_key(&key, ports)].map(|key| has(wire, &key));
        assert_eq!(both, [true; 2], "client {client}: {key:?} was alone");
        mended += 1;
    }
    mended
}

fn lives_while_the_table_is_filled_anew<A: Tables>(backend: Backend)
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    const ROOM: u32 = 4096;
    const CONNECTIONS: u32 = 200;
    const STRANGERS: u32 = 10 * ROOM;
    /// The kernel takes 128 entries into consideration when it needs room, and the last of them where all are in use
    /// (`__bpf_lru_list_shrink`): so our connections do not stand one behind the other.
    const BETWEEN: u32 = 10;
    let mut wire = Wire::<A>::to(backend, ROOM).unwrap();
    // To the programs all of it is in one moment.
    wire.seconds_ago(1).unwrap();
    let connect = |wire: &mut Wire<A>, client| {
        speak(wire, client);
        wire.connect(client).unwrap();
    };
    for stranger in CONNECTIONS..CONNECTIONS + STRANGERS {
        connect(&mut wire, stranger);
        if stranger == STRANGERS / 2 {
            forgets_halves(&mut wire, |client| client == stranger);
        }
        let (client, begun) = (stranger % CONNECTIONS, (stranger - CONNECTIONS) / BETWEEN);
        if begun < CONNECTIONS && stranger % BETWEEN == 0 {
            connect(&mut wire, begun);
        } else if client < begun {
            // Each has packets in one direction only.
            speak(&mut wire, client);
            let passed = if (client / 2).is_multiple_of(2) { wire.ask(client) } else { wire.answer(client) };
            assert!(passed.unwrap(), "connection {client}, {stranger} later");
        }
    }
    let entries = wire.established().unwrap().iter().collect::<Result<Halves<A>, _>>().unwrap();
    let of_connections = entries.iter().filter(|(_, flow)| Wire::<A>::client_of(flow) < CONNECTIONS).count();
    assert_eq!(of_connections as u32, 2 * CONNECTIONS, "both halves of each");
    let both = |wire: &mut Wire<A>, client| {
        speak(wire, client);
        wire.echo(client).unwrap()
    };
    let lost = (0..CONNECTIONS).filter(|client| both(&mut wire, *client) != (true, true)).count();
    assert_eq!(lost, 0, "of {CONNECTIONS} connections");
    // Those that nobody used were forgotten, and some of them by halves.
    forgets_halves(&mut wire, |client| client >= CONNECTIONS && client.is_multiple_of(37));
    assert!(mends_what_is_alone(&mut wire, CONNECTIONS) > 10);
    let unanswered = |client: &u32| both(&mut wire, *client) == (true, false);
    assert_eq!((0..CONNECTIONS + STRANGERS).filter(unanswered).count(), 0, "requests without a way back");
}

/// A table that overflows forgets the halves of a flow one by one, and tells nobody: those in use are there all the time. What
/// is left of one that nobody used makes it whole before its packet goes on: nobody is asked who cannot answer.
#[test]
fn both_directions_live_while_the_table_is_filled_anew_within_a_second_and_no_agent_runs() {
    alone("both_directions_live_while_the_table_is_filled_anew_within_a_second_and_no_agent_runs", &[], |_| {
        for backend in [Backend::Here, Backend::Elsewhere] {
            lives_while_the_table_is_filled_anew::<V4>(backend);
            lives_while_the_table_is_filled_anew::<V6>(backend);
        }
    });
}

/// More flows than a table has room for: established ones, or such that nobody has answered.
fn overflows<A: Tables>(backend: Backend, is_established: bool)
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    const ROOM: u32 = 4096;
    let mut wire = Wire::<A>::to(backend, ROOM).unwrap();
    wire.seconds_ago(10).unwrap();
    for client in 0..2 * ROOM {
        speak(&mut wire, client);
        assert!(wire.dial(client).unwrap());
        if is_established {
            assert!(wire.accept(client).unwrap() && wire.ask(client).unwrap());
        }
    }
    let halves = alone_in(&mut wire).map(|halves| halves.len());
    println!("{backend:?}, {:?}: {halves:?} entries lost their partner", A::FAMILY);
    let pins = Pins::of(&mut wire, "overflow");
    let mut collector = Collector::default();
    for _ in 0..2 {
        collector.look(&pins.0, Duration::ZERO).unwrap();
    }
    assert_eq!(alone_in(&mut wire), [[], []]);
    let table = if is_established { wire.established() } else { wire.embryonic() };
    let left = table.unwrap().iter().collect::<Result<Halves<A>, _>>().unwrap();
    assert!(left.len() as u32 > ROOM, "{} entries of {} are left", left.len(), 2 * ROOM);
    let left: HashSet<u32> = left.iter().map(|(_, flow)| Wire::<A>::client_of(flow)).collect();
    wire.seconds_ago(0).unwrap();
    for client in 0..2 * ROOM {
        speak(&mut wire, client);
        let is_left = left.contains(&client);
        let answered = if is_established { wire.answer(client) } else { wire.accept(client) };
        let mut heard = vec![answered.unwrap()];
        // A datagram of somebody who is forgotten begins anew.
        if is_left || wire.proto == Proto::Tcp {
            heard.push(wire.ask(client).unwrap());
        }
        let is_as_wanted = heard.iter().all(|heard| *heard == is_left);
        assert!(is_as_wanted, "nobody is served in one direction: client {client}, {backend:?}, {:?}", A::FAMILY);
    }
}

#[test]
fn a_table_that_overflowed_has_whole_flows_after_two_looks() {
    alone("a_table_that_overflowed_has_whole_flows_after_two_looks", &[], |_| {
        for (backend, is_established) in
            [Backend::Here, Backend::Elsewhere].into_iter().flat_map(|backend| [(backend, true), (backend, false)])
        {
            overflows::<V4>(backend, is_established);
            overflows::<V6>(backend, is_established);
        }
    });
}

/// Keys and values of another version: longer, in another order, with a field more and one less.
type TheirKey = [u8; 16];
type Theirs = [u8; 56];
const SAID: &str = "\
IPv4 key kind 0 4
IPv4 key ports 4 4
IPv4 key dst 8 4
IPv4 key src 12 4
IPv4 flow seen 0 1
IPv4 flow seen_other 1 1
IPv4 flow flags 2 1
IPv4 flow proto 3 1
IPv4 flow client 4 4
IPv4 flow frontend 8 4
IPv4 flow backend 12 4
IPv4 flow source 16 4
IPv4 flow client_port 20 2
IPv4 flow frontend_port 22 2
IPv4 flow backend_port 24 2
IPv4 flow source_port 26 2
IPv4 flow backend_id 28 4
IPv4 flow used 32 8
IPv4 flow weight 40 8
IPv4 flow generation 48 2
";

fn theirs(key: &FlowKey<V4>, flow: &Flow<V4>) -> (TheirKey, Theirs) {
    let (addresses_and_ports, key) = (&bytes_of(flow)[..24], bytes_of(key));
    let flow = [
        &[flow.seen, flow.seen_other, flow.flags, flow.proto][..],
        addresses_and_ports,
        &flow.backend_id.to_ne_bytes(),
        &u64::from(flow.used).to_ne_bytes(),
        &7_u64.to_ne_bytes(),
        &(flow.generation as u16).to_ne_bytes(),
        &[0; 6],
    ];
    let key = [&key[12..], &key[8..12], &key[4..8], &key[..4]].concat();
    (key.try_into().unwrap(), flow.concat().try_into().unwrap())
}

/// Tables of another version, in a folder of their own.
struct Other {
    pins: Pins,
    established: Map<TheirKey, Theirs>,
    embryonic: Map<TheirKey, Theirs>,
}

impl Other {
    fn with_room(entries: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = Pins(PathBuf::from(PINS).join(format!("other-{}-{number}", std::process::id())));
        fs::create_dir_all(&pins.0).unwrap();
        let [established, embryonic] = [name::FLOWS4, name::EMBRYONIC4].map(|table| {
            let made = hash(16, 56, entries).unwrap();
            pin(made.as_fd(), &pins.0.join(table)).unwrap();
            Map::new(made).unwrap()
        });
        say(&pins.0, SAID).unwrap();
        Self { pins, established, embryonic }
    }

    fn set(&self, key: &FlowKey<V4>, flow: &Flow<V4>) {
        let (key, flow) = theirs(key, flow);
        self.established.set(&key, &flow).unwrap();
    }

    /// As [`Self::set`], of a flow that is not answered yet.
    fn begin(&self, key: &FlowKey<V4>, flow: &Flow<V4>) {
        let (key, flow) = theirs(key, flow);
        self.embryonic.set(&key, &flow).unwrap();
    }

    /// Both entries of a flow, given its reply entry.
    fn hold(&self, key: &FlowKey<V4>, flow: &Flow<V4>) {
        self.set(key, flow);
        self.set(&flow.request_key(), &flow.mirrored());
    }
}

#[test]
fn flows_of_a_version_with_longer_entries_go_on_and_what_happens_meanwhile_comes_with_the_second_look() {
    alone(
        "flows_of_a_version_with_longer_entries_go_on_and_what_happens_meanwhile_comes_with_the_second_look",
        &[],
        |_| {
            const ROOM: u32 = 1024;
            let mut wire = Wire::new(ROOM).unwrap();
            let (ours, other) = (Pins::of(&mut wire, "ours"), Other::with_room(2 * ROOM));
            let move_out = |wire: &mut Wire, change: &dyn Fn(&mut Flow<V4>)| {
                let mut entries = wire.established().unwrap();
                let all: Vec<_> = entries.iter().collect::<Result<_, _>>().unwrap();
                for (key, mut flow) in all {
                    entries.remove(&key).unwrap();
                    change(&mut flow);
                    other.set(&key, &flow);
                }
            };
            (1..=2).for_each(|client| wire.connect(client).unwrap());
            move_out(&mut wire, &|_| {});
            wire.connect(3).unwrap();
            move_out(&mut wire, &|flow| (flow.seen, flow.seen_other) = (seen::SPOKE | seen::RST, seen::SPOKE));
            assert_eq!(wire.echo(1).unwrap(), (false, false));

            let flows = Flows::between(&other.pins.0, &ours.0);
            assert_eq!(flows.bring(Which::GoingOn).unwrap(), 4, "not the connection that has ended");
            for client in 1..=2 {
                assert_eq!(wire.echo(client).unwrap(), (true, true), "connection {client}");
            }
            let known = wire.established().unwrap().iter().next().unwrap().unwrap();
            let closing = Flow { seen: known.1.seen | seen::FIN, used: known.1.used + 1, ..known.1 };
            other.set(&known.0, &closing);
            assert_eq!(flows.bring(Which::All).unwrap(), 2, "what has ended, too");
            let told = wire.established().unwrap().get(&known.0, 0).unwrap();
            assert_eq!((told.seen, told.used), (closing.seen, closing.used));
            assert_eq!(flows.bring(Which::All).unwrap(), 0, "all of it is known");
        },
    );
}

#[test]
fn a_port_that_two_versions_gave_away_stays_with_who_uses_it() {
    alone("a_port_that_two_versions_gave_away_stays_with_who_uses_it", &[], |_| {
        let mut wire = Wire::new(1024).unwrap();
        let ours = Pins::of(&mut wire, "ours-of-two");
        let embryonic = Map::<FlowKey<V4>, Flow<V4>>::open(&ours.0.join(name::EMBRYONIC4)).unwrap();
        let established = Map::<FlowKey<V4>, Flow<V4>>::open(&ours.0.join(name::FLOWS4)).unwrap();
        let ended = (seen::SPOKE | seen::SYN | seen::RST, seen::SPOKE | seen::SYN);
        let answered = (seen::SPOKE | seen::SYN, seen::SPOKE | seen::SYN | seen::ACK);
        for (what, theirs, is_theirs) in [("theirs has ended", ended, false), ("theirs goes on", answered, true)] {
            // Begun with us, not answered yet.
            wire.dial(1).unwrap();
            let begun = embryonic.entries().unwrap();
            assert_eq!(begun.len(), 2);
            let is_reply = |(key, _): &&(FlowKey<V4>, Flow<V4>)| key.direction() == FlowKey::<V4>::REPLY;
            let (key, flow) = *begun.iter().find(is_reply).unwrap();
            // To the same backend by the same port, from somebody else.
            let rival = Flow { frontend_port: Be16::new(81), seen: theirs.0, seen_other: theirs.1, ..flow }.sealed();
            let other = Other::with_room(1024);
            other.hold(&key, &rival);

            let flows = Flows::between(&other.pins.0, &ours.0);
            assert_eq!(flows.bring(Which::All).unwrap(), if is_theirs { 2 } else { 0 }, "{what}");
            let left = [established.entries().unwrap(), embryonic.entries().unwrap()].concat();
            let owner = if is_theirs { rival } else { flow };
            assert!(left.iter().all(|(_, flow)| flow.seal == owner.seal), "{what}: {left:?}");
            assert_eq!(left.len(), 2, "{what}: both halves of one flow, in one table: {left:?}");
            for (key, _) in left {
                established.remove(&key).unwrap();
                embryonic.remove(&key).unwrap();
            }
        }
    });
}

#[test]
fn what_ended_with_another_version_takes_no_room_from_what_goes_on() {
    alone("what_ended_with_another_version_takes_no_room_from_what_goes_on", &[], |_| {
        const ROOM: u32 = 4096;
        let mut wire = Wire::new(ROOM).unwrap();
        let (ours, other) = (Pins::of(&mut wire, "ours-of-many"), Other::with_room(4 * ROOM));
        let tables = [name::FLOWS4, name::EMBRYONIC4]
            .map(|table| Map::<FlowKey<V4>, Flow<V4>>::open(&ours.0.join(table)).unwrap());
        let [established, embryonic] = &tables;
        let goes_on = |flow: &Flow<V4>| (flow.seen | flow.seen_other) & seen::RST == 0;
        // Twice as many as there is room for, made where there is plenty. Some go on, a few begin, and nobody hears of those for now.
        let mut going_on = [0, 0];
        for first in (0..2 * ROOM).step_by(ROOM as usize / 2) {
            (first..first + ROOM / 2).for_each(|client| wire.connect(client).unwrap());
            for (key, flow) in established.entries().unwrap() {
                let reset = if flow.client_port.get().is_multiple_of(4) { 0 } else { seen::RST };
                let flow = Flow { seen: flow.seen | reset, seen_other: flow.seen_other | reset, ..flow };
                other.set(&key, &flow);
                going_on[0] += usize::from(goes_on(&flow));
                established.remove(&key).unwrap();
            }
        }
        (2 * ROOM..2 * ROOM + 100).for_each(|client| assert!(wire.dial(client).unwrap()));
        for (key, flow) in embryonic.entries().unwrap() {
            other.begin(&key, &flow);
            going_on[1] += 1;
            embryonic.remove(&key).unwrap();
        }
        let flows = Flows::between(&other.pins.0, &ours.0);
        flows.bring(Which::GoingOn).unwrap();
        let count =
            || tables.each_ref().map(|table| table.entries().unwrap().iter().filter(|(_, flow)| goes_on(flow)).count());
        assert_eq!((count(), going_on), ([ROOM as usize, 200], [ROOM as usize, 200]), "entries");
        assert!(flows.bring(Which::All).unwrap() > 0, "what has ended, too");
        assert_eq!(count(), going_on, "none of them had to go");
    });
}

#[test]
fn a_table_with_a_value_for_each_cpu_is_not_read_as_flows() {
    alone("a_table_with_a_value_for_each_cpu_is_not_read_as_flows", &[], |_| {
        let mut wire = Wire::new(1024).unwrap();
        let ours = Pins::of(&mut wire, "ours-of-one");
        let other = Pins(PathBuf::from(PINS).join(format!("each-cpu-{}", std::process::id())));
        fs::create_dir_all(&other.0).unwrap();
        for table in [name::FLOWS4, name::EMBRYONIC4] {
            pin(hash_of_each_cpu(16, 48, 16).unwrap().as_fd(), &other.0.join(table)).unwrap();
        }
        assert!(!Flows::between(&other.0, &ours.0).are_brought());
    });
}
