//! How long to wait before the next try, so that a struggling API server is not hit by all nodes at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
/// After this long without a failure the next one counts as the first.
const FORGIVEN_AFTER: Duration = Duration::from_mins(2);

/// Doubles from [`FIRST`] to [`LONGEST`], each time with up to as much again by chance, never above the longest.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    last_failure: Option<Instant>,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST, last_failure: None }
    }

    /// The wait after a failure now; the server may ask for a longer one.
    pub(super) fn after_failure(&mut self, asked: Option<Duration>) -> Duration {
        let now = Instant::now();
        if self.last_failure.is_some_and(|last| now - last > FORGIVEN_AFTER) {
            self.next = FIRST;
        }
        self.last_failure = Some(now);
        let wait = (self.next + jitter(self.next)).min(LONGEST);
        self.next = (self.next * 2).min(LONGEST);
        wait.max(asked.unwrap_or_default())
    }
}

/// Anything from zero to `most`.
pub(super) fn jitter(most: Duration) -> Duration {
    // The standard library's hash keys are random; that is chance enough here.
    let chance = RandomState::new().build_hasher().finish() % 1024;
    most * (chance as u32) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_the_longest_and_start_over_after_a_quiet_time() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.after_failure(None)).collect();
        assert!(waits[0] >= FIRST && waits[0] <= FIRST * 2, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST), "{waits:?}");
        assert_eq!(waits[11], LONGEST);
        tokio::time::advance(FORGIVEN_AFTER * 2).await;
        assert!(backoff.after_failure(None) <= FIRST * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_asks_for_more_time_gets_it() {
        let asked = Duration::from_secs(77);
        assert_eq!(Backoff::new().after_failure(Some(asked)), asked);
    }
}
