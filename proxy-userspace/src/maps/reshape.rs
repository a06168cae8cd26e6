//! Flows in tables that cannot be ours: those of a version that files them with other fields, and those over which our programs
//! do not load.
//!
//! In: the folders of both. Out: our tables hold these flows too ([`super::adopt`]). [`Flows::bring`] is called while
//! their programs still begin flows, and once they do not: what began or went on in between comes with the last time. So does
//! what is over: until then they may give its port to a flow that ours would mistake for it.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use aya::Pod;
use proxy_common::abi::{Flow, FlowKey};
use proxy_common::packet::Table;
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::packet::track::Found;
use proxy_common::tables::name;
use tracing::warn;

use super::adopt::{Ours, has_ended};
use super::described::described;
use super::shape::{Conversion, Shape};
use crate::sys::bpf::{MapInfo, Rows, of_bytes};
use crate::sys::passes;

/// Entries that are read at once: few, since what ends after it was read is not known to have ended.
const BATCH: usize = 256;

/// The tables whose flows are to be brought; none where both folders have the same ones.
#[derive(Debug)]
pub struct Flows {
    four: Option<Box<Family<V4>>>,
    six: Option<Box<Family<V6>>>,
}

/// Which flows are brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Connections that have not ended, and whatever does not end.
    GoingOn,
    All,
}

#[derive(Debug)]
struct Family<A> {
    established: Theirs,
    embryonic: Theirs,
    ours: Ours<A>,
}

/// A table of theirs, and how it is read.
#[derive(Debug)]
struct Theirs {
    rows: Rows,
    key: Conversion,
    flow: Conversion,
}

impl Flows {
    /// What tables in `old` hold that are not those in `new`. Says what cannot be had.
    pub fn between(old: &Path, new: &Path) -> Self {
        let text = described(old).unwrap_or_else(forgotten);
        Self {
            four: Family::open(old, new, text.as_deref(), [name::FLOWS4, name::EMBRYONIC4]),
            six: Family::open(old, new, text.as_deref(), [name::FLOWS6, name::EMBRYONIC6]),
        }
    }

    /// Whether there are other tables at all.
    pub fn are_brought(&self) -> bool {
        self.four.is_some() || self.six.is_some()
    }

    /// Brings what our tables lack, and what of it is news to them; how many entries were brought. An error passes, and all may
    /// be brought again; what other errors are about is forgotten, and said.
    pub fn bring(&self, which: Which) -> io::Result<usize> {
        let four = self.four.as_ref().map_or(Ok(0), |family| family.bring(which));
        let six = self.six.as_ref().map_or(Ok(0), |family| family.bring(which));
        [four, six].into_iter().try_fold(0, |sum, brought| match brought {
            Err(error) if passes(&error) => Err(error),
            brought => Ok(sum + brought.unwrap_or_else(forgotten)),
        })
    }
}

fn forgotten<T: Default>(error: impl std::fmt::Display) -> T {
    warn!("some flows of packets are forgotten: {error:#}");
    T::default()
}

impl<A: Ip> Family<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    /// `None` where there is nothing to bring.
    fn open(old: &Path, new: &Path, text: Option<&str>, tables: [&str; 2]) -> Option<Box<Self>> {
        let ours = Ours::open(new, tables).map_or_else(forgotten, Some)?;
        let theirs = |name: &str, table| {
            let opened = Theirs::open::<A>(&old.join(name), ours.table(table).info(), text);
            opened.with_context(|| format!("table {name}")).unwrap_or_else(forgotten)
        };
        let [established, embryonic] = tables;
        let (established, embryonic) = (theirs(established, Table::Established)?, theirs(embryonic, Table::Embryonic)?);
        Some(Box::new(Self { established, embryonic, ours }))
    }

    fn bring(&self, which: Which) -> io::Result<usize> {
        // What has ended is wanted least, so it comes where floods go, and leaves room to those: who is in use there, and was not
        // heard of since it came, would be the first to go.
        let mut room = self.ours.table(Table::Embryonic).max_entries() as usize / 2;
        let (adopter, mut brought) = (self.ours.adopter()?, 0);
        for (theirs, table) in [(&self.embryonic, Table::Embryonic), (&self.established, Table::Established)] {
            theirs.each(|key, flow| {
                if !adopter.is_alive(&key, &flow) {
                    return Ok(());
                }
                let has_ended = has_ended(&key, &flow);
                let found = Found { table: if has_ended { Table::Embryonic } else { table }, flow };
                if has_ended && which == Which::GoingOn || adopter.tell(&key, &found)? || has_ended && room == 0 {
                    return Ok(());
                }
                let new = adopter.place(&key, &found)?;
                brought += new;
                if has_ended {
                    room = room.saturating_sub(new);
                }
                Ok(())
            })?;
        }
        Ok(brought)
    }
}

impl Theirs {
    /// `None` where there is no such table, or it is `ours`.
    fn open<A: Ip>(path: &Path, ours: &MapInfo, text: Option<&str>) -> anyhow::Result<Option<Self>> {
        let rows = match Rows::open(path) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
            rows => rows?,
        };
        if rows.info().id == ours.id {
            return Ok(None);
        }
        let shape = Shape::ours(A::FAMILY);
        let theirs = match text {
            Some(text) => Shape::read(text, A::FAMILY),
            None => shape.clone(),
        };
        let sizes = |info: &MapInfo| (info.key_size, info.value_size);
        if text.is_none() && sizes(rows.info()) != sizes(ours) {
            bail!("nobody said what is in it");
        }
        let key = Conversion::new(&theirs.key, &shape.key).map_err(anyhow::Error::msg)?;
        let flow = Conversion::new(&theirs.flow, &shape.flow).map_err(anyhow::Error::msg)?;
        Ok(Some(Self { rows, key, flow }))
    }

    /// Shows every entry in our words, but for those that make no sense in them.
    fn each<A: Ip>(&self, mut visit: impl FnMut(FlowKey<A>, Flow<A>) -> io::Result<()>) -> io::Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        self.rows.each_batch(BATCH, |entries| {
            entries.filter_map(|(key, flow)| self.ours(key, flow)).try_for_each(|(key, flow)| visit(key, flow))
        })
    }

    fn ours<A: Ip>(&self, key: &[u8], flow: &[u8]) -> Option<(FlowKey<A>, Flow<A>)>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let key: FlowKey<A> = made(&self.key, key)?;
        // The seal is one of their fields, in their order.
        let flow = made::<Flow<A>>(&self.flow, flow)?.sealed();
        flow.is_at(&key).then_some((key, flow))
    }
}

fn made<T: Pod>(conversion: &Conversion, theirs: &[u8]) -> Option<T> {
    let mut bytes = vec![0; size_of::<T>()];
    conversion.apply(theirs, &mut bytes)?;
    of_bytes(&bytes)
}
