//! How long the programs of a node run while requests pass, as the kernel itself counts it: what `BPF_PROG_TEST_RUN` says of
//! them is held against it. Both read the clock twice for each run, so an empty program is counted beside.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::SchedClassifier;
use aya::sys::{Stats, enable_stats};
use nix::net::if_::if_nametoindex;
use proxy_tests::bench::{Inside, Kind};
use proxy_tests::hooks::test_object;
use proxy_tests::node::Node;
use proxy_userspace::attach::object::DEVICE_HOOKS;
use proxy_userspace::attach::pins::Folder;
use proxy_userspace::sys::bpf::{tcx, tcx_attach};

use super::{Lane, REQUESTS};

/// A program while requests of a lane pass it.
pub(super) struct Counted {
    pub(super) name: String,
    pub(super) nanoseconds: Vec<f64>,
    lane: usize,
    program: Inside,
}

/// Nanoseconds of a run, by program: a sample for each round. `clean` is the node of the first lane.
pub(super) fn measure(lanes: &[Lane], clean: &Node, rounds: usize) -> Result<Vec<Counted>> {
    let (empty, _link) = attach_empty(clean)?;
    let mut counted = vec![Counted::new("an empty program".to_owned(), 0, empty)];
    for (at, lane) in lanes.iter().enumerate().filter(|(_, lane)| lane.kind == Kind::Sluice) {
        let node = lane.node.as_ref().context("an agent has a node")?;
        for hook in DEVICE_HOOKS {
            let program = Inside::of_pin(&Folder::at(node).current().join(hook))?;
            counted.push(Counted::new(format!("{}, {hook}", lane.name), at, program));
        }
    }
    let _counting = enable_stats(Stats::RunTime).context("let the kernel count the time in programs")?;
    for _ in 0..rounds {
        for counted in &mut counted {
            let session = lanes[counted.lane].session()?;
            let before = counted.program.so_far()?;
            (0..REQUESTS).try_for_each(|_| session.ask())?;
            counted.nanoseconds.push(counted.program.so_far()?.per_run_since(before));
        }
    }
    Ok(counted)
}

impl Counted {
    fn new(name: String, lane: usize, program: Inside) -> Self {
        Self { name, nanoseconds: Vec::new(), lane, program }
    }
}

/// What requests to the node's pod pass, as long as the link is held.
fn attach_empty(node: &Node) -> Result<(Inside, OwnedFd)> {
    let mut ebpf = Ebpf::load(&test_object()?)?;
    let program: &mut SchedClassifier =
        ebpf.program_mut("cost_packet_nothing").context("no empty program")?.try_into()?;
    program.load()?;
    let link =
        node.netns.inside(|| Ok(tcx_attach(program.fd()?.as_fd(), if_nametoindex("eth0")?, tcx::INGRESS, 0)?))?;
    Ok((Inside::of(&program.info()?)?, link))
}
