//! `sluice run --manifests` on a node, and the other subcommands against its pins.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::manifest::Folder;
use crate::node::{Node, Place};
use crate::probe::PATIENCE;
use crate::process::{end, other_binary, pid_of, sluice_binary};

/// What the agent logs when everything that it was given is in the kernel.
const READY: &str = "programmed ";

/// Tables that many agents can have at once; the default ones hold 250,000 endpoints.
pub const SMALL_TABLES: [&str; 5] =
    ["--max-frontends=1024", "--max-services=256", "--max-backends=4096", "--max-sockets=4096", "--max-flows=4096"];

/// Nobody is served but at sockets: for what has to do with them alone.
pub const AT_SOCKETS: [&str; 2] = ["--network-devices=none", "--pod-devices=none"];

/// What a test of sockets asks for: an agent that starts soon.
pub fn small() -> Vec<&'static str> {
    [&SMALL_TABLES[..], &AT_SOCKETS].concat()
}

/// A running agent. Killed with the handle; what it put into the kernel stays.
#[derive(Debug)]
pub struct Agent {
    /// Where it runs.
    host: Place,
    arguments: Vec<String>,
    child: Child,
    log: Arc<Log>,
}

impl Agent {
    /// Starts the agent of `node` and waits until it serves what is in `manifests`, at sockets.
    pub fn start(node: &Node, manifests: &Folder) -> Result<Self> {
        Self::start_with(node, manifests, &small())
    }

    /// Like [`Self::start`], with other arguments than [`small`].
    pub fn start_with(node: &Node, manifests: &Folder, more: &[&str]) -> Result<Self> {
        Self::spawn(node.host()?, arguments(node, manifests.path(), more))?.ready()
    }

    /// Starts the agent as a user would, for any folder or file.
    pub fn start_as_user(node: &Node, manifests: &Path) -> Result<Self> {
        Self::spawn(node.host()?, arguments(node, manifests, &[]))?.ready()
    }

    /// Like [`Self::start_with`], the agent of [`crate::other`].
    pub(crate) fn start_other(node: &Node, manifests: &Folder, more: &[&str]) -> Result<Self> {
        let host = node.host()?;
        Self::spawn_by(host.command(other_binary()?)?, host, arguments(node, manifests.path(), more))?.ready()
    }

    /// Like [`Self::start_with`], with no more rights than an agent needs.
    pub fn start_restricted(node: &Node, manifests: &Folder, more: &[&str]) -> Result<Self> {
        let host = node.host()?;
        let mut command = host.command("setpriv")?;
        command.arg("--bounding-set=-all,+bpf,+perfmon,+net_admin").arg(sluice_binary()?);
        Self::spawn_by(command, host, arguments(node, manifests.path(), more))?.ready()
    }

    /// Starts it and does not wait: it is expected to fail.
    pub fn start_in_vain(node: &Node, manifests: &Path, more: &[&str]) -> Result<Self> {
        Self::spawn(node.host()?, arguments(node, manifests, more))
    }

    /// Starts the agent of `node` on an API server and waits until it serves what is there.
    pub fn follow(node: &Node, kubeconfig: &Path) -> Result<Self> {
        let kubeconfig = kubeconfig.display().to_string();
        Self::spawn(node.host()?, [vec!["--kubeconfig".to_owned(), kubeconfig], place_arguments(node)].concat())?
            .ready()
    }

    /// Like [`Self::follow`], with more arguments, and does not wait.
    pub fn start_following(node: &Node, kubeconfig: &Path, more: &[&str]) -> Result<Self> {
        let kubeconfig = kubeconfig.display().to_string();
        let more = more.iter().map(ToString::to_string).collect();
        Self::spawn(node.host()?, [vec!["--kubeconfig".to_owned(), kubeconfig], place_arguments(node), more].concat())
    }

    /// Starts it on an API server that may not be there, and does not wait. `master` is the option.
    pub fn start_on_master(node: &Node, master: &str) -> Result<Self> {
        Self::spawn(node.host()?, on_master(node, master))
    }

    /// Starts it as the only file of the folder `root`, which holds the mounts it needs, and waits until it serves.
    pub fn start_in_root(node: &Node, root: &Path, master: &str) -> Result<Self> {
        std::fs::copy(sluice_binary()?, root.join("sluice")).context("put the agent into its root")?;
        let host = node.host()?;
        let mut command = host.command("chroot")?;
        command.arg(root).arg("/sluice");
        Self::spawn_by(command, host, on_master(node, master))?.ready()
    }

