//! What the stages came to: a table for people, one plain line for whoever counts, an exit code.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::Table;

use crate::step::{self, Outcome};
use crate::test::Strictness;

pub(super) struct Report {
    rows: Vec<Row>,
    begun: Instant,
}

/// What became of one stage.
pub(super) struct Row {
    stage: String,
    result: StageResult,
    took: Duration,
}

enum StageResult {
    Ran(Counts),
    LeftOut(String),
}

/// Tests of one stage; a stage that is no test program counts as one test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self { rows: Vec::new(), begun: Instant::now() }
    }
}

impl Report {
    pub(super) fn check(&mut self, stage: &str, run: impl FnOnce() -> Result<()>) {
        self.add(Row::of_check(stage, run));
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(super) fn left_out(&mut self, stage: &str, reason: String) {
        step::say(&format!("{stage}: left out: {reason}"));
        self.add(Row { stage: stage.to_owned(), result: StageResult::LeftOut(reason), took: Duration::ZERO });
    }

    /// Prints everything; success only if nothing failed and, where that matters, nothing was left out.
    pub(super) fn conclude(&self, strictness: Strictness) -> ExitCode {
        let total = self.total();
        println!("{}\n{} passed, {} failed", self.table(), total.passed, total.failed);
        let left_out =
            total.ignored + self.rows.iter().filter(|row| matches!(row.result, StageResult::LeftOut(_))).count();
        if strictness == Strictness::NothingLeftOut && left_out > 0 {
            eprintln!("error: CI leaves nothing out, but {left_out} stages or tests were");
            return ExitCode::FAILURE;
        }
        if total.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    pub(super) fn total(&self) -> Counts {
        self.rows.iter().fold(Counts::default(), |sum, row| match row.result {
            StageResult::Ran(counts) => sum.plus(counts),
            StageResult::LeftOut(_) => sum,
        })
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header(["stage", "result", "passed", "failed", "time"]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        // Less than the sum: some stages ran beside others.
        let (total, took) = (self.total(), self.begun.elapsed());
        table.add_row([
            "together".to_owned(),
            String::new(),
            total.passed.to_string(),
            total.failed.to_string(),
            step::seconds(took),
        ]);
        table
    }
}

impl Row {
    /// A stage that passes or fails as a whole.
    pub(super) fn of_check(stage: &str, run: impl FnOnce() -> Result<()>) -> Self {
        Self::timed(stage, || {
            run()?;
            Ok(Counts { passed: 1, ..Counts::default() })
        })
    }

    /// A stage that is one or more test programs; what they said is shown when something failed.
    pub(super) fn of_tests(stage: &str, run: impl FnOnce() -> Result<Outcome>) -> Self {
        Self::timed(stage, || run().map(|outcome| counts_of(&outcome)))
    }

    fn timed(stage: &str, run: impl FnOnce() -> Result<Counts>) -> Self {
        let started = Instant::now();
        let counts = run().unwrap_or_else(|error| {
            step::say(&format!("{stage}: {error:#}"));
            Counts { failed: 1, ..Counts::default() }
        });
        Self { stage: stage.to_owned(), result: StageResult::Ran(counts), took: started.elapsed() }
    }

    fn cells(&self) -> [String; 5] {
        match &self.result {
            StageResult::LeftOut(reason) => {
                [self.stage.clone(), format!("left out: {reason}"), "-".into(), "-".into(), "-".into()]
            }
            StageResult::Ran(counts) => [
                self.stage.clone(),
                counts.verdict(),
                counts.passed.to_string(),
                counts.failed.to_string(),
                step::seconds(self.took),
            ],
        }
    }
}

impl Counts {
    /// Adds up the summaries of test programs; one that died before its summary is one failure.
    pub(crate) fn of<'a>(lines: impl Iterator<Item = &'a str>, success: bool) -> Self {
        let counts = lines.filter_map(summary).fold(Self::default(), Self::plus);
        if success { counts } else { Self { failed: counts.failed.max(1), ..counts } }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    fn verdict(self) -> String {
        match self {
            Self { failed: 1.., .. } => "FAILED".to_owned(),
            Self { ignored: 1.., .. } => format!("passed, {} ignored", self.ignored),
            _ => "passed".to_owned(),
        }
    }
}

fn counts_of(outcome: &Outcome) -> Counts {
    let counts = Counts::of(outcome.output.lines(), outcome.status.success());
    if !outcome.status.success() {
        step::say(outcome.output.trim_end());
    }
    counts
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; ...`
fn summary(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in numbers.split("; ") {
        match part.split_once(' ')? {
            (number, "passed") => counts.passed = number.parse().ok()?,
            (number, "failed") => counts.failed = number.parse().ok()?,
            (number, "ignored") => counts.ignored = number.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_cargo_test_is_read() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(summary(line), Some(Counts { passed: 5, failed: 2, ignored: 1 }));
        assert_eq!(summary("running 5 tests"), None);
    }

    #[test]
    fn a_stage_left_out_fails_only_where_nothing_may_be() {
        let mut report = Report::default();
        report.check("format", || Ok(()));
        report.left_out("netns", "not root".to_owned());
        assert_eq!(report.conclude(Strictness::Lenient), ExitCode::SUCCESS);
        assert_eq!(report.conclude(Strictness::NothingLeftOut), ExitCode::FAILURE);
    }

    #[test]
    fn a_failed_stage_fails_the_run_and_is_counted() {
        let mut report = Report::default();
        report.check("format", || anyhow::bail!("one file differs"));
        assert_eq!(report.total(), Counts { passed: 0, failed: 1, ignored: 0 });
        assert_eq!(report.conclude(Strictness::Lenient), ExitCode::FAILURE);
    }
}
