//! What the command line means: [`args::Run`] checked and turned into values the stages take.
//!
//! In: words. Out: a [`Config`] that needs no further checks, or an error that names flag, value and way out. Does not
//! touch the kernel, a cluster or a file; only the host name is asked for.

mod devices;
#[cfg(test)]
mod tests;
mod timeouts;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use proxy_common::abi::PortRange;
use proxy_common::addr::Family;
use proxy_common::policy::Steered;
use proxy_common::tables::{Capacity, UNSTEERED_LEVELS};

use crate::attach::devices::{Order, Way};
use crate::desired::{Detector, ExternalIps, NodePortAddresses};
use crate::devices::Scope;
use crate::timeouts::Asked;
use crate::{args, attach, unsteered};
pub(crate) use devices::devices;

/// `sluice run`, understood.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub node_name: String,
    /// Replaces the primary IP of the Node object (specification F3).
    pub bind_address: Option<IpAddr>,
    pub primary_family: Family,
    pub detector: Detector,
    pub node_ports: NodePortAddresses,
    /// Node ports are served on 127.0.0.1 too (specification I).
    pub loopback_node_ports: bool,
    pub external_ips: ExternalIps,
    pub healthz: SocketAddr,
    pub verbosity: u8,
    pub kernel: attach::Options,
    pub devices: crate::devices::Settings,
    pub masquerade_all: bool,
    /// Echo requests to addresses of Services are answered.
    pub answer_echo: bool,
    pub source_ports: PortRange,
    pub timeouts: Asked,
    pub device_order: Order,
    /// `None`: the better one that the kernel has.
    pub device_way: Option<Way>,
}

/// Where Services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Cluster(ClusterAccess),
    Manifests(Vec<PathBuf>),
}

/// How to reach the API server. Neither field: the service account of the pod the agent runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterAccess {
    pub kubeconfig: Option<PathBuf>,
    pub master: Option<String>,
}

/// A flag with a value that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag}: {reason}")]
pub struct Invalid {
    pub flag: &'static str,
    pub reason: String,
}

type Result<T> = std::result::Result<T, Invalid>;

fn invalid<T>(flag: &'static str, reason: impl Into<String>) -> Result<T> {
    Err(Invalid { flag, reason: reason.into() })
}

impl Config {
    /// `hostname` is what the operating system calls this machine.
    pub fn new(run: &args::Run, hostname: &str) -> Result<Self> {
        let bind_address = ip("bind-address", &run.bind_address)?;
        let mode = mode(&run.proxy_mode)?;
        let devices = devices(run)?;
        Ok(Self {
            source: source(run)?,
            node_name: node_name(run.hostname_override.as_deref(), hostname)?,
            bind_address: Some(bind_address).filter(|ip| !ip.is_unspecified()),
            primary_family: if bind_address.is_ipv4() { Family::V4 } else { Family::V6 },
            detector: detector(run)?,
            node_ports: node_ports(&run.nodeport_addresses, mode)?,
            loopback_node_ports: mode == Mode::Iptables && run.iptables_localhost_nodeports,
            external_ips: external_ips(&run.external_ip_policy)?,
            healthz: healthz(&run.healthz_bind_address)?,
            verbosity: run.verbosity,
            kernel: attach::Options {
                steered: steered(&run.socket_lb)?,
                unsteered: unsteered(&run.socket_lb_exclude)?,
                fast_path: devices::fast_path(run.fast_path, &devices)?,
                ..kernel(&run.kernel, devices.wants_any())?
            },
            devices,
            masquerade_all: run.masquerade_all,
            answer_echo: run.answer_echo,
            source_ports: devices::source_ports(&run.source_ports)?,
            timeouts: timeouts::timeouts(run)?,
            device_order: devices::device_order(&run.device_order)?,
            device_way: devices::device_way(&run.device_hooks)?,
        })
    }

    /// Who is served neither at its sockets nor at devices, and what would help; `None`: nobody.
    pub fn unserved(&self) -> Option<&'static str> {
        let pods = self.devices.pods == Scope::None && self.kernel.steered != Steered::Everybody;
        let node = self.devices.network == Scope::None && self.kernel.steered == Steered::Nobody;
        match (node, pods) {
            (false, false) => None,
            (false, true) => Some("pods of this node; add --pod-devices=all"),
            (true, false) => Some("processes of this node itself; add --network-devices=all or use --socket-lb=host"),
            (true, true) => Some("this node and its pods; use --socket-lb=all"),
        }
    }
}

