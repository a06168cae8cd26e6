//! The agent of Sluice: what the cluster says in, kernel tables out.
//!
//! ```text
//! API server or manifest files
//!     -> watch | manifests  typed changes: Apply, Delete, Reset; "synced" when every kind has been listed
//!     -> model              what the cluster says now
//!     -> desired            model + this node -> what every service port should be            (pure)
//!     -> plan               what it should be vs what the kernel holds -> ordered Ops         (pure)
//!     -> maps               apply the ops
//!     -> hooks              connect, sendmsg, recvmsg, getpeername (attach puts them there)
//! ```
//!
//! Nothing flows back except counters and status. Without the feature `io` the pure part builds alone.

#[cfg(feature = "io")]
pub mod agent;
#[cfg(feature = "io")]
pub mod args;
#[cfg(feature = "io")]
pub mod attach;
#[cfg(feature = "io")]
pub mod bell;
#[cfg(feature = "io")]
pub mod cli;
#[cfg(feature = "io")]
pub mod config;
pub mod converge;
pub mod desired;
pub mod devices;
pub mod facts;
#[cfg(feature = "io")]
pub mod flows;
mod glob;
mod hash;
#[cfg(feature = "io")]
pub mod ipsec;
#[cfg(feature = "io")]
pub mod lock;
#[cfg(feature = "io")]
mod log;
#[cfg(feature = "io")]
pub mod manifests;
pub mod maps;
pub mod model;
#[cfg(feature = "io")]
pub mod netdev;
#[cfg(feature = "io")]
pub mod news;
pub mod plan;
#[cfg(feature = "io")]
pub mod ports;
#[cfg(feature = "io")]
pub mod reap;
#[cfg(feature = "io")]
mod stirred;
#[cfg(feature = "io")]
pub mod sys;
#[cfg(feature = "io")]
pub mod timeouts;
#[cfg(feature = "io")]
pub mod unsteered;
#[cfg(feature = "io")]
pub mod watch;
