//! Clients without number whose packets pass the programs of a device, towards one Service with a backend on this node.
//!
//! In: the packets of the everyday case, with other clients' addresses in them. Out: whether they were translated.

use std::any::Any;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, MapData};
use aya::programs::{TestRun as _, TestRunOptions};
use proxy_common::abi::{Flow, FlowKey, PacketSettings};
use proxy_common::packet::cases::observe::{Hook, Run, observe};
use proxy_common::packet::cases::run_everyday;
use proxy_common::packet::ip::V4;
use proxy_common::stress::Moment;
use proxy_common::tables::name;
use proxy_userspace::sys::monotonic_nanos;

use super::twin::Twin;
use super::{load_with, program};

/// Where addresses and ports of the source and of the destination are, in a frame with IPv4 and no options.
const SOURCE: (usize, usize) = (26, 34);
const DESTINATION: (usize, usize) = (30, 36);

/// A packet as the everyday case has it, and what becomes of it.
struct Sample {
    hook: Hook,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// The tables and programs of one node.
pub struct Wire {
    twin: Twin,
    settings: PacketSettings,
    syn: Sample,
    answer: Sample,
    request: Sample,
    reply: Sample,
}

impl Wire {
    /// With room for so many flows.
    pub fn new(flows: u32) -> Result<Self> {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let keep = Rc::clone(&seen);
        observe(move |run: &dyn Any| keep.borrow_mut().extend(run.downcast_ref::<Run<V4>>().cloned()));
        run_everyday();
        let seen = seen.take();
        let about = |what: &str| {
            let is_it = |run: &&Run<V4>| run.case.ends_with(&format!(": {what}, IPv4"));
            seen.iter().find(is_it).with_context(|| format!("the everyday case shows {what}"))
        };
        let sample = |what| {
            about(what).map(|run| Sample {
                hook: run.hook,
                before: run.before.packet.clone(),
                after: run.after.packet.clone(),
            })
        };
        let mut twin = Twin::new(load_with(flows, false)?);
        twin.prepare(about("a new flow")?)?;
        Ok(Self {
            twin,
            settings: about("a new flow")?.settings,
            syn: sample("a new flow")?,
            answer: sample("an answer")?,
            request: sample("a handshake")?,
            reply: sample("a reply")?,
        })
    }

    /// From now on programs take it to be so many seconds ago, or now.
    pub fn seconds_ago(&mut self, seconds: u64) -> Result<()> {
        let now = if seconds == 0 { 0 } else { monotonic_nanos().saturating_sub(seconds * 1_000_000_000).max(1) };
        self.twin.set("MOMENT", 0, Moment { now, ..Moment::default() })
    }

    /// Changes what the programs are told.
    pub fn settings(&mut self, change: impl FnOnce(&mut PacketSettings)) -> Result<()> {
        change(&mut self.settings);
        self.twin.set(name::PACKETS, 0, self.settings)
    }

    /// The first packet of a connection. Whether it was translated.
    pub fn dial(&mut self, client: u32) -> Result<bool> {
        pass(&mut self.twin, &self.syn, client)
    }

    /// A whole handshake.
    pub fn connect(&mut self, client: u32) -> Result<()> {
        let done = self.dial(client)?
            && pass(&mut self.twin, &self.answer, client)?
            && pass(&mut self.twin, &self.request, client)?;
        ensure!(done, "client {client} cannot connect");
        Ok(())
    }

    /// Whether a request of an open connection and its reply are translated.
    pub fn echo(&mut self, client: u32) -> Result<(bool, bool)> {
        Ok((self.ask(client)?, self.answer(client)?))
    }

    /// Whether a request of an open connection is translated.
    pub fn ask(&mut self, client: u32) -> Result<bool> {
        pass(&mut self.twin, &self.request, client)
    }

    /// Whether a reply of an open connection is translated.
    pub fn answer(&mut self, client: u32) -> Result<bool> {
        pass(&mut self.twin, &self.reply, client)
    }

    /// The table of established IPv4 flows.
    pub fn established(&mut self) -> Result<HashMap<&mut MapData, FlowKey<V4>, Flow<V4>>> {
        Ok(HashMap::try_from(self.twin.ebpf().map_mut(name::FLOWS4).context("the table of flows")?)?)
    }

    /// Pins what the collector of flows reads in `folder`.
    pub fn pin(&mut self, folder: &Path) -> Result<()> {
        for table in [name::PACKETS, name::CONFIG, name::FLOWS4, name::FLOWS6, name::EMBRYONIC4, name::EMBRYONIC6] {
            self.twin.ebpf().map_mut(table).with_context(|| format!("no table {table}"))?.pin(folder.join(table))?;
        }
        Ok(())
    }
}

fn pass(twin: &mut Twin, sample: &Sample, client: u32) -> Result<bool> {
    let (name, place) = match sample.hook {
        Hook::Ingress => ("tc_ingress", SOURCE),
        Hook::Egress => ("tc_egress", DESTINATION),
    };
    let (sent, wanted) = (with_client(&sample.before, place, client), with_client(&sample.after, place, client));
    let mut out = vec![0; sent.len() + 64];
    let options = TestRunOptions { data_in: Some(&sent), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = program(twin.ebpf(), name)?.test_run(options)?;
    out.truncate(result.data_size_out as usize);
    let ends = |frame: &[u8]| frame.get(SOURCE.0..DESTINATION.1 + 2).map(<[u8]>::to_vec);
    Ok(ends(&out) == ends(&wanted))
}

/// Client number `client`: 50,000 ports of each address from 198.18.0.0 on. Sums are not made up for: nobody asks for them.
fn with_client(frame: &[u8], (address, port): (usize, usize), client: u32) -> Vec<u8> {
    const PORTS: u32 = 50_000;
    let mut frame = frame.to_vec();
    frame[address..address + 4].copy_from_slice(&(0xc612_0000 + client / PORTS).to_be_bytes());
    frame[port..port + 2].copy_from_slice(&(10_000 + client % PORTS).to_be_bytes()[2..]);
    frame
}
