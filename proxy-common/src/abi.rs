//! Keys and values of every kernel table: plain bytes with names, no implicit padding, sizes asserted.
//!
//! A layout or meaning that changes here raises [`crate::tables::ABI_VERSION`]. What is switched is one aligned 8-byte
//! word; everything behind it is immutable until its grace period ends (array values are copied in place and tear).

use crate::addr::{Addr, Be16};
use crate::tables::ABSENT_WORDS;

/// Marks a type as plain data and pins its size: `repr(C)`, every byte a named field.
macro_rules! abi {
    ($($t:ty = $size:literal),* $(,)?) => { $(
        const _: () = assert!(size_of::<$t>() == $size, "a field or its padding changed: raise ABI_VERSION");
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya asks for the marker; this file is one of the rooms for unsafe")]
        // SAFETY: repr(C), Copy, no padding: the size asserted above is the sum of the fields.
        unsafe impl aya::Pod for $t {}
    )* };
}

mod packets;

pub use packets::{
    Device, Flow, FlowKey, FragmentKey, FragmentPorts, NearDevice, PacketSettings, PortRange, Succession, TcpTimeouts,
    direct, near,
};

/// What a client dials. A node port has [`Addr::unspecified`] of its family as address; an address by itself has neither port
/// nor protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    pub addr: Addr,
    pub port: Be16,
    /// IANA number: TCP 6, UDP 17, SCTP 132.
    pub proto: u8,
    pub pad: u8,
}

impl FrontendKey {
    /// The key of what `addr` is to this node.
    #[inline(always)]
    pub const fn of_address(addr: Addr) -> Self {
        Self { addr, port: Be16::new(0), proto: 0, pad: 0 }
    }
}

/// INDEX: words of [`crate::index::Word`], each switched by itself. One cache line.
pub type Bucket = [IndexWord; crate::index::WORDS];

/// [`crate::index::Word`] says what it means.
pub type IndexWord = u64;

/// FRONTEND, by frontend id: a key and the service port behind it, or what an address is.
///
/// Zero `kind` means unused. Immutable while a word of INDEX names it, and for a grace period after that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub key: FrontendKey,
    /// Index into SERVICE; flags of [`address`] when that is its kind.
    pub service: u32,
    /// One of `Frontend::KIND_*`.
    pub kind: u32,
}

impl Frontend {
    pub const KIND_UNUSED: u32 = 0;
    /// ClusterIP: internalTrafficPolicy decides.
    pub const KIND_CLUSTER_IP: u32 = 1;
    /// Node port: externalTrafficPolicy decides.
    pub const KIND_NODE_PORT: u32 = 2;
    /// externalIP: externalTrafficPolicy decides.
    pub const KIND_EXTERNAL_IP: u32 = 3;
    /// Load-balancer address: externalTrafficPolicy decides, after loadBalancerSourceRanges.
    pub const KIND_LOAD_BALANCER: u32 = 4;
    /// Nobody dials it: an address that means something to this node.
    pub const KIND_ADDRESS: u32 = 5;
}

/// SERVICE, by service port id: the one word that is switched. [`Word`] says what it means.
pub type ServiceWord = u64;

/// What a [`ServiceWord`] says. Most service ports are plain: whoever dials one reads no VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// 0: nobody is there, refuse.
    Nobody,
    /// Bit 63 is set: all of a service port without policies, affinity and source ranges. Bit 62 is
    /// [`Version::HAS_ANY`]; below, the cluster set has 30 bits of length and 32 of start.
    Plain { cluster: Range, has_any: bool },
    /// The number of a VERSION that says everything.
    Version(u32),
}

impl Word {
    const PLAIN: u64 = 1 << 63;
    const HAS_ANY: u64 = 1 << 62;
    /// No set is as long as this: BACKENDS cannot be.
    const TOO_LONG: u32 = 1 << 30;

    /// Reads a word.
    #[inline(always)]
    pub const fn of(word: ServiceWord) -> Self {
        match word {
            0 => Self::Nobody,
            Self::PLAIN.. => {
                let cluster = Range { start: word as u32, len: (word >> 32) as u32 % Self::TOO_LONG };
                Self::Plain { cluster, has_any: word & Self::HAS_ANY != 0 }
            }
            _ => Self::Version(word as u32),
        }
    }

    /// The word that says this.
    pub const fn word(self) -> ServiceWord {
        match self {
            Self::Nobody => 0,
            Self::Plain { cluster: Range { start, len }, has_any } => {
                let has_any = if has_any { Self::HAS_ANY } else { 0 };
                Self::PLAIN | has_any | (len as u64) << 32 | start as u64
            }
            Self::Version(number) => number as u64,
        }
    }
}

/// A run of SLOTS, counted in slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Range {
    pub start: u32,
    pub len: u32,
}

