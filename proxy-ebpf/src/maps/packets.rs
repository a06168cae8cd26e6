//! Tables that only packets need, and room to work in.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use proxy_common::abi::{
    Device, Flow, FlowKey, FragmentKey, FragmentPorts, NearDevice, PacketSettings, Succession, direct, near,
};
use proxy_common::addr::Family;
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::packet::rush::Rush;
use proxy_common::packet::state::State;
use proxy_common::packet::track::whole_seconds;
use proxy_common::packet::{Flows, Host, NotAdded, Table, Way};
use proxy_common::reason::Reason;
#[cfg(feature = "test-programs")]
use proxy_common::stress::Moment;
use proxy_common::tables::DEVICES_CAPACITY;

use super::{CAPACITY, FROZEN, Kernel, SPARSE, add, count, insert};
use crate::packet::Skb;
use crate::route;

/// A flow has an entry for each direction.
const HALVES: usize = 2 * CAPACITY.flows as usize;
const DATAGRAMS: usize = CAPACITY.flows as usize / 4;

#[btf_map]
static DEVICES: HashMap<u32, Device, { DEVICES_CAPACITY as usize }, { SPARSE | FROZEN }> = HashMap::new();
/// Not pinned: who loads programs fills theirs.
#[btf_map]
static NEAR: Array<NearDevice, { near::PLACES as usize }, FROZEN> = Array::new();
#[btf_map]
static PACKETS: Array<PacketSettings, 1, FROZEN> = Array::new();
#[btf_map]
static FLOWS4: LruHashMap<FlowKey<V4>, Flow<V4>, HALVES> = LruHashMap::new();
#[btf_map]
static FLOWS6: LruHashMap<FlowKey<V6>, Flow<V6>, HALVES> = LruHashMap::new();
#[btf_map]
static EMBRYONIC4: LruHashMap<FlowKey<V4>, Flow<V4>, HALVES> = LruHashMap::new();
#[btf_map]
static EMBRYONIC6: LruHashMap<FlowKey<V6>, Flow<V6>, HALVES> = LruHashMap::new();
#[btf_map]
static FRAGMENTS4: LruHashMap<FragmentKey<V4>, FragmentPorts, DATAGRAMS> = LruHashMap::new();
#[btf_map]
static FRAGMENTS6: LruHashMap<FragmentKey<V6>, FragmentPorts, DATAGRAMS> = LruHashMap::new();

/// Programs of another version, at ingress and at egress: for what ours do not know, while SUCCESSION says so.
#[btf_map]
static PREDECESSORS: ProgramArray<2> = ProgramArray::new();
#[btf_map]
static SUCCESSION: Array<Succession, 1, FROZEN> = Array::new();

#[btf_map]
static DIRECT: Array<u32, { direct::WORDS as usize }> = Array::new();

/// Of established flows and of others, in IPv4 and then in IPv6. For these programs alone.
#[btf_map]
static RUSH: Array<Rush, 4> = Array::new();

/// Words of a [`State`]; each family has its own.
type Room = [u64; 80];
#[btf_map]
static STATE: PerCpuArray<Room, 2> = PerCpuArray::new();
/// The last look at the clock, in nanoseconds and in seconds.
#[derive(Clone, Copy)]
struct Clock {
    tick: u64,
    now: u64,
    seconds: u64,
}
#[btf_map]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();
#[cfg(feature = "test-programs")]
#[btf_map]
static MOMENT: Array<Moment, 1> = Array::new();

const EEXIST: i32 = 17;

macro_rules! flows {
    ($addr:ty, $established:ident, $embryonic:ident, $fragments:ident) => {
        impl<C> Flows<$addr> for Kernel<C> {
            #[inline(always)]
            fn flow(&mut self, table: Table, key: &FlowKey<$addr>) -> Option<&mut Flow<$addr>> {
                let flow = match table {
                    Table::Established => $established.get_ptr_mut(key),
                    Table::Embryonic => $embryonic.get_ptr_mut(key),
                }?;
                // SAFETY: map memory; who reads it checks the seal.
                unsafe { flow.as_mut() }
            }

            #[inline(always)]
            fn add_flow(&mut self, table: Table, key: &FlowKey<$addr>, flow: &Flow<$addr>) -> Result<(), NotAdded> {
                let flags = u64::from(BPF_NOEXIST);
                let added = match table {
                    Table::Established => insert(&$established, key, flow, flags),
                    Table::Embryonic => insert(&$embryonic, key, flow, flags),
                };
                added.map_err(|error| if error == -EEXIST { NotAdded::Exists } else { NotAdded::Full })
            }

            #[inline(always)]
            fn remove_flow(&mut self, table: Table, key: &FlowKey<$addr>) {
                let _ = match table {
                    Table::Established => $established.remove(key),
                    Table::Embryonic => $embryonic.remove(key),
                };
            }

            #[inline(always)]
            fn rush(&mut self, table: Table) -> Option<&mut Rush> {
                let family = if <$addr>::FAMILY == Family::V6 { 2 } else { 0 };
                let rush = RUSH.get_ptr_mut(family + table as u32)?;
                // SAFETY: words that any processor may write at any time; each is read and written whole.
                unsafe { rush.as_mut() }
            }

            #[inline(always)]
            fn direct(&mut self, proto: u8) -> Option<&mut u32> {
                let word = DIRECT.get_ptr_mut(direct::place(<$addr>::FAMILY, proto))?;
                // SAFETY: one word, read and written whole.
                unsafe { word.as_mut() }
            }

            #[inline(always)]
            fn drops_redirects(&self) -> bool {
                super::drops_redirects()
            }

            #[inline(always)]
            fn room(&self) -> u32 {
                super::flows()
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$addr>) -> Option<FragmentPorts> {
                // SAFETY: a copy.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn keep_fragment(&mut self, key: &FragmentKey<$addr>, ports: &FragmentPorts) {
                let _ = insert(&$fragments, key, ports, 0);
            }
        }
    };
}

