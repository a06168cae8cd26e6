//! What a report puts into a document, when it has tables made for one.
//!
//! In: a [`Report`]. Out: Markdown to stand between the marks that name the benchmark.

use super::report::{aligned, markdown, number, targets};
use super::{Report, Table};

/// Where and how it was measured, plots (in `figures` beside the document), tables, and what the figures are held to.
pub(super) fn figures(report: &Report) -> String {
    let mut parts = vec![format!("Measured by `{}` on {}.", report.command, report.machine.text().replace('\n', ". "))];
    parts.push(report.notes.join("\n"));
    let plots = report.plots.iter().map(|(name, _)| format!("![{name}](figures/{name}.svg)"));
    parts.push(plots.collect::<Vec<_>>().join("\n"));
    for (title, table) in &report.documented {
        parts.push(format!("{title}:\n\n{table}"));
    }
    parts.push(format!("What the figures are held to:\n\n{}", targets(&report.targets)));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// A row for each row of the first table, a column for each table: microseconds, and the ratio to the first row.
pub(super) fn side_by_side(tables: &[Table]) -> String {
    let mut wide = markdown([String::new()].into_iter().chain(tables.iter().map(|table| table.title.clone())));
    for row in tables.first().map_or(&[][..], |table| &table.rows) {
        let cell = |table: &Table| {
            let here = table.rows.iter().find(|other| other.name == row.name);
            here.map_or(String::new(), |here| {
                format!("{} (×{:.3})", number(here.summary.get(table.compared) / 1e3), here.ratio)
            })
        };
        wide.add_row([row.name.clone()].into_iter().chain(tables.iter().map(cell)));
    }
    aligned(wide)
}

#[cfg(test)]
mod tests {
    use super::super::{Percentile, Summary};
    use super::*;

    #[test]
    fn tables_side_by_side_have_a_column_each() {
        let table = |title: &str, values: [f64; 2]| {
            let rows = ["direct", "through Sluice"].into_iter().zip(values);
            let rows = rows.map(|(name, value)| (name.to_owned(), Summary::once(value)));
            Table::new(title, "ns", Percentile::P10, rows)
        };
        let expected = "\
            |                |        connect |           send |\n\
            |----------------|----------------|----------------|\n\
            | direct         | 10.00 (×1.000) | 2.000 (×1.000) |\n\
            | through Sluice | 10.50 (×1.050) | 3.000 (×1.500) |";
        assert_eq!(side_by_side(&[table("connect", [1e4, 1.05e4]), table("send", [2e3, 3e3])]), expected);
    }
}
