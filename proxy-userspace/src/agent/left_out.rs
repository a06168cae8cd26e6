//! Cgroups that are not steered at their sockets, from what users write to the kernel's table.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tokio::sync::watch::Receiver;

use crate::attach::Datapath;
use crate::unsteered::{self, Pattern};

/// Those that patterns name; nobody without patterns.
pub(super) struct LeftOut(Option<Receiver<BTreeSet<u64>>>);

impl LeftOut {
    /// Leaves out whom `patterns` name now.
    pub(super) fn begin(datapath: &Datapath, patterns: &[Pattern]) -> Result<Self> {
        if patterns.is_empty() {
            return Ok(Self(None));
        }
        let mut latest = unsteered::follow(datapath.cgroup().to_owned(), patterns.to_vec())?;
        datapath.leave_out(&latest.borrow_and_update())?;
        Ok(Self(Some(latest)))
    }

    /// All of them, once they are others than before.
    pub(super) async fn changed(&mut self) -> Result<BTreeSet<u64>> {
        let Some(latest) = &mut self.0 else { return std::future::pending().await };
        latest.changed().await.context("cgroups are no longer followed")?;
        Ok(latest.borrow_and_update().clone())
    }
}
