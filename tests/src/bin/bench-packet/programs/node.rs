//! A node that packets run through: the programs, their tables, and what makes packets anew.

use std::collections::HashMap as Programs;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{TestRun as _, TestRunOptions};
use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{Flow, FlowKey, FragmentKey, PacketSettings, direct, near};
use proxy_common::addr::{Addr, Family};
use proxy_common::packet::cases::observe::{Hook, Run};
use proxy_common::reason::Reason;
use proxy_common::stress::Again;
use proxy_common::tables::name;
use proxy_tests::packets::twin::{DEVICE, Tables, Twin};
use proxy_tests::packets::{load_with, program};

use super::lane::{Becomes, CONNECT, Flows, Lane};

const TC_ACT_UNSPEC: u32 = u32::MAX;
const AGAIN: &str = "AGAIN";
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Programs of ours beside the two that are measured.
const OURS: [&str; 5] =
    ["cost_packet", "cost_packet_nothing", "cost_packet_lookup", "cost_packet_flow", "cost_packet_insert"];
/// What is measured, as the first program calls it.
const MEASURED: [&str; 6] =
    ["cost_packet_nothing", "cost_packet_lookup", "cost_packet_flow", "cost_packet_insert", "tc_ingress", "tc_egress"];
/// Clients that nobody has seen have other addresses than those of established flows, by so much in the last byte, and are
/// so many.
const STRANGERS: u32 = 16;
const STRANGERS_MASK: u32 = (1 << 22) - 1;

pub(crate) struct Node {
    twin: Twin,
    /// Indexes into MEASURED.
    programs: Programs<&'static str, u32>,
    fast_path: bool,
}

/// Packets in a row.
pub(crate) struct Batch {
    again: Again,
    packet: Vec<u8>,
    count: u32,
    becomes: Becomes,
}

impl Node {
    /// With room for so many flows, which may go past the stack.
    pub(crate) fn load(flows: u32, fast_path: bool) -> Result<Self> {
        let mut twin = Twin::new(load_with(flows, fast_path)?);
        for name in OURS {
            program(twin.ebpf(), name)?.load().with_context(|| format!("load {name}"))?;
        }
        let mut programs = Programs::new();
        for (index, name) in (0..).zip(MEASURED) {
            let fd = program(twin.ebpf(), name)?.fd()?.try_clone()?;
            let mut measured = ProgramArray::try_from(twin.ebpf().map_mut("MEASURED").context("no table MEASURED")?)?;
            measured.set(index, &fd, 0)?;
            programs.insert(name, index);
        }
        Ok(Self { twin, programs, fast_path })
    }

    /// Writes the Services of every day, and the flow to elsewhere.
    pub(crate) fn prepare<A: Tables>(&mut self, runs: &[Run<A>]) -> Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
        FragmentKey<A>: Pod,
    {
        let mut first = about(runs, "a new flow")?.clone();
        first.settings.flags |= if self.fast_path { PacketSettings::FAST_PATH } else { 0 };
        // As on a node where no client keeps its port by UDP, and none had to be given another one.
        first.direct = [direct::PASS; direct::WORDS as usize];
        first.before.flows.clone_from(&about(runs, "a request that leaves")?.before.flows);
        let now = u32::try_from(clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec())?;
        first.before.flows.iter_mut().for_each(|(.., flow)| flow.used = now);
        self.twin.prepare(&first)?;
        self.twin.set(name::NEAR, near::place(DEVICE), near::of(DEVICE, &first.device))
    }

    /// Lets so many clients connect, and fills the table that one look-up is in.
    pub(crate) fn establish<A: Tables>(&mut self, runs: &[Run<A>], flows: u32) -> Result<()> {
        let mut steps = CONNECT.iter().map(|step| self.batch(step, runs, flows)).collect::<Result<Vec<_>>>()?;
        // Few at a time: until they are answered, flows are in a table that forgets.
        let at_once = flows.min(4096);
        for _ in 0..flows / at_once {
            for (lane, step) in CONNECT.iter().zip(&mut steps) {
                step.count = at_once;
                self.run(step).with_context(|| lane.name)?;
            }
        }
        let map = self.twin.ebpf().map_mut("COST_ADDRS").context("no table COST_ADDRS")?;
        let mut addrs: HashMap<&mut MapData, Addr, u32> = HashMap::try_from(map)?;
        (0..flows).try_for_each(|number| Ok(addrs.insert(Again::addr(number), 1, 0)?))
    }

