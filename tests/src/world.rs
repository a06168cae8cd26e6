//! One world per test: a mount namespace, a cgroup, an uplink network, and the promise that all of it goes away.
//!
//! Network namespaces, `/run`, the BPF file system and every process end with the last holder. Only the cgroup has a
//! name outside; a janitor process in a session of its own removes it once this process lets go of a pipe, also
//! after a panic, Ctrl-C or SIGKILL.

use std::cell::Cell;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::node::{Node, Place, Pods};
use crate::sys;

/// Where nodes keep their pins, one folder each.
pub const PINS: &str = "/sys/fs/bpf";

/// How many worlds this process has made.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The world of one test. Bound to the thread that made it.
pub struct World {
    /// The network between the nodes; it is their default gateway, and a client outside of the cluster.
    pub uplink: Netns,
    cgroup: PathBuf,
    nodes: Cell<u8>,
    outer_mounts: File,
    outer_folder: File,
    janitor: Janitor,
    not_send: PhantomData<*const ()>,
}

impl World {
    pub fn new() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: `cargo xtask test netns` says how");
        let name = format!("sluice-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup2_mount()?.join(name);
        let janitor = Janitor::start(&cgroup)?;
        fs::create_dir(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;

        let outer_mounts = File::open("/proc/thread-self/ns/mnt")?;
        let outer_folder = File::open(env::current_dir()?)?;
        own_mounts()?;
        let uplink = uplink()?;
        let (nodes, not_send) = (Cell::new(0), PhantomData);
        Ok(Self { uplink, cgroup, nodes, outer_mounts, outer_folder, janitor, not_send })
    }

    /// A node: a network namespace on the uplink with a bridge for its pods, and a cgroup.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.node_with(name, Pods::Bridged)
    }

    /// Like [`Self::node`], with this network for its pods.
    pub fn node_with(&self, name: &str, pods: Pods) -> Result<Node> {
        self.nodes.set(self.nodes.get() + 1);
        Node::join(self, self.nodes.get(), name, pods)
    }

    /// A process outside of the cluster, at the other end of the uplink.
    pub fn outside(&self) -> Result<Place> {
        Place::new(self.uplink.clone(), self.cgroup.join("outside"))
    }

    /// A process one hop behind the uplink, which forwards no larger packets to it than this.
    pub fn away(&self, mtu: u32) -> Result<Place> {
        let netns = Netns::new()?;
        self.uplink.ip(&[
            format!("link add away type veth peer name eth0 netns {}", netns.path()),
            "link set away up".to_owned(),
            "addr add 198.51.100.1/24 dev away".to_owned(),
            "addr add 2001:db8:51::1/64 dev away nodad".to_owned(),
            format!("route add 198.51.100.7/32 dev away mtu lock {mtu}"),
            format!("route add 2001:db8:51::7/128 dev away mtu lock {mtu}"),
        ])?;
        netns.ip(&[
            "link set eth0 up",
            "addr add 198.51.100.7/24 dev eth0",
            "addr add 2001:db8:51::7/64 dev eth0 nodad",
            "route add default via 198.51.100.1",
            "route add default via 2001:db8:51::1",
        ])?;
        Place::new(netns, self.cgroup.join("away"))
    }

    /// The cgroup that holds every process of this world.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.janitor.finish();
        // Leaving the mount namespace frees it, and with it every pin. Threads that were started here still share this
        // thread's root and working folder, and who shares those may not change mounts.
        let alone = unshare(CloneFlags::CLONE_FS);
        let left = setns(self.outer_mounts.as_fd(), CloneFlags::CLONE_NEWNS);
        let back = nix::unistd::fchdir(self.outer_folder.as_fd());
        if let Err(error) = alone.and(left).and(back) {
            eprintln!("could not leave the mount namespace of a test: {error}");
        }
    }
}

/// Ends every process below a cgroup and removes it when its standard input closes.
struct Janitor {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Janitor {
    fn start(cgroup: &Path) -> Result<Self> {
        let mut command = Command::new(crate::process::probe_binary()?);
        sys::start_in_own_session(&mut command);
        command.arg("janitor").arg(cgroup).stdin(Stdio::piped());
        let mut child = command.spawn().context("start the janitor")?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    fn finish(&mut self) {
        self.stdin = None;
        match self.child.wait() {
            Ok(status) if status.success() => {}
            result => eprintln!("the janitor failed: {result:?}"),
        }
    }
}

/// The janitor's work, in its own process.
pub fn clean_up_after(cgroup: &Path) -> Result<()> {
    io::stdin().read_to_end(&mut Vec::new())?;
    if !cgroup.exists() {
        return Ok(());
    }
    // The kernel reports an empty cgroup only after the last process is gone.
    while fs::read_to_string(cgroup.join("cgroup.events"))?.contains("populated 1") {
        end_processes(cgroup).context("end the processes of a test")?;
        thread::sleep(Duration::from_millis(1));
    }
    remove_cgroup(cgroup)
}

/// At once from kernel 5.14 on; one by one before, until none is left.
fn end_processes(cgroup: &Path) -> Result<()> {
    let all_at_once = cgroup.join("cgroup.kill");
    if all_at_once.exists() {
        return Ok(fs::write(all_at_once, "1")?);
    }
    for child in fs::read_dir(cgroup)? {
        let child = child?;
        if child.file_type()?.is_dir() {
            end_processes(&child.path())?;
        }
    }
    for process in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        // One that has ended meanwhile is what we want.
        let _ = kill(Pid::from_raw(process.parse()?), Signal::SIGKILL);
    }
    Ok(())
}

fn remove_cgroup(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| format!("remove cgroup {}", cgroup.display()))
}

/// Where the cgroup2 hierarchy is mounted; systemd machines with cgroup v1 have it below `unified`.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = mounts.find(|fields| fields.get(2) == Some(&"cgroup2"));
    let found = found.context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")?;
    Ok(PathBuf::from(found[1]))
}

/// A mount namespace for this thread and what it starts, with an empty `/run` and a BPF file system.
fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount /run")?;
    mount(Some("bpf"), PINS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| format!("mount {PINS}"))
}

fn uplink() -> Result<Netns> {
    let uplink = Netns::new()?;
    uplink.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    uplink.ip(&[
        "link add uplink type bridge mcast_snooping 0",
        "link set uplink up",
        "addr add 192.0.2.1/24 dev uplink",
        "addr add 2001:db8::1/64 dev uplink nodad",
    ])?;
    Ok(uplink)
}
