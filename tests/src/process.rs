//! Child processes that are spoken to in lines and end with their handle.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child that reads lines from its standard input and writes lines to its standard output.
#[derive(Debug)]
pub struct Lines {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Lines {
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child, stdin, stdout })
    }

    pub fn write(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the input of the process is closed")?;
        writeln!(stdin, "{line}").context("write to the process")
    }

    pub fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("the process ended early: {}", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("send {signal}"))
    }

    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Kills a child that still runs and takes its exit status.
pub(crate) fn end(child: &mut Child) {
    // A child that has ended by itself is what we want.
    let _ = child.kill();
    let _ = child.wait();
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// The helper program of this crate.
pub fn probe_binary() -> Result<PathBuf> {
    built("probe").context("build it with `cargo build -p proxy-tests --bins`")
}

/// The agent of another version.
pub fn other_binary() -> Result<PathBuf> {
    built("other-sluice").context("build it with `cargo build -p proxy-tests --bins`")
}

/// The agent: `SLUICE_BIN`, or what cargo built into the folder of the running test.
pub fn sluice_binary() -> Result<PathBuf> {
    match env::var_os("SLUICE_BIN").map(PathBuf::from) {
        Some(path) => {
            ensure!(path.is_file(), "SLUICE_BIN={} is not a file", path.display());
            Ok(path)
        }
        None => built("sluice").context("build it with `cargo xtask build-ebpf && cargo build -p proxy-userspace`"),
    }
}

/// A program that cargo built, beside the running one or one folder up for tests (`target/…/deps`).
pub fn built(program: &str) -> Result<PathBuf> {
    let me = env::current_exe()?;
    let mut folders = me.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| Some(folder.join(program)).filter(|path| path.is_file()));
    found.with_context(|| format!("no program `{program}` near {}", me.display()))
}
