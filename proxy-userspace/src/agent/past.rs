//! Whether flows may go past the stack now: as the command line says, while nothing of the node forbids it.

use anyhow::{Context, Result};
use tokio::sync::watch::Receiver;
use tracing::{info, warn};

use crate::attach::object::has_fast_path;
use crate::config::Config;
use crate::ipsec;

/// IPsec policies, where that is asked for and the kernel can do it.
pub(super) struct Past(Option<Receiver<bool>>);

impl Past {
    pub(super) fn begin(config: &Config) -> Result<Self> {
        if !config.kernel.fast_path {
            return Ok(Self(None));
        }
        if !has_fast_path() {
            warn!("--fast-path: this kernel cannot tell which packets fit (needs 5.12), all go through the stack");
            return Ok(Self(None));
        }
        let past = Self(ipsec::follow(config.kernel.netns.as_deref())?);
        if !past.is_free() {
            past.tell();
        }
        Ok(past)
    }

    /// Whether nothing forbids it.
    pub(super) fn is_free(&self) -> bool {
        !self.0.as_ref().is_some_and(|policies| *policies.borrow())
    }

    /// Once that is other than before.
    pub(super) async fn changed(&mut self) -> Result<()> {
        let Some(policies) = &mut self.0 else { return std::future::pending().await };
        policies.changed().await.context("IPsec policies are no longer followed")?;
        self.tell();
        Ok(())
    }

    fn tell(&self) {
        if self.is_free() {
            info!("--fast-path: the node has no IPsec policies any more, new flows go past the stack");
        } else {
            info!("--fast-path: the node has IPsec policies, all packets go through the stack");
        }
    }
}
