//! What the guests said, as tables: every program on every kernel, and every test program on every kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

use crate::kernels::TestProgram;
use crate::kernels::declared::{LEFT_OUT, LeftOut};
use crate::step;
use crate::test::Counts;

/// The most instructions that a program may cost the verifier, a tenth of what kernels allow.
const LIMIT: u32 = 100_000;

/// What one kernel made of programs and tests.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// As the kernel calls itself.
    pub(super) kernel: String,
    pub(super) loads: Vec<Load>,
    pub(super) tests: Vec<Test>,
    /// From the start of QEMU to its end.
    pub(super) took: Duration,
    /// What a person needs to know about failures.
    pub(super) complaints: Vec<String>,
}

/// A program that this kernel took.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) program: String,
    pub(super) instructions: u32,
    /// Bytes of its largest function.
    pub(super) stack: u32,
    pub(super) microseconds: u64,
}

/// What a guest was asked to show of one test program.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) program: String,
    /// The tests that run.
    pub(super) tests: Vec<String>,
    pub(super) left_out: Vec<String>,
}

/// What became of one test program.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) counts: Counts,
    pub(super) left_out: usize,
    pub(super) seconds: String,
}

impl Findings {
    /// Reads the lines of a guest. `loader` names the program whose lines are loads.
    pub(super) fn read(series: &str, lines: &[String], loader: &str, expected: &[Expected], took: Duration) -> Self {
        let mut findings = Self { kernel: series.to_owned(), took, ..Self::default() };
        let (mut name, mut said, mut over) = (String::new(), Vec::new(), false);
        for line in lines {
            match line.strip_prefix("@@ ").map(|marker| marker.split_once(' ').unwrap_or((marker, ""))) {
                Some(("kernel", release)) => release.clone_into(&mut findings.kernel),
                Some(("start", program)) => (name, said) = (program.to_owned(), Vec::new()),
                Some(("end", rest)) => findings.ended(&name, rest, &said, loader, expected),
                Some(("over", _)) => over = true,
                _ => said.push(line.as_str()),
            }
        }
        if !over {
            findings.complaints.push(format!("the guest stopped early, at {name:?}:\n{}", said.join("\n")));
        }
        findings
    }

    fn ended(&mut self, name: &str, rest: &str, said: &[&str], loader: &str, expected: &[Expected]) {
        let mut words = rest.rsplit(' ');
        let (status, seconds) = (words.next().unwrap_or("-1"), words.next().unwrap_or("?").to_owned());
        if name == loader {
            self.loads.extend(said.iter().filter_map(|line| load(line)));
            self.complaints.extend(self.loads.iter().filter(|load| load.instructions > LIMIT).map(|load| {
                format!("{}: {} instructions verified, {LIMIT} are allowed", load.program, load.instructions)
            }));
        }
        if let Some(expected) = expected.iter().find(|expected| expected.program == name) {
            // A test that fails shows what it said, and may have run others.
            let summary = said.iter().rfind(|line| line.starts_with("test result: "));
            let counts = Counts::of(summary.copied().into_iter(), status == "0");
            let unfinished = expected.unfinished(said);
            if !unfinished.is_empty() {
                self.complaints.push(format!("{name} did not get to the end of {}", unfinished.join(", ")));
            }
            self.tests.push(Test { name: name.to_owned(), counts, left_out: expected.left_out.len(), seconds });
        }
        if status != "0" {
            let ended = if status == "124" { "took too long".to_owned() } else { format!("ended with {status}") };
            self.complaints.push(format!("{name} {ended}:\n{}", said.join("\n")));
        }
    }

    pub(super) fn fine(&self) -> bool {
        self.complaints.is_empty()
    }
}

impl Expected {
    /// The tests of which the program did not say how they ended: `test NAME ... ok`.
    fn unfinished(&self, said: &[&str]) -> Vec<&str> {
        let ended: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("test ")?.split(' ').next()).collect();
        self.tests.iter().map(String::as_str).filter(|test| !ended.contains(test)).collect()
    }
}

/// `connect4 94440 264+0 112881`, as the loader prints it.
fn load(line: &str) -> Option<Load> {
    let mut words = line.split(' ');
    Some(Load {
        program: words.next()?.to_owned(),
        instructions: words.next()?.parse().ok()?,
        stack: words.next()?.split('+').map(str::parse).collect::<Result<Vec<_>, _>>().ok()?.into_iter().max()?,
        microseconds: words.next()?.parse().ok()?,
    })
}

/// Programs by kernel: instructions, stack, milliseconds.
pub(super) fn loads(all: &[Findings]) -> Table {
    by_program(all, |load| format!("{}, {} ms", load.cost(), load.microseconds.div_ceil(1000)))
}

/// Programs by kernel: instructions, stack.
pub(super) fn costs(all: &[Findings]) -> Table {
    by_program(all, Load::cost)
}

fn by_program(all: &[Findings], cell: impl Fn(&Load) -> String) -> Table {
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for load in all.iter().flat_map(|findings| &findings.loads) {
        rows.entry(&load.program).or_default();
    }
    for findings in all {
        for (program, cells) in &mut rows {
            let load = findings.loads.iter().find(|load| load.program == *program);
            cells.push(load.map_or("FAILED".to_owned(), &cell));
        }
    }
    table("program", all, rows.into_iter())
}

impl Load {
    fn cost(&self) -> String {
        format!("{}, {} B", thousands(self.instructions), self.stack)
    }
}

/// `94,440`
fn thousands(number: u32) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", thousands(number / 1000), number % 1000) }
}

