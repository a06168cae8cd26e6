//! Flows of others become ours, while programs begin and follow flows in the same tables.
//!
//! In: an entry of theirs, in our words. Out: the flow in our tables, both of its entries in one of them, or not at all.
//!
//! Keys are claimed as programs claim them ([`proxy_common::packet::open`]): in the table of embryonic flows first, and with a
//! look into the other one after it. So no key has a flow in each table, of which programs would see one only.

use std::io;
use std::path::Path;

use aya::Pod;
use proxy_common::abi::{Config, Flow, FlowKey, PacketSettings, PortRange};
use proxy_common::packet::Table;
use proxy_common::packet::expiry::Clock;
use proxy_common::packet::ip::Ip;
use proxy_common::packet::tcp::seen;
use proxy_common::packet::track::Found;
use proxy_common::socket::TCP;
use proxy_common::tables::name;

use crate::sys::CallError;
use crate::sys::bpf::Map;
use crate::sys::monotonic_seconds;

type Entries<A> = Map<FlowKey<A>, Flow<A>>;

/// Our tables of one family.
#[derive(Debug)]
pub(super) struct Ours<A> {
    established: Entries<A>,
    embryonic: Entries<A>,
    settings: Map<u32, PacketSettings>,
    config: Map<u32, Config>,
}

/// Makes flows ours.
#[derive(Debug)]
pub(super) struct Adopter<'a, A> {
    ours: &'a Ours<A>,
    clock: Clock,
}

impl<A: Ip> Ours<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    /// The tables of established flows and of embryonic ones that are called so in `folder`.
    pub(super) fn open(folder: &Path, [established, embryonic]: [&str; 2]) -> Result<Self, CallError> {
        Ok(Self {
            established: Map::open(&folder.join(established))?,
            embryonic: Map::open(&folder.join(embryonic))?,
            settings: Map::open(&folder.join(name::PACKETS))?,
            config: Map::open(&folder.join(name::CONFIG))?,
        })
    }

    pub(super) fn table(&self, table: Table) -> &Entries<A> {
        match table {
            Table::Established => &self.established,
            Table::Embryonic => &self.embryonic,
        }
    }

    /// By the settings of now.
    pub(super) fn adopter(&self) -> io::Result<Adopter<'_, A>> {
        let settings = self.settings.get(&0)?.unwrap_or_default();
        let told = self.config.get(&0)?.filter(|config| config.udp_timeout > 0);
        // In new tables nobody has said yet how long flows last.
        let udp = told.map_or((u32::MAX, u32::MAX), |config| config.udp_timeouts());
        Ok(Adopter { ours: self, clock: Clock { settings, udp, now: monotonic_seconds() } })
    }

    /// Where programs find the flow of a key.
    fn find(&self, key: &FlowKey<A>) -> io::Result<Option<Found<A>>> {
        for table in [Table::Established, Table::Embryonic] {
            if let Some(flow) = self.table(table).get(key)? {
                return Ok(Some(Found { table, flow }));
            }
        }
        Ok(None)
    }
}

