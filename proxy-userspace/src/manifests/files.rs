//! Which files there are, and the last good content of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::parse::{FileError, Objects, parse};

/// A cluster's worth of Services fits many times; larger is an accident (a log, a disk image).
const LARGEST: u64 = 10 * 1024 * 1024;

/// The files below some paths.
#[derive(Debug)]
pub(super) struct Tree {
    roots: Vec<PathBuf>,
    /// What each file last said when it could be read.
    objects: BTreeMap<PathBuf, Objects>,
    /// Of the content that was looked at last, and what was wrong with it: an unchanged file is not parsed again.
    seen: BTreeMap<PathBuf, (u64, Option<FileError>)>,
    /// What was skipped, and why; each is told once.
    passed_over: BTreeSet<(PathBuf, String)>,
}

impl Tree {
    pub(super) fn new(roots: &[PathBuf]) -> Self {
        Self { roots: roots.to_vec(), objects: BTreeMap::new(), seen: BTreeMap::new(), passed_over: BTreeSet::new() }
    }

    /// By path, so in an order that does not depend on the file system.
    pub(super) fn objects(&self) -> &BTreeMap<PathBuf, Objects> {
        &self.objects
    }

    /// Reads what changed. What is gone is forgotten, what cannot be read keeps its last good state; returns all that is
    /// wrong now.
    pub(super) fn read(&mut self) -> Vec<FileError> {
        let mut problems = Vec::new();
        let mut kept = BTreeSet::new();
        for root in self.roots.clone() {
            match find(&root) {
                Ok(Found { files, others }) => {
                    for (path, reason) in others {
                        self.pass_over(path, reason);
                    }
                    for file in files {
                        problems.extend(self.read_file(&file).err());
                        kept.insert(file);
                    }
                }
                Err(problem) => {
                    // All of it gone at once is more likely a mount that is away than the wish to serve nothing.
                    kept.extend(self.objects.keys().filter(|file| file.starts_with(&root)).cloned());
                    problems.push(problem);
                }
            }
        }
        self.objects.retain(|file, _| kept.contains(file));
        self.seen.retain(|file, _| kept.contains(file));
        problems
    }

    fn pass_over(&mut self, path: PathBuf, reason: String) {
        let text = format!("{}: {reason}; skipped", path.display());
        if self.passed_over.insert((path, reason)) {
            warn!("{text}");
        }
    }

    fn read_file(&mut self, path: &Path) -> Result<(), FileError> {
        let bytes = content(path)?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some((_, before)) = self.seen.get(path).filter(|(seen, _)| *seen == hash) {
            return before.clone().map_or(Ok(()), Err);
        }
        let result = parse(path, &bytes).map(|objects| {
            self.objects.insert(path.to_owned(), objects);
        });
        self.seen.insert(path.to_owned(), (hash, result.clone().err()));
        result
    }
}

fn content(path: &Path) -> Result<Vec<u8>, FileError> {
    let unreadable = |error: std::io::Error| about(path, format!("cannot be read: {error}"));
    // Opening a pipe would wait for somebody to write into it.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(about(path, "no regular file; give a file or a folder of files".to_owned()));
    }
    let mut bytes = Vec::new();
    match file.take(LARGEST + 1).read_to_end(&mut bytes) {
        Ok(size) if size as u64 > LARGEST => {
            Err(about(path, format!("larger than {} MiB; split it", LARGEST / 1024 / 1024)))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(unreadable(error)),
    }
}

#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    /// What there is nothing to read from, and why: pipes, sockets and devices with the name of a manifest, and symlinks to
    /// a folder that is being read.
    others: Vec<(PathBuf, String)>,
}

/// What is at or below `root`, folder by folder.
fn find(root: &Path) -> Result<Found, FileError> {
    let mut found = Found::default();
    let kind = fs::metadata(root).map_err(|error| about(root, format!("cannot be read: {error}")))?;
    if kind.is_dir() {
        walk(root, &mut Vec::new(), &mut found)?;
    } else {
        found.files.push(root.to_owned());
    }
    found.files.sort();
    Ok(found)
}

/// `inside` are the real paths of the folders we are in: meeting one of them again is a loop of symlinks.
fn walk(folder: &Path, inside: &mut Vec<PathBuf>, found: &mut Found) -> Result<(), FileError> {
    let unreadable = |error: std::io::Error| about(folder, format!("cannot be read: {error}"));
    let real = fs::canonicalize(folder).map_err(unreadable)?;
    if inside.contains(&real) {
        found.others.push((folder.to_owned(), format!("a symlink that leads back to {}", real.display())));
        return Ok(());
    }
    inside.push(real);
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        // Hidden names are those of editors and mounted `ConfigMap`s (`..data`); visible ones lead to the same content.
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(kind) if kind.is_dir() => walk(&path, inside, found)?,
            _ if !is_manifest(&path) => {}
            Ok(kind) if !kind.is_file() => {
                found.others.push((path, "no regular file but a pipe, socket or device".to_owned()));
            }
            _ => found.files.push(path),
        }
    }
    inside.pop();
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

fn about(path: &Path, reason: String) -> FileError {
    FileError { path: path.to_owned(), line: 0, reason }
}
