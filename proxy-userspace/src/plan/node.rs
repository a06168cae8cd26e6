//! ADDRS and CONFIG: what the tables say about the node as a whole.

use std::collections::BTreeMap;

use proxy_common::abi::address;
use proxy_common::addr::Addr;
use proxy_common::tables::name;

use super::Op;
use super::ledger::{Full, Ledger};
use crate::desired::WantedNode;

impl Ledger {
    /// The writes that bring ADDRS and CONFIG to `wanted`. Addresses past the capacity are left out and reported.
    pub fn plan_node(&mut self, wanted: &WantedNode) -> (Vec<Op>, Option<Full>) {
        let addresses = fitting(&wanted.addresses, self.capacity.addrs as usize);
        let full = Full { table: name::ADDRS, capacity: self.capacity.addrs };
        let full = (addresses.len() < wanted.addresses.len()).then_some(full);
        let mut ops = address_ops(&self.addrs, &addresses);
        self.addrs = addresses;
        if self.config != Some(wanted.config) {
            ops.push(Op::Config { value: Box::new(wanted.config) });
            self.config = Some(wanted.config);
        }
        (ops, full)
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
fn address_ops(held: &[(Addr, u32)], wanted: &[(Addr, u32)]) -> Vec<Op> {
    let (had, has): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (held.iter().copied().collect(), wanted.iter().copied().collect());
    let gone = held.iter().filter(|(addr, _)| !has.contains_key(addr));
    let mut ops: Vec<Op> = gone.map(|&(addr, _)| Op::ForgetAddress { addr }).collect();
    let changed = wanted.iter().filter(|(addr, flags)| had.get(addr) != Some(flags));
    ops.extend(changed.map(|&(addr, flags)| Op::Address { addr, flags }));
    ops
}
