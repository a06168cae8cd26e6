//! A packet as tc sees it: the only place that touches its memory.
//!
//! In: `__sk_buff` as the kernel hands it to a hook. Out: [`Packet`]. Bytes are read and written through helpers, since parts
//! of a packet may lie in other pages, and sums by those that know whether a device will complete them.
#![expect(unsafe_code, reason = "one of the rooms for unsafe: packet memory")]

use core::arch::asm;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as FibLookup, bpf_redir_neigh, bpf_sock_tuple,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_fib_lookup, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_set_tunnel_key, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::TcContext;
use proxy_common::abi::Flow;
use proxy_common::addr::Family;
use proxy_common::packet::ip::Ip;
use proxy_common::packet::sum::Change;
use proxy_common::packet::{Broken, Packet, Zero};
use proxy_common::socket::{TCP, UDP};

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// Bytes into a packet that are read without a call.
const FAR: usize = 0x1000;

/// Reads packet memory, whose alignment is anybody's, in one load: the compiler would take it apart.
macro_rules! read {
    ($size:literal, $from:expr, $word:ty) => {{
        let word: u64;
        let from: usize = $from;
        // SAFETY: who asks has compared with the end of the memory.
        unsafe {
            asm!(concat!("{} = *(", $size, " *)({} + 0)"), out(reg) word, in(reg) from, options(pure, readonly, nostack));
        }
        word as $word
    }};
}

/// Not by the compiler, which would make a comparison of it.
#[inline(always)]
fn quotient_by_far(mut at: usize) -> usize {
    const { assert!(FAR == 1 << 12) };
    // SAFETY: a number.
    unsafe { asm!("{} >>= 12", inout(reg) at, options(pure, nomem, nostack)) };
    at
}

/// `at` bytes on, by an addition that the compiler cannot do twice: what is compared with the end and what is read must be
/// one and the same for the verifier.
#[inline(always)]
fn forward(mut from: usize, at: usize) -> usize {
    // SAFETY: a number.
    unsafe { asm!("{} += {}", inout(reg) from, in(reg) at, options(pure, nomem, nostack)) };
    from
}

