//! Sources that no honest packet to a Service has. Asked before a flow is made and before anything is answered.

use crate::abi::address;
use crate::addr::Addr;
use crate::balance::is_reserved;
use crate::packet::Stop;
use crate::packet::ip::{Header, Ip};
use crate::reason::Reason;
use crate::tables::Tables;

/// 127.0.0.0/8 and `::1` never leave a machine: with `route_localnet` set, the stack would believe them (CVE-2020-8558).
#[inline(always)]
pub fn refuse_loopback<A: Ip>(header: &Header<A>) -> Result<(), Stop> {
    if header.src.addr().is_loopback() || header.dst.addr().is_loopback() {
        return Err(Stop::Drop(Reason::LoopbackOnWire));
    }
    Ok(())
}

/// `class` are the flags that the tables have for `src`. What the node itself sends never enters by a device, and an address of a
/// Service sends nothing.
#[inline(always)]
pub fn refuse(tables: &impl Tables, src: &Addr, class: u32, dst: &Addr) -> Result<(), Stop> {
    let is_ours = class & (address::OWN | address::CLUSTER_IP | address::EXTERNAL) != 0 || is_reserved(tables, src);
    if is_ours || src == dst || src.is_unspecified() || src.is_no_source() {
        return Err(Stop::Drop(Reason::SpoofedSource));
    }
    Ok(())
}
