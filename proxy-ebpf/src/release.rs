//! A socket is released: its slot is free.

use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use proxy_common::socket;

use crate::context::ALLOW;
use crate::maps::{Kernel, KernelSocket};

#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(context: SockContext) -> i32 {
    socket::release(&Kernel(()), &mut KernelSocket::released(&context));
    ALLOW
}
