//! getpeername(): the peer is what was dialled.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use proxy_common::socket;

use crate::context::{ALLOW, Hook, SockAddr, Source, V4, V6};

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(context: SockAddrContext) -> i32 {
    peer(&SockAddr::<V4>::new(context, Source::Socket))
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(context: SockAddrContext) -> i32 {
    peer(&SockAddr::<V6>::new(context, Source::Socket))
}

#[inline(always)]
fn peer(call: &SockAddr<impl Hook>) -> i32 {
    if let Some((addr, port)) = socket::peer(&mut call.socket(), call.addr(), call.port()) {
        call.set(addr, port);
    }
    ALLOW
}
