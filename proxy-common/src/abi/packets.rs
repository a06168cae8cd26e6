//! Keys and values of the tables that only packets need. `A` is the address of one family: IPv4 flows are numerous, and a
//! mapped address would double what they cost.

use super::Cidr;
use crate::addr::{Addr, Be16, Family};
use crate::packet::ip::{V4, V6};

/// `FLOWS` and `EMBRYONIC`: a flow by what a packet of it looks like. Who sent it is the source.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    pub src: A,
    /// Of a reply: the client, or all zero where the port says enough (see `Flow::reply_key`).
    pub dst: A,
    /// Source and destination, as they lie in a packet.
    pub ports: u32,
    /// IANA number of the protocol, direction and two zeros, as they lie in memory. Whole words, since the kernel hashes words:
    /// one that was written in parts a moment ago has to be waited for.
    pub kind: u32,
}

impl<A> FlowKey<A> {
    /// The direction of what the client sends. Part of the key: one address may be client of one flow and backend of another.
    pub const REQUEST: u8 = 1;
    /// The direction of what the backend sends.
    pub const REPLY: u8 = 2;

    #[inline(always)]
    pub const fn kind(proto: u8, direction: u8) -> u32 {
        u32::from_ne_bytes([proto, direction, 0, 0])
    }

    /// [`FlowKey::REQUEST`] or [`FlowKey::REPLY`].
    #[inline(always)]
    pub const fn direction(&self) -> u8 {
        self.kind.to_ne_bytes()[1]
    }
}

/// One flow, whole: either of its two entries can be made again from the other.
///
/// What `seal` covers never changes. Of `seen` and `seen_other`, the first is written by packets of this entry's direction
/// only, the other one by packets of the other direction only: kernel 5.10 has no atomic "or".
///
/// Other versions know these fields by their names: a name keeps its meaning, and in a new field zero means what was so before.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    pub client: A,
    /// What the client dials.
    pub frontend: A,
    pub backend: A,
    /// With [`Flow::MASQUERADED`]: the address of this node that the backend sees; all zero until a packet has left towards
    /// it. Not covered by `seal`.
    pub source: A,
    pub client_port: Be16,
    pub frontend_port: Be16,
    pub backend_port: Be16,
    /// The client's port as the backend sees it.
    pub source_port: Be16,
    #[cfg(feature = "other-layout")]
    pub pad: u32,
    /// Index into BACKENDS, valid while that has this generation.
    pub backend_id: u32,
    pub generation: u32,
    /// Says that the fields belong together: an element of an LRU is given away while it is read.
    pub seal: u32,
    /// `CLOCK_MONOTONIC` seconds of the last packet in either direction, as far as this entry has heard.
    pub used: u32,
    /// What packets of this direction have shown: `crate::packet::tcp::seen`.
    pub seen: u8,
    /// A copy of what the other direction has shown.
    pub seen_other: u8,
    /// [`Flow::MASQUERADED`] and others.
    pub flags: u8,
    pub proto: u8,
    #[cfg(not(feature = "other-layout"))]
    pub pad: u32,
}

impl<A> Flow<A> {
    /// The backend sees an address of this node.
    pub const MASQUERADED: u8 = 1;
    /// The client is this node itself. Its flows are all masqueraded: the port tells them from what it sends to the backend
    /// directly.
    pub const FROM_NODE: u8 = 1 << 1;
    /// With [`Flow::FROM_NODE`]: and so is the backend, which sees the frontend's address.
    pub const TO_NODE: u8 = 1 << 2;
    /// Its packets go past the stack, in both directions: decided with the first one.
    pub const PAST_STACK: u8 = 1 << 3;
    /// Not to a frontend. Of its packets nothing changes but the port, and only where the backend knows that from a flow of ours:
    /// somebody else on this node, netfilter or a process, sends from a port that is ours (with [`Flow::MASQUERADED`]); or
    /// the client of a flow sends to its backend directly.
    pub const FOREIGN: u8 = 1 << 4;
}

/// `FRAGMENTS`: the datagram that a fragment belongs to, as it is where the hook sits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    pub id: u32,
    /// As the fragments name it.
    pub proto: u8,
    pub pad: u8,
    pub pad2: u16,
}

/// What only the first fragment of a datagram says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    pub src_port: Be16,
    pub dst_port: Be16,
    /// `CLOCK_MONOTONIC` seconds: identifications come round again.
    pub seen: u32,
    /// The protocol of the datagram.
    pub proto: u8,
    pub pad: u8,
    pub pad2: u16,
}

/// DEVICES, by interface index: what the hooks on a device have to know about it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Device {
    /// The address that masqueraded packets leave with, per family; all zero for none.
    pub source_v4: Addr,
    pub source_v6: Addr,
    /// `Device::LOCAL_PODS` and others.
    pub flags: u32,
}

impl Device {
    /// Detector by interface (specification B6): what enters here comes from a pod of this node.
    pub const LOCAL_PODS: u32 = 1;
    /// Packets begin with their network header.
    pub const NO_LINK_HEADER: u32 = 1 << 1;
    /// Packets that enter here are sent by a pod.
    pub const FACES_POD: u32 = 1 << 2;
    /// It is the port of a bridge or of Open vSwitch, which takes VLAN tags off and puts them on: packets with one are ours here.
    pub const HAS_VLANS: u32 = 1 << 3;

