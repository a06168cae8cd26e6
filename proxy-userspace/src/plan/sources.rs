//! SOURCES: from where a service port may be dialled.

use std::collections::BTreeSet;

use proxy_common::abi::{Cidr, SourceKey, Version};
use proxy_common::addr::Addr;

use super::Op;
use super::ledger::{Batch, Ledger};
use crate::desired::WantedService;

impl Ledger {
    pub(super) fn source_count(&self) -> usize {
        self.sources.values().map(BTreeSet::len).sum::<usize>() + self.retired_sources.len()
    }

    /// Nobody asks for sources, and nobody did.
    pub(super) fn has_no_sources(&self, service: Option<u32>, wanted: &WantedService) -> bool {
        wanted.source_ranges.is_empty() && service.is_none_or(|service| !self.sources.contains_key(&service))
    }

    /// New sources come before the switch that asks for them.
    pub(super) fn plan_sources(&mut self, batch: &mut Batch, service: u32, wanted: &WantedService) {
        let sources: BTreeSet<SourceKey> = wanted.source_ranges.iter().map(|cidr| source_key(service, cidr)).collect();
        let mut held = self.sources.remove(&service).unwrap_or_default();
        held.extend(self.retired_sources.extract_if(.., |key| key.service == service.to_be_bytes()));
        batch.adding.extend(sources.difference(&held).map(|&key| Op::AllowSource { key }));
        let gone = held.difference(&sources).copied();
        if wanted.flags & Version::SOURCE_RANGES == 0 {
            // Programs that still see the older version must find them.
            self.retired_sources.extend(gone);
        } else {
            batch.removing.extend(gone.map(|key| Op::ForgetSource { key }));
        }
        if !sources.is_empty() {
            self.sources.insert(service, sources);
        }
    }
}

/// The key for `cidr`, without the bits that do not count.
fn source_key(service: u32, cidr: &Cidr) -> SourceKey {
    let prefix = cidr.prefix_len.min(128);
    let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
    let addr = Addr::new((cidr.addr.bits() & mask).to_be_bytes());
    SourceKey { prefix_len: 32 + prefix, service: service.to_be_bytes(), addr }
}
