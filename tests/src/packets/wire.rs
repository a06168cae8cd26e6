//! Clients without number whose packets pass the programs of a device, towards one Service.
//!
//! In: what a client or its backend says. Out: whether it was translated at every point that it passes, so that the other one
//! hears it. Each point is given what the one before it made of the packet.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{HashMap as Entries, MapData};
use aya::programs::{TestRun as _, TestRunOptions};
use proxy_common::abi::{Flow, FlowKey, FragmentKey, PacketSettings, PortRange};
use proxy_common::packet::cases::build::{Build, syn, tcp, udp};
use proxy_common::packet::cases::observe::{Run, observe};
use proxy_common::packet::cases::run_everyday;
use proxy_common::packet::ip::{Ip, V4};
use proxy_common::packet::tcp::{ACK, SYN};
use proxy_common::stress::Moment;
use proxy_common::tables::name;
use proxy_userspace::sys::monotonic_nanos;

use super::twin::{Tables, Twin};
use super::{load_with, program};
use crate::manifest::Proto;

/// Where the one backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// On this node. It sees its clients.
    Here,
    /// It sees this node, and a port of its own for each client.
    Elsewhere,
}

/// An address and a port, as they stand in a packet.
type End = (Vec<u8>, [u8; 2]);

/// What client and backend say in one protocol. Clients' addresses and ports are yet to be written into it.
struct Script {
    first: Vec<u8>,
    ask: Vec<u8>,
    accept: Vec<u8>,
    answer: Vec<u8>,
}

/// The tables and programs of one node.
pub struct Wire<A = V4> {
    twin: Twin,
    settings: PacketSettings,
    backend: Backend,
    /// What is spoken from now on.
    pub proto: Proto,
    scripts: [Script; 2],
    /// From which ports the backend was asked for each client.
    ports: HashMap<u32, [u8; 2]>,
    family: PhantomData<A>,
}

impl Wire {
    /// With room for so many flows of IPv4, to a backend on this node.
    pub fn new(flows: u32) -> Result<Self> {
        Self::to(Backend::Here, flows)
    }
}