/// kube-proxy's modes, of which only the defaults matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Iptables,
    Other,
}

fn mode(typed: &str) -> Result<Mode> {
    match typed {
        "iptables" => Ok(Mode::Iptables),
        "" | "nftables" | "ipvs" | "ebpf" => Ok(Mode::Other),
        _ => invalid("proxy-mode", format!("{typed:?} is not one of iptables, nftables, ipvs, ebpf")),
    }
}

fn source(run: &args::Run) -> Result<Source> {
    if !run.manifests.is_empty() {
        return Ok(Source::Manifests(run.manifests.clone()));
    }
    let master = run.master.as_deref().map(master).transpose()?;
    Ok(Source::Cluster(ClusterAccess { kubeconfig: run.kubeconfig.clone(), master }))
}

/// kubectl and kube-proxy take a bare `host:port` too and mean http by it; that would send credentials in the clear.
fn master(typed: &str) -> Result<String> {
    let host = typed.strip_prefix("https://").or_else(|| typed.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() => Ok(typed.to_owned()),
        _ => invalid("master", format!("{typed:?} is not a URL such as https://192.0.2.10:6443")),
    }
}

fn node_name(typed: Option<&str>, hostname: &str) -> Result<String> {
    let name = typed.unwrap_or(hostname).trim().to_lowercase();
    if name.is_empty() {
        return invalid("hostname-override", "the node name is empty; give the name of this node's Node object");
    }
    Ok(name)
}

fn detector(run: &args::Run) -> Result<Detector> {
    match run.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => cluster_cidrs(run.cluster_cidr.as_deref().unwrap_or("")).map(Detector::ClusterCidr),
        "NodeCIDR" => Ok(Detector::NodeCidr),
        "BridgeInterface" => {
            named("pod-bridge-interface", run.pod_bridge_interface.as_deref()).map(Detector::BridgeInterface)
        }
        "InterfaceNamePrefix" => named("pod-interface-name-prefix", run.pod_interface_name_prefix.as_deref())
            .map(Detector::InterfaceNamePrefix),
        mode => invalid(
            "detect-local-mode",
            format!("{mode:?} is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"),
        ),
    }
}

fn named(flag: &'static str, typed: Option<&str>) -> Result<String> {
    match typed {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => invalid(flag, "must not be empty with this --detect-local-mode"),
    }
}

fn cluster_cidrs(typed: &str) -> Result<Vec<IpNet>> {
    let flag = "cluster-cidr";
    let parts = typed.split(',').filter(|part| !part.trim().is_empty());
    let cidrs: Vec<IpNet> = parts.map(|part| cidr(flag, part)).collect::<Result<_>>()?;
    match cidrs.as_slice() {
        [] | [_] | [IpNet::V4(_), IpNet::V6(_)] | [IpNet::V6(_), IpNet::V4(_)] => Ok(cidrs),
        [_, _] => {
            invalid(flag, format!("{typed} has two ranges of one family; give at most one IPv4 and one IPv6 range"))
        }
        more => invalid(flag, format!("{} ranges given; give at most one IPv4 and one IPv6 range", more.len())),
    }
}

fn node_ports(typed: &[String], mode: Mode) -> Result<NodePortAddresses> {
    let flag = "nodeport-addresses";
    match typed {
        [] if mode == Mode::Iptables => Ok(NodePortAddresses::All),
        [] => Ok(NodePortAddresses::Primary),
        [only] if only == "primary" => Ok(NodePortAddresses::Primary),
        list if list.iter().any(|part| part == "primary") => invalid(flag, "can't use both 'primary' and CIDRs"),
        list => {
            let ranges = list.iter().map(|part| cidr(flag, part)).collect::<Result<_>>()?;
            // kube-proxy's nftables mode opens node ports on all addresses of a family without a range, which surprises;
            // its iptables mode is asked for by name.
            Ok(NodePortAddresses::Within { ranges, other_family_is_all: mode == Mode::Iptables })
        }
    }
}

