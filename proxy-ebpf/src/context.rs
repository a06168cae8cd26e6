//! The address of a system call: the only place that touches context memory.
//!
//! In: `bpf_sock_addr` as the kernel hands it to a hook. Out: [`FrontendKey`]s, a [`Client`], rewritten addresses. The
//! address family is a type parameter, since the verifier lets each hook see the fields of its own family only.
#![expect(unsafe_code, reason = "one of the rooms for unsafe: context memory")]

use core::marker::PhantomData;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::programs::SockAddrContext;
use proxy_common::abi::{AffinityKey, FrontendKey};
use proxy_common::addr::{Addr, Be16};
use proxy_common::balance::{Client, Origin};
use proxy_common::policy::Place;
use proxy_common::socket::{Steering, TCP, UDP};
use proxy_common::tables::UNSTEERED_LEVELS;

use crate::maps::{KernelSocket, has_set_retval, has_unsteered, is_unsteered, node_netns_cookie, steered};

/// What a hook returns so that the system call goes on.
pub(crate) const ALLOW: i32 = 1;
/// The system call fails: with `bpf_set_retval`'s error, or EPERM where programs cannot set one.
const DENY: i32 = 0;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = TCP as u32;
const IPPROTO_UDP: u32 = UDP as u32;
const IPPROTO_MPTCP: u32 = 262;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// Reads or writes one field of a context in exactly one access: the verifier refuses merged ones.
macro_rules! read {
    ($place:expr) => {
        // SAFETY: the kernel guarantees the context; the verifier checks each field against the hook.
        unsafe { (&raw const $place).read_volatile() }
    };
}
macro_rules! write {
    ($place:expr, $value:expr) => {
        // SAFETY: as for `read!`.
        unsafe { (&raw mut $place).write_volatile($value) }
    };
}

/// How a hook of one family sees addresses.
pub(crate) trait Hook {
    fn addr(context: *const bpf_sock_addr) -> Addr;
    fn set_addr(context: *mut bpf_sock_addr, addr: Addr);
    /// The source address of a datagram, all zero for none.
    fn message_source(context: *const bpf_sock_addr) -> Addr;
    /// The address a socket is bound to, all zero for none.
    fn bound(socket: *const bpf_sock) -> Addr;
}

/// Hooks of IPv4 system calls.
pub(crate) struct V4;
/// Hooks of IPv6 system calls, IPv4-mapped addresses included.
pub(crate) struct V6;

impl Hook for V4 {
    #[inline(always)]
    fn addr(context: *const bpf_sock_addr) -> Addr {
        Addr::v4(read!((*context).user_ip4).to_ne_bytes())
    }

    #[inline(always)]
    fn set_addr(context: *mut bpf_sock_addr, addr: Addr) {
        write!((*context).user_ip4, u32::from_ne_bytes(addr.v4_octets()));
    }

    #[inline(always)]
    fn message_source(context: *const bpf_sock_addr) -> Addr {
        Addr::v4(read!((*context).msg_src_ip4).to_ne_bytes())
    }

    #[inline(always)]
    fn bound(socket: *const bpf_sock) -> Addr {
        Addr::v4(read!((*socket).src_ip4).to_ne_bytes())
    }
}

impl Hook for V6 {
    #[inline(always)]
    fn addr(context: *const bpf_sock_addr) -> Addr {
        Addr::from_words([
            read!((*context).user_ip6[0]),
            read!((*context).user_ip6[1]),
            read!((*context).user_ip6[2]),
            read!((*context).user_ip6[3]),
        ])
    }

    #[inline(always)]
    fn set_addr(context: *mut bpf_sock_addr, addr: Addr) {
        let [a, b, c, d] = addr.words();
        write!((*context).user_ip6[0], a);
        write!((*context).user_ip6[1], b);
        write!((*context).user_ip6[2], c);
        write!((*context).user_ip6[3], d);
    }

    #[inline(always)]
    fn message_source(context: *const bpf_sock_addr) -> Addr {
        Addr::from_words([
            read!((*context).msg_src_ip6[0]),
            read!((*context).msg_src_ip6[1]),
            read!((*context).msg_src_ip6[2]),
            read!((*context).msg_src_ip6[3]),
        ])
    }

    #[inline(always)]
    fn bound(socket: *const bpf_sock) -> Addr {
        Addr::from_words([
            read!((*socket).src_ip6[0]),
            read!((*socket).src_ip6[1]),
            read!((*socket).src_ip6[2]),
            read!((*socket).src_ip6[3]),
        ])
    }
}

/// Where a hook finds the source address: only a datagram's is in the context.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Socket,
    Message,
}

/// One system call of one socket.
pub(crate) struct SockAddr<H> {
    context: SockAddrContext,
    source: Source,
    hook: PhantomData<H>,
}