    /// Starts it under `strace` with these options, and `more` of its own, and does not wait: some call may end it.
    pub fn start_under(node: &Node, manifests: &Folder, strace: &[&str], more: &[&str]) -> Result<Self> {
        let host = node.host()?;
        let mut command = host.command("strace")?;
        command.arg("--quiet=all").args(strace).arg(sluice_binary()?);
        Self::spawn_by(command, host, arguments(node, manifests.path(), more))
    }

    /// Lets `strace` with these options look at its calls of bpf(2) from now on, in every thread; returns when it does.
    pub fn disturb(&self, strace: &[&str]) -> Result<Child> {
        self.trace(&[&["-f", "-e", "trace=bpf"], strace].concat())
    }

    /// Lets `strace` with these options look at it from now on; returns when it does.
    pub fn trace(&self, strace: &[&str]) -> Result<Child> {
        let mut command = Command::new("strace");
        command.args(strace).args(["-p", &self.pid().to_string()]);
        let mut child = command.stderr(Stdio::piped()).spawn().context("start strace")?;
        let mut said = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        ensure!(said.any(|line| line.is_ok_and(|line| line.contains("attached"))), "strace did not attach");
        // It goes on to name every thread, and would end with its reader.
        thread::spawn(move || said.for_each(drop));
        Ok(child)
    }

    /// Starts it once more with the same arguments.
    pub fn restart(&self) -> Result<Self> {
        Self::spawn(self.host.clone(), self.arguments.clone())?.ready()
    }

    /// Starts it with the same arguments and does not wait.
    pub fn start_another(&self) -> Result<Self> {
        Self::spawn(self.host.clone(), self.arguments.clone())
    }

    /// Kills an agent that was started under `strace`, which then ends too.
    pub fn end_under(&mut self) -> Result<ExitStatus> {
        let strace = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            // One that has ended by itself is what we want.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        self.wait()
    }

    /// What follows `sluice run`.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    /// Sends a signal and waits for the end.
    pub fn end_with(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(self.pid(), signal).with_context(|| format!("send {signal} to the agent"))?;
        self.wait()
    }

    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// Waits until it ends by itself, which closes its log.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        ensure!(self.log.closes_within(PATIENCE), "the agent goes on; its log:\n{}", self.log.text());
        self.wait()
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for a line of the log that holds `text`.
    pub fn logged(&self, text: &str) -> Result<String> {
        self.logged_within(PATIENCE, text)
    }

    /// Like [`Self::logged`], for what may take longer.
    pub fn logged_within(&self, patience: Duration, text: &str) -> Result<String> {
        let found = self.log.wait_for(patience, |lines| lines.iter().find(|line| line.contains(text)).cloned());
        found.with_context(|| format!("the agent never logged {text:?}; its log:\n{}", self.log.text()))
    }

    /// When the agent said for the first time that everything is in the kernel; waits for it.
    pub fn ready_at(&self) -> Result<Instant> {
        self.logged(READY)?;
        let state = self.log.state.lock().expect("no panic under the lock");
        let ready = state.lines.iter().position(|line| line.contains(READY)).expect("it was logged");
        Ok(state.times[ready])
    }

    /// How many lines the log has.
    pub fn log_length(&self) -> usize {
        self.log.state.lock().expect("no panic under the lock").lines.len()
    }

    /// What `read` makes of the lines of the log from `first` on.
    pub fn lines_from<T>(&self, first: usize, read: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let state = self.log.state.lock().expect("no panic under the lock");
        state.lines[first..].iter().filter_map(|line| read(line)).collect()
    }

    /// Makes a change to the files that it follows, and waits until that is in the kernel. It has to log changes (`-v2`).
    pub fn programs(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let known = self.log_length();
        change()?;
        self.programs_after(known)
    }

    /// As [`Self::programs`], of files that have changed since the log was `known` lines long.
    pub fn programs_after(&self, known: usize) -> Result<()> {
        // What the node itself changes, its devices and addresses, is told in other words.
        let of_files = |lines: &[String]| {
            let mut since = lines.iter().skip(known).skip_while(|line| !line.contains("files changed: "));
            since.any(|line| line.contains("us after it was heard")).then_some(())
        };
        let found = self.log.wait_for(PATIENCE, of_files);
        found.with_context(|| format!("the agent never programmed its files; its log:\n{}", self.log.text()))
    }