#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self(context.as_ptr().cast())
    }

    /// The device that it comes in or goes out by.
    #[inline(always)]
    pub(crate) fn device(&self) -> u32 {
        // SAFETY: the kernel guarantees the context; one access to one field.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    /// True when a socket would take what the backend of `flow` sends to its source port at `local`; where that is nobody's
    /// address, when one that is bound to no single one would.
    /// Never inlined: it is asked in a loop, and the verifier would take each way through it into the next round.
    #[inline(never)]
    pub(crate) fn has_socket<A: Ip>(&self, flow: &Flow<A>, local: &A) -> bool {
        let mut tuple = MaybeUninit::<bpf_sock_tuple>::uninit();
        let tuple = tuple.as_mut_ptr();
        let (len, namespace) = (fill(tuple.cast(), flow, local), BPF_F_CURRENT_NETNS as u64);
        // SAFETY: the tuple is on the stack; what is found is given back.
        unsafe {
            let socket = match flow.proto {
                TCP => bpf_skc_lookup_tcp(self.0.cast(), tuple, len, namespace, 0),
                UDP => bpf_sk_lookup_udp(self.0.cast(), tuple, len, namespace, 0),
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }

    /// What is at `at`, where it lies in the first part of the packet's memory: most headers do, and a call costs more than all
    /// the rest of reading.
    #[inline(always)]
    fn glance<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // SAFETY: as for `device`.
        let [data, end] =
            unsafe { [(&raw const (*self.0).data).read_volatile(), (&raw const (*self.0).data_end).read_volatile()] };
        // Two numbers of their own: a bound of `at` itself, which is known on this way only, would be a reason to walk through
        // everything that follows once more.
        let (near, far) = (at & (FAR - 1), quotient_by_far(at));
        if far != 0 {
            return None;
        }
        let from = forward(data as usize, near);
        if from + N > end as usize {
            return None;
        }
        let mut bytes = [0; N];
        let (long, rest) = bytes.as_chunks_mut::<8>();
        for (i, word) in long.iter_mut().enumerate() {
            *word = read!("u64", from + 8 * i, u64).to_ne_bytes();
        }
        let from = from + N - N % 8;
        let (words, rest) = rest.as_chunks_mut::<4>();
        for word in words {
            *word = read!("u32", from, u32).to_ne_bytes();
        }
        let from = from + N % 8 - N % 4;
        match rest {
            [] => {}
            [one] => *one = read!("u8", from, u8),
            [one, two] => [*one, *two] = read!("u16", from, u16).to_ne_bytes(),
            _ => return None,
        }
        Some(bytes)
    }

    /// Sends it out by a device, or in as if it had come by that, behind whatever this device would do with it.
    #[inline(always)]
    pub(crate) fn redirect(&self, device: u32, flags: u32) -> i32 {
        // SAFETY: no pointers.
        unsafe { bpf_redirect(device, u64::from(flags)) as i32 }
    }

    /// Sends it out by a device to a neighbour, who is looked for if need be.
    #[inline(always)]
    pub(crate) fn redirect_to(&self, device: u32, neighbour: &mut [u32; 5]) -> i32 {
        const { assert!(size_of::<[u32; 5]>() == size_of::<bpf_redir_neigh>()) };
        let size = size_of_val(neighbour) as i32;
        // SAFETY: the words of a `bpf_redir_neigh`.
        unsafe { bpf_redirect_neigh(device, neighbour.as_mut_ptr().cast(), size, 0) as i32 }
    }

    /// Drops the route that it came with: once a neighbour is found, the kernel would send it to whom that names (as of 6.18). The
    /// key of a tunnel, which no device here asks for, takes its place.
    #[inline(always)]
    pub(crate) fn drop_route(&self) -> Result<(), Broken> {
        // The shortest that the kernel knows: an id and an address.
        let mut key = 0_u64;
        // SAFETY: eight bytes of a key.
        done(unsafe { bpf_skb_set_tunnel_key(self.0, (&raw mut key).cast(), size_of_val(&key) as u32, 0) })
    }

    /// Bytes that a device makes of each part of a large segment, without headers; 0 for what it leaves whole.
    #[inline(always)]
    pub(crate) fn part(&self) -> u32 {
        // SAFETY: as for `device`.
        unsafe { (&raw const (*self.0).gso_size).read_volatile() }
    }

    /// To whom its frame is sent: `PACKET_HOST` and others.
    #[inline(always)]
    pub(crate) fn kind(&self) -> u32 {
        // SAFETY: as for `device`.
        unsafe { (&raw const (*self.0).pkt_type).read_volatile() }
    }

    /// Whether it has a VLAN tag beside its link header.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: as for `device`.
        unsafe { (&raw const (*self.0).vlan_present).read_volatile() != 0 }
    }

    /// The number of its VLAN, 0 for none. Older kernels leave there what an earlier tag said.
    #[inline(always)]
    pub(crate) fn vlan(&self) -> u16 {
        const NUMBER: u32 = 0xfff;
        if !self.is_tagged() {
            return 0;
        }
        // SAFETY: as for `device`.
        unsafe { ((&raw const (*self.0).vlan_tci).read_volatile() & NUMBER) as u16 }
    }

    /// A number that stays with it from device to device: of queueing disciplines, of which no kernel in use asks for it.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u16 {
        // SAFETY: as for `device`.
        unsafe { (&raw const (*self.0).tc_index).read_volatile() as u16 }
    }

    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u16) {
        // SAFETY: as for `device`; the kernel lets programs write it.
        unsafe { (&raw mut (*self.0).tc_index).write_volatile(mark.into()) };
    }

    /// Asks for a route with the words of a `bpf_fib_lookup`, and leaves there what was found; one of `BPF_FIB_LKUP_RET_*`.
    #[inline(always)]
    pub(crate) fn route(&self, lookup: &mut [u32; 16]) -> u32 {
        const { assert!(size_of::<[u32; 16]>() == size_of::<FibLookup>()) };
        let size = size_of_val(lookup) as i32;
        // SAFETY: 16 words.
        unsafe { bpf_fib_lookup(self.0.cast(), lookup.as_mut_ptr().cast(), size, 0) as u32 }
    }

    /// Puts room for a link header before it.
    #[inline(always)]
    pub(crate) fn add_link_header(&self) -> Result<(), Broken> {
        // SAFETY: no memory of ours.
        done(unsafe { bpf_skb_change_head(self.0, ETHERNET, 0) })
    }

    /// Writes `bytes` over what it begins with.
    #[inline(always)]
    pub(crate) fn begin_with<const N: usize>(&self, bytes: &[u8; N]) -> Result<(), Broken> {
        // SAFETY: N bytes.
        done(unsafe { bpf_skb_store_bytes(self.0.cast(), 0, bytes.as_ptr().cast(), N as u32, 0) })
    }
}

