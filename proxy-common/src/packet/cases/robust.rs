//! Packets that are cut short, bytes that are no packet, and packets at the edge of what is read: nothing panics, nothing reads
//! past the end, and what is cut where it matters is left to the stack.

use std::format;
use std::string::String;
use std::vec::Vec;

#[cfg(test)]
use proptest::prelude::*;

use super::build::{Build, ping, raw, sctp, syn, tcp, too_big, udp, unreachable};
use super::observe::Hook;
use super::world::{On, Setup, TestNode, device};
use super::{Bytes, Case, about, cases, family, in_both_families};
use crate::abi::{Device, near};
use crate::packet::ip::{Ip, V4, V6};
use crate::packet::state::State;
use crate::packet::{Action, parse};

pub(super) const CASES: &[Case] = cases![
    packets_cut_at_any_byte_are_left_to_the_stack,
    padding_is_never_taken_for_ports,
    a_segment_that_the_device_will_cut_has_no_length_and_is_translated_all_the_same,
    a_header_of_another_version_or_of_impossible_length_is_broken,
    an_ipv4_address_inside_of_ipv6_is_no_way_to_an_ipv4_service,
    what_a_frame_carries_is_told_by_its_type_or_its_first_byte,
    what_is_behind_too_many_extension_headers_or_has_stops_left_is_left_to_the_stack,
    a_checksum_of_udp_that_comes_out_as_zero_is_all_ones_on_the_wire,
];

/// Packets of every kind, for a node that has the flows of [`busy`].
fn kinds() -> Vec<(&'static str, Build)> {
    std::vec![
        ("a SYN", syn("client:4000 > lb:80")),
        ("a segment of a flow", tcp("client:4001 > vip:80")),
        ("a datagram", udp("client:4000 > vip:80")),
        ("a datagram without checksum", udp("client:4000 > lb:80").without_sum()),
        ("SCTP", sctp("client:4000 > vip:8080")),
        ("a reply", tcp("local:8080 > client:4001")),
        ("a node port", syn("client:4000 > node:30080")),
        ("options and extension headers", syn("client:4000 > lb:80").options(4).extensions(&[0, 60, 43])),
        (
            "as many options and extension headers as there may be",
            udp("client:4000 > lb:80").options(10).extensions(&[60; 7])
        ),
        ("more extension headers than there may be", udp("client:4000 > lb:80").extensions(&[60; 9])),
        ("a first fragment", udp("client:4000 > lb:80").fragment(7, 0, true)),
        ("a later fragment", udp("client > lb").fragment(7, 16, false)),
        ("an error", too_big("router > lb", tcp("lb:80 > client:4001"))),
        ("an error with little quoted", unreachable("local > client", tcp("client:4001 > local:8080")).quoting(28)),
        ("an echo", ping("client > vip")),
        ("an undefined port", syn("client:4000 > vip:81")),
        ("an unknown protocol", raw("client > vip", 47)),
        ("a spoofed source", syn("node:4000 > vip:80")),
        ("nobody's", syn("client:4000 > web:80")),
        ("a SYN, no link header", syn("client:4000 > lb:80").without_link_header()),
    ]
}

/// A node that has a flow from port 4001.
fn busy<A: Ip>() -> TestNode<A> {
    let mut node = Setup { backends: "L", ..Setup::default() }.node::<A>();
    node.enter(On::Uplink, &syn("client:4001 > vip:80"));
    node
}

/// Both hooks on `bytes`.
fn actions<A: Ip>(bytes: &Bytes, start: usize) -> [(Action, String); 2] {
    [Hook::Ingress, Hook::Egress].map(|hook| {
        let (mut node, mut bytes) = (busy::<A>(), bytes.clone());
        node.reasons_since_last_asked();
        let action = node.act(hook, device(On::Uplink), &mut bytes, start);
        (action, node.reasons_since_last_asked())
    })
}

fn cut<A: Ip>() {
    for (sentence, packet) in kinds() {
        about::<A>(sentence);
        let whole = packet.bytes::<A>();
        for len in 0..whole.0.len().min(120) {
            let bytes = Bytes(whole.0[..len].to_vec());
            let context = std::format!("{sentence}, {len} bytes, {}", family::<A>());
            let parsed = parse::parse(&bytes, packet.start(), &mut State::<A>::empty().parsed);
            for (action, reasons) in actions::<A>(&bytes, packet.start()) {
                if parsed.is_err() {
                    assert_eq!((action, &*reasons), (Action::Pass, "broken_packet"), "{context}");
                }
            }
            // Nobody is translated by ports that are not all there.
            if len < packet.start() + A::HEADER + 8 {
                let translated =
                    actions::<A>(&bytes, packet.start()).iter().any(|(action, _)| *action == Action::Translated);
                assert!(!translated || sentence == "a later fragment", "{context}");
            }
        }
    }
}

#[cfg_attr(test, test)]
fn packets_cut_at_any_byte_are_left_to_the_stack() {
    in_both_families!(cut());
}

