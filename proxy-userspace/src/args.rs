//! What was typed on the command line, word for word. What it means is decided in [`crate::config`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use proxy_common::tables::{ABI_VERSION, Capacity};

use crate::cli::check::CheckArgs;
use crate::cli::cleanup::CleanupArgs;
use crate::cli::list::ListArgs;
use crate::reap::ReapArgs;

/// Kubernetes Services in eBPF: a drop-in kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "sluice", version = version(), disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Follow an API server or manifest files and keep this node's kernel tables up to date.
    Run(Box<Run>),
    List(ListArgs),
    Check(CheckArgs),
    Cleanup(CleanupArgs),
    Reap(ReapArgs),
}

/// `sluice run`. Names and meanings are kube-proxy's where kube-proxy has the flag; underscores work for dashes.
#[derive(Clone, Debug, clap::Args)]
pub struct Run {
    /// Read Services, EndpointSlices, Nodes and ServiceCIDRs from these YAML or JSON files or folders, not from a cluster.
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["kubeconfig", "master"])]
    pub manifests: Vec<PathBuf>,

    /// Kubeconfig with address and credentials of the API server. Without it and without --master: in-cluster.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Address of the API server, over the one in the kubeconfig. It must not be a ClusterIP that this agent serves.
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// Name of this node's Node object and of its endpoints' nodeName (default: the host name).
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Pod ranges of the cluster, at most one per family; the detector of --detect-local-mode=ClusterCIDR.
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: Option<String>,

    /// How traffic of local pods is told apart: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface` or `InterfaceNamePrefix`.
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR")]
    pub detect_local_mode: String,

    /// The bridge that pods are ports of, for --detect-local-mode=BridgeInterface.
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// How names of pod devices start, for --detect-local-mode=InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Addresses that node ports are served on: CIDRs, or `primary` (the node's own IP of each family; the default).
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,

    /// This node's primary IP when it is a concrete address, over the Node object's. Nothing is bound to it.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: String,

    /// externalIPs that are addresses of nodes, of the API server, of pods or of Services: `Allowed`, as with kube-proxy, or
    /// `Restricted`, that is, refused. They are told of either way; of other nodes' only `Restricted` knows, for which the agent
    /// follows all Nodes.
    #[arg(long, value_name = "POLICY", default_value = "Allowed")]
    pub external_ip_policy: String,

    /// Accepted for kube-proxy's sake; /healthz is not served yet.
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: String,

    /// kube-proxy's mode. The data path is eBPF in any case; `iptables` picks its defaults (node ports on 127.0.0.1).
    #[arg(long, value_name = "MODE", default_value = "")]
    pub proxy_mode: String,

    /// With --proxy-mode=iptables: serve node ports on 127.0.0.1 too.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub iptables_localhost_nodeports: bool,

    /// Whose sockets are steered to backends where they dial: `all`; `host`, processes in the node's network namespace and no
    /// pods (service meshes, VMs); or `off`. Who is left out is served at devices: pods at --pod-devices, the node itself at
    /// --network-devices.
    #[arg(long, value_name = "all|host|off", default_value = "all")]
    pub socket_lb: String,

    /// Cgroups that are left out of --socket-lb with all below them: paths from the cgroup root, where `*` stands for any part
    /// of a name (`kubepods.slice/*/kubepods-*-pod0123*`), at most eight levels deep.
    #[arg(long, value_name = "PATH,...", value_delimiter = ',')]
    pub socket_lb_exclude: Vec<String>,

    /// Devices that face the network and get packet programs, which serve clients outside of the node: all that do by what
    /// they are, `none`, or those of these names (`eth*,wg0`), whatever they are.
    #[arg(long, value_name = "all|none|NAME,...", value_delimiter = ',', default_value = "all")]
    pub network_devices: Vec<String>,

    /// Devices that face pods and get packet programs, for traffic that no socket hook sees; like --network-devices.
    #[arg(long, value_name = "all|none|NAME,...", value_delimiter = ',', default_value = "all")]
    pub pod_devices: Vec<String>,

    /// Where packet programs stand among those of others: `outermost`, next to the device, so that others see backends, or
    /// `innermost`, so that they see Services.
    #[arg(long, value_name = "ORDER", default_value = "outermost")]
    pub device_order: String,

    /// Source ports of packets that leave with this node's address. They are taken from what processes of the node are given,
    /// and no node port may be among them.
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535")]
    pub source_ports: String,

    /// Packets to ClusterIPs leave with this node's address, for backends of this node too.
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub masquerade_all: bool,

    /// Answer echo requests (ping) to ClusterIPs, externalIPs and load-balancer addresses of Services.
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub answer_echo: bool,

    /// Send packets of Services on past the stack, in both directions, where their ways are plain: past FORWARD rules, network
    /// policies made of them, conntrack and the reverse path filter of this node too.
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub fast_path: bool,

    /// How packet programs are attached: `tcx` (kernel 6.6), `clsact`, or `auto`, the better one that the kernel has.
    #[arg(long, value_name = "WAY", default_value = "auto")]
    pub device_hooks: String,

    /// How long an idle TCP connection through a device is remembered; 0: as `nf_conntrack_tcp_timeout_established` says.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub conntrack_tcp_timeout_established: String,

    /// How long a half closed one is; 0: as `nf_conntrack_tcp_timeout_close_wait` says.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub conntrack_tcp_timeout_close_wait: String,

    /// How long a UDP flow is remembered that may have had its answer and did not go on; 0: as `nf_conntrack_udp_timeout`
    /// says.
    #[arg(long, value_name = "DURATION", default_value = "0")]
    pub conntrack_udp_timeout: String,

    /// How long one is that went on after an answer; 0: as `nf_conntrack_udp_timeout_stream` says.
    #[arg(long, value_name = "DURATION", default_value = "0")]
    pub conntrack_udp_timeout_stream: String,

    /// How much to log: 0 what an operator must know, 2 every change of the tables, 4 every object, 6 the HTTP client.
    #[arg(short = 'v', long = "v", value_name = "N", default_value_t = 0)]
    pub verbosity: u8,

    #[command(flatten)]
    pub kernel: Kernel,
}

