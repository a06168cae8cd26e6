//! The initial RAM file system of a guest: its first process, its drivers, its plan. Everything else is the host's.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::kernels::fetch::Kernel;
use crate::step;

/// The archive, as a file without a name: `init` runs the programs of `plan`, to which the drivers of `kernel` are added.
pub(super) fn initramfs(init: &Path, kernel: &Kernel, mut plan: Value) -> Result<File> {
    let mut archive = Archive::default();
    archive.file("init", &read(init)?);
    let mut names = Vec::new();
    for (number, module) in kernel.modules.iter().enumerate() {
        let name = format!("{number:02}.ko");
        archive.file(&name, &read(module)?);
        names.push(Value::from(format!("/{name}")));
    }
    plan["modules"] = Value::Array(names);
    archive.file("plan.json", &serde_json::to_vec(&plan)?);
    let mut file = step::unnamed_file()?;
    file.write_all(&archive.finish()).context("write an initial RAM file system")?;
    Ok(file)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// A cpio archive in the one format that the kernel unpacks ("newc"): a header of hexadecimal numbers, name, contents,
/// each filled up to four bytes.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
}

impl Archive {
    fn file(&mut self, name: &str, contents: &[u8]) {
        const EXECUTABLE_FILE: usize = 0o100_755;
        self.entry(name, EXECUTABLE_FILE, contents);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: usize, contents: &[u8]) {
        self.files += 1;
        // inode, mode, owner, group, links, time, size, device (4), length of the name, checksum
        let fields = [self.files, mode, 0, 0, 1, 0, contents.len(), 0, 0, 0, 0, name.len() + 1, 0]
            .map(|field| format!("{field:08x}"));
        self.push(format!("070701{}{name}\0", fields.concat()).as_bytes());
        self.push(contents);
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_header_that_the_kernel_expects() {
        let mut archive = Archive::default();
        archive.file("init", b"hello");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081ed"));
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701", "the next header is aligned");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