/// VERSION: all that one service port is, immutable once SERVICE names it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The cluster set of specification B3.
    pub cluster: Range,
    /// The local set of specification B3; only filled when a policy is Local.
    pub local: Range,
    /// ClientIP affinity in seconds, 0 for none (specification B8).
    pub affinity_seconds: u32,
    /// `Version::INTERNAL_LOCAL` and others.
    pub flags: u32,
    /// The service port that owns this version; guards against a stale word.
    pub service: u32,
    /// `Version::SCHEDULER_*`.
    pub scheduler: u32,
}

impl Version {
    /// internalTrafficPolicy is Local.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// externalTrafficPolicy is Local (and honoured, specification B1).
    pub const EXTERNAL_LOCAL: u32 = 1 << 1;
    /// Some endpoint is usable somewhere (`hasAny`, B3): an empty set then means drop, not reject.
    pub const HAS_ANY: u32 = 1 << 2;
    /// loadBalancerSourceRanges restrict this family: SOURCES must be asked (B9).
    pub const SOURCE_RANGES: u32 = 1 << 3;
    /// The node's own address passes the source ranges: host processes may dial (B9 own-node allowance included).
    pub const SOURCE_NODE_ALLOWED: u32 = 1 << 4;

    pub const SCHEDULER_RANDOM: u32 = 0;

    /// What the word of a plain service port says ([`Word::Plain`]).
    #[inline(always)]
    pub const fn plain(service: u32, cluster: Range, has_any: bool) -> Self {
        Self {
            cluster,
            local: Range { start: 0, len: 0 },
            affinity_seconds: 0,
            flags: if has_any { Self::HAS_ANY } else { 0 },
            service,
            scheduler: Self::SCHEDULER_RANDOM,
        }
    }

    /// The word that says all of this version, if one can.
    pub fn as_word(&self) -> Option<ServiceWord> {
        let has_any = self.flags & Self::HAS_ANY != 0;
        let is_plain = *self == Self::plain(self.service, self.cluster, has_any);
        (is_plain && self.cluster.len < Word::TOO_LONG).then(|| Word::Plain { cluster: self.cluster, has_any }.word())
    }
}

/// BACKENDS, by backend id: one endpoint of one service port.
///
/// An id that is freed keeps its address and gets `generation` and `flags` 0 for a grace period before it is given
/// away again, so who remembers (id, generation) is never misled. Generations start at 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    pub addr: Addr,
    pub port: Be16,
    /// `Backend::IN_CLUSTER_SET` and others.
    pub flags: u16,
    pub service: u32,
    pub generation: u32,
    /// Reserved: zone number. In a freed id: its last generation, so that the next process goes on counting.
    pub zone: u32,
}

impl Backend {
    /// A member of the cluster set.
    pub const IN_CLUSTER_SET: u16 = 1;
    /// A member of the local set.
    pub const IN_LOCAL_SET: u16 = 1 << 1;
    /// The endpoint's `serving` condition: flows of UDP stay (specification C1).
    pub const SERVING: u16 = 1 << 2;
    /// The endpoint runs on this node.
    pub const ON_THIS_NODE: u16 = 1 << 3;
    /// The endpoint is terminating.
    pub const TERMINATING: u16 = 1 << 4;
}

/// SLOTS: two neighbouring slots, each a backend id. Arrays hold whole 8-byte words, and those do not tear. A run begins
/// with a pair of its own, so no pair is ever shared by two versions: what is immutable stays untouched.
pub type SlotPair = [u32; SLOTS_PER_PAIR as usize];

/// How many slots a [`SlotPair`] has.
pub const SLOTS_PER_PAIR: u32 = 2;

/// STATS, by backend id: counters that the socket hooks raise with relaxed adds. Both wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BackendStats {
    /// Connections and UDP flows ever sent there by this id.
    pub total: u32,
    /// Open now: a gauge. `sluice reap` adds what it is off by, in the mapped table.
    pub open: u32,
}

/// What an address is to this node. Sockets ask only when what they dial has no entry, packets first of all: an address that
/// has none and is in no ServiceCIDR is nobody's frontend.
pub mod address {
    /// The node owns it: never hijacked.
    pub const OWN: u32 = 1;
    /// Node ports are served on it.
    pub const NODE_PORT: u32 = 1 << 1;
    /// It is the ClusterIP of a Service: undefined ports are refused.
    pub const CLUSTER_IP: u32 = 1 << 2;
    /// A loopback address: belongs to the caller's own network namespace.
    pub const LOOPBACK: u32 = 1 << 3;
    /// It is an externalIP or a load-balancer address of a Service, or was one that flows may still go to.
    pub const EXTERNAL: u32 = 1 << 4;
}

/// ABSENT, one bit per hash of an address: 1 says that no entry of FRONTEND has such an address, so
/// that who dials past us costs one read. 0 says "look": what is fresh, or not tidied up yet, is slower and never wrong.
///
/// A bit is cleared before the first entry with its hash is written, and set some time after the last one has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbsentBit {
    /// Index into ABSENT.
    pub word: u32,
    /// The bit, in place.
    pub mask: u64,
}

