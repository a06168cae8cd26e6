//! Who is measured, and what the system says that it takes.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::MapData;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use proxy_tests::agent::{AT_SOCKETS, Agent};
use proxy_tests::bench::Kind;
use proxy_tests::kube_proxy::{KubeProxy, Mode};
use proxy_tests::node::Node;

/// Of the clock in `/proc`; the same on every Linux we know (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Who programs Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Sluice,
    KubeProxy(Mode),
}

impl Who {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Sluice => "Sluice".to_owned(),
            Self::KubeProxy(mode) => format!("kube-proxy {}", mode.name()),
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Sluice => Kind::Sluice,
            Self::KubeProxy(mode) => mode.into(),
        }
    }

    pub(crate) fn start(self, node: &Node, kubeconfig: &Path) -> Result<Subject> {
        Ok(match self {
            Self::Sluice => {
                Subject::Sluice(Agent::start_following(node, kubeconfig, &[&AT_SOCKETS[..], &["-v=2"]].concat())?)
            }
            Self::KubeProxy(mode) => Subject::KubeProxy(KubeProxy::start(node, mode, kubeconfig)?),
        })
    }
}

/// One of them at work; ends with the handle.
pub(crate) enum Subject {
    Sluice(Agent),
    KubeProxy(KubeProxy),
}

impl Subject {
    /// When everything was in the kernel for the first time.
    pub(crate) fn programmed_at(&mut self, patience: Duration) -> Result<Instant> {
        match self {
            Self::Sluice(agent) => agent.ready_at(),
            Self::KubeProxy(proxy) => proxy.wait_until_programmed(patience).map(|()| Instant::now()),
        }
    }

    pub(crate) fn agent(&self) -> Option<&Agent> {
        match self {
            Self::Sluice(agent) => Some(agent),
            Self::KubeProxy(_) => None,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        match self {
            Self::Sluice(agent) => agent.pid(),
            Self::KubeProxy(proxy) => proxy.pid(),
        }
    }

    /// CPU seconds of the process, to the nanosecond, and of the children it waited for, in ticks.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let own = clock_getcpuclockid(self.pid()).and_then(ClockId::now).context("the CPU clock of a process")?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, fields) = stat.rsplit_once(") ").context("the name of a process ends with a bracket")?;
        // cutime and cstime, fields 16 and 17 of proc(5).
        let ticks: f64 = fields.split(' ').skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(Duration::from(own).as_secs_f64() + ticks / TICKS_PER_SECOND)
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        Ok(Memory {
            resident: bytes(&status, "VmRSS:")?,
            peak: bytes(&status, "VmHWM:")?,
            anonymous: bytes(&status, "RssAnon:")?,
            share: bytes(&rollup, "Pss:")?,
        })
    }
}

/// Bytes of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) peak: f64,
    /// Of what is resident: not a part of a file.
    pub(crate) anonymous: f64,
    /// What is resident, pages shared with others divided by their number.
    pub(crate) share: f64,
}

/// A line like `VmRSS:   1234 kB`.
fn bytes(text: &str, field: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kilobytes: f64 = value.trim().trim_end_matches(" kB").parse().with_context(|| format!("{field}{value}"))?;
    Ok(kilobytes * 1024.0)
}

/// What each pinned table of `node` costs the kernel, in bytes.
pub(crate) fn tables(node: &Node) -> Result<BTreeMap<String, f64>> {
    let mut tables = BTreeMap::new();
    for folder in fs::read_dir(node.pin_dir())?.flatten().filter(|entry| entry.path().is_dir()) {
        for pin in fs::read_dir(folder.path())?.flatten() {
            // Links are pinned beside tables, and have no cost.
            let Ok(map) = MapData::from_pin(pin.path()) else { continue };
            let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
            let Some(cost) = info.lines().find_map(|line| line.strip_prefix("memlock:")) else { continue };
            tables.insert(pin.file_name().to_string_lossy().into_owned(), cost.trim().parse()?);
        }
    }
    Ok(tables)
}