flows!(V4, FLOWS4, EMBRYONIC4, FRAGMENTS4);
flows!(V6, FLOWS6, EMBRYONIC6, FRAGMENTS6);

impl Host for Kernel<Skb> {
    #[inline(always)]
    fn now(&self) -> u64 {
        match moment() {
            Some((now, _)) => now,
            None => clock().map_or(0, |clock| clock.now),
        }
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        match moment() {
            Some((now, _)) => whole_seconds(now),
            None => clock().map_or(0, |clock| clock.seconds as u32),
        }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        match moment() {
            Some((_, random)) => random,
            // SAFETY: no arguments.
            None => unsafe { bpf_get_prandom_u32() },
        }
    }

    #[inline(always)]
    fn settings(&self) -> Option<&PacketSettings> {
        PACKETS.get(0)
    }

    #[inline(always)]
    fn device(&self) -> Option<&Device> {
        device(self.0.device())
    }

    #[inline(always)]
    fn find_local<A: Ip>(&self, to: &A, found: &mut A) {
        route::find_local(self.0, to, found);
    }

    #[inline(always)]
    fn has_socket<A: Ip>(&self, flow: &Flow<A>, local: &A) -> bool {
        self.0.has_socket(flow, local)
    }

    #[inline(always)]
    fn has_fast_path(&self) -> bool {
        super::has_fast_path()
            && self.settings().is_some_and(|settings| settings.flags & PacketSettings::FAST_PATH != 0)
    }

    #[inline(always)]
    fn has_plain_ways<A: Ip>(&self, flow: &Flow<A>) -> bool {
        is_told() || route::has_plain_ways(self.0, flow)
    }

    #[inline(always)]
    fn was_translated(&self, way: Way) -> bool {
        self.0.mark() == translated(self, way)
    }

    #[inline(always)]
    fn note_translated(&mut self, way: Way) {
        self.0.set_mark(translated(self, way));
    }

    #[inline(always)]
    fn succession(&self) -> Option<&Succession> {
        if super::has_predecessors() { SUCCESSION.get(0) } else { None }
    }

    #[inline(always)]
    fn count_flow(&self, backend: u32) {
        add(backend, 1, |stats| &raw const stats.total);
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        count(reason);
    }
}

/// Marks what was translated. Not zero, and not what another node says whose namespaces are in this kernel: a packet that goes
/// there is the same to both. What comes in may go out, and netfilter change it in between.
#[inline(always)]
fn translated(host: &impl Host, way: Way) -> u16 {
    let seed = host.settings().map_or(0, |settings| settings.seed as u16);
    match way {
        Way::In => (seed | 2) & !1,
        Way::Out => seed | 1,
    }
}

/// `CLOCK_MONOTONIC` as it was in this tick, when it was read first: to read it costs more than two look-ups, and nobody here
/// asks for less than a tick. The number of the tick is a word in memory.
#[inline(always)]
fn clock() -> Option<&'static Clock> {
    // SAFETY: no arguments.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: this CPU's own, as the room of `state`.
    let clock = CLOCK.get_ptr_mut(0).and_then(|clock| unsafe { clock.as_mut() })?;
    if clock.tick != tick {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        *clock = Clock { tick, now, seconds: whole_seconds(now).into() };
    }
    Some(clock)
}

/// What a test wants time and chance to be.
#[cfg(feature = "test-programs")]
#[inline(always)]
fn moment() -> Option<(u64, u32)> {
    MOMENT.get(0).filter(|moment| moment.now != 0).map(|moment| (moment.now, moment.random))
}

#[cfg(not(feature = "test-programs"))]
#[inline(always)]
fn moment() -> Option<(u64, u32)> {
    None
}

/// Whether a test says what time it is. Then it is told of a packet that is sent elsewhere, since it has no routes.
#[inline(always)]
pub(crate) fn is_told() -> bool {
    moment().is_some()
}

#[inline(always)]
pub(crate) fn device(index: u32) -> Option<&'static Device> {
    // SAFETY: written by user space before a program is attached to the device; a torn address costs the packets of a moment.
    unsafe { DEVICES.get(&index) }
}

/// What every packet asks of its device; `None` where nothing is to be translated.
#[inline(always)]
pub(crate) fn near(index: u32) -> Option<NearDevice> {
    match NEAR.get(near::place(index)) {
        Some(near) if near::is_of(*near, index) => Some(*near),
        _ => device(index).map(|device| near::of(index, device)),
    }
}

/// Room for what a hook learns of its packet. Hooks of one CPU run one after another: whoever sends or receives has soft
/// interrupts off.
#[inline(always)]
pub(crate) fn state<A: Ip>() -> Option<&'static mut State<A>> {
    const { assert!(size_of::<State<A>>() <= size_of::<Room>() && align_of::<State<A>>() <= align_of::<Room>()) };
    let index = u32::from(A::FAMILY == Family::V6);
    // SAFETY: large enough, aligned, this CPU's own; zero at first, which is a state, and then what this family wrote.
    STATE.get_ptr_mut(index).and_then(|room| unsafe { room.cast::<State<A>>().as_mut() })
}

/// Goes on to the program of another version at this hook, by number, with a packet of which ours know nothing. Returns where
/// there is none.
#[inline(always)]
pub(crate) fn ask_predecessor(context: &TcContext, hook: u32) {
    if super::has_predecessors() {
        // SAFETY: nothing is left to drop.
        unsafe { PREDECESSORS.tail_call(context, hook) };
    }
}
