//! Figures and what they are held against: printed as Markdown, kept as JSON.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table as Printed};
use serde::Serialize;

use super::{Machine, Options, Percentile, Plot, Summary, document};
use crate::apiserver::program;

/// All that one run has to say.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What to type to get it again.
    pub command: String,
    pub quick: bool,
    pub machine: Machine,
    /// How it was measured, a sentence each.
    pub notes: Vec<String>,
    pub tables: Vec<Table>,
    pub targets: Vec<Target>,
    /// What it comes to, in a sentence or two.
    pub headline: String,
    /// Tables for documents, with their titles.
    #[serde(skip)]
    pub documented: Vec<(String, String)>,
    #[serde(skip)]
    pub plots: Vec<(String, Plot)>,
}

impl Report {
    /// Looks at the machine before anything is measured. `bench` is what follows `cargo xtask bench`.
    pub fn begin(bench: &str, options: &Options) -> Result<Self> {
        let command = format!("cargo xtask bench {bench}");
        // Said before anything is measured: that takes minutes.
        for file in options.docs.iter().chain(&options.headline) {
            replaced(file, &command, "")?;
        }
        Ok(Self {
            command,
            quick: options.quick,
            machine: Machine::look()?,
            notes: Vec::new(),
            tables: Vec::new(),
            targets: Vec::new(),
            headline: String::new(),
            documented: Vec::new(),
            plots: Vec::new(),
        })
    }

    /// Whether there is a kube-proxy to measure beside us; what it and its tools are is then said with the machine.
    pub fn beside_kube_proxy(&mut self) -> Result<bool> {
        let beside = env::var_os("SLUICE_KUBE_PROXY").is_some();
        if beside {
            self.machine.program("kube-proxy", Command::new(program("SLUICE_KUBE_PROXY")?).arg("--version"))?;
            self.machine.program("nft", Command::new("nft").arg("--version"))?;
            self.machine.program("iptables", Command::new("iptables").arg("--version"))?;
        } else {
            self.note("Without kube-proxy: SLUICE_KUBE_PROXY names none.");
        }
        Ok(beside)
    }

    /// One quantity, for documents too.
    pub fn also_documented(&mut self, title: &str, table: &Table) {
        self.documented.push((title.to_owned(), table.text()));
    }

    /// Several quantities of the same rows, for documents: microseconds, and the ratio to the first row.
    pub fn side_by_side(&mut self, title: &str, tables: &[Table]) {
        self.documented.push((title.to_owned(), document::side_by_side(tables)));
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A plot, drawn to `NAME.svg` when plots are asked for.
    pub fn plot(&mut self, name: &str, plot: Plot) {
        self.plots.push((name.to_owned(), plot));
    }

    /// Prints everything and writes what the options ask for.
    pub fn finish(mut self, options: &Options) -> Result<()> {
        self.machine.finished()?;
        println!("{}", self.text());
        if let Some(file) = &options.json {
            file.parent().map_or(Ok(()), make_folder)?;
            let out = File::create(file).with_context(|| format!("write {}", file.display()))?;
            serde_json::to_writer_pretty(out, &self)?;
            give_back(file)?;
        }
        if let Some(file) = &options.docs {
            self.put(file, &if self.documented.is_empty() { self.text() } else { document::figures(&self) })?;
        }
        if let Some(file) = &options.headline {
            self.put(file, &self.headline)?;
        }
        if let Some(folder) = &options.plots {
            self.draw(folder)?;
        }
        Ok(())
    }

    /// Between the marks of this benchmark in `file`.
    fn put(&self, file: &Path, text: &str) -> Result<()> {
        let new = replaced(file, &self.command, text)?;
        fs::write(file, new).with_context(|| format!("put the report into {}", file.display()))?;
        give_back(file)
    }

    /// Draws every plot into `folder`.
    fn draw(&self, folder: &Path) -> Result<()> {
        make_folder(folder)?;
        for (name, plot) in &self.plots {
            let file = folder.join(name).with_extension("svg");
            fs::write(&file, plot.svg()?).with_context(|| format!("write {}", file.display()))?;
            give_back(&file)?;
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut parts = vec![format!("{}\n{}", self.command, self.machine.text())];
        parts.push(self.notes.join("\n"));
        if self.quick {
            parts.push("A smoke run: these are no figures.".to_owned());
        }
        parts.extend(self.tables.iter().map(Table::text));
        if !self.targets.is_empty() {
            parts.push(targets(&self.targets));
        }
        parts.retain(|part| !part.is_empty());
        parts.join("\n\n") + "\n"
    }
}

/// What `file` will hold with `report` between the marks that name `command`.
fn replaced(file: &Path, command: &str, report: &str) -> Result<String> {
    let named = || format!("put the report into {}", file.display());
    between_marks(&fs::read_to_string(file).with_context(named)?, command, report).with_context(named)
}

/// `document` with `report` in the place of what is between the marks that name `command`.
fn between_marks(document: &str, command: &str, report: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- begin: {command} -->\n"), format!("<!-- end: {command} -->\n"));
    let missing = || format!("it needs the lines {begin:?} and {end:?}");
    let (before, rest) = document.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{before}{begin}\n{report}\n{end}{after}"))
}

fn make_folder(folder: &Path) -> Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    give_back(folder)
}

/// Under sudo, what is written belongs to who asked for it.
fn give_back(path: &Path) -> Result<()> {
    let id = |variable: &str| env::var(variable).ok().and_then(|id| id.parse().ok());
    match (id("SUDO_UID"), id("SUDO_GID")) {
        (Some(user), group) => chown(path, Some(user), group).with_context(|| format!("chown {}", path.display())),
        _ => Ok(()),
    }
}

/// One quantity, by what it was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub unit: String,
    /// The number that ratios are of.
    pub compared: Percentile,
    pub rows: Vec<Row>,
}

