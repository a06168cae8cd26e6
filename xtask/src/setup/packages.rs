//! Debian's packages: whether apt is here, and which of what we want it can offer.

use std::fs;
use std::process::{Command, Stdio};

/// The distribution's package manager, asked without changing anything.
pub(crate) struct Apt {
    present: bool,
}

impl Apt {
    pub(crate) fn find() -> Self {
        Self { present: succeeds(Command::new("apt-get").arg("--version")) }
    }

    pub(crate) fn is_present(&self) -> bool {
        self.present
    }

    /// True when every one of `packages` could be installed now.
    pub(crate) fn offers(&self, packages: &[&str]) -> bool {
        self.present && succeeds(Command::new("apt-cache").args(["show", "--no-all-versions"]).args(packages))
    }

    /// False on a fresh image, where apt knows no package at all.
    pub(crate) fn has_lists() -> bool {
        let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
        lists.map(|file| file.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
    }

    pub(crate) fn update() -> Command {
        let mut command = Command::new("apt-get");
        command.arg("update");
        command
    }

    pub(crate) fn install(packages: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        command
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
