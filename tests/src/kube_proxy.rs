//! The real kube-proxy on a node, for whatever is compared with it.
//!
//! In: a node, a mode and a kubeconfig. Out: a process and what its metrics say. It runs in the node's network namespace
//! and cgroup, so its rules go with the node; it leaves the sysctls of connection tracking as they are.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use proxy_common::addr::Family;
use serde_json::json;

use crate::apiserver::program;
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{end, pid_of};

/// Where kube-proxy shows its metrics, on the loopback device of its node.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 10249);
/// How often it is asked whether it is done.
const ASK: Duration = Duration::from_millis(10);

/// How kube-proxy tells the kernel about Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    /// With the iptables that speak to the kernel's own tables.
    IptablesLegacy,
    /// With the iptables that write nftables rules, which distributions have as their usual ones.
    IptablesNft,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
        }
    }

    /// What the configuration calls it.
    fn setting(self) -> &'static str {
        if self == Self::Nftables { "nftables" } else { "iptables" }
    }

    /// The one program that is every iptables command by its name.
    fn commands(self) -> Option<&'static str> {
        match self {
            Self::Nftables => None,
            Self::IptablesLegacy => Some("/usr/sbin/xtables-legacy-multi"),
            Self::IptablesNft => Some("/usr/sbin/xtables-nft-multi"),
        }
    }
}

/// A running kube-proxy. Killed with the handle; its rules stay in the node's network namespace.
pub struct KubeProxy {
    node: Netns,
    child: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts kube-proxy and does not wait.
    pub fn start(node: &Node, mode: Mode, kubeconfig: &Path) -> Result<Self> {
        let folder = Path::new("/run/kube-proxy").join(&node.name);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let (config, log) = (folder.join("config"), folder.join("log"));
        fs::write(&config, configuration(node, mode, kubeconfig)).with_context(|| config.display().to_string())?;
        let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = node.host()?.command(program("SLUICE_KUBE_PROXY")?)?;
        command.arg("--config").arg(&config).env("PATH", path(mode, &folder)?);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("start kube-proxy")?;
        Ok(Self { node: node.netns.clone(), child, log })
    }

    /// Waits until everything that it was told of IPv4 is in the kernel.
    pub fn wait_until_programmed(&mut self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("kube-proxy ended with {status}; its log ends:\n{}", self.log_end());
            }
            if self.synced_at(Family::V4).is_ok_and(|time| time.is_some()) {
                return Ok(());
            }
            if start.elapsed() > patience {
                bail!("kube-proxy programmed nothing in {} s; its log ends:\n{}", patience.as_secs(), self.log_end());
            }
            thread::sleep(ASK);
        }
    }

    /// When it last finished writing the rules of a family, in seconds since 1970; `None` before the first time. It does
    /// one family after the other.
    pub fn synced_at(&self, family: Family) -> Result<Option<f64>> {
        let family = if family == Family::V4 { "IPv4" } else { "IPv6" };
        self.metric(&format!("kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"{family}\"}}"))
    }

    /// One of its metrics, named with its labels.
    pub fn metric(&self, name: &str) -> Result<Option<f64>> {
        let page = self.node.inside(|| {
            let mut server = TcpStream::connect(METRICS).context("connect to the metrics of kube-proxy")?;
            server.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut page = String::new();
            server.read_to_string(&mut page)?;
            Ok(page)
        })?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(|value| value.parse().with_context(|| format!("{name} is {value:?}"))).transpose()
    }

    pub fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Defaults but for what would reach beyond the node's namespace, and JSON, which every API server speaks.
fn configuration(node: &Node, mode: Mode, kubeconfig: &Path) -> String {
    let untouched = json!({
        "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        "udpTimeout": "0s", "udpStreamTimeout": "0s",
    });
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode.setting(), "hostnameOverride": node.name, "oomScoreAdj": 0,
        "clusterCIDR": "10.244.0.0/16,fd00:244::/32", "conntrack": untouched,
        "clientConnection": { "kubeconfig": kubeconfig, "contentType": "application/json" },
    });
    configuration.to_string()
}

/// Where commands are looked for: iptables is the kind that `mode` asks for, whatever the machine's own is.
fn path(mode: Mode, folder: &Path) -> Result<String> {
    let usual = "/usr/sbin:/usr/bin:/sbin:/bin";
    let Some(commands) = mode.commands() else { return Ok(usual.to_owned()) };
    for family in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            let link = folder.join(format!("{family}{action}"));
            symlink(commands, &link).with_context(|| format!("make {}", link.display()))?;
        }
    }
    Ok(format!("{}:{usual}", folder.display()))
}