/// Where in the kernel things go, and how large they may grow.
#[derive(Clone, Debug, clap::Args)]
pub struct Kernel {
    /// Folder on a bpffs that keeps the tables and programs while the agent is away. One agent at a time: its lock is in
    /// /run/sluice, where `sluice reap` is told of changes too (containers should share that folder).
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/sluice")]
    pub pin_dir: PathBuf,

    /// The cgroup whose processes are served (default: the root of the cgroup2 hierarchy, that is, everybody).
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// The network namespace that is this node (default: the agent's own).
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,

    /// Dialled addresses (address, port, protocol) that the tables may grow to.
    #[arg(long, value_name = "N", default_value_t = Capacity::LIMIT.frontends)]
    pub max_frontends: u32,

    /// Service ports (per family) that the tables may grow to.
    #[arg(long, value_name = "N", default_value_t = Capacity::LIMIT.services)]
    pub max_services: u32,

    /// Endpoints of all service ports together that the tables may grow to.
    #[arg(long, value_name = "N", default_value_t = Capacity::LIMIT.backends)]
    pub max_backends: u32,

    /// Clients with session affinity that are remembered at most; the least recently seen are forgotten first.
    #[arg(long, value_name = "N", default_value_t = Capacity::LIMIT.affinity)]
    pub max_affinity: u32,

    /// Open sockets towards Services whose state is kept in the fast table; the others cost a little more. Made once:
    /// another size counts after `sluice cleanup`.
    #[arg(long, value_name = "N", default_value_t = Capacity::LIMIT.sockets)]
    pub max_sockets: u32,

    /// Flows of packets that are remembered, of each family; the least recently seen are forgotten first. Made once, and
    /// only where packet programs are wanted: another size counts after `sluice cleanup`.
    #[arg(long, value_name = "N", default_value_t = Capacity::LIMIT.flows)]
    pub max_flows: u32,
}

/// `sluice 0.1.0 (kernel ABI 1)`: two versions with one ABI share tables without rebuilding them.
fn version() -> String {
    format!("{} (kernel ABI {ABI_VERSION})", env!("CARGO_PKG_VERSION"))
}

/// Reads the command line; on a mistake (or `--help`) the error knows what to print and which code to exit with.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    Args::try_parse_from(words.into_iter().map(dashes))
}

/// kube-proxy takes `--cluster_cidr` for `--cluster-cidr`; only the name of a flag is changed, never its value.
fn dashes(word: OsString) -> OsString {
    match word.to_str() {
        Some(text) if text.starts_with("--") && text.contains('_') => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        }
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<Run, String> {
        let words = ["sluice", "run"].iter().chain(words).map(OsString::from);
        match parse(words).map_err(|error| error.to_string())?.command {
            Command::Run(run) => Ok(*run),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_command_line_definition_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn every_spelling_of_the_verbosity_is_understood() {
        for words in [&["-v=3"][..], &["-v", "3"], &["-v3"], &["--v=3"], &["--v", "3"]] {
            assert_eq!(run(words).unwrap().verbosity, 3, "{words:?}");
        }
    }

    #[test]
    fn underscores_in_names_are_dashes_and_in_values_stay() {
        let run = run(&["--hostname_override=my_node", "--pin_dir", "/a_b"]).unwrap();
        assert_eq!(run.hostname_override.as_deref(), Some("my_node"));
        assert_eq!(run.kernel.pin_dir, PathBuf::from("/a_b"));
    }

    #[test]
    fn a_switch_may_be_bare_or_carry_its_value() {
        let switch = |words| run(words).unwrap().iptables_localhost_nodeports;
        assert!(switch(&[]));
        assert!(switch(&["--iptables-localhost-nodeports"]));
        assert!(!switch(&["--iptables-localhost-nodeports=false"]));
    }

    #[test]
    fn wrong_words_are_named() {
        for (words, part) in [
            (&["--no-such-flag"][..], "unexpected argument '--no-such-flag'"),
            (&["stray"], "unexpected argument 'stray'"),
            (&["-v=loud"], "invalid value 'loud' for '--v <N>'"),
            (&["--manifests"], "a value is required for '--manifests <PATH>...'"),
            (&["--manifests=a", "--kubeconfig=b"], "cannot be used with"),
        ] {
            let error = run(words).unwrap_err();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
}
