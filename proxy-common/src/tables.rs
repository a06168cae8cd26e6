//! Names, capacities and version of the kernel tables, and the look-ups that a decision needs.

use crate::abi::{Affinity, AffinityKey, Backend, Config, ServiceWord, Version};
use crate::addr::Addr;
use crate::index::{self, Directory};

/// Raised with every change of a layout or meaning in [`crate::abi`]; the pin folder carries it.
pub const ABI_VERSION: u16 = 1;

/// Versions before this one mean something else by tables that look alike: none of theirs are taken over. Who changes the
/// layout of BACKENDS carries its entries over: flows name backends by id, and live longer than we do. Fields of flows are known
/// by name.
pub const OLDEST_ALIKE: u16 = 0;

/// Names of the maps, as pinned and as `bpftool` shows them.
pub mod name {
    pub const INDEX: &str = "INDEX";
    pub const FRONTEND: &str = "FRONTEND";
    pub const SERVICE: &str = "SERVICE";
    pub const VERSION: &str = "VERSION";
    pub const SLOTS: &str = "SLOTS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const STATS: &str = "STATS";
    pub const ABSENT: &str = "ABSENT";
    pub const SOURCES: &str = "SOURCES";
    pub const CONFIG: &str = "CONFIG";
    pub const AFFINITY: &str = "AFFINITY";
    pub const SOCKETS: &str = "SOCKETS";
    pub const SOCKETS_MORE: &str = "SOCKETS_MORE";
    pub const REASONS: &str = "REASONS";
    pub const PACKETS: &str = "PACKETS";
    pub const DEVICES: &str = "DEVICES";
    pub const NEAR: &str = "NEAR";
    pub const UNSTEERED: &str = "UNSTEERED";
    pub const FLOWS4: &str = "FLOWS4";
    pub const FLOWS6: &str = "FLOWS6";
    pub const EMBRYONIC4: &str = "EMBRYONIC4";
    pub const EMBRYONIC6: &str = "EMBRYONIC6";
    pub const FRAGMENTS4: &str = "FRAGMENTS4";
    pub const FRAGMENTS6: &str = "FRAGMENTS6";
    pub const DIRECT: &str = "DIRECT";

    pub const SHAPES: &str = "SHAPES";
    pub const PREDECESSORS: &str = "PREDECESSORS";
    pub const SUCCESSION: &str = "SUCCESSION";

    /// Beside the tables while there is a succession.
    pub const OF_SUCCESSION: [&str; 2] = [PREDECESSORS, SUCCESSION];
    /// What packets leave behind.
    pub const OF_FLOWS: [&str; 6] = [FLOWS4, FLOWS6, EMBRYONIC4, EMBRYONIC6, FRAGMENTS4, FRAGMENTS6];
}

/// Devices that have programs, at most.
pub const DEVICES_CAPACITY: u32 = 4096;

/// Cgroups whose processes are not steered, those below them not counted.
pub const UNSTEERED_CAPACITY: u32 = 1024;
/// How many levels below the root of the hierarchy such a cgroup may be. A hook asks for each.
pub const UNSTEERED_LEVELS: i32 = 8;

/// Entries of REASONS: more than there are, so that a new reason changes no layout.
pub const REASONS_CAPACITY: u32 = 64;
const _: () = assert!(crate::reason::Reason::ALL.len() <= REASONS_CAPACITY as usize);

/// Words of ABSENT: 64 KiB, sixteen bits each for 32,768 addresses. With more addresses than that more dials to others are
/// looked up; nothing else changes. A power of two.
pub const ABSENT_WORDS: u32 = 8192;
const _: () = assert!(ABSENT_WORDS.is_power_of_two(), "a bit is a hash under a mask");

/// Flows of one socket that `SOCKETS_MORE` holds, besides the one in SOCKETS.
pub const FLOWS_MORE: usize = 16;

/// How many entries each table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of FRONTEND: what is dialled, and addresses. INDEX has [`index::buckets`] for them.
    pub frontends: u32,
    pub services: u32,
    pub versions: u32,
    pub slots: u32,
    pub backends: u32,
    pub sources: u32,
    pub affinity: u32,
    /// A power of two: the slot of a socket is its cookie under a mask.
    pub sockets: u32,
    /// Flows of packets, of each family; each has two entries, and as many as these are kept apart until they are answered.
    pub flows: u32,
}

impl Capacity {
    /// The most that tables grow to unless told otherwise. SOURCES, SOCKETS and FLOWS are made with this size: the first takes
    /// memory by use, what is in the others cannot move.
    pub const LIMIT: Self = Self {
        frontends: 2 << 20,
        services: 1 << 20,
        versions: 2 << 20,
        slots: 3 << 20,
        backends: 1 << 20,
        sources: 1 << 20,
        affinity: 65_536,
        sockets: 65_536,
        flows: 32_768,
    };

    /// The sizes in the object, for who loads it without choosing any.
    pub const DEFAULT: Self = Self {
        frontends: 131_072,
        services: 32_768,
        versions: 65_536,
        slots: 786_432,
        backends: 262_144,
        sources: 16_384,
        affinity: 65_536,
        sockets: 65_536,
        flows: 32_768,
    };

    /// Table by table what `f` makes of both sizes.
    #[must_use]
    pub fn zip(&self, other: &Self, f: impl Fn(u32, u32) -> u32) -> Self {
        Self {
            frontends: f(self.frontends, other.frontends),
            services: f(self.services, other.services),
            versions: f(self.versions, other.versions),
            slots: f(self.slots, other.slots),
            backends: f(self.backends, other.backends),
            sources: f(self.sources, other.sources),
            affinity: f(self.affinity, other.affinity),
            sockets: f(self.sockets, other.sockets),
            flows: f(self.flows, other.flows),
        }
    }
}

/// The look-ups a decision needs. The kernel implements them over maps, `sluice list` over pinned maps, tests over
/// plain collections. Values are copies: what is switched is one word, the rest is immutable while it can be reached.
pub trait Tables: Directory {
    fn service(&self, id: u32) -> Option<ServiceWord>;
    fn version(&self, number: u32) -> Option<Version>;
    fn slot(&self, index: u32) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Backend>;
    /// Lets the counters of a backend come from memory while the backend itself does: who is drawn is counted next.
    fn fetch_stats(&self, _backend: u32) {}
    /// True only when no entry of FRONTEND has this address.
    fn is_absent(&self, addr: &Addr) -> bool;
    /// Flags of [`crate::abi::address`].
    #[inline(always)]
    fn address(&self, addr: &Addr) -> Option<u32>
    where
        Self: Sized,
    {
        index::address(self, addr)
    }
    /// True when a source range of service port `service` holds `client`.
    fn source_allowed(&self, service: u32, client: &Addr) -> bool;
    fn config(&self) -> Option<&Config>;
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    fn remember(&self, key: &AffinityKey, value: &Affinity);
}