/// What was measured, and how it compares with the first row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub summary: Summary,
    /// To the baseline of the table, its first row.
    pub ratio: f64,
}

impl Table {
    /// The first row is the baseline.
    pub fn new(
        title: &str,
        unit: &str,
        compared: Percentile,
        rows: impl IntoIterator<Item = (String, Summary)>,
    ) -> Self {
        let mut rows = rows.into_iter().map(|(name, summary)| Row { name, summary, ratio: 1.0 }).collect::<Vec<_>>();
        let baseline = rows.first().map_or(1.0, |row| row.summary.get(compared));
        for row in &mut rows {
            let value = row.summary.get(compared);
            // Nothing is as much as nothing.
            row.ratio = if value.total_cmp(&baseline).is_eq() { 1.0 } else { value / baseline };
        }
        Self { title: title.to_owned(), unit: unit.to_owned(), compared, rows }
    }

    /// The compared number of a row over that of another.
    pub fn ratio(&self, of: &str, to: &str) -> Option<f64> {
        let value =
            |name: &str| self.rows.iter().find(|row| row.name == name).map(|row| row.summary.get(self.compared));
        Some(value(of)? / value(to)?)
    }

    /// Percentiles only where there was more than one sample.
    fn text(&self) -> String {
        let once = self.rows.iter().all(|row| row.summary.samples == 1);
        let columns: &[Percentile] =
            if once { &[Percentile::P50] } else { &[Percentile::P10, Percentile::P50, Percentile::P99] };
        let heads =
            columns.iter().map(|column| if once { self.unit.clone() } else { format!("{column:?}").to_lowercase() });
        let ratio = if once { "ratio".to_owned() } else { format!("ratio of {:?}", self.compared).to_lowercase() };
        let title = if once { self.title.clone() } else { format!("{}, {}", self.title, self.unit) };
        let mut table = markdown([title].into_iter().chain(heads).chain([ratio]));
        for row in &self.rows {
            let cells = columns.iter().map(|column| number(row.summary.get(*column)));
            table.add_row([row.name.clone()].into_iter().chain(cells).chain([format!("{:.3}", row.ratio)]));
        }
        aligned(table)
    }
}

/// A figure and the bound that it is held to.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    pub what: String,
    pub value: f64,
    pub unit: String,
    pub bound: Bound,
    /// What would be better still.
    pub stretch: Option<Bound>,
    pub met: bool,
}

/// What a figure may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    Between(f64, f64),
}

impl Bound {
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
            Self::Between(low, high) => (low..=high).contains(&value),
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::Between(low, high) => format!("{low} to {high}"),
        }
    }
}

