//! When to give back what went out of use: in the first pause, or at last without one.

use std::time::{Duration, Instant};

/// After this long without a change, ids that went out of use are given back.
const IDLE: Duration = Duration::from_millis(200);
/// Where changes never pause, they are given back this long after they went out of use.
const LONGEST_UNTIDY: Duration = Duration::from_millis(500);

/// Since when there is something to give back.
#[derive(Debug, Default)]
pub(super) struct Untidy(Option<Instant>);

impl Untidy {
    /// When to give back, unless something happens before. `untidy` says whether there is something.
    pub(super) fn tidy_at(&mut self, untidy: bool, now: Instant) -> Option<Instant> {
        self.0 = untidy.then(|| self.0.unwrap_or(now));
        self.0.map(|since| (now + IDLE).min(since + LONGEST_UNTIDY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_used_and_changes_that_never_pause_put_it_off_for_half_a_second_only() {
        let (start, mut untidy) = (Instant::now(), Untidy::default());
        let mut due_after = |milliseconds, is_untidy| {
            let due = untidy.tidy_at(is_untidy, start + Duration::from_millis(milliseconds));
            due.map(|due| (due - start).as_millis())
        };
        assert_eq!(due_after(0, false), None);
        let after_each_change = [100, 200, 300, 400, 500, 600].map(|now| due_after(now, true).unwrap());
        assert_eq!(after_each_change, [300, 400, 500, 600, 600, 600]);
        assert_eq!(due_after(650, false), None);
        assert_eq!(due_after(700, true), Some(900), "the next time begins anew");
    }
}
