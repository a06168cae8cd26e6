//! Forgets flows of packets that are over, both directions together.
//!
//! In: the pinned tables, once in a while. Out: fewer entries, the names of tables that are nearly full, and what flows dial, of
//! which more is in the tables than is served ([`Dialled`]). Nothing waits for it: programs forget what is least recently used, and take what is over where they need it. But who is gone should not
//! hold memory that is looked at, ports, and the place of who is alive.
//!
//! Batches copy entries without making them look used. Between reading a flow for the last time and removing it a packet
//! may revive it: some microseconds, after minutes of silence. Its next packet then begins it anew, as it would have done
//! had it come a little later.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use aya::Pod;
use proxy_common::abi::{Config, Flow, FlowKey, PacketSettings, direct};
use proxy_common::packet::expiry::{Clock, Fate};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::tables::name;
use tokio::sync::watch::{self, Receiver};
use tracing::{debug, warn};

use crate::attach::pins::Folder;
use crate::maps::kernel::option;
use crate::plan::{Alarm, Dialled, Pressure};
use crate::sys::bpf::Map;
use crate::sys::monotonic_seconds;

/// A look at half a million flows takes most of a second, so this decides what they cost.
pub const INTERVAL: Duration = Duration::from_mins(1);
/// Entries that are looked at in one go, and the rest after it: programs wait for buckets, other threads for the processor.
pub const BATCH: usize = 2048;
pub const REST: Duration = Duration::from_millis(2);

/// Looks after the tables below `folder` for as long as somebody wants to know what flows dial.
pub fn start(folder: Folder) -> io::Result<Receiver<Dialled>> {
    let (tell, dialled) = watch::channel(Dialled::default());
    let look_on = move || {
        let mut collector = Collector::default();
        while !tell.is_closed() {
            thread::sleep(INTERVAL);
            match collector.look(&folder.current(), REST) {
                Ok(seen) => {
                    debug!(forgotten = seen.forgotten, "looked at flows");
                    tell.send_replace(seen.dialled);
                }
                Err(error) => debug!(error = format!("{error:#}"), "cannot look at flows"),
            }
        }
    };
    thread::Builder::new().name("flows".to_owned()).spawn(look_on).map(|_| dialled)
}

/// What a look at flows found.
#[derive(Debug, Default)]
pub struct Seen {
    /// How many flows were over, and are forgotten.
    pub forgotten: usize,
    pub dialled: Dialled,
    /// By word of DIRECT: whether there are flows for which it says "look".
    like_direct: [bool; direct::WORDS as usize],
}

/// Remembers what looked wrong the last time.
#[derive(Debug, Default)]
pub struct Collector {
    /// By table: seals of entries without a partner. A list is not made in one moment, so two have to agree.
    alone: BTreeMap<&'static str, HashSet<u32>>,
    alarm: Alarm,
}

impl Collector {
    /// Looks once at each table below `current`, with a `rest` after each batch.
    pub fn look(&mut self, current: &Path, rest: Duration) -> anyhow::Result<Seen> {
        let packets =
            Map::<u32, PacketSettings>::open(&current.join(name::PACKETS))?.get(&0).context("read PACKETS")?;
        let config = Map::<u32, Config>::open(&current.join(name::CONFIG))?.get(&0).context("read CONFIG")?;
        let told = packets.zip(config).filter(|(packets, config)| packets.ports.count > 0 && config.udp_timeout > 0);
        // In new tables nobody has said yet how long flows last.
        let Some((settings, config)) = told else { return Ok(Seen::default()) };
        let now = monotonic_seconds();
        let clock = Clock { settings, udp: config.udp_timeouts(), now };
        let directs = Directs::ask(current)?;
        let mut seen = Seen::default();
        // Flows move from the second table of a family to the first one: none may be missed.
        for table in [name::EMBRYONIC4, name::FLOWS4] {
            self.sweep::<V4>(current, table, &clock, rest, &mut seen)?;
        }
        for table in [name::EMBRYONIC6, name::FLOWS6] {
            self.sweep::<V6>(current, table, &clock, rest, &mut seen)?;
        }
        directs.answer(&seen.like_direct)?;
        Ok(seen)
    }

