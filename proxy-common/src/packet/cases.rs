//! Packets through both hooks of a node, on byte slices: what goes in by name, what comes out as a sentence.
//!
//! Each case runs in both families. Whatever comes out is read by [`read`], which shares no code with the parser under test
//! and refuses every wrong checksum and length.
//!
//! With the feature `cases`, somebody else may run them all and [`observe`] each packet: so the kernel programs are held
//! against what is expected here, packet by packet.

pub mod build;
mod errors;
mod everyday;
mod flows;
mod fragments;
mod halves;
mod journeys;
mod names;
pub mod observe;
mod own;
mod past;
mod ports;
mod read;
mod refusals;
mod robust;
mod world;

pub use crate::fake::FRONTENDS;

use std::string::String;
use std::vec::Vec;

use build::Build;
use observe::about;

use crate::packet::ip::Ip;
use crate::packet::tcp::{ACK, SYN};
use crate::packet::{Action, Broken, Packet};

/// A packet that grows and shrinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Packet for Bytes {
    fn load<const N: usize>(&self, at: usize) -> Result<[u8; N], Broken> {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().ok_or(Broken)
    }

    fn store<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Broken> {
        let place = self.0.get_mut(at..).and_then(<[u8]>::first_chunk_mut);
        *place.ok_or(Broken)? = bytes;
        Ok(())
    }

    fn quote(&mut self, at: usize, keep: usize, room: usize) -> Result<(), Broken> {
        if self.0.len() < at + keep {
            return Err(Broken);
        }
        self.0.truncate(at + keep);
        self.0.splice(at..at, std::iter::repeat_n(0, room));
        Ok(())
    }
}

/// A question and its answer: how they are built, and what they are called.
type Protocol = (fn(&str) -> Build, fn(&str) -> Build, &'static str, &'static str);
const PROTOCOLS: [Protocol; 2] = [
    (|route| build::syn(route), |route| build::tcp(route).flags(SYN | ACK), "tcp S", "tcp SA"),
    (udp_of, udp_of, "udp", "udp"),
];

fn udp_of(route: &str) -> Build {
    build::udp(route)
}

/// A test: its name, and what to call. It is about one case or many.
type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}
use cases;

/// Runs the cases about what most packets are.
pub fn run_everyday() {
    run(everyday::CASES);
}

/// Runs every case; panics where one finds something wrong.
pub fn run_all() {
    let files = [
        errors::CASES,
        everyday::CASES,
        flows::CASES,
        fragments::CASES,
        halves::CASES,
        journeys::CASES,
        own::CASES,
        past::CASES,
        ports::CASES,
        refusals::CASES,
        robust::CASES,
    ];
    files.into_iter().for_each(run);
}

fn run(cases: &[Case]) {
    for (name, test) in cases {
        observe::begin(name);
        test();
    }
}

/// Runs a case in both families.
macro_rules! in_both_families {
    ($run:ident($($argument:expr),*)) => {
        about::<crate::packet::ip::V4>("in general");
        $run::<crate::packet::ip::V4>($($argument),*);
        about::<crate::packet::ip::V6>("in general");
        $run::<crate::packet::ip::V6>($($argument),*);
    };
}
use in_both_families;

/// What a hook did, as a sentence: "pass", "drop: " and why, or the packet that came out.
fn outcome<A: Ip>(node: &world::TestNode<A>, action: Action, packet: &Bytes, link_header: bool) -> String {
    let reasons = node.reasons_since_last_asked();
    match action {
        Action::Pass if reasons.is_empty() => "pass".into(),
        Action::Pass => std::format!("pass: {reasons}"),
        Action::Drop => std::format!("drop: {reasons}"),
        Action::Translated => sentence("", packet, &reasons, link_header),
        Action::Back if reasons.is_empty() => sentence("back: ", packet, &reasons, link_header),
        Action::Back => sentence("answer: ", packet, &reasons, link_header),
        Action::Out => sentence("out: ", packet, &reasons, link_header),
        Action::Home => sentence("home: ", packet, &reasons, link_header),
        Action::Forward => sentence("forward: ", packet, &reasons, link_header),
    }
}

fn sentence(way: &str, packet: &Bytes, reasons: &str, link_header: bool) -> String {
    let comma = if reasons.is_empty() { "" } else { ", " };
    std::format!("{way}{}{comma}{reasons}", read::describe(&packet.0, link_header))
}

/// The source port in a sentence: "out: node:61234 > remote:8080 tcp S" -> "61234".
fn source_port(sentence: &str) -> String {
    let source = sentence.split(" > ").next().unwrap();
    source.rsplit(':').next().unwrap().into()
}

/// The name of a family, for messages.
fn family<A: Ip>() -> &'static str {
    if A::CHECKSUM.is_some() { "IPv4" } else { "IPv6" }
}
