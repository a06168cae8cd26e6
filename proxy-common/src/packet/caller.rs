//! The sender of a packet, as the decision asks about it.

use crate::abi::{AffinityKey, Device, PacketSettings, address};
use crate::addr::Addr;
use crate::balance::{Client, Origin, has_detector};
use crate::packet::Host;
use crate::packet::ip::Ip;
use crate::packet::parse::Tuple;
use crate::policy::Place;
use crate::socket::TCP;
use crate::tables::Tables;

/// Whoever sent the first packet of a flow.
pub struct Caller<'a, A, N> {
    node: &'a N,
    tuple: &'a Tuple<A>,
    place: Place,
}

impl<'a, A: Ip, N: Tables + Host> Caller<'a, A, N> {
    /// `class` are the flags that the tables have for the source.
    #[inline(always)]
    pub fn new(node: &'a N, tuple: &'a Tuple<A>, class: u32) -> Self {
        Self { node, tuple, place: place(node, &tuple.src, class) }
    }
}

/// Pods first: the node's address on their bridge lies in the pods' range (specification B5, "order inside eTP Local").
#[inline(always)]
fn place<A: Ip>(node: &(impl Tables + Host), src: &A, class: u32) -> Place {
    if has_detector(node, A::FAMILY) && is_pod(node, src) {
        Place::Pod
    } else if class & address::OWN != 0 {
        Place::Node
    } else {
        Place::Outside
    }
}

/// The local-traffic detector (specification B6).
#[inline(always)]
fn is_pod<A: Ip>(host: &impl Host, src: &A) -> bool {
    let Some(settings) = host.settings() else { return false };
    if settings.flags & PacketSettings::PODS_BY_DEVICE != 0 {
        return host.device().is_some_and(|device| device.flags & Device::LOCAL_PODS != 0);
    }
    settings.pods_of(A::FAMILY).contains(&src.addr())
}

impl<A: Ip, N: Tables + Host> Client for Caller<'_, A, N> {
    #[inline(always)]
    fn place(&self) -> Place {
        self.place
    }

    #[inline(always)]
    fn origin(&self) -> Origin {
        Origin::Known(self.tuple.src.addr())
    }

    #[inline(always)]
    fn affinity(&self, service: u32) -> AffinityKey {
        AffinityKey { client: self.tuple.src.addr(), service, pad: 0 }
    }

    /// Only the first segment of a TCP connection gets here. A datagram may be one in the middle of a flow that was
    /// forgotten: it goes where the others went, as long as the set is the same.
    #[inline(always)]
    fn random(&self) -> u32 {
        match self.tuple.proto {
            TCP => self.node.random(),
            _ => self.tuple.hash(self.node.settings().map_or(0, |settings| settings.seed)),
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        self.node.now()
    }
}

/// What an address is to this node. Most are in no table, and cost one read.
#[inline(always)]
pub fn address_flags(tables: &impl Tables, addr: &Addr) -> Option<u32> {
    if tables.is_absent(addr) { None } else { tables.address(addr) }
}