    /// Packets of a lane, with so many established flows.
    pub(crate) fn batch<A: Tables>(&self, lane: &Lane, runs: &[Run<A>], flows: u32) -> Result<Batch> {
        let run = about(runs, lane.packet)?;
        let packet = run.before.packet.clone();
        let (host_at, port_at) = match run.hook {
            Hook::Ingress => (run.start + A::DESTINATION - 1, run.start + A::HEADER),
            // What goes out there goes to the client.
            Hook::Egress => (run.start + A::HEADER - 1, run.start + A::HEADER + 2),
        };
        let sum_at = run.start + A::HEADER + TCP_CHECKSUM;
        let mut bytes = [0; Again::LEN + 2];
        let len = if A::FAMILY == Family::V6 { Again::LEN } else { Again::LEN_V4 };
        bytes[..len].copy_from_slice(packet.get(..len).with_context(|| format!("{}: too short", run.case))?);
        let (host, flows_mask) = match lane.flows {
            Flows::One => (0, 0),
            Flows::Each => (0, flows - 1),
            Flows::New => (STRANGERS, STRANGERS_MASK),
        };
        let again = Again {
            bytes,
            is_v6: u32::from(A::FAMILY == Family::V6),
            host_at: host_at as u32,
            host: host + u32::from(packet[host_at]),
            port_at: port_at as u32,
            port: u16::from_be_bytes([packet[port_at], packet[port_at + 1]]).into(),
            sum_at: sum_at as u32,
            sum: sum(&packet, sum_at),
            program: *self.programs.get(lane.program).with_context(|| format!("no program {}", lane.program))?,
            flows_mask,
            run: 0,
            number: 0,
            changed: 0,
        };
        Ok(Batch { again, packet, count: lane.batch(flows), becomes: lane.becomes })
    }

    /// Begins so many flows that nobody answers.
    pub(crate) fn fill(&mut self, batch: &mut Batch, flows: u32) -> Result<()> {
        let count = std::mem::replace(&mut batch.count, flows);
        self.run(batch).context("fill a table")?;
        batch.count = count;
        Ok(())
    }

    /// Nanoseconds of a packet, the first program included. What comes out must be what the batch is about.
    pub(crate) fn run(&mut self, batch: &mut Batch) -> Result<f64> {
        let Batch { again, packet, count, becomes } = batch;
        let mut wanted = self.twin.reasons()?;
        again.changed = 0;
        self.twin.set(AGAIN, 0, *again)?;
        let (nanoseconds, out) = self.time("cost_packet", packet, *count)?;
        let map = self.twin.ebpf().map_mut(AGAIN).context("no table AGAIN")?;
        let ran = Array::<_, Again>::try_from(map)?.get(&0, 0)?;
        again.run = again.run.wrapping_add(*count);
        ensure!(ran.run == again.run, "the first program ended {} times early", again.run.wrapping_sub(ran.run));
        // The first program sees what became of all packets but the last one.
        let changed = ran.changed + u32::from(sum(&out, again.sum_at as usize) != again.sum);
        let expected = if *becomes == Becomes::Same { 0 } else { *count };
        ensure!(changed == expected, "{changed} of {count} packets were translated, not {expected}");
        if *becomes == Becomes::Begun {
            wanted[Reason::Translated as usize] += u64::from(*count);
        }
        let counted = self.twin.reasons()?;
        ensure!(counted == wanted, "reasons were counted as {counted:?}, not {wanted:?}");
        Ok(nanoseconds)
    }

    /// As [`Self::run`], of the empty program without the first one.
    pub(crate) fn alone(&mut self, batch: &Batch) -> Result<f64> {
        Ok(self.time("cost_packet_nothing", &batch.packet, batch.count)?.0)
    }

    fn time(&mut self, name: &str, packet: &[u8], count: u32) -> Result<(f64, Vec<u8>)> {
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat: count,
            ..TestRunOptions::default()
        };
        let result = program(self.twin.ebpf(), name)?.test_run(options).with_context(|| format!("run {name}"))?;
        ensure!(result.return_value == TC_ACT_UNSPEC, "{name} ended with {}", result.return_value);
        // A sum of whole runs, of which the kernel tells the mean in whole nanoseconds.
        Ok((result.duration.as_secs_f64() * 1e9, out))
    }

    /// How many entries a table has.
    pub(crate) fn entries<K: Pod, V: Pod>(&mut self, table: &str) -> Result<usize> {
        let map: HashMap<&mut MapData, K, V> =
            HashMap::try_from(self.twin.ebpf().map_mut(table).with_context(|| format!("no table {table}"))?)?;
        Ok(map.keys().collect::<Result<Vec<_>, _>>()?.len())
    }
}

/// What a case is about, of one family's.
fn about<'a, A>(runs: &'a [Run<A>], what: &str) -> Result<&'a Run<A>> {
    let run = runs.iter().find(|run| run.case.contains(&format!(": {what}, ")));
    run.with_context(|| format!("no packet is {what:?}"))
}

/// The checksum at `at`, as it lies in memory.
fn sum(packet: &[u8], at: usize) -> u32 {
    u16::from_ne_bytes([packet[at], packet[at + 1]]).into()
}
