//! recvfrom() and recvmsg() of UDP: a reply comes from what was dialled.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use proxy_common::socket;

use crate::context::{ALLOW, Hook, SockAddr, Source, V4, V6};
use crate::maps::Kernel;

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(context: SockAddrContext) -> i32 {
    receive(&SockAddr::<V4>::new(context, Source::Message))
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(context: SockAddrContext) -> i32 {
    receive(&SockAddr::<V6>::new(context, Source::Message))
}

#[inline(always)]
fn receive(call: &SockAddr<impl Hook>) -> i32 {
    if let Some((addr, port)) = socket::receive(&Kernel(()), call, &mut call.socket(), call.addr(), call.port()) {
        call.set(addr, port);
    }
    ALLOW
}
