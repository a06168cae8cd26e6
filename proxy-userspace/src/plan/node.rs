//! Addresses, CONFIG and PACKETS: what the tables say about the node as a whole.

use std::collections::BTreeMap;

use proxy_common::abi::{Frontend, FrontendKey, address};
use proxy_common::addr::Addr;
use proxy_common::tables::name;

use super::Op;
use super::ledger::{Full, Ledger, step};
use crate::desired::WantedNode;

impl Ledger {
    /// The writes that bring addresses, CONFIG and PACKETS to `wanted`. Addresses for which there is no room are left out and
    /// reported.
    pub fn plan_node(&mut self, wanted: &WantedNode) -> (Vec<Op>, Option<Full>) {
        let (mut ops, full) = self.plan_all_addresses(&wanted.addresses);
        self.lacks_addresses = full.is_some();
        if self.config != Some(wanted.config) {
            ops.push(Op::Config { value: Box::new(wanted.config) });
            self.config = Some(wanted.config);
        }
        self.has_flows = wanted.packets.is_some();
        if let Some(packets) = wanted.packets.filter(|packets| self.packets != Some(*packets)) {
            ops.push(Op::Packets { value: Box::new(packets) });
            self.packets = Some(packets);
        }
        (ops, full)
    }

    /// The writes for some addresses, sorted as [`crate::desired::some_addresses`] gives them. `None` when room is short:
    /// then who gets it is decided over all addresses.
    pub fn plan_addresses(&mut self, wanted: &[(Addr, Option<u32>)]) -> Option<Vec<Op>> {
        let changed: Vec<_> = wanted.iter().filter(|(addr, flags)| self.address(addr) != *flags).collect();
        let new = changed.iter().filter(|(_, flags)| flags.is_some()).count();
        if self.ids.frontends.available() < new {
            return None;
        }
        let mut ops = Vec::new();
        for (addr, flags) in changed {
            match flags {
                Some(flags) => ops.extend(self.admit(*addr, *flags)?),
                None => ops.push(self.forget(*addr)),
            }
        }
        Some(in_order(ops))
    }

    /// What turns the addresses that are held into `wanted`. Own ones come first: one that is missing has no node ports and may
    /// count as an unallocated ClusterIP; a ClusterIP that is missing only refuses in another way.
    fn plan_all_addresses(&mut self, wanted: &[(Addr, u32)]) -> (Vec<Op>, Option<Full>) {
        let held: BTreeMap<Addr, u32> = self.index.addresses().collect();
        let mut changed: Vec<_> = wanted.iter().filter(|(addr, flags)| held.get(addr) != Some(flags)).collect();
        changed.sort_by_key(|(_, flags)| flags & address::OWN == 0); // stable: by address among equals
        let gone = held.keys().filter(|addr| wanted.binary_search_by_key(*addr, |(addr, _)| *addr).is_err());
        let mut ops: Vec<Op> = gone.map(|addr| self.forget(*addr)).collect();
        for (addr, flags) in changed {
            match self.admit(*addr, *flags) {
                Some(admitted) => ops.extend(admitted),
                None => return (in_order(ops), Some(Full { table: name::FRONTEND, capacity: self.limit.frontends })),
            }
        }
        (in_order(ops), None)
    }

    fn address(&self, addr: &Addr) -> Option<u32> {
        self.index.get(&FrontendKey::of_address(*addr)).map(|held| held.service)
    }

    /// `None` when there is no room.
    fn admit(&mut self, addr: Addr, flags: u32) -> Option<impl Iterator<Item = Op> + use<>> {
        let key = FrontendKey::of_address(addr);
        let places = self.index.places(&[key], self.limit.frontends)?;
        self.publish_one(places[0], Frontend { key, service: flags, kind: Frontend::KIND_ADDRESS })
    }

    /// Withdraws an address that is held.
    fn forget(&mut self, addr: Addr) -> Op {
        let key = FrontendKey::of_address(addr);
        let held = self.index.get(&key).expect("the caller found it");
        self.ids.frontends.retire(held.id);
        self.absent.dismiss(&addr);
        self.index.withdraw(&key)
    }
}

/// Neighbours of one kind share a call, and nothing leads to what has yet to be written.
fn in_order(mut ops: Vec<Op>) -> Vec<Op> {
    ops.sort_by_key(step);
    ops
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Config;
    use proxy_common::tables::Capacity;

    use super::*;

    fn addr(last: u8) -> Addr {
        Addr::v4([10, 96, 0, last])
    }

    fn wanted(addresses: &[(Addr, u32)]) -> WantedNode {
        WantedNode { addresses: addresses.to_vec(), config: Config::default(), packets: None }
    }

    #[test]
    fn some_addresses_cost_one_write_each() {
        let mut ledger = Ledger::new(Capacity::DEFAULT);
        ledger.plan_node(&wanted(&[(addr(1), 1), (addr(3), 1), (addr(5), 1)]));
        let changes = [(addr(1), Some(1)), (addr(2), Some(2)), (addr(3), None), (addr(4), None), (addr(5), Some(7))];
        let ops = ledger.plan_addresses(&changes).unwrap();
        let written = |op: &Op| match op {
            Op::Frontend { value, .. } => Some((value.key.addr, value.service)),
            _ => None,
        };
        assert_eq!(ops.iter().filter_map(written).collect::<Vec<_>>(), [(addr(2), 2), (addr(5), 7)]);
        assert_eq!(ops.len(), 2 * 2 + 1, "and a word of INDEX for each, also for the one that goes");
        assert_eq!(ledger.plan_node(&wanted(&[(addr(1), 1), (addr(2), 2), (addr(5), 7)])).0, []);
    }

    #[test]
    fn who_gets_the_last_room_is_decided_over_all_addresses() {
        let mut ledger = Ledger::new(Capacity { frontends: 2, ..Capacity::DEFAULT });
        ledger.plan_node(&wanted(&[(addr(1), 1)]));
        assert_eq!(ledger.plan_addresses(&[(addr(2), Some(1))]), None);
        assert_eq!(ledger.plan_addresses(&[]), Some(Vec::new()));
    }
}
