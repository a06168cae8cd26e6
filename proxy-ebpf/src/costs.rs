//! Test programs, never part of a release: one record per connecting socket, kept in each place that was considered.
//!
//! Each pair of programs does nothing but remember a flow at connect and, where the place needs it, forget it at release.
//! The benchmark attaches each pair to a cgroup of its own and compares; `docs/socket-state.md` has the figures. The last two
//! programs say what no hook can do without: being called, and looking something up (`docs/performance.md`).
#![expect(unsafe_code, reason = "a room of its own for the memory of tables that no product has")]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, SkStorage};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use proxy_common::abi::{FrontendKey, SocketFlow};
use proxy_common::addr::{Addr, Be16};
use proxy_common::tables::Capacity;

use crate::context::ALLOW;

const SOCKETS: usize = Capacity::DEFAULT.sockets as usize;
const MASK: u32 = Capacity::DEFAULT.sockets - 1;

#[btf_map]
static COST_ARRAY: Array<SocketFlow, SOCKETS> = Array::new();
#[btf_map]
static COST_LRU: LruHashMap<u64, SocketFlow, SOCKETS> = LruHashMap::new();
#[btf_map]
static COST_HASH: HashMap<u64, SocketFlow, SOCKETS> = HashMap::new();
#[btf_map]
static COST_STORAGE: SkStorage<SocketFlow> = SkStorage::new();
#[btf_map]
static COST_LOOKUP: HashMap<FrontendKey, u32, LOOKUPS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// A power of two: keys are these many numbers.
const LOOKUPS: usize = 65_536;

/// What every place has to hold. Made alike in all programs, so that only the place differs.
#[inline(always)]
fn record(context: &impl EbpfContext) -> SocketFlow {
    // SAFETY: the context of a socket hook; the other call has no arguments.
    let (cookie, used) = unsafe { (bpf_get_socket_cookie(context.as_ptr()), bpf_ktime_get_ns()) };
    SocketFlow {
        cookie,
        used,
        frontend_addr: Addr::v4([10, 96, 0, 1]),
        backend_addr: Addr::v4([10, 244, 0, 1]),
        frontend_port: Be16::new(80),
        backend_port: Be16::new(8080),
        proto: 6,
        flags: SocketFlow::CONNECTED,
        abi: 1,
        backend: 1,
        generation: 1,
    }
}

/// The same hook without a memory: what the others are measured against.
#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_nothing(context: SockAddrContext) -> i32 {
    core::hint::black_box(record(&context));
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_array(context: SockAddrContext) -> i32 {
    let flow = record(&context);
    if let Some(slot) = COST_ARRAY.get_ptr_mut(flow.cookie as u32 & MASK) {
        // SAFETY: in bounds; who else writes to the slot costs a record, not memory.
        unsafe { slot.write(flow) };
    }
    ALLOW
}

#[cgroup_sock(sock_release)]
pub(crate) fn cost_array_release(context: SockContext) -> i32 {
    // SAFETY: the context of a socket hook.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    if let Some(slot) = COST_ARRAY.get_ptr_mut(cookie as u32 & MASK) {
        // SAFETY: as above.
        unsafe {
            if (*slot).cookie == cookie {
                (*slot).cookie = 0;
            }
        }
    }
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_lru(context: SockAddrContext) -> i32 {
    let flow = record(&context);
    let _ = COST_LRU.insert(&flow.cookie, &flow, 0);
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_hash(context: SockAddrContext) -> i32 {
    let flow = record(&context);
    let _ = COST_HASH.insert(&flow.cookie, &flow, 0);
    ALLOW
}

#[cgroup_sock(sock_release)]
pub(crate) fn cost_hash_release(context: SockContext) -> i32 {
    // SAFETY: the context of a socket hook.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    let _ = COST_HASH.remove(&cookie);
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_storage(context: SockAddrContext) -> i32 {
    let mut flow = record(&context);
    // SAFETY: the context of a connect hook has a socket.
    let _ = unsafe { COST_STORAGE.get_or_insert_ptr_mut(&context, Some(&mut flow)) };
    ALLOW
}

/// What it costs to be attached at all.
#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_empty(_: SockAddrContext) -> i32 {
    ALLOW
}

/// What one look-up costs that nobody made a moment ago, besides.
#[cgroup_sock_addr(connect4)]
pub(crate) fn cost_lookup(_: SockAddrContext) -> i32 {
    // SAFETY: no arguments.
    let number = unsafe { bpf_get_prandom_u32() } % LOOKUPS as u32;
    let key = FrontendKey { addr: Addr::v4(number.to_be_bytes()), port: Be16::new(80), proto: 6, pad: 0 };
    // SAFETY: nobody writes to the table while programs run.
    core::hint::black_box(unsafe { COST_LOOKUP.get(&key) });
    ALLOW
}
