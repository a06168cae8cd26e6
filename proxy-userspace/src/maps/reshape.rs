//! Flows in tables that cannot be ours: those of a version that files them with other fields, and those over which our programs
//! do not load.
//!
//! In: the folders of both. Out: our tables hold these flows too. [`Flows::bring`] is called twice, while their programs still
//! begin flows and once they do not: what began or went on in between comes with the second time. So does what is over: until
//! then they may give its port to a flow that ours would mistake for it.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use aya::Pod;
use proxy_common::abi::{Flow, FlowKey};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::socket::TCP;
use proxy_common::tables::name;
use tracing::warn;

use super::described::described;
use super::shape::{Conversion, Shape};
use crate::sys::bpf::{Map, MapInfo, Rows, of_bytes};

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
    established: Table<A>,
    embryonic: Table<A>,
}

/// A table of theirs, and the one of ours in its place.
#[derive(Debug)]
struct Table<A> {
    old: Rows,
    new: Map<FlowKey<A>, Flow<A>>,
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

    /// Brings what our tables lack, and what of it is news to them; says how many entries were brought, and what went wrong.
    pub fn bring(&self, which: Which) -> usize {
        let four = self.four.as_ref().map_or(Ok(0), |family| family.bring(which));
        let six = self.six.as_ref().map_or(Ok(0), |family| family.bring(which));
        [four, six].into_iter().map(|brought| brought.unwrap_or_else(forgotten)).sum()
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
    fn open(old: &Path, new: &Path, text: Option<&str>, tables: [&str; 2]) -> Option<Box<Self>> {
        let [established, embryonic] = tables.map(|table| {
            let opened = Table::open(&old.join(table), &new.join(table), text);
            opened.with_context(|| format!("table {table}")).unwrap_or_else(forgotten)
        });
        Some(Box::new(Self { established: established?, embryonic: embryonic? }))
    }

    /// A flow that was promoted in the meantime is in both tables of ours then, and belongs to one.
    fn bring(&self, which: Which) -> io::Result<usize> {
        let brought = self.embryonic.bring(which)? + self.established.bring(which)?;
        self.embryonic.new.each_batch(BATCH, |keys, flows| {
            for (key, flow) in keys.iter().zip(flows) {
                if self.established.new.get(key)?.is_some_and(|promoted| promoted.seal == flow.seal) {
                    self.embryonic.new.remove(key)?;
                }
            }
            Ok(())
        })?;
        Ok(brought)
    }
}

impl<A: Ip> Table<A>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    /// `None` where there is nothing to bring.
    fn open(old: &Path, new: &Path, text: Option<&str>) -> anyhow::Result<Option<Self>> {
        let new = Map::open(new)?;
        let old = match Rows::open(old) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
            old => old?,
        };
        if old.info().id == new.info().id {
            return Ok(None);
        }
        let ours = Shape::ours(A::FAMILY);
        let theirs = match text {
            Some(text) => Shape::read(text, A::FAMILY),
            None => ours.clone(),
        };
        let sizes = |info: &MapInfo| (info.key_size, info.value_size);
        if text.is_none() && sizes(old.info()) != sizes(new.info()) {
            bail!("nobody said what is in it");
        }
        let key = Conversion::new(&theirs.key, &ours.key).map_err(anyhow::Error::msg)?;
        let flow = Conversion::new(&theirs.flow, &ours.flow).map_err(anyhow::Error::msg)?;
        Ok(Some(Self { old, new, key, flow }))
    }

    fn bring(&self, which: Which) -> io::Result<usize> {
        let mut brought = 0;
        self.old.each_batch(BATCH, |entries| {
            for (key, flow) in entries.filter_map(|(key, flow)| self.ours(key, flow)) {
                if which == Which::GoingOn && has_ended(&key, &flow) {
                    continue;
                }
                if self.new.add(&key, &flow)? {
                    brought += 1;
                } else {
                    self.tell(&key, &flow)?;
                }
            }
            Ok(())
        })?;
        Ok(brought)
    }

    /// An entry in our words, unless it makes no sense in them.
    fn ours(&self, key: &[u8], flow: &[u8]) -> Option<(FlowKey<A>, Flow<A>)> {
        let key: FlowKey<A> = made(&self.key, key)?;
        // The seal is one of their fields, in their order.
        let flow = made::<Flow<A>>(&self.flow, flow)?.sealed();
        flow.is_at(&key).then_some((key, flow))
    }

    /// Our table has an entry there: this one as it was, or that of another flow, of which the key was or is by now.
    fn tell(&self, key: &FlowKey<A>, flow: &Flow<A>) -> io::Result<()> {
        let Some(known) = self.new.get(key)? else { return Ok(()) };
        if known.seal != flow.seal {
            return if has_passed_on(key, &known, flow) { self.new.set(key, flow) } else { Ok(()) };
        }
        let told = Flow {
            source: if known.source == A::ANY { flow.source } else { known.source },
            used: known.used.max(flow.used),
            seen: known.seen | flow.seen,
            seen_other: known.seen_other | flow.seen_other,
            ..known
        };
        if told == known { Ok(()) } else { self.new.set(key, &told) }
    }
}

/// Whether the flow that had the key gave it to `flow`. Seconds do not tell those of one second apart, but their states do.
fn has_passed_on<A: Ip>(key: &FlowKey<A>, had: &Flow<A>, flow: &Flow<A>) -> bool {
    had.used < flow.used || has_ended(key, had) && !has_ended(key, flow)
}

fn has_ended<A: Ip>(key: &FlowKey<A>, flow: &Flow<A>) -> bool {
    flow.proto == TCP && flow.tcp_state(key).is_over()
}

fn made<T: Pod>(conversion: &Conversion, theirs: &[u8]) -> Option<T> {
    let mut bytes = vec![0; size_of::<T>()];
    conversion.apply(theirs, &mut bytes)?;
    of_bytes(&bytes)
}
