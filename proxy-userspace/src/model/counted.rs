//! Addresses that several Services may have.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Each with the number of those who have it.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted(BTreeMap<IpAddr, u32>);

impl Counted {
    /// Sorted, each once.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    pub(super) fn has(&self, ip: IpAddr) -> bool {
        self.0.contains_key(&ip)
    }

    /// Somebody had `old` and has `new`. The addresses for which that may make a difference.
    pub(super) fn replace(&mut self, old: &[IpAddr], new: &[IpAddr]) -> Vec<IpAddr> {
        if old == new {
            return Vec::new();
        }
        for ip in new {
            *self.0.entry(*ip).or_default() += 1;
        }
        for ip in old {
            let count = self.0.get_mut(ip).expect("counted when it came");
            *count -= 1;
            if *count == 0 {
                self.0.remove(ip);
            }
        }
        old.iter().chain(new).copied().collect()
    }
}
