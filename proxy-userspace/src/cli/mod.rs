//! The commands that look at what is pinned, one file each. They need no agent and write nothing but `cleanup`.

pub mod check;
pub mod cleanup;
pub mod list;

use std::path::PathBuf;

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets;

/// Which node's pins to look at.
#[derive(Clone, Debug, clap::Args)]
pub struct PinDir {
    /// Folder on a bpffs that keeps the tables and programs. Locks of its agent and reaper are in /run/sluice.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    pub pin_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// A table without lines, columns two spaces apart.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Prints a table without trailing spaces.
fn print(table: &Table) {
    for line in table.lines() {
        println!("{}", line.trim_end());
    }
}
