//! Test programs, never part of a release: whether the sum that the kernel has of a packet (`CHECKSUM_COMPLETE`) is still that
//! of its bytes. It stands behind ours where packets come in.
#![expect(unsafe_code, reason = "a room of its own for helpers that no product has")]

use core::hint::black_box;
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_csum_update, bpf_skb_load_bytes};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;

/// Packets of which the kernel has a sum, and those of which it is wrong.
#[btf_map]
static SUMMED: Array<u64, 2> = Array::new();

/// Behind an Ethernet header, where such a sum begins.
const BEGIN: u32 = 14;
const CHUNK: u32 = 16;
/// More than a device takes at once.
const CHUNKS: u32 = 128;

#[classifier]
pub(crate) fn packet_sums(context: TcContext) -> i32 {
    // SAFETY: no memory of ours. It says what the sum is, or that there is none.
    let known = unsafe { bpf_csum_update(context.as_ptr().cast(), 0) };
    if known >= 0
        && let Some(sum) = sum(&context)
    {
        count(0);
        if fold(known as u64) != fold(sum) {
            count(1);
        }
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn sum(context: &TcContext) -> Option<u64> {
    let (len, mut at, mut sum) = (context.len(), BEGIN, 0);
    for _ in 0..CHUNKS {
        if at + CHUNK > len {
            break;
        }
        sum = add(sum, context, at, CHUNK)?;
        at += CHUNK;
    }
    match len.checked_sub(at)? {
        0 => Some(sum),
        // A bound that the compiler does not take for superfluous: the verifier needs it.
        rest if rest < CHUNK => add(sum, context, at, (black_box(rest - 1) & (CHUNK - 1)) + 1),
        _ => None,
    }
}

/// Zeros behind the last byte add nothing.
#[inline(always)]
fn add(sum: u64, context: &TcContext, at: u32, len: u32) -> Option<u64> {
    let mut bytes = [0_u64; CHUNK as usize / 8];
    // SAFETY: at most as many bytes as there is room for.
    unsafe {
        match bpf_skb_load_bytes(context.as_ptr().cast(), at, bytes.as_mut_ptr().cast(), len) {
            0 => Some(bpf_csum_diff(ptr::null_mut(), 0, bytes.as_mut_ptr().cast(), CHUNK, sum as u32) as u64),
            _ => None,
        }
    }
}

/// 16 bits; both names of zero are one.
#[inline(always)]
fn fold(sum: u64) -> u64 {
    (sum & 0xffff_ffff) % 0xffff
}

#[inline(always)]
fn count(index: u32) {
    if let Some(packets) = SUMMED.get_ptr_mut(index) {
        // SAFETY: in bounds; who counts at the same time may count one for two, and none for nothing.
        unsafe { *packets += 1 };
    }
}
