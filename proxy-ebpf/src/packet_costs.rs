//! Test programs, never part of a release: what a program on a device costs for each packet (`cargo xtask bench packet`).
//!
//! `BPF_PROG_TEST_RUN` shows each run the packet as the last one left it. So a first program looks what became of it, makes
//! it anew and goes on to the one that is measured; what is measured beside it does nothing, looks one address or one flow up,
//! or files both entries of a flow.
#![expect(unsafe_code, reason = "a room of its own for the memory of tables that no product has")]

use aya_ebpf::bindings::{BPF_NOEXIST, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, ProgramArray};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use proxy_common::abi::{Flow, FlowKey};
use proxy_common::addr::Addr;
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::packet::{Broken, Packet as _};
use proxy_common::stress::Again;

use crate::packet::Skb;

const FEW: usize = 2;

#[btf_map]
static AGAIN: Array<Again, 1> = Array::new();
#[btf_map]
static MEASURED: ProgramArray<32> = ProgramArray::new();
#[btf_map]
static COST_ADDRS: HashMap<Addr, u32, 131_072> = HashMap::new();
/// As large as the tables of flows where they are measured.
#[btf_map]
static COST_FLOWS4: LruHashMap<FlowKey<V4>, Flow<V4>, FEW> = LruHashMap::new();
#[btf_map]
static COST_FLOWS6: LruHashMap<FlowKey<V6>, Flow<V6>, FEW> = LruHashMap::new();
/// What is filed there: zeros.
#[btf_map]
static COST_FLOW4: Array<(FlowKey<V4>, Flow<V4>), 1> = Array::new();
#[btf_map]
static COST_FLOW6: Array<(FlowKey<V6>, Flow<V6>), 1> = Array::new();

/// Makes the packet anew and goes on to what is measured.
#[classifier]
pub(crate) fn cost_packet(context: TcContext) -> i32 {
    if let Some(again) = again()
        && anew(again, &Skb::new(&context)).is_ok()
    {
        // SAFETY: nothing is left to drop.
        unsafe { MEASURED.tail_call(&context, again.program) };
    }
    TC_ACT_SHOT
}

#[inline(always)]
fn again() -> Option<&'static mut Again> {
    // SAFETY: in bounds; one run at a time.
    AGAIN.get_ptr_mut(0).and_then(|again| unsafe { again.as_mut() })
}

#[inline(always)]
fn anew(again: &mut Again, skb: &Skb) -> Result<(), Broken> {
    let sum = u16::from_ne_bytes(skb.load(again.sum_at as usize)?);
    if u32::from(sum) != again.sum {
        again.changed += 1;
    }
    again.run = again.run.wrapping_add(1);
    again.number = again.flow(again.run);
    let [high, low] = ((again.port + again.number % Again::PORTS) as u16).to_be_bytes();
    *again.bytes.get_mut(again.host_at as usize).ok_or(Broken)? = (again.host + again.number / Again::PORTS) as u8;
    *again.bytes.get_mut(again.port_at as usize).ok_or(Broken)? = high;
    *again.bytes.get_mut(again.port_at as usize + 1).ok_or(Broken)? = low;
    // Constant lengths: the compiler checks others in a way that the verifier does not follow.
    match again.is_v6 {
        0 => skb.begin_with(again.bytes.first_chunk::<{ Again::LEN_V4 }>().ok_or(Broken)?),
        _ => skb.begin_with(again.bytes.first_chunk::<{ Again::LEN }>().ok_or(Broken)?),
    }
}

/// What the others are measured against.
#[classifier]
pub(crate) fn cost_packet_nothing(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// One look-up that finds something.
#[classifier]
pub(crate) fn cost_packet_lookup(_: TcContext) -> i32 {
    if let Some(again) = again() {
        // SAFETY: nobody writes to the table while programs run.
        core::hint::black_box(unsafe { COST_ADDRS.get(&Again::addr(again.number)) });
    }
    TC_ACT_UNSPEC
}

/// One look-up that finds a flow, as the programs have to look for one.
#[classifier]
pub(crate) fn cost_packet_flow(_: TcContext) -> i32 {
    let found = match again().map(|again| again.is_v6) {
        Some(0) => find(&COST_FLOWS4, &COST_FLOW4),
        Some(_) => find(&COST_FLOWS6, &COST_FLOW6),
        None => return TC_ACT_SHOT,
    };
    if found.is_ok() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// The two entries of a flow that nobody has seen.
#[classifier]
pub(crate) fn cost_packet_insert(_: TcContext) -> i32 {
    let Some(again) = again() else { return TC_ACT_SHOT };
    let filed = match again.is_v6 {
        0 => file(&COST_FLOWS4, &COST_FLOW4, again.run),
        _ => file(&COST_FLOWS6, &COST_FLOW6, again.run),
    };
    if filed.is_ok() { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

type Flows<A> = LruHashMap<FlowKey<A>, Flow<A>, FEW>;
type Sample<A> = Array<(FlowKey<A>, Flow<A>), 1>;

/// Looks for a flow that whoever asks first files.
#[inline(always)]
fn find<A: Ip>(table: &Flows<A>, sample: &Sample<A>) -> Result<(), i32> {
    let Some((key, flow)) = entry(sample) else { return Err(0) };
    (key.ports, key.kind) = (0, FlowKey::<A>::kind(1, FlowKey::<A>::REQUEST));
    if table.get_ptr(&*key).is_some() { Ok(()) } else { table.insert(&*key, &*flow, BPF_NOEXIST.into()) }
}

#[inline(always)]
fn file<A: Ip>(table: &Flows<A>, sample: &Sample<A>, number: u32) -> Result<(), i32> {
    let Some((key, flow)) = entry(sample) else { return Err(0) };
    (key.ports, key.kind) = (number, FlowKey::<A>::kind(0, FlowKey::<A>::REPLY));
    table.insert(&*key, &*flow, BPF_NOEXIST.into())?;
    key.kind = FlowKey::<A>::kind(0, FlowKey::<A>::REQUEST);
    table.insert(&*key, &*flow, BPF_NOEXIST.into())
}

/// In memory of its own: to make one would take longer than to look for it.
#[inline(always)]
fn entry<A>(sample: &Sample<A>) -> Option<&mut (FlowKey<A>, Flow<A>)> {
    // SAFETY: in bounds; one run at a time.
    sample.get_ptr_mut(0).and_then(|entry| unsafe { entry.as_mut() })
}
