//! What should be against what the kernel holds: an ordered list of writes.
//!
//! In: [`crate::desired`] values and the [`Ledger`] of ids that the kernel holds. Out: [`Op`]s in an order in which
//! no look-up ever meets a dangling id and every service is wholly old or wholly new. Pure.
//!
//! ```text
//! Snapshot -> restore -> Ledger -> plan_all  new backends, slots, version, switch, publish; then withdraw, tombstone
//!                               -> plan_node addresses and configuration
//!                                  (an address is uncovered in ABSENT before its first entry, in all of these)
//!                               -> collect   a grace period, then what was retired may be used again; ABSENT is put right
//! ```

use std::sync::Arc;

use proxy_common::abi::{
    Backend, Config, Frontend, FrontendKey, IndexWord, PacketSettings, ServiceWord, SourceKey, Version,
};
use proxy_common::addr::{Addr, Be16};
use proxy_common::tables::name;

mod absent;
pub mod arena;
mod backends;
mod change;
pub mod first;
pub mod growth;
mod held;
pub mod ids;
mod index;
mod ledger;
mod node;
mod pressure;
mod restore;
mod sources;

pub use absent::Dialled;
pub use ledger::{Full, Ledger, Planned};
pub use pressure::{Alarm, Pressure};
pub use restore::Problem;

/// One write to the kernel tables. Every op may be repeated safely.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// BACKENDS\[id\] (and a zeroed STATS\[id\] when `fresh`).
    Backend {
        id: u32,
        value: Backend,
        fresh: bool,
    },
    /// SLOTS\[start..\]; `start` is the first of a pair.
    Slots {
        start: u32,
        backends: Arc<[u32]>,
    },
    /// VERSION\[number\].
    Version {
        number: u32,
        value: Version,
    },
    /// SERVICE\[id\]: the switch.
    Service {
        id: u32,
        word: ServiceWord,
    },
    /// FRONTEND\[id\].
    Frontend {
        id: u32,
        value: Frontend,
    },
    /// A word of INDEX, counted over all buckets: publishes the frontend that it leads to, or withdraws what was there (0).
    Index {
        place: u32,
        word: IndexWord,
    },
    /// ABSENT\[index\]: 64 bits, one per hash.
    Absent {
        index: u32,
        word: u64,
    },
    AllowSource {
        key: SourceKey,
    },
    ForgetSource {
        key: SourceKey,
    },
    /// Boxed: it is many times the size of every other op, and a cold start plans a hundred thousand of those.
    Config {
        value: Box<Config>,
    },
    /// Boxed for the same reason.
    Packets {
        value: Box<PacketSettings>,
    },
    /// Wait until every program that may have read an older value has ended (an RCU grace period).
    Grace,
}

impl Op {
    /// The table that is written.
    pub fn table(&self) -> &'static str {
        match self {
            Self::Backend { .. } => name::BACKENDS,
            Self::Slots { .. } => name::SLOTS,
            Self::Version { .. } => name::VERSION,
            Self::Service { .. } => name::SERVICE,
            Self::Frontend { .. } => name::FRONTEND,
            Self::Index { .. } => name::INDEX,
            Self::Absent { .. } => name::ABSENT,
            Self::AllowSource { .. } | Self::ForgetSource { .. } => name::SOURCES,
            Self::Config { .. } => name::CONFIG,
            Self::Packets { .. } => name::PACKETS,
            Self::Grace => "grace period",
        }
    }
}

/// What an entry of FRONTEND is that nothing leads to.
pub(crate) const UNUSED_FRONTEND: Frontend = Frontend {
    key: FrontendKey { addr: Addr::UNSPECIFIED_V6, port: Be16::new(0), proto: 0, pad: 0 },
    service: 0,
    kind: Frontend::KIND_UNUSED,
};

/// Room for `len` entries, and for an eighth more when there is too little: half of a table that doubles may stay empty,
/// and in memory, for good.
fn make_room<T>(table: &mut Vec<T>, len: usize) {
    if table.capacity() < len {
        table.reserve_exact(len + len / 8 - table.len());
    }
}