    #[inline(always)]
    pub const fn has_link_header(&self) -> bool {
        self.flags & Self::NO_LINK_HEADER == 0
    }

    #[inline(always)]
    pub const fn has_vlans(&self) -> bool {
        self.flags & Self::HAS_VLANS != 0
    }

    /// The address that masqueraded packets of a family leave with.
    #[inline(always)]
    pub const fn source(&self, family: Family) -> &Addr {
        match family {
            Family::V4 => &self.source_v4,
            Family::V6 => &self.source_v6,
        }
    }
}

/// NEAR, by the last bits of an interface index: which device has this place, and what every packet asks of it. A device
/// that finds its place taken is in DEVICES alone. 0 is nobody's.
pub type NearDevice = u64;

/// What a [`NearDevice`] says.
pub mod near {
    use super::{Device, NearDevice};

    /// How many there are.
    pub const PLACES: u32 = 4096;

    /// Where a device has its place.
    #[inline(always)]
    pub const fn place(index: u32) -> u32 {
        index % PLACES
    }

    #[inline(always)]
    pub const fn of(index: u32, device: &Device) -> NearDevice {
        (index as NearDevice) << 2 | (device.has_vlans() as NearDevice) << 1 | device.has_link_header() as NearDevice
    }

    /// Whose place it is.
    #[inline(always)]
    pub const fn index(near: NearDevice) -> u32 {
        (near >> 2) as u32
    }

    #[inline(always)]
    pub const fn is_of(near: NearDevice, index: u32) -> bool {
        self::index(near) == index
    }

    #[inline(always)]
    pub const fn has_link_header(near: NearDevice) -> bool {
        near & 1 != 0
    }

    #[inline(always)]
    pub const fn has_vlans(near: NearDevice) -> bool {
        near & 1 << 1 != 0
    }
}

/// DIRECT, by family and protocol: whether packets to no Service are looked for among flows. They are where a client may send to
/// a backend by the port by which that knows it from a flow: to the backend both are one.
pub mod direct {
    use crate::addr::Family;
    use crate::socket::TCP;

    pub const WORDS: u32 = 4;
    /// A flow said so. Fresh tables say so too.
    pub const LOOK: u32 = 0;
    /// As [`LOOK`], while an agent looks whether there still is such a flow.
    pub const ASKED: u32 = 1;
    pub const PASS: u32 = 2;

    /// Connections are told by how they begin, so it counts only that one had to be given another port; all else has an
    /// entry of its own.
    #[inline(always)]
    pub const fn place(family: Family, proto: u8) -> u32 {
        let family = if matches!(family, Family::V6) { 2 } else { 0 };
        family + (proto != TCP) as u32
    }
}

/// SUCCESSION, one entry: what programs of another version serve, since ours do not know of it; zeros where there are none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Succession {
    /// Not 0: what begins, begins with them.
    pub begins: u32,
    /// Not 0: what goes on, goes on with them.
    pub goes_on: u32,
}

/// Ports that translations draw from. No ephemeral range and no node port overlaps it, and no process is given one of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PortRange {
    pub first: u16,
    pub count: u16,
}

/// Seconds that a TCP flow outlives its last packet, by state; the names are those of `nf_conntrack_tcp_timeout_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpTimeouts {
    pub syn_sent: u32,
    pub syn_recv: u32,
    pub established: u32,
    pub fin_wait: u32,
    pub close_wait: u32,
    pub last_ack: u32,
    pub time_wait: u32,
    pub close: u32,
}

impl Default for TcpTimeouts {
    /// The kernel's, but for the two that kube-proxy sets (specification D2).
    fn default() -> Self {
        Self {
            syn_sent: 120,
            syn_recv: 60,
            established: 86_400,
            fin_wait: 120,
            close_wait: 3_600,
            last_ack: 30,
            time_wait: 120,
            close: 10,
        }
    }
}

/// PACKETS, one entry: what the packet hooks read besides CONFIG.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PacketSettings {
    /// Detector by CIDR (specification B6), IPv4 and IPv6; counts where CONFIG says that the family has a detector.
    pub pods: [Cidr; 2],
    pub tcp: TcpTimeouts,
    pub ports: PortRange,
    /// Makes the order in which ports and backends are tried unpredictable.
    pub seed: u32,
    /// `PacketSettings::MASQUERADE_ALL` and others.
    pub flags: u32,
}

impl PacketSettings {
    /// The range of pods, if a detector goes by that; else that of all addresses.
    #[inline(always)]
    pub const fn pods_of(&self, family: Family) -> &Cidr {
        match family {
            Family::V4 => &self.pods[0],
            Family::V6 => &self.pods[1],
        }
    }

    /// `masqueradeAll`.
    pub const MASQUERADE_ALL: u32 = 1;
    /// The detector goes by interface ([`Device::LOCAL_PODS`]), not by CIDR.
    pub const PODS_BY_DEVICE: u32 = 1 << 1;
    /// An echo request to an address of a Service is answered.
    pub const ANSWER_ECHO: u32 = 1 << 2;
    /// Flows go past the stack where routes are plain.
    pub const FAST_PATH: u32 = 1 << 3;
}

abi! {
    FlowKey<V4> = 16,
    FlowKey<V6> = 40,
    Flow<V4> = 48,
    Flow<V6> = 96,
    FragmentKey<V4> = 16,
    FragmentKey<V6> = 40,
    FragmentPorts = 12,
    Device = 36,
    PacketSettings = 84,
    Succession = 8,
}
