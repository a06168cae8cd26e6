//! The programs of devices as a twin of the hooks on byte slices: shown what those met, they must make the same of it.
//!
//! In: a [`Run`]. Its tables are written, the packet goes through `BPF_PROG_TEST_RUN`, and verdict, packet and tables that
//! come out are compared, reasons and counters included. Time and chance are those of the run.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions};
use aya::{Ebpf, Pod};
use proxy_common::abi::{
    AbsentBit, Affinity, AffinityKey, BackendStats, Device, Flow, FlowKey, FragmentKey, FragmentPorts, SLOTS_PER_PAIR,
    SlotPair, SourceData,
};
use proxy_common::packet::cases::observe::{Hook, Moment, Run, Services};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::packet::{Action, Table};
use proxy_common::reason::Reason;
use proxy_common::stress;
use proxy_common::tables::name;

/// The loopback device, which `BPF_PROG_TEST_RUN` takes unless told otherwise.
pub const DEVICE: u32 = 1;
const ETHERNET: usize = 14;

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Both programs, loaded, and what their tables hold.
pub struct Twin {
    ebpf: Ebpf,
    services: Option<Services>,
    /// Behind the last packet: REASONS, flows that each backend ever had, and the [`Moment`] that the tables hold.
    counted: Vec<u64>,
    ever: Vec<u32>,
    held: Option<Box<dyn Any>>,
    device: Option<Device>,
    sockets: Vec<(u16, TcpListener)>,
    /// Cases that were compared, by name.
    pub cases: BTreeSet<String>,
    /// Packets that were compared, and those that cannot be shown to the kernel.
    pub compared: u64,
    pub left_out: u64,
}

/// What a table holds, and both tables of flows.
type Entries<K, V> = std::collections::HashMap<K, V>;
type Halves<A> = Entries<(Table, FlowKey<A>), Flow<A>>;

/// The names of one family's tables.
pub trait Tables: Ip {
    const ESTABLISHED: &'static str;
    const EMBRYONIC: &'static str;
    const FRAGMENTS: &'static str;
}

impl Tables for V4 {
    const ESTABLISHED: &'static str = name::FLOWS4;
    const EMBRYONIC: &'static str = name::EMBRYONIC4;
    const FRAGMENTS: &'static str = name::FRAGMENTS4;
}

impl Tables for V6 {
    const ESTABLISHED: &'static str = name::FLOWS6;
    const EMBRYONIC: &'static str = name::EMBRYONIC6;
    const FRAGMENTS: &'static str = name::FRAGMENTS6;
}

impl Twin {
    pub fn new(ebpf: Ebpf) -> Self {
        Self {
            ebpf,
            services: None,
            counted: vec![0; Reason::ALL.len()],
            ever: Vec::new(),
            held: None,
            device: None,
            sockets: Vec::new(),
            cases: BTreeSet::new(),
            compared: 0,
            left_out: 0,
        }
    }

    /// Does what `run`, a [`Run`] of either family, is about; an error where anything differs.
    pub fn follow(&mut self, run: &dyn Any) -> Result<()> {
        if let Some(run) = run.downcast_ref::<Run<V4>>() {
            self.compare(run)
        } else {
            self.compare(run.downcast_ref::<Run<V6>>().context("a run of either family")?)
        }
    }

