//! The programs of devices, from the test object and over tables of their own: time and chance are what a case says.

pub mod sums;
pub mod twin;
pub mod wire;

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use proxy_common::index;
use proxy_common::packet::cases::FRONTENDS;
use proxy_common::tables::Capacity;
use proxy_userspace::maps::pinned::{Entries, layouts};

use crate::hooks::test_object;

/// In the test object: what comes in by a device, and what goes out.
pub const PROGRAMS: [&str; 2] = ["tc_egress", "tc_ingress"];

/// Small tables are made sooner.
const CAPACITY: Capacity = Capacity {
    // As the cases have them.
    frontends: FRONTENDS,
    services: 1024,
    versions: 1024,
    slots: 4096,
    backends: 1024,
    sources: 1024,
    affinity: 1024,
    sockets: 1024,
    flows: Capacity::DEFAULT.flows,
};

/// Loads both programs with all that they can do.
pub fn load() -> Result<Ebpf> {
    load_as(CAPACITY.flows, true, true)
}

/// Loads both programs with room for so many flows, which may go past the stack.
pub fn load_with(flows: u32, fast_path: bool) -> Result<Ebpf> {
    load_as(flows, fast_path, false)
}

fn load_as(flows: u32, fast_path: bool, succeeds: bool) -> Result<Ebpf> {
    let capacity = Capacity { flows, ..CAPACITY };
    let (fast_path, succeeds) = (u8::from(fast_path), u8::from(succeeds));
    let (mut loader, buckets) = (EbpfLoader::new(), index::buckets(FRONTENDS));
    loader.override_global("INDEX_BUCKETS", &buckets, true);
    loader.override_global("FLOWS", &flows, true);
    loader.override_global("HAS_FAST_PATH", &fast_path, true);
    loader.override_global("HAS_PREDECESSORS", &succeeds, true);
    for layout in layouts() {
        if let Entries::Chosen(entries) = layout.entries {
            loader.map_max_entries(layout.name, entries(&capacity));
        }
    }
    for name in ["COST_FLOWS4", "COST_FLOWS6"] {
        loader.map_max_entries(name, 2 * flows);
    }
    let mut ebpf = loader.load(&test_object()?)?;
    for name in PROGRAMS {
        program(&mut ebpf, name)?.load().with_context(|| format!("load {name}"))?;
    }
    Ok(ebpf)
}

/// One of [`PROGRAMS`].
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name} in the test object"))?;
    program.try_into().with_context(|| format!("the kind of program {name}"))
}
