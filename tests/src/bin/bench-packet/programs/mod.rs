//! The programs by themselves, in both families.
//!
//! In: the test object, and the packet cases of every day with the tables they meet. Out: nanoseconds. Each packet goes through
//! `BPF_PROG_TEST_RUN` many times in a row, made anew before each run by a first program that all lanes have in common; lanes
//! take turns, so that all meet the same moments of a noisy machine. One comes twice: how much the two differ is the noise.
//! Time is the kernel's own count.

mod figures;
mod lane;
mod node;

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use proxy_common::abi::{Flow, FlowKey, FragmentKey};
use proxy_common::packet::cases::observe::{Run, observe};
use proxy_common::packet::cases::run_everyday;
use proxy_common::packet::ip::{V4, V6};
use proxy_tests::bench::{Report, pin_to_one_cpu};
use proxy_tests::netns::Netns;
use proxy_tests::packets::twin::Tables;

use lane::{LANES, Which};
use node::Node;

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    /// Flows that are established, and room for as many that begin; a power of two.
    flows: u32,
}

const SCALE: Scale = Scale { rounds: 200, flows: 1 << 17 };
const QUICK: Scale = Scale { rounds: 3, flows: 1 << 14 };
/// What tables of flows have room for by default.
const DEFAULT_FLOWS: u32 = 32_768;

/// Fills `report`.
pub(crate) fn measure(report: &mut Report, quick: bool) -> Result<()> {
    // Nobody has a socket there.
    Netns::new()?.enter()?;
    pin_to_one_cpu()?;
    let scale = if quick { QUICK } else { SCALE };
    // An LRU keeps some of its entries apart for each CPU.
    let roomy = Node::load(scale.flows + scale.flows / 8, false)?;
    let mut nodes = Nodes { roomy, full: Node::load(DEFAULT_FLOWS, false)?, fast: Node::load(DEFAULT_FLOWS, true)? };
    let (four, six) = everyday();
    report.note(format!("Programs: {} rounds; in each, every lane has its packets in a row.", scale.rounds));
    figures::tell(report, "IPv4", &rounds(&mut nodes, &four, scale)?);
    figures::tell(report, "IPv6", &rounds(&mut nodes, &six, scale)?);
    Ok(())
}

/// By [`Which`].
struct Nodes {
    roomy: Node,
    full: Node,
    fast: Node,
}

impl Nodes {
    fn get(&mut self, which: Which) -> &mut Node {
        match which {
            Which::Roomy => &mut self.roomy,
            Which::Full => &mut self.full,
            Which::Fast => &mut self.fast,
        }
    }
}

/// The packets of every day, with the tables that each met.
fn everyday() -> (Vec<Run<V4>>, Vec<Run<V6>>) {
    let seen = Rc::new(RefCell::new((Vec::new(), Vec::new())));
    let keep = Rc::clone(&seen);
    observe(move |run: &dyn Any| {
        let (four, six) = &mut *keep.borrow_mut();
        four.extend(run.downcast_ref::<Run<V4>>().filter(|run| !run.is_cut).cloned());
        six.extend(run.downcast_ref::<Run<V6>>().filter(|run| !run.is_cut).cloned());
    });
    run_everyday();
    seen.take()
}

/// Nanoseconds of a packet, a sample for each batch.
pub(crate) struct Measured {
    /// The empty program without the first one.
    pub(crate) alone: Vec<f64>,
    /// By lane, the first program included.
    pub(crate) lanes: Vec<Vec<f64>>,
}

/// Every lane's batches, in turn.
fn rounds<A: Tables>(nodes: &mut Nodes, runs: &[Run<A>], scale: Scale) -> Result<Measured>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    FragmentKey<A>: Pod,
{
    [Which::Roomy, Which::Full, Which::Fast].into_iter().try_for_each(|which| nodes.get(which).prepare(runs))?;
    nodes.roomy.establish(runs, scale.flows)?;
    let (mut batches, alone) = (Vec::new(), nodes.roomy.batch(&LANES[0], runs, scale.flows)?);
    for lane in &LANES {
        let mut batch = nodes.roomy.batch(lane, runs, scale.flows)?;
        if lane.on == Which::Full {
            nodes.full.fill(&mut batch, 2 * DEFAULT_FLOWS)?;
        }
        batches.push(batch);
    }
    let mut measured = Measured { alone: Vec::new(), lanes: vec![Vec::new(); LANES.len()] };
    for _ in 0..scale.rounds {
        measured.alone.push(nodes.roomy.alone(&alone)?);
        for ((lane, batch), samples) in LANES.iter().zip(&mut batches).zip(&mut measured.lanes) {
            samples.push(nodes.get(lane.on).run(batch).with_context(|| lane.name)?);
        }
    }
    let begun = 2 * scale.rounds * lane::NEW as usize;
    let found = nodes.roomy.entries::<FlowKey<A>, Flow<A>>(A::EMBRYONIC)?;
    ensure!(found == begun, "{found} entries of {begun} are left where there was room for all");
    Ok(measured)
}
