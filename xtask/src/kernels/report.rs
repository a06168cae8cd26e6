//! What the guests said, as a table: every program on every kernel.

use std::collections::BTreeMap;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;

/// The most instructions that a program may cost the verifier, a tenth of what kernels allow.
const LIMIT: u32 = 100_000;

/// What one kernel made of the programs.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// As the kernel calls itself.
    pub(super) kernel: String,
    pub(super) loads: Vec<Load>,
    /// What a person needs to know about failures.
    pub(super) complaints: Vec<String>,
}

/// A program that this kernel took.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) program: String,
    pub(super) instructions: u32,
    /// Bytes of the program and of each of its functions.
    pub(super) stack: String,
    pub(super) microseconds: u64,
}

impl Findings {
    /// Reads the lines of a guest. `loader` names the program whose lines are loads.
    pub(super) fn read(series: &str, lines: &[String], loader: &str) -> Self {
        let mut findings = Self { kernel: series.to_owned(), ..Self::default() };
        let (mut name, mut said, mut over) = (String::new(), Vec::new(), false);
        for line in lines {
            match line.strip_prefix("@@ ").map(|marker| marker.split_once(' ').unwrap_or((marker, ""))) {
                Some(("kernel", release)) => release.clone_into(&mut findings.kernel),
                Some(("start", program)) => (name, said) = (program.to_owned(), Vec::new()),
                Some(("end", rest)) => findings.ended(&name, rest, &said, loader),
                Some(("over", _)) => over = true,
                _ => said.push(line.as_str()),
            }
        }
        if !over {
            findings.complaints.push(format!("the guest stopped early, at {name:?}:\n{}", said.join("\n")));
        }
        findings
    }

    fn ended(&mut self, name: &str, rest: &str, said: &[&str], loader: &str) {
        let mut words = rest.rsplit(' ');
        let status = words.next().unwrap_or("-1");
        if name == loader {
            self.loads.extend(said.iter().filter_map(|line| load(line)));
            self.complaints.extend(self.loads.iter().filter(|load| load.instructions > LIMIT).map(|load| {
                format!("{}: {} instructions verified, {LIMIT} are allowed", load.program, load.instructions)
            }));
        }
        if status != "0" {
            self.complaints.push(format!("{name} ended with {status}:\n{}", said.join("\n")));
        }
    }

    pub(super) fn fine(&self) -> bool {
        self.complaints.is_empty()
    }
}

/// `connect4 94440 264+0 112881`, as the loader prints it.
fn load(line: &str) -> Option<Load> {
    let mut words = line.split(' ');
    Some(Load {
        program: words.next()?.to_owned(),
        instructions: words.next()?.parse().ok()?,
        stack: words.next()?.to_owned(),
        microseconds: words.next()?.parse().ok()?,
    })
}

/// Programs by kernel: instructions, stack, milliseconds.
pub(super) fn loads(all: &[Findings]) -> Table {
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for load in all.iter().flat_map(|findings| &findings.loads) {
        rows.entry(&load.program).or_default();
    }
    for findings in all {
        for (program, cells) in &mut rows {
            let load = findings.loads.iter().find(|load| load.program == *program);
            cells.push(load.map_or("FAILED".to_owned(), Load::cell));
        }
    }
    table("program", all, rows)
}

impl Load {
    fn cell(&self) -> String {
        let milliseconds = self.microseconds.div_ceil(1000);
        format!("{}, {} B, {milliseconds} ms", self.instructions, self.stack)
    }
}

fn table(first: &str, all: &[Findings], rows: BTreeMap<&str, Vec<String>>) -> Table {
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
        Findings::read("6.1", &lines, "verifier")
    }

    #[test]
    fn what_a_guest_says_becomes_loads() {
        let findings = read(
            "@@ kernel 6.1.0-50-amd64\n@@ start verifier\nconnect4 940 264+0 1128\n@@ end verifier 1.5 0\n@@ over",
        );
        assert!(findings.fine(), "{findings:?}");
        assert_eq!(findings.loads[0].cell(), "940, 264+0 B, 2 ms");
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
}
