//! Programs that do less than any hook can: what is left of a cost when they are subtracted is ours.
//!
//! In: the object with the test programs. Out: cgroups with one of them attached.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::HashMap;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use proxy_common::abi::FrontendKey;
use proxy_common::addr::{Addr, Be16};
use proxy_common::socket::TCP;
use proxy_tests::bench::Inside;
use proxy_tests::hooks::test_object;

/// What each is called for people, and in the object.
pub(crate) const FLOORS: [(&str, &str); 2] =
    [("direct to the pod, an empty program", "cost_empty"), ("direct to the pod, one random look-up", "cost_lookup")];
/// The table that one of them looks into: it has every key.
const TABLE: &str = "COST_LOOKUP";
const KEYS: u32 = 65_536;

/// The programs, attached as long as this lives.
pub(crate) struct Floors(Ebpf);

impl Floors {
    pub(crate) fn load() -> Result<Self> {
        let mut ebpf = Ebpf::load(&test_object()?)?;
        let mut table: HashMap<_, FrontendKey, u32> = HashMap::try_from(ebpf.map_mut(TABLE).context(TABLE)?)?;
        for number in 0..KEYS {
            let key = FrontendKey { addr: Addr::v4(number.to_be_bytes()), port: Be16::new(80), proto: TCP, pad: 0 };
            table.insert(key, number, 0).context(TABLE)?;
        }
        Ok(Self(ebpf))
    }

    pub(crate) fn attach(&mut self, name: &str, cgroup: &Path) -> Result<Inside> {
        let program = self.0.program_mut(name).with_context(|| format!("no program {name}"))?;
        let program: &mut CgroupSockAddr = program.try_into()?;
        program.load()?;
        program.attach(File::open(cgroup)?, CgroupAttachMode::Single)?;
        Inside::of(&program.info()?)
    }
}
