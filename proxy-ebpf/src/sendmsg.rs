//! sendto() and sendmsg() with a destination: every datagram of an unconnected UDP socket.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use proxy_common::socket;

use crate::context::{ALLOW, Hook, SockAddr, Source, V4, V6};
use crate::maps::Kernel;

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(context: SockAddrContext) -> i32 {
    send(&SockAddr::<V4>::new(context, Source::Message))
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(context: SockAddrContext) -> i32 {
    send(&SockAddr::<V6>::new(context, Source::Message))
}

#[inline(always)]
fn send(call: &SockAddr<impl Hook>) -> i32 {
    let Some(dialled) = call.dialled() else { return ALLOW };
    call.act(socket::send(&Kernel(()), call, &mut call.socket(), &dialled))
}