fn padded<A: Ip>() {
    // The header says that the datagram ends before the ports; what looks like ports is padding.
    let mut bytes = syn("client:4000 > lb:80").bytes::<A>();
    let (at, len): (usize, u16) = if A::CHECKSUM.is_some() { (14 + 2, 22) } else { (14 + 4, 2) };
    bytes.0[at..at + 2].copy_from_slice(&len.to_be_bytes());
    let [(action, reasons), _] = actions::<A>(&bytes, 14);
    assert_eq!((action, &*reasons), (Action::Pass, "broken_packet"), "{}", family::<A>());
}

#[cfg_attr(test, test)]
fn padding_is_never_taken_for_ports() {
    in_both_families!(padded());
}

#[cfg_attr(test, test)]
fn a_segment_that_the_device_will_cut_has_no_length_and_is_translated_all_the_same() {
    let mut bytes = syn("client:4000 > lb:80").bytes::<V6>();
    bytes.0[18..20].copy_from_slice(&[0, 0]);
    let [(action, _), _] = actions::<V6>(&bytes, 14);
    assert_eq!(action, Action::Translated);
}

#[cfg_attr(test, test)]
fn a_header_of_another_version_or_of_impossible_length_is_broken() {
    for (sentence, first) in [("version 5", 0x55), ("version 6", 0x65), ("four words", 0x44), ("no words", 0x40)] {
        about::<V4>(sentence);
        let mut bytes = syn("client:4000 > lb:80").bytes::<V4>();
        bytes.0[14] = first;
        let [(action, reasons), _] = actions::<V4>(&bytes, 14);
        assert_eq!((action, &*reasons), (Action::Pass, "broken_packet"), "{sentence}");
    }
}

#[cfg_attr(test, test)]
fn an_ipv4_address_inside_of_ipv6_is_no_way_to_an_ipv4_service() {
    // ::ffff:10.96.0.1, as the tables have the ClusterIP of IPv4.
    let mapped = super::names::addr("vip", crate::addr::Family::V4).octets();
    for (sentence, at) in [("as source", 14 + V6::SOURCE), ("as destination", 14 + V6::DESTINATION)] {
        about::<V6>(sentence);
        let mut bytes = syn("client:4000 > vip:80").bytes::<V6>();
        bytes.0[at..at + 16].copy_from_slice(&mapped);
        for (action, reasons) in actions::<V6>(&bytes, 14) {
            assert_eq!((action, &*reasons), (Action::Pass, "broken_packet"), "{sentence}");
        }
    }
}

#[cfg_attr(test, test)]
fn what_a_frame_carries_is_told_by_its_type_or_its_first_byte() {
    use crate::addr::Family;
    let frame = |packet: &Build, six: bool| if six { packet.bytes::<V6>() } else { packet.bytes::<V4>() };
    let (ethernet, bare) = (udp("client:1 > web:2"), udp("client:1 > web:2").without_link_header());
    let mut tagged = frame(&ethernet, false);
    tagged.0.splice(12..12, [0x81, 0, 0, 7]);
    let device = |flags| near::of(7, &Device { flags, ..Device::default() });
    let (link, none, port) = (device(0), device(Device::NO_LINK_HEADER), device(Device::HAS_VLANS));
    let v4 = Ok(Some((Family::V4, 14)));
    for (sentence, bytes, device, vlan, expected) in [
        ("IPv4 in a frame", frame(&ethernet, false), link, 0, v4),
        ("IPv6 in a frame", frame(&ethernet, true), link, 0, Ok(Some((Family::V6, 14)))),
        ("IPv4 without a frame", frame(&bare, false), none, 0, Ok(Some((Family::V4, 0)))),
        ("IPv6 without a frame", frame(&bare, true), none, 0, Ok(Some((Family::V6, 0)))),
        ("ARP", Bytes([&[0; 12][..], &[8, 6], &[0; 28]].concat()), link, 0, Ok(None)),
        ("a frame of a VLAN", frame(&ethernet, false), link, 7, Ok(None)),
        ("a frame of a VLAN at a port", frame(&ethernet, false), port, 7, v4),
        ("a frame with a second tag, or with a tag inside", tagged, port, 0, Ok(None)),
        ("half a frame", Bytes(std::vec![0; 13]), link, 0, Err(crate::packet::Broken)),
        ("nothing", Bytes(std::vec![]), none, 0, Err(crate::packet::Broken)),
        ("garbage without a frame", Bytes(std::vec![0x10; 40]), none, 0, Ok(None)),
    ] {
        assert_eq!(parse::version(&bytes, device, vlan), expected, "{sentence}");
    }
}

