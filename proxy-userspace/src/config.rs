//! What the command line means: [`args::Run`] checked and turned into values the stages take.
//!
//! In: words. Out: a [`Config`] that needs no further checks, or an error that names flag, value and way out. Does not
//! touch the kernel, a cluster or a file; only the host name is asked for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use proxy_common::abi::PortRange;
use proxy_common::addr::Family;
use proxy_common::tables::Capacity;

use crate::attach::devices::{Order, Way};
use crate::desired::{Detector, NodePortAddresses};
use crate::devices::{self, Pattern, Scope};
use crate::{args, attach};

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
    pub healthz: SocketAddr,
    pub verbosity: u8,
    pub kernel: attach::Options,
    pub devices: devices::Settings,
    pub masquerade_all: bool,
    pub source_ports: PortRange,
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
            healthz: healthz(&run.healthz_bind_address)?,
            verbosity: run.verbosity,
            kernel: kernel(&run.kernel, devices.wants_any())?,
            devices,
            masquerade_all: run.masquerade_all,
            source_ports: source_ports(&run.source_ports)?,
            device_order: device_order(&run.device_order)?,
            device_way: device_way(&run.device_hooks)?,
        })
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

/// Which devices get programs, from the flags alone.
pub(crate) fn devices(run: &args::Run) -> Result<devices::Settings> {
    Ok(devices::Settings {
        network: scope("network-devices", &run.network_devices)?,
        pods: scope("pod-devices", &run.pod_devices)?,
        detector: detector(run)?,
    })
}

fn scope(flag: &'static str, typed: &[String]) -> Result<Scope> {
    match typed {
        [only] if only == "all" => Ok(Scope::Chosen),
        [only] if only == "none" => Ok(Scope::None),
        list => {
            let pattern = |text: &String| match Pattern::new(text) {
                Some(pattern) if text != "all" && text != "none" => Ok(pattern),
                _ => invalid(
                    flag,
                    format!("{text:?} is not the name of a device; give all, none, or names such as eth0,ens*"),
                ),
            };
            list.iter().map(pattern).collect::<Result<_>>().map(Scope::Named)
        }
    }
}

fn source_ports(typed: &str) -> Result<PortRange> {
    let ends = typed.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match ends {
        Some((first, last)) if (1024..=last).contains(&first) => Ok(PortRange { first, count: last - first + 1 }),
        _ => invalid(
            "source-ports",
            format!("{typed:?} is not a range of ports above 1023; give one such as 61000-65535"),
        ),
    }
}

fn device_order(typed: &str) -> Result<Order> {
    match typed {
        "outermost" => Ok(Order::Outermost),
        "innermost" => Ok(Order::Innermost),
        _ => invalid("device-order", format!("{typed:?} is not one of outermost, innermost")),
    }
}

fn device_way(typed: &str) -> Result<Option<Way>> {
    match typed {
        "auto" => Ok(None),
        "tcx" => Ok(Some(Way::Tcx)),
        "clsact" => Ok(Some(Way::Clsact)),
        _ => invalid("device-hooks", format!("{typed:?} is not one of auto, tcx, clsact")),
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
        devices: None,
    })
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
const LARGEST: u32 = 1 << 26;

