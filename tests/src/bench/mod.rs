//! What every benchmark shares: its options, a report of figures against a baseline, and plots of it.
//!
//! ```text
//! samples -> Summary -> Table ----\
//!            a ratio -> Target ----> Report -> printed (Markdown), --json FILE, --plots DIR, --docs FILE
//!            the same figures -> Plot /
//! ```
//!
//! Speed is only ever judged as a ratio of two things that one run measured in turn.

mod api;
mod document;
mod inside;
mod machine;
mod plot;
mod pod;
mod report;
pub mod sockets;
mod summary;
mod turn;

pub use api::Api;
pub use inside::Inside;
pub use machine::{Machine, pin_to_one_cpu};
pub use plot::{Bar, Kind, Line, Plot};
pub use pod::pod;
pub use report::{Bound, Report, Row, Table, Target};
pub use summary::{Percentile, Summary};
pub use turn::in_turn;

use std::path::PathBuf;

use clap::Parser;

/// What each benchmark takes on its command line.
#[derive(Clone, Debug, Default, Parser)]
pub struct Options {
    /// A smoke run: everything once, too few samples for a figure.
    #[arg(long)]
    pub quick: bool,
    /// Write every figure to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the plots (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Put the report between the two marks that name this benchmark in this Markdown file.
    #[arg(long, value_name = "FILE")]
    pub docs: Option<PathBuf>,
    /// Put what it comes to, a sentence or two, between such marks in this Markdown file.
    #[arg(long, value_name = "FILE")]
    pub headline: Option<PathBuf>,
}

/// `Sluice, 1,000 Services`.
pub fn services_text(who: &str, services: u32) -> String {
    let (thousands, rest) = (services / 1000, services % 1000);
    match (thousands, rest) {
        (0, 1) => format!("{who}, 1 Service"),
        (0, rest) => format!("{who}, {rest} Services"),
        _ => format!("{who}, {thousands},{rest:03} Services"),
    }
}

impl Options {
    pub fn parse() -> Self {
        <Self as Parser>::parse()
    }
}