/// Whole packets: nobody knows the ports, or the destination is not the last one.
#[cfg_attr(test, test)]
fn what_is_behind_too_many_extension_headers_or_has_stops_left_is_left_to_the_stack() {
    const MOST: [u8; 7] = [60; 7];
    for (sentence, with, translated) in [
        ("as many as are read", (|packet| packet.extensions(&MOST)) as fn(Build) -> Build, true),
        ("one more, and the last one is read still", |packet| packet.extensions(&[60; 8]), true),
        ("one more than are read", |packet| packet.extensions(&[60; 9]), false),
        ("twice as many", |packet| packet.extensions(&[60; 16]), false),
        ("a routing header at its last stop", |packet| packet.extensions(&[43]), true),
        ("a routing header with a stop left", |packet| packet.extensions(&[43]).stops_left(1), false),
        ("many stops left, behind other headers", |packet| packet.extensions(&[0, 60, 43]).stops_left(255), false),
        ("stops left, before other headers", |packet| packet.extensions(&[43, 60]).stops_left(2), false),
    ] {
        about::<V6>(sentence);
        let mut node = Setup::with("L").node::<V6>();
        let expected = |found: &'static str| if translated { found } else { "pass" };
        let request = udp("client:4000 > lb:80");
        assert_eq!(
            node.enter(On::Uplink, &with(request.clone())),
            expected("client:4000 > local:8080 udp"),
            "{sentence}"
        );
        assert_eq!(node.count(), (0, usize::from(translated)), "{sentence}");
        // The flow is known from here on.
        node.enter(On::Uplink, &request);
        assert_eq!(node.enter(On::Uplink, &with(request)), expected("client:4000 > local:8080 udp"), "{sentence}");
        let reply = with(udp("local:8080 > client:4000"));
        assert_eq!(node.leave(On::Uplink, &reply), expected("lb:80 > client:4000 udp"), "{sentence}");
        let error = unreachable("local > client", with(udp("client:4000 > local:8080")));
        let told = "lb > client unreachable (client:4000 > lb:80 udp)";
        assert_eq!(node.leave(On::Uplink, &error), expected(told), "{sentence}");
    }
}

/// The client's port with which a datagram of this route (`client:PORT > …`) has no checksum but zero, and so all ones.
fn port_without_sum<A: Ip>(route: impl Fn(u16) -> String) -> u16 {
    const PORT: u16 = 4000;
    let sum = |port| {
        let bytes = udp(route(port)).bytes::<A>().0;
        u16::from_be_bytes([bytes[14 + A::HEADER + 6], bytes[14 + A::HEADER + 7]])
    };
    // A checksum is what is missing to all ones; carries come back at the other end.
    let (port, carry) = PORT.overflowing_add(sum(PORT));
    let port = port + u16::from(carry);
    assert_eq!(sum(port), 0xffff, "{port}");
    port
}

fn sum_of_zero<A: Ip>() {
    let there = |port: u16| format!("client:{port} > lb:80");
    let here = |port: u16| format!("client:{port} > local:8080");
    let reply_here = |port: u16| format!("local:8080 > client:{port}");
    let reply_there = |port: u16| format!("lb:80 > client:{port}");
    for (sentence, port) in [
        ("as it comes", port_without_sum::<A>(there)),
        ("as it goes on", port_without_sum::<A>(here)),
        ("the reply as it comes", port_without_sum::<A>(reply_here)),
        ("the reply as it goes on", port_without_sum::<A>(reply_there)),
    ] {
        about::<A>(sentence);
        let mut node = Setup::with("L").node::<A>();
        let mut bytes = udp(there(port)).bytes::<A>();
        assert_eq!(node.act(Hook::Ingress, device(On::Uplink), &mut bytes, 14), Action::Translated);
        assert_eq!(bytes, udp(here(port)).bytes::<A>(), "{sentence}, {}", family::<A>());
        let mut bytes = udp(reply_here(port)).bytes::<A>();
        assert_eq!(node.act(Hook::Egress, device(On::Uplink), &mut bytes, 14), Action::Translated);
        assert_eq!(bytes, udp(reply_there(port)).bytes::<A>(), "{sentence}, {}", family::<A>());
    }
}

#[cfg_attr(test, test)]
fn a_checksum_of_udp_that_comes_out_as_zero_is_all_ones_on_the_wire() {
    in_both_families!(sum_of_zero());
}

#[cfg(test)]
proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..160), start in prop::sample::select(std::vec![0_usize, 14])) {
        actions::<V4>(&Bytes(bytes.clone()), start);
        actions::<V6>(&Bytes(bytes), start);
    }

    #[test]
    fn packets_with_random_changes_never_panic(
        kind in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        len in 0_usize..200,
    ) {
        let kinds = kinds();
        let (_, packet) = &kinds[kind.index(kinds.len())];
        for (bytes, run) in [
            (packet.bytes::<V4>(), actions::<V4> as fn(&Bytes, usize) -> _),
            (packet.bytes::<V6>(), actions::<V6>),
        ] {
            let mut bytes = bytes;
            for (place, value) in &changes {
                let place = place.index(bytes.0.len());
                bytes.0[place] = *value;
            }
            bytes.0.truncate(len);
            run(&bytes, packet.start());
        }
    }
}
