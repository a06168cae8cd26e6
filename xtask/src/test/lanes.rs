//! Stages that do not use up the machine, two at a time.
//!
//! In: jobs. Out: a row of the report for each, in the order in which they ended.

use std::sync::Mutex;
use std::thread;

use anyhow::Result;

use super::report::{Report, Row};
use crate::step::Outcome;

/// How many stages run at once. More would starve tests that count milliseconds.
pub(super) const LANES: usize = 2;

/// What takes longest begins first, so that all lanes end at about the same time.
const LONGEST: [&str; 5] = ["other kernels", "crash", "stress", "api", "outage"];

/// A stage that may run beside others.
pub(super) struct Job<'a> {
    stage: String,
    run: Box<dyn FnOnce(&str) -> Row + Send + 'a>,
}

impl<'a> Job<'a> {
    pub(super) fn check(stage: &str, run: impl FnOnce() -> Result<()> + Send + 'a) -> Self {
        Self { stage: stage.to_owned(), run: Box::new(|stage| Row::of_check(stage, run)) }
    }

    pub(super) fn tests(stage: &str, run: impl FnOnce() -> Result<Outcome> + Send + 'a) -> Self {
        Self { stage: stage.to_owned(), run: Box::new(|stage| Row::of_tests(stage, run)) }
    }

    /// Where in line it stands.
    fn rank(&self) -> usize {
        LONGEST.iter().position(|stage| *stage == self.stage).unwrap_or(LONGEST.len())
    }
}

pub(super) fn run(mut jobs: Vec<Job<'_>>, report: &mut Report) {
    jobs.sort_by_key(Job::rank);
    let (jobs, report) = (Mutex::new(jobs.into_iter()), Mutex::new(report));
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(Job { stage, run }) = { jobs.lock().expect("nobody panics").next() } {
                    let row = run(&stage);
                    report.lock().expect("nobody panics").add(row);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::Counts;

    fn job<'a>(stage: &'static str, ran: &'a Mutex<Vec<&'static str>>, fine: bool) -> Job<'a> {
        Job::check(stage, move || {
            ran.lock().unwrap().push(stage);
            anyhow::ensure!(fine, "{stage} fails");
            Ok(())
        })
    }

    #[test]
    fn every_job_is_run_once_and_a_failure_counts() {
        let ran = Mutex::new(Vec::new());
        let jobs = [("agent", true), ("socket", false), ("stress", true), ("crash", true)];
        let mut report = Report::default();
        run(jobs.map(|(stage, fine)| job(stage, &ran, fine)).into(), &mut report);
        assert_eq!(report.total(), Counts { passed: 3, failed: 1, ignored: 0 });
        let mut ran = ran.into_inner().unwrap();
        ran.sort_unstable();
        assert_eq!(ran, ["agent", "crash", "socket", "stress"]);
    }

    #[test]
    fn the_longest_begin_first_and_the_rest_stays_in_order() {
        let ran = Mutex::new(Vec::new());
        let mut jobs: Vec<_> = ["agent", "stress", "socket", "crash"].map(|stage| job(stage, &ran, true)).into();
        jobs.sort_by_key(Job::rank);
        let order: Vec<_> = jobs.iter().map(|job| job.stage.as_str()).collect();
        assert_eq!(order, ["crash", "stress", "agent", "socket"]);
    }
}
