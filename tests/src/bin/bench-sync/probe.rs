//! The same look from outside at every proxy: who answers behind a ClusterIP, asked again and again.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use proxy_tests::cluster::{self, PORT, TARGET};
use proxy_tests::node::{Node, Pod};

use crate::feed::{Feed, Told};

/// The Service that is watched.
const WATCHED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 50);
/// Slow proxies are asked less often, so that a table of connections does not overflow meanwhile.
const EAGER: Duration = Duration::from_millis(50);
const CALM: Duration = Duration::from_millis(1);
/// Between the network namespaces of one machine silence is an answer.
const UNANSWERED: Duration = Duration::from_secs(1);

/// Two pods that could answer.
pub(crate) struct Probe {
    addresses: [Ipv4Addr; 2],
    listeners: [TcpListener; 2],
    patience: Duration,
}

impl Probe {
    pub(crate) fn new(node: &Node, patience: Duration) -> Result<Self> {
        let pods = [node.pod("a")?, node.pod("b")?];
        let addresses = [pods[0].v4, pods[1].v4];
        Ok(Self { addresses, listeners: [listen(&pods[0])?, listen(&pods[1])?], patience })
    }

    /// The watched Service with the first pod behind it.
    pub(crate) fn publish(&self, feed: &Feed) -> Result<()> {
        feed.apply(&cluster::service("watched", WATCHED))?;
        self.lead_to(feed, 0).map(drop)
    }

    /// Seconds from the bytes of a change until the other pod answers, `count` times.
    pub(crate) fn flips(&self, feed: &Feed, count: usize) -> Result<Vec<f64>> {
        self.lead_to(feed, 0)?;
        self.wait_for(WATCHED, Some(0))?;
        let flip = |number| {
            let pod = (number + 1) % 2;
            let told = self.lead_to(feed, pod)?;
            Ok(seconds(&told, self.wait_for(WATCHED, Some(pod))?))
        };
        (0..count).map(flip).collect()
    }

    /// Seconds from the bytes of a new Service until it answers, `count` times.
    pub(crate) fn births(&self, feed: &Feed, count: usize) -> Result<Vec<f64>> {
        let birth = |number: usize| {
            let (name, address) = (format!("new-{number}"), Ipv4Addr::new(10, 96, 1, number as u8));
            let (service, slice) = (cluster::service(&name, address), cluster::slice(&name, 0, &self.addresses[..1]));
            feed.apply(&slice)?;
            let told = feed.apply(&service)?;
            Ok(seconds(&told, self.wait_for(address, Some(0))?))
        };
        (0..count).map(birth).collect()
    }

    fn lead_to(&self, feed: &Feed, pod: usize) -> Result<Told> {
        feed.apply(&cluster::slice("watched", 0, &[self.addresses[pod]]))
    }

    /// Dials `to` until pod `who` answers, or nobody.
    fn wait_for(&self, to: Ipv4Addr, who: Option<usize>) -> Result<Instant> {
        let (start, to) = (Instant::now(), SocketAddr::new(IpAddr::from(to), PORT));
        while self.dial(to)? != who {
            if start.elapsed() > self.patience {
                bail!("{to} never led to {who:?} within {:?}", self.patience);
            }
            if start.elapsed() > EAGER {
                thread::sleep(CALM);
            }
        }
        Ok(Instant::now())
    }

    /// Which pod a connection reaches.
    fn dial(&self, to: SocketAddr) -> Result<Option<usize>> {
        let Ok(stream) = TcpStream::connect_timeout(&to, UNANSWERED) else { return Ok(None) };
        // Closed by a reset: no port is kept waiting.
        setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        let start = Instant::now();
        while start.elapsed() < self.patience {
            if let Some(pod) = self.listeners.iter().position(|listener| listener.accept().is_ok()) {
                return Ok(Some(pod));
            }
        }
        bail!("{to} led to nobody that listens")
    }
}

/// When the change left and when it was seen.
fn seconds(told: &Told, seen: Instant) -> f64 {
    told.at().map_or(0.0, |at| (seen - at).as_secs_f64())
}

fn listen(pod: &Pod) -> Result<TcpListener> {
    let address = SocketAddr::new(pod.v4.into(), TARGET);
    pod.place.netns.inside(|| {
        let listener = TcpListener::bind(address).with_context(|| format!("listen at {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// This process among those of a node, so that the node's socket hooks see it, until dropped.
pub(crate) struct Visit {
    home: PathBuf,
}

impl Visit {
    /// `root` is where cgroups are mounted.
    pub(crate) fn to(node: &Node, root: &Path) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process has no cgroup2")?;
        let home = root.join(own);
        enter(&node.host()?.cgroup)?;
        Ok(Self { home })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // A cgroup is removed together with who is in it.
        enter(&self.home).expect("home is still there");
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("move to {}", cgroup.display()))
}
