//! How full the tables are that only programs write; those that the agent writes it counts itself.
//!
//! Nobody is told of a change in these, so they are looked at along with the sweep.

use std::mem::offset_of;

use anyhow::Context;
use proxy_common::abi::SocketFlow;
use proxy_common::tables::name;
use tracing::warn;

use crate::maps::kernel::option;
use crate::maps::pinned::{Pinned, read};
use crate::plan::{Alarm, Pressure};
use crate::sys::mapped::Mapped;

/// Names those tables that have just become nearly full.
pub(super) fn tell(alarm: &mut Alarm, maps: &Pinned) -> anyhow::Result<()> {
    for Pressure { table, used, capacity } in alarm.news(pressure(maps)?) {
        let (cost, option) = (cost(table), option(table).unwrap_or_default());
        warn!("table {table} is nearly full: {used} of {capacity} entries; {cost}, see {option}");
    }
    Ok(())
}

fn pressure(maps: &Pinned) -> anyhow::Result<[Pressure; 2]> {
    let sockets = Mapped::new(&maps.sockets).context("map SOCKETS")?;
    let open = sockets.used(offset_of!(SocketFlow, cookie)).count();
    let clients = read(name::AFFINITY, &maps.affinity)?.len();
    let of = |table, used: usize, capacity| Pressure { table, used: used as u32, capacity };
    Ok([of(name::SOCKETS, open, maps.sockets.max_entries()), of(name::AFFINITY, clients, maps.affinity.max_entries())])
}

/// What it means that an entry is missing.
fn cost(table: &str) -> &'static str {
    match table {
        name::SOCKETS => "sockets without one cost a little more",
        _ => "clients that were seen least recently are forgotten first",
    }
}