impl<A: Tables> Wire<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    /// With room for so many flows, which speak TCP first.
    pub fn to(backend: Backend, flows: u32) -> Result<Self> {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let keep = Rc::clone(&seen);
        observe(move |run: &dyn Any| keep.borrow_mut().extend(run.downcast_ref::<Run<A>>().cloned()));
        run_everyday();
        let (first, by, to) = match backend {
            Backend::Here => ("a new flow", "local:8080", "client:1"),
            Backend::Elsewhere => ("a new flow to elsewhere", "remote:8080", "node:1"),
        };
        let seen = seen.take();
        let is_first = |run: &&Run<A>| run.case.contains(&format!(": {first}, "));
        let run = seen.iter().find(is_first).with_context(|| format!("the everyday case shows {first}"))?;
        let mut twin = Twin::new(load_with(flows, false)?);
        twin.prepare(run)?;
        let (there, back) = ("client:1 > lb:80", format!("{by} > {to}"));
        let script = |first: Build, ask: Build, accept: Build, answer: Build| {
            let [first, ask, accept, answer] = [first, ask, accept, answer].map(|packet| packet.bytes::<A>().0);
            Script { first, ask, accept, answer }
        };
        let scripts = [
            script(syn(there), tcp(there), tcp(&*back).flags(SYN | ACK), tcp(&*back)),
            script(udp(there), udp(there), udp(&*back), udp(&*back)),
        ];
        let (settings, ports, proto) = (run.settings, HashMap::new(), Proto::Tcp);
        let mut wire = Self { twin, settings, backend, proto, scripts, ports, family: PhantomData };
        if backend == Backend::Elsewhere {
            // As many as there are clients of one address: what becomes of who gets none is for others to show.
            wire.settings(|settings| settings.ports = PortRange { first: FIRST_PORT, count: u16::MAX - FIRST_PORT })?;
        }
        Ok(wire)
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

    /// Which ports are ours.
    pub fn own_ports(&self) -> PortRange {
        self.settings.ports
    }

    /// The first packet of a flow. Whether it was translated.
    pub fn dial(&mut self, client: u32) -> Result<bool> {
        self.there(client, |script| &script.first)
    }

    /// What the backend answers to that.
    pub fn accept(&mut self, client: u32) -> Result<bool> {
        self.back(client, |script| &script.accept)
    }

    /// A whole handshake: the client has spoken after an answer.
    pub fn connect(&mut self, client: u32) -> Result<()> {
        let done = self.dial(client)? && self.accept(client)? && self.ask(client)?;
        ensure!(done, "client {client} cannot connect");
        Ok(())
    }

    /// Whether a request of an open connection and its reply are translated.
    pub fn echo(&mut self, client: u32) -> Result<(bool, bool)> {
        Ok((self.ask(client)?, self.answer(client)?))
    }

    /// Whether a request of an open connection is translated.
    pub fn ask(&mut self, client: u32) -> Result<bool> {
        self.there(client, |script| &script.ask)
    }

    /// Whether a reply of an open connection is translated.
    pub fn answer(&mut self, client: u32) -> Result<bool> {
        self.back(client, |script| &script.answer)
    }

    /// The number of the client that a flow is of.
    pub fn client_of(flow: &Flow<A>) -> u32 {
        let address = flow.client.addr().words()[3];
        (u32::from_be(address) - FIRST_ADDRESS) * PORTS + u32::from(flow.client_port.get() - FIRST_PORT)
    }

    /// The table of established flows.
    pub fn established(&mut self) -> Result<Entries<&mut MapData, FlowKey<A>, Flow<A>>> {
        self.table(A::ESTABLISHED)
    }

    /// The table of those that nobody has spoken in after an answer.
    pub fn embryonic(&mut self) -> Result<Entries<&mut MapData, FlowKey<A>, Flow<A>>> {
        self.table(A::EMBRYONIC)
    }

    fn table(&mut self, name: &str) -> Result<Entries<&mut MapData, FlowKey<A>, Flow<A>>> {
        Ok(Entries::try_from(self.twin.ebpf().map_mut(name).context("the table of flows")?)?)
    }

    /// Pins what the collector of flows reads in `folder`.
    pub fn pin(&mut self, folder: &Path) -> Result<()> {
        let flows = [name::FLOWS4, name::FLOWS6, name::EMBRYONIC4, name::EMBRYONIC6];
        for table in [name::PACKETS, name::CONFIG, name::DIRECT].into_iter().chain(flows) {
            self.twin.ebpf().map_mut(table).with_context(|| format!("no table {table}"))?.pin(folder.join(table))?;
        }
        Ok(())
    }

    fn script(&self) -> &Script {
        &self.scripts[self.proto as usize]
    }

    /// From the client to the backend.
    fn there(&mut self, client: u32, said: fn(&Script) -> &Vec<u8>) -> Result<bool> {
        let script = self.script();
        let (mut frame, backend) = (said(script).clone(), source::<A>(&script.answer));
        let from = the_client(&source::<A>(&frame), client);
        write_source::<A>(&mut frame, &from);
        let inside = self.pass("tc_ingress", &frame)?;
        if destination::<A>(&inside) != backend || source::<A>(&inside).0 != from.0 {
            return Ok(false);
        }
        if self.backend == Backend::Here {
            return Ok(source::<A>(&inside) == from);
        }
        let sent = self.pass("tc_egress", &inside)?;
        let (address, port) = source::<A>(&sent);
        self.ports.insert(client, port);
        Ok(destination::<A>(&sent) == backend && address == destination::<A>(&self.script().answer).0)
    }

    /// From the backend to the client.
    fn back(&mut self, client: u32, said: fn(&Script) -> &Vec<u8>) -> Result<bool> {
        let script = self.script();
        let (mut frame, frontend) = (said(script).clone(), destination::<A>(&script.ask));
        let to = the_client(&source::<A>(&script.ask), client);
        if self.backend == Backend::Elsewhere {
            let Some(port) = self.ports.get(&client) else { return Ok(false) };
            let node = destination::<A>(&frame).0;
            write_destination::<A>(&mut frame, &(node, *port));
            frame = self.pass("tc_ingress", &frame)?;
            if destination::<A>(&frame).0 != to.0 {
                return Ok(false);
            }
        } else {
            write_destination::<A>(&mut frame, &to);
        }
        let received = self.pass("tc_egress", &frame)?;
        Ok(source::<A>(&received) == frontend && destination::<A>(&received) == to)
    }

    fn pass(&mut self, hook: &str, frame: &[u8]) -> Result<Vec<u8>> {
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = program(self.twin.ebpf(), hook)?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        ensure!(out.len() >= ports_at::<A>() + 4, "{hook} left {} bytes of {}", out.len(), frame.len());
        Ok(out)
    }
}

/// Bytes of a link header.
const ETHERNET: usize = 14;

/// Where the ports are, behind both addresses. Sums are not made up for: nobody asks for them.
fn ports_at<A: Ip>() -> usize {
    ETHERNET + A::HEADER
}

fn end<A: Ip>(frame: &[u8], number: usize) -> End {
    let (ports, size) = (ports_at::<A>(), size_of::<A>());
    let (address, port) = (ports - (2 - number) * size, ports + 2 * number);
    (frame[address..address + size].to_vec(), [frame[port], frame[port + 1]])
}

fn write_end<A: Ip>(frame: &mut [u8], number: usize, (address, port): &End) {
    let (ports, size) = (ports_at::<A>(), size_of::<A>());
    let at = ports - (2 - number) * size;
    frame[at..at + size].copy_from_slice(address);
    frame[ports + 2 * number..][..2].copy_from_slice(port);
}

fn source<A: Ip>(frame: &[u8]) -> End {
    end::<A>(frame, 0)
}

fn destination<A: Ip>(frame: &[u8]) -> End {
    end::<A>(frame, 1)
}

fn write_source<A: Ip>(frame: &mut [u8], end: &End) {
    write_end::<A>(frame, 0, end);
}

fn write_destination<A: Ip>(frame: &mut [u8], end: &End) {
    write_end::<A>(frame, 1, end);
}

/// Client number 0; 50,000 ports of each address from there on.
const FIRST_ADDRESS: u32 = 0xc612_0000;
const FIRST_PORT: u16 = 10_000;
const PORTS: u32 = 50_000;

/// Client number `number`, whose network is that of `like`.
fn the_client((like, _): &End, number: u32) -> End {
    let mut address = like.clone();
    let host = address.len() - 4;
    address[host..].copy_from_slice(&(FIRST_ADDRESS + number / PORTS).to_be_bytes());
    (address, (FIRST_PORT + (number % PORTS) as u16).to_be_bytes())
}
