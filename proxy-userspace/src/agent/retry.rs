//! When to try again what failed: soon, then less and less often.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Retry {
    /// In a row.
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// It failed once more; the answer is how long to wait.
    pub(super) fn failed(&mut self) -> Duration {
        let wait = (FIRST * 2_u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures += 1;
        self.at = Some(Instant::now() + wait);
        wait
    }

    /// It is tried now. What fails again waits longer; whoever succeeds begins anew.
    pub(super) fn begin(&mut self) {
        self.at = None;
    }

    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn is_early(&self) -> bool {
        self.at.is_some_and(|at| Instant::now() < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut retry = Retry::default();
        let waits: Vec<u64> = (0..40).map(|_| retry.failed().as_secs()).collect();
        assert_eq!(waits[..7], [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(waits[39], 30);
        assert!(retry.is_early());
        retry.begin();
        assert!(!retry.is_early() && retry.at().is_none());
    }
}
