//! What the guests showed, for `docs/kernels.md`: no times, which are this machine's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::kernels::TestProgram;
use crate::kernels::report::{self, Findings};

const BEGIN: &str = "<!-- begin: cargo xtask kernels -->";
const END: &str = "<!-- end: cargo xtask kernels -->";

pub(super) fn text(findings: &[Findings], programs: &[TestProgram]) -> String {
    format!(
        "Instructions verified, and bytes of stack of the largest function:\n\n{}\n\nTests that passed in the guests:\n\n{}\n\n\
         What guests do not run:\n\n{}",
        report::costs(findings),
        report::passed(findings),
        report::left_out(programs)
    )
}

/// Whether there is a place for the text: who asks first need not wait for guests in vain.
pub(super) fn check(file: &Path) -> Result<()> {
    replaced(file, "").map(drop)
}

/// Replaces what stands between the marks.
pub(super) fn put(file: &Path, text: &str) -> Result<()> {
    fs::write(file, replaced(file, text)?).with_context(|| format!("write {}", file.display()))
}

/// What `file` will hold.
fn replaced(file: &Path, text: &str) -> Result<String> {
    let old = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    between(&old, text).with_context(|| format!("{} has no lines {BEGIN} and {END}", file.display()))
}

fn between(document: &str, text: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{text}\n\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_marks_is_named() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = check(&file).unwrap_err().to_string();
        assert_eq!(error, format!("{} has no lines {BEGIN} and {END}", file.display()));
    }

    #[test]
    fn what_stands_between_the_marks_is_replaced() {
        let document = format!("# Kernels\n{BEGIN}\nold\n{END}\nmore\n");
        assert_eq!(between(&document, "new").unwrap(), format!("# Kernels\n{BEGIN}\n\nnew\n\n{END}\nmore\n"));
        assert_eq!(between("# Kernels\n", "new"), None);
    }
}
