//! Every kernel table, and the only place that dereferences map memory.
//!
//! In: keys. Out: copies of values, through [`Tables`] and [`Sockets`]. Capacities are defaults; the loader overrides them.
#![expect(unsafe_code, reason = "one of the rooms for unsafe: map memory")]

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{SockAddrContext, SockContext};
use proxy_common::abi::{
    AbsentBit, Affinity, AffinityKey, Backend, BackendStats, Bucket, Config, Frontend, SLOTS_PER_PAIR, ServiceWord,
    SlotPair, SocketFlow, SourceData, Version,
};
use proxy_common::addr::Addr;
use proxy_common::index::{self, Directory};
use proxy_common::policy::Steered;
use proxy_common::reason::Reason;
use proxy_common::socket::{More, Socket};
use proxy_common::tables::{ABSENT_WORDS, Capacity, REASONS_CAPACITY, Tables, UNSTEERED_CAPACITY};

const CAPACITY: Capacity = Capacity::DEFAULT;
/// Memory of a hash follows its use. `BPF_F_RDONLY_PROG` lets the verifier prove that no program writes.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;
const FROZEN: usize = BPF_F_RDONLY_PROG as usize;
/// User space changes single words while programs run; the array begins a page, so that no record straddles cache lines. The
/// kernel lets nobody map what programs may only read (5.4).
const MAPPED: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
static INDEX: Array<Bucket, { index::buckets(CAPACITY.frontends) as usize }, MAPPED> = Array::new();
#[btf_map]
static FRONTEND: Array<Frontend, { CAPACITY.frontends as usize }, FROZEN> = Array::new();
#[btf_map]
static SERVICE: Array<ServiceWord, { CAPACITY.services as usize }, FROZEN> = Array::new();
#[btf_map]
static VERSION: Array<Version, { CAPACITY.versions as usize }, FROZEN> = Array::new();
#[btf_map]
static SLOTS: Array<SlotPair, { (CAPACITY.slots / SLOTS_PER_PAIR) as usize }, FROZEN> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, { CAPACITY.backends as usize }, FROZEN> = Array::new();
#[btf_map]
static STATS: Array<BackendStats, { CAPACITY.backends as usize }, MAPPED> = Array::new();
#[btf_map]
static ABSENT: Array<u64, { ABSENT_WORDS as usize }, FROZEN> = Array::new();
#[btf_map]
static SOURCES: LpmTrie<SourceData, u32, { CAPACITY.sources as usize }, { SPARSE | FROZEN }> = LpmTrie::new();
#[btf_map]
static CONFIG: Array<Config, 1, FROZEN> = Array::new();
#[btf_map]
static UNSTEERED: HashMap<u64, u32, { UNSTEERED_CAPACITY as usize }, { SPARSE | FROZEN }> = HashMap::new();
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, Affinity, { CAPACITY.affinity as usize }> = LruHashMap::new();
#[btf_map]
static SOCKETS: Array<SocketFlow, { CAPACITY.sockets as usize }, MAPPED> = Array::new();
#[btf_map]
static SOCKETS_MORE: SkStorage<More> = SkStorage::new();
#[btf_map]
static REASONS: PerCpuArray<u64, { REASONS_CAPACITY as usize }> = PerCpuArray::new();

pub(crate) mod packets;

/// Read-only globals: the loader sets them before it loads, the verifier knows their values.
mod global {
    /// Cookie of the network namespace that is this node; 0 for the initial one.
    #[unsafe(no_mangle)]
    pub(super) static NODE_NETNS_COOKIE: u64 = 0;
    /// [`Steered`] as a number.
    #[unsafe(no_mangle)]
    pub(super) static STEERED: u8 = 0;
    /// 1 where UNSTEERED counts.
    #[unsafe(no_mangle)]
    pub(super) static HAS_UNSTEERED: u8 = 0;
    /// 1 where programs of this type may call `bpf_set_retval`.
    #[unsafe(no_mangle)]
    pub(super) static HAS_SET_RETVAL: u8 = 0;
    /// Entries of INDEX.
    #[unsafe(no_mangle)]
    pub(super) static INDEX_BUCKETS: u32 = super::index::buckets(super::CAPACITY.frontends);
    /// Flows that a table of flows has room for.
    #[unsafe(no_mangle)]
    pub(super) static FLOWS: u32 = super::CAPACITY.flows;
    /// 1 where redirects about flows are looked for.
    #[unsafe(no_mangle)]
    pub(super) static DROPS_REDIRECTS: u8 = 1;
    /// 1 where the settings say whether flows go past the stack; where it is 0 none does.
    #[unsafe(no_mangle)]
    pub(super) static HAS_FAST_PATH: u8 = 1;
    /// 1 where programs of another version are succeeded.
    #[unsafe(no_mangle)]
    pub(super) static HAS_PREDECESSORS: u8 = 0;
    /// Entries of SOCKETS less one; a power of two less one.
    #[unsafe(no_mangle)]
    pub(super) static SOCKETS_MASK: u32 = super::CAPACITY.sockets - 1;
}

