//! What a hook met and what it made of that, for who does the same elsewhere and compares.

use core::any::Any;
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::HashSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::family;
use crate::abi::{
    Affinity, AffinityKey, Backend, Bucket, Config, Device, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend,
    PacketSettings, ServiceWord, Succession, Version, direct,
};
use crate::addr::Addr;
use crate::packet::ip::Ip;
use crate::packet::{Action, Table};
use crate::reason::Reason;

/// Which hook of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Ingress,
    Egress,
}

/// One packet at one hook.
#[derive(Clone, Debug)]
pub struct Run<A> {
    /// What the case says that this is about; a name of its own.
    pub case: String,
    /// The packet ends before it should.
    pub is_cut: bool,
    pub hook: Hook,
    pub device: Device,
    /// Where the network header begins.
    pub start: usize,
    pub services: Services,
    pub settings: PacketSettings,
    pub succession: Succession,
    pub direct: [u32; direct::WORDS as usize],
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub now: u64,
    pub random: u32,
    /// Local ports that some process has.
    pub sockets: Vec<u16>,
    pub before: Moment<A>,
    pub after: Moment<A>,
    pub action: Action,
    /// As often as they were counted, but for those that are no news.
    pub reasons: Vec<Reason>,
    /// Flows that began, by backend.
    pub begun: Vec<(u32, u32)>,
}

/// What the agent would have written.
#[derive(Clone, Debug, PartialEq)]
pub struct Services {
    pub index: Vec<Bucket>,
    pub frontend: Vec<Frontend>,
    pub services: Vec<ServiceWord>,
    pub versions: Vec<Version>,
    pub slots: Vec<u32>,
    pub backends: Vec<Backend>,
    /// Those that no table has.
    pub absent: Vec<Addr>,
    /// Service port and address.
    pub allowed: Vec<(u32, Addr)>,
    pub config: Config,
}

/// What a hook may change.
#[derive(Clone, Debug)]
pub struct Moment<A> {
    pub packet: Vec<u8>,
    pub flows: Vec<(Table, FlowKey<A>, Flow<A>)>,
    pub fragments: Vec<(FragmentKey<A>, FragmentPorts)>,
    pub affinity: Vec<(AffinityKey, Affinity)>,
}

type Observer = Box<dyn FnMut(&dyn Any)>;

std::thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
    static SHOWN: RefCell<HashSet<(String, Hook, usize)>> = RefCell::default();
    static SHAPES: RefCell<HashSet<(Hook, u32, Vec<u8>)>> = RefCell::default();
    /// The test that runs, and what it is about.
    static CASE: RefCell<(&'static str, String)> = const { RefCell::new(("", String::new())) };
}

/// From now on `observer` is shown each [`Run`] of this thread, of either family.
pub fn observe(observer: impl FnMut(&dyn Any) + 'static) {
    OBSERVER.with_borrow_mut(|place| *place = Some(Box::new(observer)));
}

/// The test of this name begins.
pub(super) fn begin(test: &'static str) {
    CASE.with_borrow_mut(|case| *case = (test, String::new()));
}

/// What follows is about this, in the family of `A`.
pub(super) fn about<A: Ip>(sentence: &str) {
    CASE.with_borrow_mut(|(_, about)| *about = format!("{sentence}, {}", family::<A>()));
}

pub(super) fn case() -> String {
    CASE.with_borrow(|(test, about)| format!("{test}: {about}"))
}

/// True for the first packet of this length that the case shows this hook.
pub(super) fn is_news(hook: Hook, len: usize) -> bool {
    SHOWN.with_borrow_mut(|shown| shown.insert((case(), hook, len)))
}

/// True for the first packet of these bytes that this hook of such a device is shown.
pub(super) fn is_new_shape(hook: Hook, device: Device, bytes: &[u8]) -> bool {
    SHAPES.with_borrow_mut(|shapes| shapes.insert((hook, device.flags, bytes.to_vec())))
}

pub(super) fn is_observed() -> bool {
    OBSERVER.with_borrow(Option::is_some)
}

pub(super) fn show(run: &dyn Any) {
    OBSERVER.with_borrow_mut(|observer| observer.iter_mut().for_each(|observer| observer(run)));
}