fn external_ips(typed: &str) -> Result<ExternalIps> {
    match typed {
        "Allowed" => Ok(ExternalIps::Allowed),
        "Restricted" => Ok(ExternalIps::Restricted),
        _ => invalid("external-ip-policy", format!("{typed:?} is not one of Allowed, Restricted")),
    }
}

fn cidr(flag: &'static str, typed: &str) -> Result<IpNet> {
    let typed = typed.trim();
    let Some((address, prefix)) = typed.split_once('/') else {
        return invalid(flag, format!("{typed} is not a CIDR: it has no /PREFIX"));
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return invalid(flag, format!("{typed} is not a CIDR: {address} is not an IP address"));
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    match prefix.parse::<u8>().ok().and_then(|prefix| IpNet::new(address, prefix).ok()) {
        Some(net) => Ok(net.trunc()),
        None => invalid(flag, format!("{typed} is not a CIDR: the prefix must be a number from 0 to {longest}")),
    }
}

fn ip(flag: &'static str, typed: &str) -> Result<IpAddr> {
    typed.parse().or_else(|_| invalid(flag, format!("{typed} is not an IP address")))
}

fn healthz(typed: &str) -> Result<SocketAddr> {
    const PORT: u16 = 10256;
    if typed.is_empty() {
        return Ok(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT));
    }
    let bare = typed.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    match typed.parse::<SocketAddr>().or(bare) {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => invalid("healthz-bind-address", format!("{typed} is not an address such as 0.0.0.0:10256 or [::]:10256")),
    }
}

/// `packets`: programs are wanted at devices.
fn kernel(run: &args::Kernel, packets: bool) -> Result<attach::Options> {
    if !run.pin_dir.is_absolute() {
        return invalid("pin-dir", format!("{} is not an absolute path", run.pin_dir.display()));
    }
    let limit = limit(run)?;
    Ok(attach::Options {
        pin_dir: run.pin_dir.clone(),
        cgroup_root: run.cgroup_root.clone(),
        netns: run.netns.clone(),
        limit: if packets { limit } else { Capacity { flows: 0, ..limit } },
        ..attach::Options::default()
    })
}

fn steered(typed: &str) -> Result<Steered> {
    match typed {
        "all" => Ok(Steered::Everybody),
        "host" => Ok(Steered::TheNode),
        "off" => Ok(Steered::Nobody),
        _ => invalid("socket-lb", format!("{typed:?} is not one of all, host, off")),
    }
}

fn unsteered(typed: &[String]) -> Result<Vec<unsteered::Pattern>> {
    let pattern = |text: &String| match unsteered::Pattern::new(text) {
        Some(pattern) if pattern.depth() <= UNSTEERED_LEVELS as usize => Ok(pattern),
        Some(_) => {
            let reason = format!("{text:?} leads deeper than {UNSTEERED_LEVELS} levels; name a cgroup further up");
            invalid("socket-lb-exclude", reason)
        }
        None => {
            let reason = format!("{text:?} is no path of a cgroup; write it like kubepods.slice/*/kubepods-*-pod0123*");
            invalid("socket-lb-exclude", reason)
        }
    };
    typed.iter().map(pattern).collect()
}

/// What tables may grow to. Those that depend on others grow with them: while a service port changes, its old and its new
/// version exist.
pub(crate) fn limit(run: &args::Kernel) -> Result<Capacity> {
    let services = size("max-services", run.max_services)?;
    let backends = size("max-backends", run.max_backends)?;
    Ok(Capacity {
        frontends: size("max-frontends", run.max_frontends)?,
        services,
        versions: services * 2,
        slots: backends * 3,
        backends,
        affinity: size("max-affinity", run.max_affinity)?,
        sockets: size("max-sockets", run.max_sockets)?,
        flows: size("max-flows", run.max_flows)?,
        ..Capacity::LIMIT
    })
}

/// Above this the tables would take more memory than nodes have (and the products above would not fit).
const LARGEST: u32 = 1 << 24;
const _: () = assert!(LARGEST <= proxy_common::index::LARGEST, "a word of INDEX has so many bits for each number");

fn size(flag: &'static str, typed: u32) -> Result<u32> {
    match typed {
        64..=LARGEST => Ok(typed),
        _ => invalid(flag, format!("{typed} is not between 64 and {LARGEST}")),
    }
}