    /// Waits for a line after the first `known` ones that holds one of `texts`.
    pub fn logs_after(&self, known: usize, texts: &[&str]) -> Result<String> {
        let holds_one = |line: &&String| texts.iter().any(|text| line.contains(text));
        let found = self.log.wait_for(PATIENCE, |lines| lines.iter().skip(known).find(holds_one).cloned());
        found.with_context(|| format!("the agent never logged one of {texts:?}; its log:\n{}", self.log.text()))
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    fn spawn(host: Place, arguments: Vec<String>) -> Result<Self> {
        Self::spawn_by(host.command(sluice_binary()?)?, host, arguments)
    }

    fn spawn_by(mut command: Command, host: Place, arguments: Vec<String>) -> Result<Self> {
        command.arg("run").args(&arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the agent")?;
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("stderr is piped");
        let sink = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.push(line);
            }
            sink.close();
        });
        Ok(Self { host, arguments, child, log })
    }

    fn ready(self) -> Result<Self> {
        self.logged(READY)?;
        Ok(self)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        end(&mut self.child);
        if thread::panicking() {
            eprintln!("sluice run {} said:\n{}", self.arguments.join(" "), self.log.text());
        }
    }
}

/// What an agent that follows files is told.
fn arguments(node: &Node, manifests: &Path, more: &[&str]) -> Vec<String> {
    let manifests = vec!["--manifests".to_owned(), manifests.display().to_string()];
    let more = more.iter().map(ToString::to_string).collect();
    [manifests, place_arguments(node), more].concat()
}

/// What an agent that follows an API server is told.
fn on_master(node: &Node, master: &str) -> Vec<String> {
    let small = small().into_iter().map(str::to_owned).collect();
    [vec![master.to_owned()], place_arguments(node), small].concat()
}

/// What every agent of `node` is told: its pins, its cgroup, its name.
fn place_arguments(node: &Node) -> Vec<String> {
    let (pin_dir, cgroup) = (node.pin_dir().display().to_string(), node.cgroup.display().to_string());
    ["--pin-dir", &pin_dir, "--cgroup-root", &cgroup, "--hostname-override", &node.name].map(str::to_owned).into()
}

/// Runs another subcommand of `sluice` on the node to its end.
pub fn sluice(node: &Node, arguments: &[&str]) -> Result<Output> {
    let mut command = node.host()?.command(sluice_binary()?)?;
    command.args(arguments).stdin(Stdio::null());
    command.output().with_context(|| format!("start sluice {arguments:?}"))
}

/// What `sluice list -o json` says on the node.
pub fn list(node: &Node) -> Result<Value> {
    let pin_dir = node.pin_dir().display().to_string();
    let output = sluice(node, &["list", "--pin-dir", &pin_dir, "-o", "json"])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sluice list: {errors}");
    serde_json::from_slice(&output.stdout).context("sluice list -o json")
}

/// Lines that a thread collects and a test waits for.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    /// When each line was read.
    times: Vec<Instant>,
    closed: bool,
}

impl Log {
    fn push(&self, line: String) {
        let mut state = self.state.lock().expect("no panic under the lock");
        state.lines.push(line);
        state.times.push(Instant::now());
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().expect("no panic under the lock").closed = true;
        self.changed.notify_all();
    }

    fn closes_within(&self, patience: Duration) -> bool {
        let state = self.state.lock().expect("no panic under the lock");
        let open = |state: &mut LogState| !state.closed;
        self.changed.wait_timeout_while(state, patience, open).expect("no panic under the lock").0.closed
    }

    fn text(&self) -> String {
        self.state.lock().expect("no panic under the lock").lines.join("\n")
    }

    fn wait_for<T>(&self, patience: Duration, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let state = self.state.lock().expect("no panic under the lock");
        let waiting = |state: &mut LogState| !state.closed && find(&state.lines).is_none();
        let (state, _) = self.changed.wait_timeout_while(state, patience, waiting).expect("no panic under the lock");
        find(&state.lines)
    }
}