    fn compare<A: Tables>(&mut self, run: &Run<A>) -> Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        FragmentKey<A>: Pod,
    {
        // The kernel makes a frame of what it is given: without a link header it does not know what is inside, and newer
        // ones take no frame that ends within the network header which it announces.
        let is_bare_answer = run.start == 0 && run.action == Action::Back;
        let is_too_short = run.before.packet.len() < ETHERNET + A::HEADER;
        if is_too_short || is_bare_answer || !is_told_apart(run) {
            self.left_out += 1;
            return Ok(());
        }
        self.write(run)?;
        let (action, packet) = self.pass(run)?;
        self.compared += 1;
        self.cases.insert(run.case.clone());
        let case = &run.case;
        let context = || format!("{case}: {:?} of {:02x?} with {:#?}", run.hook, run.before.packet, run.before.flows);
        let reasons = self.reasons()?;
        let counted = reasons.iter().zip(&self.counted).map(|(after, before)| after - before);
        let counted: Vec<_> = Reason::ALL.iter().zip(counted).filter(|(_, count)| *count > 0).collect();
        let mut wanted: Vec<(&Reason, u64)> = Vec::new();
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::Translated) {
            let count = run.reasons.iter().filter(|other| *other == reason).count() as u64;
            wanted.extend((count > 0).then_some((reason, count)));
        }
        let counted: Vec<_> = counted.into_iter().filter(|(reason, _)| **reason != Reason::Translated).collect();
        self.counted = reasons;
        same("reasons", &counted, &wanted).with_context(context)?;
        same("action", &action, &returned(run.action)).with_context(context)?;
        if run.action != Action::Drop {
            same("packet", &packet, &run.after.packet).with_context(context)?;
        }
        same("flows", &self.flows::<A>()?, &by_key(&run.after.flows)).with_context(context)?;
        let fragments = self.pairs::<FragmentKey<A>, FragmentPorts>(A::FRAGMENTS)?;
        same("fragments", &fragments, &as_map(&run.after.fragments)).with_context(context)?;
        let affinity = self.pairs::<AffinityKey, Affinity>(name::AFFINITY)?;
        same("affinity", &affinity, &as_map(&run.after.affinity)).with_context(context)?;
        let ever = self.ever(run)?;
        let begun: Vec<_> = ever.iter().enumerate().map(|(id, now)| now - self.ever.get(id).unwrap_or(&0)).collect();
        self.ever.splice(..ever.len().min(self.ever.len()), ever);
        let wanted = |id: usize| run.begun.iter().find(|(backend, _)| *backend as usize == id).map_or(0, |(_, n)| *n);
        same("flows begun", &begun, &(0..begun.len()).map(wanted).collect()).with_context(context)?;
        self.held = Some(Box::new(run.after.clone()));
        Ok(())
    }

    /// Whether the tables hold what `before` says: behind a packet that was cut short they often do.
    fn holds<A: Tables>(&self, before: &Moment<A>) -> bool {
        let held = self.held.as_ref().and_then(|held| held.downcast_ref::<Moment<A>>());
        held.is_some_and(|held| {
            by_key(&held.flows) == by_key(&before.flows)
                && as_map(&held.fragments) == as_map(&before.fragments)
                && as_map(&held.affinity) == as_map(&before.affinity)
        })
    }

    /// Writes the tables as `run` met them, with the real time instead of its own.
    pub fn prepare<A: Tables>(&mut self, run: &Run<A>) -> Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        FragmentKey<A>: Pod,
    {
        self.write(run)?;
        self.set("MOMENT", 0, stress::Moment::default())
    }

    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn pass<A>(&mut self, run: &Run<A>) -> Result<(u32, Vec<u8>)> {
        let name = match run.hook {
            Hook::Ingress => "tc_ingress",
            Hook::Egress => "tc_egress",
        };
        let mut packet = vec![0; run.before.packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(&run.before.packet),
            data_out: Some(&mut packet),
            ..TestRunOptions::default()
        };
        let result = super::program(&mut self.ebpf, name)?.test_run(options).with_context(|| format!("run {name}"))?;
        packet.truncate(result.data_size_out as usize);
        Ok((result.return_value, packet))
    }

    fn write<A: Tables>(&mut self, run: &Run<A>) -> Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        FragmentKey<A>: Pod,
    {
        self.write_services(&run.services)?;
        self.listen(&run.sockets)?;
        self.set(name::PACKETS, 0, run.settings)?;
        self.set(name::SUCCESSION, 0, run.succession)?;
        (0..).zip(run.direct).try_for_each(|(at, word)| self.set(name::DIRECT, at, word))?;
        let moment = stress::Moment { now: run.now, random: run.random, pad: 0 };
        self.set("MOMENT", 0, moment)?;
        if self.device.replace(run.device) != Some(run.device) {
            self.replace::<u32, Device>(name::DEVICES, &[(DEVICE, run.device)])?;
        }
        if self.holds(&run.before) {
            return Ok(());
        }
        self.held = None;
        let Moment { flows, fragments, affinity, .. } = &run.before;
        for (table, name) in [(Table::Established, A::ESTABLISHED), (Table::Embryonic, A::EMBRYONIC)] {
            let of = flows.iter().filter(|(other, ..)| *other == table).map(|(_, key, flow)| (*key, *flow));
            self.replace(name, &of.collect::<Vec<_>>())?;
        }
        self.replace(A::FRAGMENTS, fragments)?;
        self.replace(name::AFFINITY, affinity)
    }

    fn write_services(&mut self, services: &Services) -> Result<()> {
        if self.services.as_ref() == Some(services) {
            return Ok(());
        }
        self.fill(name::INDEX, &services.index)?;
        self.fill(name::FRONTEND, &services.frontend)?;
        self.fill(name::SERVICE, &services.services)?;
        self.fill(name::VERSION, &services.versions)?;
        self.fill(name::BACKENDS, &services.backends)?;
        let pairs =
            services.slots.chunks(SLOTS_PER_PAIR as usize).map(|pair| [pair[0], *pair.last().expect("not empty")]);
        self.fill::<SlotPair>(name::SLOTS, &pairs.collect::<Vec<_>>())?;
        self.set(name::CONFIG, 0, services.config)?;
        // Fresh words say "look".
        let old = self.services.take().map_or_else(Vec::new, |old| old.absent);
        old.iter().try_for_each(|addr| self.set(name::ABSENT, AbsentBit::of(addr).word, 0_u64))?;
        for (word, mask) in absent(services) {
            self.set(name::ABSENT, word, mask)?;
        }
        let mut sources: LpmTrie<_, SourceData, u32> = LpmTrie::try_from(self.map(name::SOURCES)?)?;
        let old = sources.keys().collect::<Result<Vec<_>, _>>()?;
        old.iter().try_for_each(|key| sources.remove(key))?;
        for (service, addr) in &services.allowed {
            let data = SourceData { service: service.to_be_bytes(), addr: *addr };
            sources.insert(&Key::new(8 * size_of::<SourceData>() as u32, data), 1, 0)?;
        }
        self.services = Some(services.clone());
        Ok(())
    }

    /// Somebody listens on these ports, in both families.
    fn listen(&mut self, ports: &[u16]) -> Result<()> {
        if self.sockets.iter().map(|(port, _)| port).eq(ports) {
            return Ok(());
        }
        self.sockets.clear();
        for port in ports {
            let listener = TcpListener::bind(("::", *port)).with_context(|| format!("listen on port {port}"))?;
            self.sockets.push((*port, listener));
        }
        Ok(())
    }

    fn flows<A: Tables>(&mut self) -> Result<Halves<A>>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let mut flows = Entries::new();
        for (table, name) in [(Table::Established, A::ESTABLISHED), (Table::Embryonic, A::EMBRYONIC)] {
            flows.extend(self.pairs(name)?.into_iter().map(|(key, flow)| ((table, key), flow)));
        }
        Ok(flows)
    }

    /// How often each reason was counted.
    pub fn reasons(&mut self) -> Result<Vec<u64>> {
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(self.map(name::REASONS)?)?;
        Reason::ALL.iter().map(|reason| Ok(map.get(&(*reason as u32), 0)?.iter().sum())).collect()
    }

    /// Flows that each backend ever had.
    fn ever<A>(&mut self, run: &Run<A>) -> Result<Vec<u32>> {
        let map: Array<_, BackendStats> = Array::try_from(self.map(name::STATS)?)?;
        (0..run.services.backends.len()).map(|id| Ok(map.get(&(id as u32), 0)?.total)).collect()
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no table {name}"))
    }

    pub fn set<V: Pod>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        let mut array: Array<&mut MapData, V> = Array::try_from(self.map(name)?)?;
        array.set(index, value, 0).with_context(|| format!("write {name}[{index}]"))
    }

    fn fill<V: Pod>(&mut self, name: &str, values: &[V]) -> Result<()> {
        values.iter().zip(0..).try_for_each(|(value, index)| self.set(name, index, *value))
    }

    fn pairs<K: Pod + Eq + Hash, V: Pod>(&mut self, name: &str) -> Result<Entries<K, V>> {
        let map: HashMap<&mut MapData, K, V> = HashMap::try_from(self.map(name)?)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    fn replace<K: Pod, V: Pod>(&mut self, name: &str, pairs: &[(K, V)]) -> Result<()> {
        let mut map: HashMap<&mut MapData, K, V> = HashMap::try_from(self.map(name)?)?;
        let old = map.keys().collect::<Result<Vec<K>, _>>()?;
        old.iter().try_for_each(|key| map.remove(key)).with_context(|| format!("empty {name}"))?;
        pairs.iter().try_for_each(|(key, value)| map.insert(key, value, 0)).with_context(|| format!("fill {name}"))
    }
}