impl AbsentBit {
    /// The bit of `addr`.
    #[inline(always)]
    pub const fn of(addr: &Addr) -> Self {
        let (high, low) = addr.halves();
        // Multiplying carries every bit upwards: the upper half depends on all of them. 2^64 over the golden ratio.
        let hash = (high.rotate_left(32) ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let bit = hash as u32;
        Self { word: bit / u64::BITS % ABSENT_WORDS, mask: 1 << (bit % u64::BITS) }
    }
}

/// SOURCES key: longest-prefix match over service port and client address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// Bits of `service` and `addr` that count: 32 + the prefix (an IPv4 prefix adds 96). Native byte order (kernel ABI).
    pub prefix_len: u32,
    /// Big-endian service port id, so that whole ids compare.
    pub service: [u8; 4],
    pub addr: Addr,
}

/// The part of [`SourceKey`] behind the prefix length, as LPM tries of aya want it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceData {
    pub service: [u8; 4],
    pub addr: Addr,
}

/// A range of addresses: those that begin as `addr` does. Of `addr` the first `prefix_len` bits count; an IPv4 prefix is
/// 96 bits longer here than people write it, since the address is mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cidr {
    pub addr: Addr,
    pub prefix_len: u32,
}

impl core::fmt::Display for Cidr {
    /// As people write it.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mapped = if self.addr.is_v4() { 96 } else { 0 };
        write!(f, "{}/{}", self.addr, self.prefix_len.saturating_sub(mapped))
    }
}

/// How many ServiceCIDRs CONFIG holds.
pub const SERVICE_CIDRS: usize = 8;

/// CONFIG, one entry: what may change while the programs run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Config {
    pub service_cidrs: [Cidr; SERVICE_CIDRS],
    pub service_cidr_count: u32,
    /// `Config::DETECTOR_V4` and others.
    pub flags: u32,
    /// Seconds a UDP flow without / with replies keeps its backend (`nf_conntrack_udp_timeout`, `..._stream`).
    pub udp_timeout: u32,
    pub udp_stream_timeout: u32,
}

impl Config {
    /// A local-traffic detector exists for IPv4 / IPv6 (specification B6): pods get B5's short-circuit.
    pub const DETECTOR_V4: u32 = 1;
    pub const DETECTOR_V6: u32 = 1 << 1;
    /// Programs at the devices of pods decide what only the address of a pod can (specification B9): its sockets leave that to
    /// them.
    pub const PODS_AT_DEVICES: u32 = 1 << 2;

    /// Seconds that UDP flows outlive their last packet: of a question with or without its answer, and of those that went on.
    #[inline(always)]
    pub const fn udp_timeouts(&self) -> (u32, u32) {
        (self.udp_timeout, self.udp_stream_timeout)
    }
}

/// AFFINITY key: one client of one service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The client's address (packet path), or its network namespace cookie (socket path, see `AffinityKey::namespace`).
    pub client: Addr,
    pub service: u32,
    pub pad: u32,
}

impl AffinityKey {
    /// The client "network namespace `cookie`". The first byte 0xff is multicast: no client address has it.
    #[inline(always)]
    pub const fn namespace(cookie: u64, service: u32) -> Self {
        let bits = (0xff << 120) | cookie as u128;
        Self { client: Addr::new(bits.to_be_bytes()), service, pad: 0 }
    }
}

/// AFFINITY value: valid only while BACKENDS[backend] has this generation and is in the set asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub backend: u32,
    pub generation: u32,
    /// `CLOCK_MONOTONIC` nanoseconds of the last new flow.
    pub used: u64,
}

/// SOCKETS and `SOCKETS_MORE`: one flow of one socket, what it dialled and where it went. One cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFlow {
    /// Socket cookie; 0 means the slot is free. Besides its socket only `sluice reap` clears it, by compare-and-exchange in
    /// the mapped table, when no socket has this cookie any more.
    pub cookie: u64,
    /// `CLOCK_MONOTONIC` nanoseconds of the last datagram seen (UDP) or of connect (TCP).
    pub used: u64,
    pub frontend_addr: Addr,
    pub backend_addr: Addr,
    pub frontend_port: Be16,
    pub backend_port: Be16,
    pub proto: u8,
    /// `SocketFlow::CONNECTED` and others.
    pub flags: u8,
    /// [`crate::tables::ABI_VERSION`] of the program that wrote it: old and new programs share the table.
    pub abi: u16,
    pub backend: u32,
    pub generation: u32,
}

impl SocketFlow {
    /// Made by connect, not by a datagram.
    pub const CONNECTED: u8 = 1;
    /// A reply was seen: the stream timeout applies.
    pub const REPLIED: u8 = 1 << 1;
}

abi! {
    FrontendKey = 20,
    Frontend = 28,
    Range = 8,
    Version = 32,
    Backend = 32,
    BackendStats = 8,
    SourceKey = 24,
    SourceData = 20,
    Cidr = 20,
    Config = 176,
    AffinityKey = 24,
    Affinity = 16,
    SocketFlow = 64,
    Addr = 16,
    Be16 = 2,
}

#[cfg(feature = "stress")]
abi! { crate::stress::Epochs = 8, crate::stress::Moment = 16, crate::stress::Again = 124 }