impl<A: Ip> Adopter<'_, A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    /// Whether somebody may still need it.
    pub(super) fn is_alive(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        self.clock.is_alive(key, flow)
    }

    /// If the flow is ours already: adds to its entry at `key` what theirs says and ours does not. False if it is not.
    pub(super) fn tell(&self, key: &FlowKey<A>, Found { table, flow }: &Found<A>) -> io::Result<bool> {
        let Some(known) = self.ours.find(key)?.filter(|known| known.flow.seal == flow.seal) else { return Ok(false) };
        // Of the connection before this one, which had the same addresses and ports.
        if flow.used.saturating_add(1) < known.flow.used && has_ended(key, flow) {
            return Ok(true);
        }
        let told = Flow {
            source: if known.flow.source == A::ANY { flow.source } else { known.flow.source },
            used: known.flow.used.max(flow.used),
            seen: known.flow.seen | flow.seen,
            seen_other: known.flow.seen_other | flow.seen_other,
            ..known.flow
        };
        if told != known.flow {
            self.ours.table(known.table).replace(key, &told)?;
        }
        if (known.table, *table) == (Table::Embryonic, Table::Established) {
            self.promote(&entries_of(key, &told, self.clock.settings.ports))?;
        }
        Ok(true)
    }

    /// Makes a flow ours that is not, unless others have its keys by better right. How many entries are new.
    pub(super) fn place(&self, key: &FlowKey<A>, Found { table, flow }: &Found<A>) -> io::Result<usize> {
        let entries @ [reply, request] = entries_of(key, flow, self.clock.settings.ports);
        if !self.claim(&reply)? {
            return Ok(0);
        }
        if !self.claim(&request)? {
            self.forget(flow)?;
            return Ok(0);
        }
        if *table == Table::Established {
            self.promote(&entries)?;
        }
        Ok(2)
    }

    /// Files an entry, among embryonic ones; false if somebody else keeps the key.
    fn claim(&self, (key, flow): &(FlowKey<A>, Flow<A>)) -> io::Result<bool> {
        // A program may be faster, of which there are few in a moment.
        for _ in 0..4 {
            if let Some(known) = self.ours.find(key)? {
                if known.flow.seal == flow.seal {
                    return Ok(true);
                }
                if !gives_way(key, &known.flow, flow) {
                    return Ok(false);
                }
                self.forget(&known.flow)?;
            }
            if self.ours.embryonic.add(key, flow)? {
                if self.ours.established.get(key)?.is_none() {
                    return Ok(true);
                }
                self.ours.embryonic.remove(key)?;
            }
        }
        Ok(false)
    }

    /// The reply entry comes first and goes last, as where programs do it.
    fn promote(&self, entries: &[(FlowKey<A>, Flow<A>); 2]) -> io::Result<()> {
        for (key, flow) in entries {
            self.ours.established.add(key, flow)?;
        }
        entries.iter().rev().try_for_each(|(key, _)| self.ours.embryonic.remove(key))
    }

    /// Forgets a flow, both halves of it, and nobody else's.
    fn forget(&self, flow: &Flow<A>) -> io::Result<()> {
        for key in [flow.request_key(), flow.reply_key(self.clock.settings.ports)] {
            for table in [&self.ours.established, &self.ours.embryonic] {
                if table.get(&key)?.is_some_and(|found| found.seal == flow.seal) {
                    table.remove(&key)?;
                }
            }
        }
        Ok(())
    }
}

/// The reply entry of a flow and its request entry, which at `key` is `flow`.
fn entries_of<A: Ip>(key: &FlowKey<A>, flow: &Flow<A>, ports: PortRange) -> [(FlowKey<A>, Flow<A>); 2] {
    let (reply, request) =
        if key.direction() == FlowKey::<A>::REPLY { (*flow, flow.mirrored()) } else { (flow.mirrored(), *flow) };
    [(flow.reply_key(ports), reply), (flow.request_key(), request)]
}

/// Whether the flow that has `key` leaves it to `flow`. What has ended leaves it to what has not. A reply key stands for a port
/// at the backend, and so for whom the backend has answered there. Of equals the one that was used last has it, and `flow` if
/// that was in one second: their programs gave a port away that ours know from before, or a client began anew.
fn gives_way<A: Ip>(key: &FlowKey<A>, known: &Flow<A>, flow: &Flow<A>) -> bool {
    let right = |flow: &Flow<A>| {
        let is_answered = key.direction() == FlowKey::<A>::REPLY && flow.seen & seen::SPOKE != 0;
        (!has_ended(key, flow), is_answered, flow.used)
    };
    right(known) <= right(flow)
}

/// Whether it is a connection that is over.
pub(super) fn has_ended<A: Ip>(key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    flow.proto == TCP && flow.tcp_state(key).is_over()
}