/// Makes `place` what the backend of `flow` sends to its source port at `local`; how long that is.
#[inline(always)]
fn fill<A: Ip>(place: *mut u32, flow: &Flow<A>, local: &A) -> u32 {
    let ([a, b], [c, d]) = (flow.backend_port.raw().to_ne_bytes(), flow.source_port.raw().to_ne_bytes());
    let ([e, f, g, h], [i, j, k, l]) = (flow.backend.addr().words(), local.addr().words());
    let ports = u32::from_ne_bytes([a, b, c, d]);
    match A::FAMILY {
        Family::V4 => write(place, [h, l, ports]),
        Family::V6 => write(place, [e, f, g, h, i, j, k, l, ports]),
    }
}

/// Writes words one by one, of which the tuple has room for nine: zeros at once would be a call, byte by byte. How many bytes
/// they are.
#[inline(always)]
fn write<const N: usize>(place: *mut u32, words: [u32; N]) -> u32 {
    const { assert!(N * size_of::<u32>() <= size_of::<bpf_sock_tuple>()) };
    for (i, word) in words.into_iter().enumerate() {
        // SAFETY: there is room for N words.
        unsafe { place.add(i).write_volatile(word) };
    }
    (N * size_of::<u32>()) as u32
}

#[inline(always)]
fn done(result: i64) -> Result<(), Broken> {
    if result == 0 { Ok(()) } else { Err(Broken) }
}

impl Packet for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Result<[u8; N], Broken> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: room for N bytes.
        done(unsafe { bpf_skb_load_bytes(self.0.cast(), at as u32, bytes.as_mut_ptr().cast(), N as u32) })?;
        // SAFETY: the helper filled it.
        Ok(unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn look<const N: usize>(&self, at: usize) -> Result<[u8; N], Broken> {
        self.glance(at).map_or_else(|| self.load(at), Ok)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Broken> {
        // SAFETY: N bytes.
        done(unsafe { bpf_skb_store_bytes(self.0.cast(), at as u32, bytes.as_ptr().cast(), N as u32, 0) })
    }

    #[inline(always)]
    fn store_bare<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Broken> {
        let (bytes, flags) = (bytes.as_ptr().cast(), u64::from(BPF_F_RECOMPUTE_CSUM));
        // SAFETY: N bytes.
        done(unsafe { bpf_skb_store_bytes(self.0.cast(), at as u32, bytes, N as u32, flags) })
    }

    #[inline(always)]
    fn adjust_whole(&mut self, change: Change) {
        if change != Change::NONE {
            // SAFETY: no memory of ours. Where there is no such sum it is an error, and right.
            unsafe { bpf_csum_update(self.0, change.difference()) };
        }
    }

    /// Room is made behind the link header: the network header is what `at` is.
    #[inline(always)]
    fn quote(&mut self, at: usize, keep: usize, room: usize) -> Result<(), Broken> {
        // SAFETY: no memory of ours.
        unsafe {
            done(bpf_skb_change_tail(self.0, (at + keep) as u32, 0))?;
            done(bpf_skb_adjust_room(self.0, room as i32, BPF_ADJ_ROOM_MAC, 0))
        }
    }

    #[inline(always)]
    fn adjust_header(&mut self, at: usize, change: Change) -> Result<(), Broken> {
        // SAFETY: no memory of ours.
        done(unsafe { bpf_l3_csum_replace(self.0, at as u32, 0, u64::from(change.difference()), 0) })
    }

    /// Told apart by a flag: a sum that the device will complete holds the pseudo header only.
    #[inline(always)]
    fn adjust_transport(&mut self, at: usize, zero: Zero, pseudo: Change, rest: Change) -> Result<(), Broken> {
        let zero = if zero == Zero::NoSum { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        if pseudo != Change::NONE {
            let flags = zero | u64::from(BPF_F_PSEUDO_HDR);
            // SAFETY: no memory of ours.
            done(unsafe { bpf_l4_csum_replace(self.0, at as u32, 0, u64::from(pseudo.difference()), flags) })?;
        }
        if rest != Change::NONE {
            // SAFETY: as above.
            done(unsafe { bpf_l4_csum_replace(self.0, at as u32, 0, u64::from(rest.difference()), zero) })?;
        }
        Ok(())
    }
}
