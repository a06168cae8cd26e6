//! What should be against what the kernel holds: an ordered list of writes.
//!
//! In: [`crate::desired`] values and the [`ledger`](self) of ids that the kernel holds. Out: [`Op`]s in an order in which
//! no look-up ever meets a dangling id and every service is wholly old or wholly new. Pure.

use proxy_common::abi::{Backend, Config, Frontend, FrontendKey, ServiceWord, SourceKey, Version};
use proxy_common::addr::Addr;

/// One write to the kernel tables. Every op may be repeated safely.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// BACKENDS\[id\] (and a zeroed STATS\[id\] when `fresh`).
    Backend { id: u32, value: Backend, fresh: bool },
    /// SLOTS\[start..\].
    Slots { start: u32, backends: Vec<u32> },
    /// VERSION\[number\].
    Version { number: u32, value: Version },
    /// SERVICE\[id\]: the switch.
    Service { id: u32, word: ServiceWord },
    /// FRONTEND\[id\].
    Frontend { id: u32, value: Frontend },
    /// FRONTENDS\[key\] = id.
    Publish { key: FrontendKey, id: u32 },
    /// Remove FRONTENDS\[key\].
    Withdraw { key: FrontendKey },
    Address { addr: Addr, flags: u32 },
    ForgetAddress { addr: Addr },
    AllowSource { key: SourceKey },
    ForgetSource { key: SourceKey },
    Config { value: Config },
    /// Wait until every program that may have read an older value has ended (an RCU grace period).
    Grace,
}
