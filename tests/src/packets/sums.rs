//! Whether what the kernel knows of a packet's sum is right behind our programs.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::Array;

use crate::netns::Netns;
use crate::packets::{load, program};
use crate::world::PINS;

const PROGRAM: &str = "packet_sums";

/// A program that adds up what comes in by a device.
pub struct Sums(Ebpf);

impl Sums {
    /// Behind those of agents.
    pub fn watch(netns: &Netns, device: &str) -> Result<Self> {
        let mut ebpf = load()?;
        let (sums, pin) = (program(&mut ebpf, PROGRAM)?, Path::new(PINS).join(PROGRAM));
        sums.load()?;
        sums.pin(&pin)?;
        // An agent has it there already where it needs it.
        let _ = netns.output("tc", &["qdisc", "add", "dev", device, "clsact"]);
        let pin = pin.display().to_string();
        netns.output(
            "tc",
            &["filter", "add", "dev", device, "ingress", "pref", "50000", "bpf", "da", "object-pinned", &pin],
        )?;
        Ok(Self(ebpf))
    }

    /// Packets of which the kernel has a sum, and how many of these sums are wrong.
    pub fn seen(&self) -> Result<(u64, u64)> {
        let seen: Array<_, u64> = self.0.map("SUMMED").context("no table SUMMED")?.try_into()?;
        Ok((seen.get(&0, 0)?, seen.get(&1, 0)?))
    }
}
