//! ADDRS, CONFIG and PACKETS: what the tables say about the node as a whole.

use std::collections::BTreeMap;

use proxy_common::abi::address;
use proxy_common::addr::Addr;
use proxy_common::tables::name;

use super::Op;
use super::absent::Absent;
use super::ledger::{Full, Ledger};
use crate::desired::WantedNode;

impl Ledger {
    /// The writes that bring ADDRS, CONFIG and PACKETS to `wanted`. Addresses past the capacity are left out and reported.
    pub fn plan_node(&mut self, wanted: &WantedNode) -> (Vec<Op>, Option<Full>) {
        let addresses = fitting(&wanted.addresses, self.limit.addrs as usize);
        let full = Full { table: name::ADDRS, capacity: self.limit.addrs };
        let full = (addresses.len() < wanted.addresses.len()).then_some(full);
        let mut ops = address_ops(&self.addrs, &addresses, &mut self.absent);
        self.addrs = addresses;
        if self.config != Some(wanted.config) {
            ops.push(Op::Config { value: Box::new(wanted.config) });
            self.config = Some(wanted.config);
        }
        if let Some(packets) = wanted.packets.filter(|packets| self.packets != Some(*packets)) {
            ops.push(Op::Packets { value: Box::new(packets) });
            self.packets = Some(packets);
        }
        (ops, full)
    }

    /// The writes for some addresses, sorted as [`crate::desired::some_addresses`] gives them. `None` when room is short:
    /// then who gets it is decided over all addresses.
    pub fn plan_addresses(&mut self, wanted: &[(Addr, Option<u32>)]) -> Option<Vec<Op>> {
        let has = |addr: &Addr| self.addrs.binary_search_by_key(addr, |(addr, _)| *addr);
        let new = wanted.iter().filter(|(addr, flags)| flags.is_some() && has(addr).is_err()).count();
        if !wanted.is_empty() && self.addrs.len() + new >= self.limit.addrs as usize {
            return None;
        }
        let mut ops = Vec::new();
        for (addr, flags) in wanted {
            let place = self.addrs.binary_search_by_key(addr, |(addr, _)| *addr);
            match (place, flags) {
                (Ok(at), Some(flags)) if self.addrs[at].1 == *flags => continue,
                (Ok(at), Some(flags)) => self.addrs[at].1 = *flags,
                (Ok(at), None) => {
                    self.absent.dismiss();
                    self.addrs.remove(at);
                }
                (Err(at), Some(flags)) => {
                    ops.extend(self.absent.admit(addr));
                    self.addrs.insert(at, (*addr, *flags));
                }
                (Err(_), None) => continue,
            }
            ops.push(flags.map_or(Op::ForgetAddress { addr: *addr }, |flags| Op::Address { addr: *addr, flags }));
        }
        Some(ops)
    }
}

/// Those that the table has room for, sorted as `wanted` is. Own addresses come first: one that is missing has
/// no node ports and may count as an unallocated ClusterIP; a ClusterIP that is missing only refuses in another way.
fn fitting(wanted: &[(Addr, u32)], room: usize) -> Vec<(Addr, u32)> {
    if wanted.len() <= room {
        return wanted.to_vec();
    }
    let mut chosen = wanted.to_vec();
    chosen.sort_by_key(|(_, flags)| flags & address::OWN == 0); // stable: by address among equals
    chosen.truncate(room);
    chosen.sort_unstable();
    chosen
}

/// What turns `held` into `wanted`. Room is made before it is taken: in a full table there is no other order.
fn address_ops(held: &[(Addr, u32)], wanted: &[(Addr, u32)], absent: &mut Absent) -> Vec<Op> {
    let (had, has): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (held.iter().copied().collect(), wanted.iter().copied().collect());
    let gone = held.iter().filter(|(addr, _)| !has.contains_key(addr));
    let mut ops: Vec<Op> = gone.map(|&(addr, _)| Op::ForgetAddress { addr }).collect();
    if !ops.is_empty() {
        absent.dismiss();
    }
    ops.extend(wanted.iter().filter_map(|(addr, _)| absent.admit(addr)));
    let changed = wanted.iter().filter(|(addr, flags)| had.get(addr) != Some(flags));
    ops.extend(changed.map(|&(addr, flags)| Op::Address { addr, flags }));
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
        let address = |last, flags| Op::Address { addr: addr(last), flags };
        assert_eq!(ops, [address(2, 2), Op::ForgetAddress { addr: addr(3) }, address(5, 7)]);
        assert_eq!(ledger.plan_node(&wanted(&[(addr(1), 1), (addr(2), 2), (addr(5), 7)])).0, []);
    }

    #[test]
    fn who_gets_the_last_room_is_decided_over_all_addresses() {
        let mut ledger = Ledger::new(Capacity { addrs: 2, ..Capacity::DEFAULT });
        ledger.plan_node(&wanted(&[(addr(1), 1)]));
        assert_eq!(ledger.plan_addresses(&[(addr(2), Some(1))]), None);
        assert_eq!(ledger.plan_addresses(&[]), Some(Vec::new()));
    }
}