/// Programs tell the version of a packet by its type or first byte; the hooks on slices are told.
fn is_told_apart<A: Ip>(run: &Run<A>) -> bool {
    let packet = &run.before.packet;
    if run.start == 0 {
        let version = if A::CHECKSUM.is_some() { 4 } else { 6 };
        packet[0] >> 4 == version
    } else {
        packet[12..14] == A::ETHERTYPE
    }
}

/// Words of ABSENT: who shares a bit with somebody that is in a table has to be looked up.
fn absent(services: &Services) -> Entries<u32, u64> {
    let mut words = Entries::new();
    for AbsentBit { word, mask } in services.absent.iter().map(AbsentBit::of) {
        *words.entry(word).or_default() |= mask;
    }
    for AbsentBit { word, mask } in services.frontend.iter().map(|entry| AbsentBit::of(&entry.key.addr)) {
        words.entry(word).and_modify(|bits| *bits &= !mask);
    }
    words
}

fn returned(action: Action) -> u32 {
    match action {
        Action::Pass | Action::Translated => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
        Action::Back => TC_ACT_REDIRECT,
        // As programs that are told the time answer.
        Action::Out | Action::Home | Action::Forward => action as u32,
    }
}

fn by_key<A: Ip>(flows: &[(Table, FlowKey<A>, Flow<A>)]) -> Halves<A> {
    flows.iter().map(|(table, key, flow)| ((*table, *key), *flow)).collect()
}

fn as_map<K: Copy + Eq + Hash, V: Copy>(pairs: &[(K, V)]) -> Entries<K, V> {
    pairs.iter().copied().collect()
}

fn same<T: Debug + PartialEq>(what: &str, found: &T, wanted: &T) -> Result<()> {
    ensure!(found == wanted, "{what}: in the kernel {found:#?}\non slices {wanted:#?}");
    Ok(())
}