fn size(flag: &'static str, typed: u32) -> Result<u32> {
    match typed {
        64..=LARGEST => Ok(typed),
        _ => invalid(flag, format!("{typed} is not between 64 and {LARGEST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(words: &[&str]) -> std::result::Result<Config, String> {
        let words = ["sluice", "run"].iter().chain(words).map(std::ffi::OsString::from);
        match args::parse(words).map_err(|error| error.to_string())?.command {
            args::Command::Run(run) => Config::new(&run, "Host-1\n").map_err(|error| error.to_string()),
            #[allow(unreachable_patterns)]
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn without_flags_it_is_kube_proxys_nftables_mode_in_a_pod() {
        let config = config(&[]).unwrap();
        assert_eq!(config.source, Source::Cluster(ClusterAccess::default()));
        assert_eq!(config.node_name, "host-1");
        assert_eq!(config.bind_address, None);
        assert_eq!(config.detector, Detector::ClusterCidr(Vec::new()));
        assert_eq!(config.node_ports, NodePortAddresses::Primary);
        assert!(!config.loopback_node_ports);
        assert_eq!(config.kernel.limit, Capacity { flows: 0, ..Capacity::LIMIT });
    }

    #[test]
    fn iptables_mode_serves_node_ports_on_every_address_and_on_loopback() {
        let iptables = config(&["--proxy-mode=iptables"]).unwrap();
        assert_eq!(iptables.node_ports, NodePortAddresses::All);
        assert!(iptables.loopback_node_ports);
        let without = config(&["--proxy-mode=iptables", "--iptables-localhost-nodeports=false"]).unwrap();
        assert!(!without.loopback_node_ports);
    }

    #[test]
    fn devices_are_all_or_none_or_those_of_some_names() {
        let devices = config(&["--pod-devices=none", "--network-devices=eth*,wg0"]).unwrap().devices;
        let named = ["eth*", "wg0"].map(|text| Pattern::new(text).unwrap());
        assert_eq!(devices.network, Scope::Named(named.to_vec()));
        assert_eq!(devices.pods, Scope::None);
        let none = config(&[]).unwrap();
        assert!(!none.devices.wants_any(), "{:?}", none.devices);
        assert_eq!(none.kernel.limit.flows, 0);
        assert_eq!(none.source_ports, PortRange { first: 61_000, count: 4536 });
        assert_eq!(config(&["--network-devices=all"]).unwrap().kernel.limit.flows, Capacity::LIMIT.flows);
    }

    #[test]
    fn an_ipv6_bind_address_makes_ipv6_the_primary_family() {
        assert_eq!(config(&["--bind-address=::"]).unwrap().primary_family, Family::V6);
        let concrete = config(&["--bind-address=2001:db8::7"]).unwrap();
        assert_eq!(concrete.bind_address, Some("2001:db8::7".parse().unwrap()));
    }

    #[test]
    fn ranges_are_cut_to_their_prefix() {
        let config = config(&["--cluster-cidr=10.244.3.1/16, fd00::1/64"]).unwrap();
        assert_eq!(
            config.detector,
            Detector::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()])
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_its_flag_and_the_way_out() {
        for (words, message) in [
            (
                &["--cluster-cidr=10.0.0.0/33"][..],
                "--cluster-cidr: 10.0.0.0/33 is not a CIDR: the prefix must be a number from 0 to 32",
            ),
            (&["--cluster-cidr=10.0.0.0"], "--cluster-cidr: 10.0.0.0 is not a CIDR: it has no /PREFIX"),
            (
                &["--cluster-cidr=10.0.0.256/8"],
                "--cluster-cidr: 10.0.0.256/8 is not a CIDR: 10.0.0.256 is not an IP address",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"],
                "--cluster-cidr: 10.0.0.0/8,11.0.0.0/8 has two ranges of one family; give at most one IPv4 and one IPv6 range",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8,11.0.0.0/8,fd00::/8"],
                "--cluster-cidr: 3 ranges given; give at most one IPv4 and one IPv6 range",
            ),
            (&["--nodeport-addresses=primary,10.0.0.0/8"], "--nodeport-addresses: can't use both 'primary' and CIDRs"),
            (&["--bind-address=eth0"], "--bind-address: eth0 is not an IP address"),
            (
                &["--detect-local-mode=NodeCidr"],
                "--detect-local-mode: \"NodeCidr\" is not one of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            ),
            (
                &["--detect-local-mode=BridgeInterface"],
                "--pod-bridge-interface: must not be empty with this --detect-local-mode",
            ),
            (
                &["--hostname-override= "],
                "--hostname-override: the node name is empty; give the name of this node's Node object",
            ),
            (&["--master=10.0.0.1:6443"], "--master: \"10.0.0.1:6443\" is not a URL such as https://192.0.2.10:6443"),
            (&["--proxy-mode=userspace"], "--proxy-mode: \"userspace\" is not one of iptables, nftables, ipvs, ebpf"),
            (
                &["--healthz-bind-address=localhost:80"],
                "--healthz-bind-address: localhost:80 is not an address such as 0.0.0.0:10256 or [::]:10256",
            ),
            (
                &["--pod-devices=veth*,all"],
                "--pod-devices: \"all\" is not the name of a device; give all, none, or names such as eth0,ens*",
            ),
            (
                &["--network-devices=eth 0"],
                "--network-devices: \"eth 0\" is not the name of a device; give all, none, or names such as eth0,ens*",
            ),
            (
                &["--source-ports=61000"],
                "--source-ports: \"61000\" is not a range of ports above 1023; give one such as 61000-65535",
            ),
            (&["--device-order=first"], "--device-order: \"first\" is not one of outermost, innermost"),
            (&["--device-hooks=xdp"], "--device-hooks: \"xdp\" is not one of auto, tcx, clsact"),
            (&["--pin-dir=sluice"], "--pin-dir: sluice is not an absolute path"),
            (&["--max-backends=3"], "--max-backends: 3 is not between 64 and 67108864"),
        ] {
            assert_eq!(config(words).unwrap_err(), message, "{words:?}");
        }
    }
}
