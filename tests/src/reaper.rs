//! `sluice reap` on a node.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result};

use crate::node::Node;
use crate::probe::PATIENCE;
use crate::process::{end, sluice_binary};

/// A running reaper, killed with the handle.
#[derive(Debug)]
pub struct Reaper {
    child: Child,
    log: Receiver<String>,
    /// What it said until it was ready.
    pub beginning: String,
}

impl Reaper {
    pub fn start(node: &Node) -> Result<Self> {
        Self::start_with(node, &[])
    }

    /// Like [`Self::start`], with more arguments.
    pub fn start_with(node: &Node, arguments: &[&str]) -> Result<Self> {
        Self::start_by(node.host()?.command(sluice_binary()?)?, node, arguments)
    }

    /// One that may destroy sockets, but not reach into other processes.
    pub fn without_ptrace(node: &Node, arguments: &[&str]) -> Result<Self> {
        let mut command = node.host()?.command("/usr/bin/setpriv")?;
        command.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]).arg(sluice_binary()?);
        Self::start_by(command, node, arguments)
    }

    /// One that is process 1 of a PID namespace, without the right to reach into other processes.
    pub fn in_pid_namespace(node: &Node, arguments: &[&str]) -> Result<Self> {
        let mut command = node.host()?.command("/usr/bin/unshare")?;
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "setpriv", "--bounding-set=-sys_ptrace"]);
        command.arg("--inh-caps=-sys_ptrace").arg(sluice_binary()?);
        Self::start_by(command, node, arguments)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn start_by(mut command: Command, node: &Node, arguments: &[&str]) -> Result<Self> {
        command.arg("reap").arg("--pin-dir").arg(node.pin_dir()).args(arguments);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("start the reaper")?;
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines().map_while(Result::ok);
        let (sender, log) = channel();
        let pass_on = move |line| {
            eprintln!("reap: {line}");
            // The test may have ended.
            let _ = sender.send(line);
        };
        thread::spawn(move || lines.for_each(pass_on));
        let mut reaper = Self { child, log, beginning: String::new() };
        reaper.beginning = reaper.lines_until("ready")?.join("\n");
        Ok(reaper)
    }

    /// Waits for a line of the log that holds `text`; those before it are not looked at again.
    pub fn logged(&self, text: &str) -> Result<String> {
        Ok(self.lines_until(text)?.pop().unwrap_or_default())
    }

    fn lines_until(&self, text: &str) -> Result<Vec<String>> {
        let mut lines: Vec<String> = Vec::new();
        while !lines.last().is_some_and(|line| line.contains(text)) {
            let line = self.log.recv_timeout(PATIENCE);
            lines.push(line.with_context(|| format!("the reaper never logged {text:?}"))?);
        }
        Ok(lines)
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