impl<H: Hook> SockAddr<H> {
    #[inline(always)]
    pub(crate) fn new(context: SockAddrContext, source: Source) -> Self {
        Self { context, source, hook: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn socket(&self) -> KernelSocket<'_> {
        KernelSocket::new(&self.context)
    }

    /// What is dialled; None for sockets that are not ours: raw, ping, SCTP, UDP-Lite.
    #[inline(always)]
    pub(crate) fn dialled(&self) -> Option<FrontendKey> {
        let proto = match (read!((*self.context.sock_addr).type_), read!((*self.context.sock_addr).protocol)) {
            (SOCK_STREAM, IPPROTO_TCP | IPPROTO_MPTCP) => TCP,
            (SOCK_DGRAM, IPPROTO_UDP) => UDP,
            _ => return None,
        };
        Some(FrontendKey { addr: self.addr(), port: self.port(), proto, pad: 0 })
    }

    #[inline(always)]
    pub(crate) fn addr(&self) -> Addr {
        H::addr(self.context.sock_addr)
    }

    #[inline(always)]
    pub(crate) fn port(&self) -> Be16 {
        Be16::from_raw(read!((*self.context.sock_addr).user_port) as u16)
    }

    #[inline(always)]
    pub(crate) fn set(&self, addr: Addr, port: Be16) {
        H::set_addr(self.context.sock_addr, addr);
        write!((*self.context.sock_addr).user_port, u32::from(port.raw()));
    }

    /// Turns a steering into what the kernel wants to hear.
    #[inline(always)]
    pub(crate) fn act(&self, steering: Steering) -> i32 {
        #[cfg(feature = "debug")]
        self.log(steering);
        match steering {
            Steering::Leave => ALLOW,
            Steering::To(addr, port) => {
                self.set(addr, port);
                ALLOW
            }
            Steering::Refuse => fail(ECONNREFUSED),
            Steering::Unreachable => fail(EHOSTUNREACH),
        }
    }
}

/// The namespace that the loader named. Kernels before 5.14 do not tell it which one it is: there it is the initial one.
#[inline(always)]
fn node_namespace() -> u64 {
    match node_netns_cookie() {
        // SAFETY: without a context, the helper answers for the initial namespace.
        0 => unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) },
        cookie => cookie,
    }
}

#[cfg(feature = "debug")]
impl<H: Hook> SockAddr<H> {
    /// What was dialled, and what becomes of it.
    #[inline(always)]
    fn log(&self, steering: Steering) {
        let (addr, port) = (self.addr().octets(), self.port().get());
        match steering {
            Steering::Leave => aya_log_ebpf::info!(&self.context, "{:i} port {} is left alone", addr, port),
            Steering::To(to, at) => {
                aya_log_ebpf::info!(
                    &self.context,
                    "{:i} port {} goes to {:i} port {}",
                    addr,
                    port,
                    to.octets(),
                    at.get()
                );
            }
            Steering::Refuse => aya_log_ebpf::info!(&self.context, "{:i} port {} is refused", addr, port),
            Steering::Unreachable => aya_log_ebpf::info!(&self.context, "{:i} port {} is unreachable", addr, port),
        }
    }
}

/// Whether a cgroup of the process that calls, or one above it, is left out. Containers come and go below the cgroup of a
/// pod, which is there before them.
#[inline(always)]
fn is_left_out() -> bool {
    (1..=UNSTEERED_LEVELS).any(|level| {
        // SAFETY: no pointers; 0 where the process is not so deep.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        cgroup != 0 && is_unsteered(cgroup)
    })
}

/// The verifier knows the global and drops the call on kernels that lack it.
#[inline(always)]
fn fail(errno: i32) -> i32 {
    if has_set_retval() {
        // SAFETY: no pointers.
        unsafe { bpf_set_retval(-errno) };
    }
    DENY
}

impl<H: Hook> SockAddr<H> {
    /// Cookie of the network namespace that dials.
    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the context of a socket hook.
        unsafe { bpf_get_netns_cookie(self.context.as_ptr()) }
    }

    /// The address the socket is bound to, or the datagram is sent from, if there is one yet.
    #[inline(always)]
    fn source(&self) -> Option<Addr> {
        let addr = match self.source {
            Source::Message => H::message_source(self.context.sock_addr),
            // SAFETY: a union of one pointer and its bytes.
            Source::Socket => match unsafe { self.context.sock_addr.as_ref()?.__bindgen_anon_1.sk } {
                sk if sk.is_null() => return None,
                sk => H::bound(sk),
            },
        };
        (addr != Addr::UNSPECIFIED_V6 && addr != Addr::UNSPECIFIED_V4).then_some(addr)
    }
}

impl<H: Hook> Client for SockAddr<H> {
    /// The verifier knows the global: where everybody is steered nothing is asked.
    #[inline(always)]
    fn is_steered(&self) -> bool {
        steered().has(|| self.place()) && !(has_unsteered() && is_left_out())
    }

    /// A namespace other than the node's own is a pod of this node.
    #[inline(always)]
    fn place(&self) -> Place {
        if self.namespace() == node_namespace() { Place::Node } else { Place::Pod }
    }

    /// An unbound socket of the host has no address yet; that of a pod is known only to the packet hooks.
    #[inline(always)]
    fn origin(&self) -> Origin {
        if self.place() != Place::Node {
            return Origin::Unknown;
        }
        self.source().map_or(Origin::OfTheNode, Origin::Known)
    }

    #[inline(always)]
    fn affinity(&self, service: u32) -> AffinityKey {
        AffinityKey::namespace(self.namespace(), service)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }
}
