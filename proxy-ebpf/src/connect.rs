//! connect(): one translation for the life of a connection.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use proxy_common::socket;

use crate::context::{ALLOW, Hook, SockAddr, Source, V4, V6};
use crate::maps::Kernel;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(context: SockAddrContext) -> i32 {
    connect(&SockAddr::<V4>::new(context, Source::Socket))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(context: SockAddrContext) -> i32 {
    connect(&SockAddr::<V6>::new(context, Source::Socket))
}

#[inline(always)]
fn connect(call: &SockAddr<impl Hook>) -> i32 {
    let Some(dialled) = call.dialled() else { return ALLOW };
    call.act(socket::connect(&Kernel(()), call, &mut call.socket(), &dialled))
}
