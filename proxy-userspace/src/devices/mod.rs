//! Which devices of the node get packet programs, as what, and why.
//!
//! ```text
//! messages of the kernel (netdev)
//!     -> Snapshot   links, addresses and routes of the node
//!     -> choose     every device: faces the network, faces pods, or is left alone, each with its reason    (pure)
//!     -> attach     the difference to what stands there
//! ```
//!
//! In: a [`Snapshot`] and [`Settings`]. Out: one [`Choice`] per device. Refuses to know netlink and programs.

mod choose;
mod pattern;
mod snapshot;

pub use choose::{Choice, Reason, Role, choose};
pub use pattern::Pattern;
pub use snapshot::{Format, Link, Lower, OwnAddress, Route, Snapshot};

use crate::desired::Detector;

/// What users say about devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub network: Scope,
    pub pods: Scope,
    /// Processes of the node may be left out at their sockets: then devices see what it sends to itself, too.
    pub itself: bool,
    pub detector: Detector,
}

impl Settings {
    /// Whether any device may get programs.
    pub fn wants_any(&self) -> bool {
        self.network != Scope::None || self.pods != Scope::None
    }
}

/// Which devices of one role are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those that have the role by what they are.
    #[default]
    Chosen,
    None,
    /// Those with such a name, whatever they are.
    Named(Vec<Pattern>),
}

impl Scope {
    fn names(&self, device: &str) -> bool {
        matches!(self, Self::Named(patterns) if patterns.iter().any(|pattern| pattern.matches(device)))
    }
}
