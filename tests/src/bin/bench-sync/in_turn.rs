//! The same change in a small cluster and in a large one, in turn: what else the machine does meanwhile meets both alike.
//!
//! In: an agent with the large cluster. Out: what both agents said about each change.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow};
use proxy_tests::cluster::Size;

use crate::feed::Source;
use crate::subject::Who;
use crate::trial::{Heard, Trial};

pub(crate) const SMALL: Size = Size { services: 100, endpoints: 10 };
const ROUNDS: usize = 50;
const CHANGES: usize = 20;

/// What the agents of the small and of the large cluster said.
#[derive(Clone, Debug, Default)]
pub(crate) struct InTurn {
    pub(crate) small: Vec<Heard>,
    pub(crate) large: Vec<Heard>,
}

impl InTurn {
    pub(crate) fn measure(large: &Trial) -> Result<Self> {
        let (ask, asked) = sync_channel(0);
        let (tell, told) = sync_channel(0);
        thread::scope(|scope| {
            // A world is the thread's that made it.
            let small = scope.spawn(move || answer(&asked, &tell));
            let found = Self::gather(large, &ask, &told);
            drop((ask, told));
            let answered = small.join().map_err(|_| anyhow!("the thread of the small cluster panicked"))?;
            answered.context("a small cluster beside the large one").and(found)
        })
    }

    fn gather(large: &Trial, ask: &SyncSender<()>, told: &Receiver<Vec<Heard>>) -> Result<Self> {
        let mut found = Self::default();
        for _ in 0..ROUNDS {
            ask.send(()).context("the small cluster is gone")?;
            found.small.extend(told.recv().context("the small cluster is gone")?);
            found.large.extend(changes(large)?);
        }
        Ok(found)
    }
}

/// Runs the small cluster, and changes it whenever it is asked to.
fn answer(asked: &Receiver<()>, tell: &SyncSender<Vec<Heard>>) -> Result<()> {
    let (small, _) = Trial::start(Who::Sluice, Source::Replayed, SMALL, crate::PATIENCE)?;
    while asked.recv().is_ok() {
        tell.send(changes(&small)?).context("nobody listens")?;
    }
    Ok(())
}

fn changes(trial: &Trial) -> Result<Vec<Heard>> {
    let from = trial.log_length();
    trial.flips(CHANGES)?;
    Ok(trial.heard(from))
}
