//! REASONS, by reason. Programs count on the processor that they run on; what the agent counts is added to the first.
//!
//! In: the folder of the tables. Out: a number for each reason, for `sluice check` and whoever else tells them.

use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues};
use proxy_common::reason::Reason;
use proxy_common::tables::name;

#[expect(missing_debug_implementations, reason = "aya has none for its map")]
pub struct Reasons(PerCpuArray<MapData, u64>);

impl Reasons {
    pub fn open(folder: &Path) -> Result<Self, MapError> {
        let data = MapData::from_pin(folder.join(name::REASONS))?;
        PerCpuArray::try_from(Map::PerCpuArray(data)).map(Self)
    }

    /// How often it was counted.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(&(reason as u32), 0).map_or(0, |counters| counters.iter().sum())
    }

    /// Counts what no program counts.
    pub fn add(&mut self, reason: Reason, times: u64) -> Result<(), MapError> {
        let mut counters = self.0.get(&(reason as u32), 0)?.to_vec();
        counters[0] += times;
        self.0.set(reason as u32, PerCpuValues::try_from(counters).map_err(MapError::IoError)?, 0)
    }
}