    fn sweep<A: Ip>(
        &mut self,
        current: &Path,
        table: &'static str,
        clock: &Clock,
        rest: Duration,
        seen: &mut Seen,
    ) -> anyhow::Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let map = Map::<FlowKey<A>, Flow<A>>::open(&current.join(table))?;
        let suspects = self.alone.remove(table).unwrap_or_default();
        let mut seals = Vec::new();
        let visit = |keys: &[FlowKey<A>], flows: &[Flow<A>]| {
            seals.extend(flows.iter().map(|flow| flow.seal));
            for (key, flow) in keys.iter().zip(flows) {
                seen.dialled.add(&flow.frontend.addr());
                seen.like_direct[direct::place(A::FAMILY, flow.proto) as usize] |= flow.is_like_direct();
                if suspects.contains(&flow.seal) || !clock.is_alive(key, flow) {
                    seen.forgotten += forget(&map, key, clock)?;
                }
            }
            thread::sleep(rest);
            Ok(())
        };
        map.each_batch(BATCH, visit).with_context(|| format!("look at {table}"))?;
        let used = Pressure { table, used: seals.len() as u32, capacity: map.max_entries() };
        self.tell(used);
        self.alone.insert(table, alone(seals));
        Ok(())
    }

    fn tell(&mut self, used: Pressure) {
        for Pressure { table, used, capacity } in self.alarm.news([used]) {
            let option = option(table).unwrap_or_default();
            warn!(
                "table {table} is nearly full: {used} of {capacity} entries; flows that were used least recently are \
                 forgotten first, see {option}"
            );
        }
    }
}

/// Lets packets to no Service pass again where no flow is like them any more. Programs say "look" whenever one begins: what
/// they say after the question stands.
struct Directs(Map<u32, u32>);

impl Directs {
    fn ask(current: &Path) -> anyhow::Result<Self> {
        let this = Self(Map::open(&current.join(name::DIRECT))?);
        for place in 0..direct::WORDS {
            this.replace(place, direct::LOOK, direct::ASKED)?;
        }
        Ok(this)
    }

    fn answer(&self, like_direct: &[bool]) -> io::Result<()> {
        (0..).zip(like_direct).try_for_each(|(place, is_there)| {
            self.replace(place, direct::ASKED, if *is_there { direct::LOOK } else { direct::PASS })
        })
    }

    fn replace(&self, place: u32, old: u32, new: u32) -> io::Result<()> {
        if self.0.get(&place)? == Some(old) { self.0.set(&place, &new) } else { Ok(()) }
    }
}

/// Removes the flow that `key` files if it is to go. The reply entry goes last, so that a request never passes without a way
/// back. How many flows went.
fn forget<A: Ip>(map: &Map<FlowKey<A>, Flow<A>>, key: &FlowKey<A>, clock: &Clock) -> io::Result<usize>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let Some(entry) = map.get(key)? else { return Ok(0) };
    let partner_key = entry.partner_key(key, clock.settings.ports);
    let partner = map.get(&partner_key)?;
    match clock.fate(key, &entry, partner.as_ref()) {
        Fate::Stays => return Ok(0),
        Fate::Alone => map.remove(key)?,
        // What is in the partner's place may be another flow.
        Fate::Over if partner.is_none_or(|partner| partner.seal != entry.seal) => map.remove(key)?,
        Fate::Over => {
            map.remove(&entry.request_key())?;
            map.remove(&entry.reply_key(clock.settings.ports))?;
        }
    }
    Ok(1)
}

/// Those that do not come in pairs.
fn alone(mut seals: Vec<u32>) -> HashSet<u32> {
    seals.sort_unstable();
    seals.chunk_by(|a, b| a == b).filter(|same| same.len() % 2 == 1).map(|same| same[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_in_pairs_is_alone() {
        assert_eq!(alone(vec![7, 3, 7, 9, 9, 9, 4, 4, 4, 4]), [3, 9].into());
        assert_eq!(alone(Vec::new()), HashSet::new());
    }
}
