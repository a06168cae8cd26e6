//! What differs between the backends that a service port has and those it should have.
//!
//! Both lists are sorted by (address, port); one walk over both finds the pairs.

use std::cmp::Ordering;

use proxy_common::abi::Backend;
use proxy_common::addr::{Addr, Be16};

use crate::desired::WantedBackend;

/// Flags that make a backend a member of a set, and so a part of SLOTS.
pub(super) const SET_FLAGS: u16 = Backend::IN_CLUSTER_SET | Backend::IN_LOCAL_SET;

/// A backend as the kernel holds it; [`super::backends::Backends`] keeps it, with its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldBackend {
    pub(super) addr: Addr,
    pub(super) port: Be16,
    pub(super) flags: u16,
    pub(super) id: u32,
}

impl HeldBackend {
    pub(super) fn place(&self) -> (Addr, Be16) {
        (self.addr, self.port)
    }

    pub(super) fn with_flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }
}

/// The three kinds of difference.
#[derive(Debug, Default)]
pub(super) struct BackendChange {
    /// Stays, with the flags that it should have.
    pub(super) kept: Vec<(HeldBackend, u16)>,
    pub(super) added: Vec<WantedBackend>,
    pub(super) removed: Vec<HeldBackend>,
}

impl BackendChange {
    /// A second held backend at one place (only damage makes one) is removed.
    pub(super) fn between(held: &[HeldBackend], wanted: &[WantedBackend]) -> Self {
        let mut change = Self::default();
        let mut wanted = wanted.iter().peekable();
        for backend in held {
            while let Some(new) = wanted.next_if(|new| (new.addr, new.port) < backend.place()) {
                change.added.push(*new);
            }
            match wanted.next_if(|new| (new.addr, new.port).cmp(&backend.place()) == Ordering::Equal) {
                Some(same) => change.kept.push((*backend, same.flags)),
                None => change.removed.push(*backend),
            }
        }
        change.added.extend(wanted);
        change
    }

    pub(super) fn is_nothing(&self) -> bool {
        let same = |(old, flags): &(HeldBackend, u16)| old.flags == *flags;
        self.added.is_empty() && self.removed.is_empty() && self.kept.iter().all(same)
    }

    /// True when no set gains or loses a member.
    pub(super) fn keeps_sets(&self) -> bool {
        let outside = |flags: u16| flags & SET_FLAGS == 0;
        self.kept.iter().all(|(old, new)| outside(old.flags ^ new))
            && self.added.iter().all(|new| outside(new.flags))
            && self.removed.iter().all(|old| outside(old.flags))
    }
}

/// The backend ids of the cluster set, then of the local set: one run of SLOTS.
pub(super) struct Sets {
    pub(super) slots: Vec<u32>,
    pub(super) cluster: u32,
}

impl Sets {
    pub(super) fn of(backends: &[HeldBackend]) -> Self {
        let members = |flag| backends.iter().filter(move |backend| backend.flags & flag != 0).map(|backend| backend.id);
        // Nearly always each is in one set: room is asked for once.
        let mut slots = Vec::with_capacity(backends.len());
        slots.extend(members(Backend::IN_CLUSTER_SET));
        let cluster = slots.len() as u32;
        slots.extend(members(Backend::IN_LOCAL_SET));
        Self { slots, cluster }
    }

    /// How many slots the sets of `wanted` take.
    pub(super) fn room(wanted: &[WantedBackend]) -> u32 {
        wanted.iter().map(|backend| (backend.flags & SET_FLAGS).count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(last: u8, flags: u16) -> HeldBackend {
        HeldBackend { addr: Addr::v4([10, 0, 0, last]), port: Be16::new(80), flags, id: u32::from(last) }
    }

    fn wanted(last: u8, flags: u16) -> WantedBackend {
        WantedBackend { addr: Addr::v4([10, 0, 0, last]), port: Be16::new(80), flags }
    }

    #[test]
    fn one_walk_finds_kept_added_and_removed() {
        let change = BackendChange::between(
            &[held(1, 0), held(2, 0), held(2, 0), held(9, 0)],
            &[wanted(0, 0), wanted(2, 1), wanted(5, 0), wanted(10, 0)],
        );
        assert_eq!(change.kept, [(held(2, 0), 1)]);
        assert_eq!(change.added, [wanted(0, 0), wanted(5, 0), wanted(10, 0)]);
        assert_eq!(change.removed, [held(1, 0), held(2, 0), held(9, 0)]);
    }

    #[test]
    fn a_condition_alone_leaves_the_sets() {
        let serving = Backend::IN_CLUSTER_SET | Backend::SERVING;
        let change = BackendChange::between(&[held(1, serving)], &[wanted(1, Backend::IN_CLUSTER_SET)]);
        assert!(change.keeps_sets());
        let change = BackendChange::between(&[held(1, serving)], &[wanted(1, Backend::SERVING)]);
        assert!(!change.keeps_sets());
    }
}