impl Target {
    pub fn new(what: impl Into<String>, value: f64, unit: &str, bound: Bound) -> Self {
        Self { what: what.into(), value, unit: unit.to_owned(), bound, stretch: None, met: bound.holds(value) }
    }

    #[must_use]
    pub fn stretch(mut self, bound: Bound) -> Self {
        self.stretch = Some(bound);
        self
    }

    fn verdict(&self) -> &'static str {
        match self.stretch {
            Some(stretch) if stretch.holds(self.value) => "met, stretch too",
            _ if self.met => "met",
            _ => "MISSED",
        }
    }
}

pub(super) fn targets(targets: &[Target]) -> String {
    let mut table = markdown(["target", "value", "bound", "stretch", ""].map(str::to_owned));
    for target in targets {
        let value = format!("{} {}", number(target.value), target.unit);
        let stretch = target.stretch.map_or(String::new(), Bound::text);
        let cells = [&target.what, value.trim_end(), &target.bound.text(), &stretch, target.verdict()];
        table.add_row(cells.map(str::to_owned));
    }
    aligned(table)
}

pub(super) fn markdown(heads: impl IntoIterator<Item = String>) -> Printed {
    let mut table = Printed::new();
    table.load_style(ASCII_MARKDOWN).set_header(heads.into_iter().collect::<Vec<_>>());
    table
}

/// Names to the left, numbers to the right.
pub(super) fn aligned(mut table: Printed) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Four figures, as much as a measurement here is worth.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 1000.0 => format!("{value:.0}"),
        large if large >= 100.0 => format!("{value:.1}"),
        large if large >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let rows = [("direct", [10.0, 11.0]), ("through Sluice", [10.5, 12.0])];
        let rows = rows.map(|(name, samples)| (name.to_owned(), Summary::of(&samples)));
        Table::new("TCP connect", "µs", Percentile::P10, rows)
    }

    #[test]
    fn ratios_are_to_the_first_row_or_to_the_one_that_is_named() {
        assert_eq!(table().ratio("through Sluice", "direct"), Some(table().rows[1].ratio));
        assert_eq!(table().ratio("direct", "through Sluice"), Some(10.0 / 10.5));
        assert_eq!(table().ratio("direct", "nobody"), None);
    }

    #[test]
    fn a_table_is_markdown() {
        let expected = "\
            | TCP connect, µs |   p10 |   p50 |   p99 | ratio of p10 |\n\
            |-----------------|-------|-------|-------|--------------|\n\
            | direct          | 10.00 | 10.00 | 10.00 |        1.000 |\n\
            | through Sluice  | 10.50 | 10.50 | 10.50 |        1.050 |";
        assert_eq!(table().text(), expected);
    }

    #[test]
    fn a_report_takes_the_place_of_the_one_before() {
        let document = "# Title\n<!-- begin: x -->\nold\n<!-- end: x -->\nrest\n";
        let once = between_marks(document, "x", "new\n").unwrap();
        assert_eq!(once, "# Title\n<!-- begin: x -->\n\nnew\n\n<!-- end: x -->\nrest\n");
        assert_eq!(between_marks(&once, "x", "new\n").unwrap(), once);
        assert!(between_marks(document, "y", "new\n").is_err());
    }

    #[test]
    fn a_document_without_a_place_for_the_report_is_named_before_anything_is_measured() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let options = Options { headline: Some(file.clone()), ..Options::default() };
        let failure = Report::begin("x", &options).unwrap_err();
        assert!(format!("{failure:#}").contains(&format!("put the report into {}", file.display())), "{failure:#}");
    }

    #[test]
    fn a_target_is_met_within_its_bound_only() {
        let verdict = |value| Target::new("x", value, "", Bound::AtMost(1.03)).stretch(Bound::AtMost(1.02)).verdict();
        assert_eq!([1.01, 1.025, 1.03, 1.031].map(verdict), ["met, stretch too", "met", "met", "MISSED"]);
        assert!(Bound::Between(0.995, 1.005).holds(0.995) && !Bound::Between(0.995, 1.005).holds(0.99));
        assert!(Bound::AtLeast(1.0).holds(1.0) && !Bound::AtLeast(1.0).holds(0.999));
    }
}
