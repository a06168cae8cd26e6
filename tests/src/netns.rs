//! Network namespaces without names: one lives as long as somebody holds it open.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use crate::sys;

/// Whether this process is in the namespace that the kernel started with: only there this setting is to be seen. Its inode
/// is not the same on all kernels, and its cookie is not to be had before 5.14.
pub fn is_initial() -> bool {
    Path::new("/proc/sys/net/core/netdev_max_backlog").exists()
}

/// A network namespace with its loopback up. Clones are the same namespace.
#[derive(Clone, Debug)]
pub struct Netns(Arc<File>);

impl Netns {
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (needs root)")?;
            // Addresses are usable at once: nobody else can have them here.
            for scope in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0")?;
            }
            Self::of_this_thread()
        });
        let netns = made.join().expect("the thread does not panic")?;
        netns.ip(&["link set lo up"])?;
        Ok(netns)
    }

    /// The one that this thread is in.
    pub fn of_this_thread() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("open the network namespace of this thread")?;
        Ok(Self(Arc::new(file)))
    }

    /// The namespace as a path that `ip link … netns PATH` takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A descriptor of its own for somebody else.
    pub(crate) fn file(&self) -> Result<File> {
        self.0.try_clone().context("duplicate a namespace descriptor")
    }

    /// Moves this thread there, for good: sockets that it makes from now on are this namespace's.
    pub fn enter(&self) -> Result<()> {
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs `make` with this namespace as its own; sockets made there stay there.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = self.file()?;
        let entered = || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            make()
        };
        thread::scope(|scope| scope.spawn(entered).join().expect("the thread does not panic"))
    }

    /// Runs `ip` with these lines, one command each.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        let lines: Vec<&str> = lines.iter().map(AsRef::as_ref).collect();
        self.feed("ip", &["-batch", "-"], &lines.join("\n"))
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft", &["-f", "-"], rules)
    }

    /// How many packets each counter of nftables has seen, by its name.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let listed = self.output("nft", &["-j", "list", "counters"])?;
        let listed: Value = serde_json::from_str(&listed).context("nft -j list counters")?;
        let counters = listed["nftables"].as_array().into_iter().flatten().filter_map(|entry| entry.get("counter"));
        let read = |counter: &Value| Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?));
        counters.map(|counter| read(counter).with_context(|| format!("nft names no packets: {counter}"))).collect()
    }

    /// How many packets came in that match `rule` (of nftables), from now on. Once per namespace.
    pub fn count(&self, rule: &str) -> Result<impl Fn() -> Result<u64> + use<>> {
        self.count_any(&[rule])
    }

    /// As [`Self::count`], of packets that match any of these.
    pub fn count_any(&self, rules: &[&str]) -> Result<impl Fn() -> Result<u64> + use<>> {
        let rules: Vec<_> = rules.iter().map(|rule| format!("{rule} counter name seen")).collect();
        let rules = rules.join("\n");
        self.nft(&format!(
            "table inet count {{
                counter seen {{ }}
                chain seen {{
                    type filter hook prerouting priority raw
                    {rules}
                }}
            }}"
        ))?;
        let netns = self.clone();
        Ok(move || netns.counters()?.get("seen").copied().context("counter seen"))
    }

    /// The output of a command that runs in here.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program)?;
        let output = command.args(arguments).output().with_context(|| format!("start {program}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments:?}: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets sysctls below `/proc/sys/net`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inside(|| {
            settings.iter().try_for_each(|(name, value)| {
                fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("set net/{name} to {value}"))
            })
        })
    }

    fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut command = self.command(program)?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        child.stdin.take().expect("stdin is piped").write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} refused:\n{input}{errors}");
        Ok(())
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        sys::start_in_netns(&mut command, self.file()?);
        Ok(command)
    }
}