const _: () = assert!(CAPACITY.sockets.is_power_of_two(), "a socket's slot is its cookie under a mask");

/// Volatile: the compiler must not believe the value in the source.
macro_rules! global {
    ($name:ident) => {
        // SAFETY: a static of this file, never written while a program runs.
        unsafe { core::ptr::read_volatile(&raw const global::$name) }
    };
}

pub(crate) fn node_netns_cookie() -> u64 {
    global!(NODE_NETNS_COOKIE)
}

pub(crate) fn steered() -> Steered {
    Steered::read(global!(STEERED))
}

pub(crate) fn has_unsteered() -> bool {
    global!(HAS_UNSTEERED) != 0
}

/// Whether the cgroup with this id is left out.
#[inline(always)]
pub(crate) fn is_unsteered(cgroup: u64) -> bool {
    // SAFETY: only whether it is there counts.
    unsafe { UNSTEERED.get(&cgroup) }.is_some()
}

fn drops_redirects() -> bool {
    global!(DROPS_REDIRECTS) != 0
}

fn has_fast_path() -> bool {
    global!(HAS_FAST_PATH) != 0
}

fn has_predecessors() -> bool {
    global!(HAS_PREDECESSORS) != 0
}

fn flows() -> u32 {
    global!(FLOWS)
}

pub(crate) fn has_set_retval() -> bool {
    global!(HAS_SET_RETVAL) != 0
}

/// Raises the counter of `reason` on this CPU.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; a program that preempts us may cost one count.
        unsafe { *counter += 1 };
    }
}

/// The kernel's view of the shared tables, asked on behalf of what a hook sees, where an answer depends on that.
pub(crate) struct Kernel<C = ()>(pub(crate) C);

impl<C> Directory for Kernel<C> {
    #[inline(always)]
    fn buckets(&self) -> u32 {
        global!(INDEX_BUCKETS)
    }

    /// Its words may change while they are read; each leads to a key or is none.
    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        INDEX.get(number)
    }

    #[inline(always)]
    fn fetch_service(&self, id: u32) {
        if let Some(word) = SERVICE.get_ptr(id) {
            // SAFETY: in bounds, aligned. Volatile, since nobody looks at what it says.
            unsafe { word.read_volatile() };
        }
    }

    #[inline(always)]
    fn frontend(&self, id: u32) -> Option<Frontend> {
        FRONTEND.get(id).copied()
    }
}

impl<C> Tables for Kernel<C> {
    #[inline(always)]
    fn service(&self, id: u32) -> Option<ServiceWord> {
        // SAFETY: in bounds, aligned; one 8-byte load, never repeated by the compiler.
        SERVICE.get_ptr(id).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn version(&self, number: u32) -> Option<Version> {
        VERSION.get(number).copied()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        SLOTS.get(index / SLOTS_PER_PAIR).map(|pair| pair[(index % SLOTS_PER_PAIR) as usize])
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend> {
        BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn fetch_stats(&self, backend: u32) {
        if let Some(stats) = STATS.get_ptr(backend) {
            // SAFETY: in bounds, aligned. Volatile, since nobody looks at what it says.
            unsafe { (&raw const (*stats).total).read_volatile() };
        }
    }

    #[inline(always)]
    fn is_absent(&self, addr: &Addr) -> bool {
        let bit = AbsentBit::of(addr);
        ABSENT.get(bit.word).is_some_and(|word| word & bit.mask != 0)
    }

    #[inline(always)]
    fn source_allowed(&self, service: u32, client: &Addr) -> bool {
        let data = SourceData { service: service.to_be_bytes(), addr: *client };
        SOURCES.get(&Key::new(8 * size_of::<SourceData>() as u32, data)).is_some()
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: a torn or recycled value is caught by comparing generation and service with BACKENDS.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey, value: &Affinity) {
        // A full LRU evicts; what fails is forgotten, which affinity survives.
        let _ = insert(&AFFINITY, key, value, 0);
    }
}

/// The state of the socket that a hook looks at; `context` finds what lives and dies with the socket.
pub(crate) struct KernelSocket<'a> {
    cookie: u64,
    context: Option<&'a SockAddrContext>,
}

impl<'a> KernelSocket<'a> {
    #[inline(always)]
    pub(crate) fn new(context: &'a SockAddrContext) -> Self {
        Self { cookie: cookie(context), context: Some(context) }
    }
}

impl KernelSocket<'static> {
    /// Of a socket that is being released.
    #[inline(always)]
    pub(crate) fn released(context: &SockContext) -> Self {
        Self { cookie: cookie(context), context: None }
    }
}

#[inline(always)]
fn cookie(context: &impl EbpfContext) -> u64 {
    // SAFETY: every context given here has a socket.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

impl Socket for KernelSocket<'_> {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.cookie
    }