/// Test programs by kernel: passed, failed, left out, seconds.
pub(super) fn tests(all: &[Findings]) -> Table {
    let together = ("together", all.iter().map(Findings::together).collect());
    table("tests", all, by_test(all, Test::cell).chain([together]))
}

/// Test programs by kernel: passed.
pub(super) fn passed(all: &[Findings]) -> Table {
    table("tests", all, by_test(all, |test| test.counts.passed.to_string()))
}

fn by_test(all: &[Findings], cell: impl Fn(&Test) -> String) -> impl Iterator<Item = (&str, Vec<String>)> {
    let mut programs: Vec<&str> = Vec::new();
    for test in all.iter().flat_map(|findings| &findings.tests) {
        if !programs.contains(&test.name.as_str()) {
            programs.push(&test.name);
        }
    }
    let of = move |findings: &Findings, name: &str| {
        let test = findings.tests.iter().find(|test| test.name == name);
        test.map_or("-".to_owned(), &cell)
    };
    programs.into_iter().map(move |name| (name, all.iter().map(|findings| of(findings, name)).collect()))
}

/// What guests do not run, and why.
pub(super) fn left_out(programs: &[TestProgram]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["tests", "number", "kernels", "reason"]);
    let number = |line: &LeftOut| {
        let program = programs.iter().find(|program| program.name == line.program && line.test.is_none());
        program.map_or(1, |program| program.tests.len()).to_string()
    };
    for line in &LEFT_OUT {
        let name = line.test.map_or(line.program.to_owned(), |test| format!("{} {test}", line.program));
        table.add_row([name, number(line), line.kernels(), line.reason.to_owned()]);
    }
    table
}

impl Test {
    fn cell(&self) -> String {
        said(self.counts, self.left_out, &format!("{} s", self.seconds))
    }
}

impl Findings {
    /// All tests of this kernel, and the time of the guest with its start.
    fn together(&self) -> String {
        said(self.counts(), self.tests.iter().map(|test| test.left_out).sum(), &step::seconds(self.took))
    }

    pub(super) fn counts(&self) -> Counts {
        self.tests.iter().map(|test| test.counts).fold(Counts::default(), Counts::plus)
    }
}

fn said(counts: Counts, left_out: usize, seconds: &str) -> String {
    let failed = if counts.failed > 0 { format!(", {} FAILED", counts.failed) } else { String::new() };
    let left_out = if left_out > 0 { format!(", {left_out} left out") } else { String::new() };
    format!("{} passed{failed}{left_out}, {seconds}", counts.passed)
}

fn table<'a>(first: &str, all: &[Findings], rows: impl Iterator<Item = (&'a str, Vec<String>)>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([first].into_iter().chain(all.iter().map(|findings| findings.kernel.as_str())));
    for (name, cells) in rows {
        table.add_row([name.to_owned()].into_iter().chain(cells));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Findings {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let tests = ["a_dial_is_served", "a_refusal_is_told"].map(str::to_owned).into();
        let hooks = Expected { program: "hooks".to_owned(), tests, left_out: vec!["new_kernels_only".to_owned()] };
        Findings::read("6.1", &lines, "verifier", &[hooks], Duration::from_secs(70))
    }

    #[test]
    fn what_a_guest_says_becomes_loads_and_counts() {
        let findings = read(
            "@@ kernel 6.1.0-50-amd64\n@@ start verifier\nconnect4 94440 24+264 1128\n@@ end verifier 1.5 0\n\
             @@ start hooks\ntest a_dial_is_served ... ok\ntest a_refusal_is_told ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\n@@ end hooks 9.5 0\n@@ over",
        );
        assert!(findings.fine(), "{findings:?}");
        assert_eq!(findings.loads[0].cost(), "94,440, 264 B");
        assert_eq!(findings.tests[0].cell(), "2 passed, 1 left out, 9.5 s");
        assert_eq!(findings.together(), "2 passed, 1 left out, 70.0 s");
        assert_eq!(findings.kernel, "6.1.0-50-amd64");
    }

    #[test]
    fn a_guest_that_stops_early_a_program_that_fails_and_one_too_large_are_complaints() {
        let stopped = read("@@ kernel 6.1.0\n@@ start hooks\nKernel panic");
        assert!(stopped.complaints[0].contains("Kernel panic"), "{stopped:?}");
        let failed = read("@@ start verifier\nError: connect4 was refused\n@@ end verifier 1.5 1\n@@ over");
        assert!(failed.complaints[0].contains("connect4 was refused"), "{failed:?}");
        let large = read("@@ start verifier\nconnect4 100001 264 1128\n@@ end verifier 1.5 0\n@@ over");
        assert!(large.complaints[0].contains("100000 are allowed"), "{large:?}");
    }

    #[test]
    fn what_a_failed_test_ran_itself_does_not_count() {
        let failed = read(
            "@@ start hooks\ntest a_dial_is_served ... ok\ntest a_refusal_is_told ... FAILED\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured\n@@ end hooks 9.5 101\n@@ over",
        );
        assert_eq!(failed.tests[0].cell(), "1 passed, 1 FAILED, 1 left out, 9.5 s");
    }

    #[test]
    fn a_test_that_hangs_is_named() {
        let hung = read("@@ start hooks\ntest a_dial_is_served ... ok\n@@ end hooks 300.0 124\n@@ over");
        assert_eq!(hung.complaints[0], "hooks did not get to the end of a_refusal_is_told");
        assert!(hung.complaints[1].starts_with("hooks took too long"), "{hung:?}");
        assert_eq!(hung.tests[0].cell(), "0 passed, 1 FAILED, 1 left out, 300.0 s");
    }
}