    #[inline(always)]
    fn slot(&mut self) -> Option<&mut SocketFlow> {
        let slot = SOCKETS.get_ptr_mut(self.cookie as u32 & global!(SOCKETS_MASK))?;
        // SAFETY: in bounds. Only the holder of a slot touches more than its cookie, one hook after another.
        unsafe { slot.as_mut() }
    }

    #[inline(always)]
    fn fetch_slot(&self) {
        if let Some(slot) = SOCKETS.get_ptr(self.cookie as u32 & global!(SOCKETS_MASK)) {
            // SAFETY: in bounds, aligned. Volatile, since nobody looks at what it says.
            unsafe { (&raw const (*slot).cookie).read_volatile() };
        }
    }

    #[inline(always)]
    fn more(&mut self) -> Option<&mut More> {
        // SAFETY: memory of this socket, whose hooks run one after another.
        self.context.and_then(|context| unsafe { SOCKETS_MORE.get_ptr_mut(context).as_mut() })
    }

    #[inline(always)]
    fn more_or_new(&mut self) -> Option<&mut More> {
        // SAFETY: as for `more`; new memory is zeroed.
        self.context.and_then(|context| unsafe { SOCKETS_MORE.get_or_insert_ptr_mut(context, None).as_mut() })
    }

    #[inline(always)]
    fn count_flow(&self, backend: u32) {
        add(backend, 1, |stats| &raw const stats.total);
    }

    #[inline(always)]
    fn count_open(&self, backend: u32) {
        add(backend, 1, |stats| &raw const stats.open);
    }

    #[inline(always)]
    fn count_closed(&self, backend: u32) {
        add(backend, u32::MAX, |stats| &raw const stats.open);
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        count(reason);
    }
}

/// Puts an element into an LRU as one that is in use. A full LRU lets go first what nobody looked at since it came, before
/// what nobody has looked at for long (`bpf_lru_list_pop_free_to_local`, as of 6.18): that would be what is needed next.
#[inline(always)]
fn insert<K, V, const N: usize>(table: &LruHashMap<K, V, N>, key: &K, value: &V, flags: u64) -> Result<(), i32> {
    table.insert(key, value, flags)?;
    table.get_ptr(key);
    Ok(())
}

/// Adds, wrapping. In assembly, because it must be the one atomic that kernel 5.10 has: the one without a result.
#[inline(always)]
fn add(backend: u32, amount: u32, counter: impl FnOnce(&BackendStats) -> *const u32) {
    if let Some(stats) = STATS.get(backend) {
        let counter = counter(stats);
        // SAFETY: aligned and in bounds; these words are only ever added to, atomically.
        unsafe { asm!("lock *(u32 *)({} + 0) += {}", in(reg) counter, in(reg) amount, options(nostack)) };
    }
}

#[cfg(feature = "test-programs")]
pub(crate) use test_programs::{epochs, found};

/// Tables of the test programs.
#[cfg(feature = "test-programs")]
mod test_programs {
    use aya_ebpf::btf_maps::{Array, PerCpuArray};
    use aya_ebpf::macros::btf_map;
    use proxy_common::stress::{self, Epochs, Finding};

    #[btf_map]
    static EPOCHS: Array<Epochs, { stress::FRONTENDS as usize }> = Array::new();
    #[btf_map]
    static FINDINGS: PerCpuArray<u64, { Finding::ALL.len() }> = PerCpuArray::new();

    #[inline(always)]
    pub(crate) fn epochs(number: u32) -> Epochs {
        // SAFETY: in bounds; volatile, so that the second look is a second look.
        EPOCHS.get_ptr(number).map_or(Epochs::default(), |epochs| unsafe { epochs.read_volatile() })
    }

    #[inline(always)]
    pub(crate) fn found(finding: Finding) {
        if let Some(counter) = FINDINGS.get_ptr_mut(finding as u32) {
            // SAFETY: this CPU's own slot, and test runs do not nest.
            unsafe { *counter += 1 };
        }
    }
}
