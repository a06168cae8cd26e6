//! Command lines, and what they mean.

use super::*;
use crate::devices::{Pattern, Scope};

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
    assert_eq!((config.devices.network, config.devices.pods), (Scope::Chosen, Scope::Chosen));
    assert_eq!(config.kernel.limit, Capacity::LIMIT);
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
    let none = config(&["--network-devices=none", "--pod-devices=none"]).unwrap();
    assert!(!none.devices.wants_any(), "{:?}", none.devices);
    assert_eq!(none.kernel.limit.flows, 0);
    assert_eq!(none.source_ports, PortRange { first: 61_000, count: 4536 });
    assert_eq!(
        config(&["--network-devices=none", "--pod-devices=all"]).unwrap().kernel.limit.flows,
        Capacity::LIMIT.flows
    );
}

#[test]
fn sockets_are_steered_for_all_for_the_host_or_for_nobody_and_who_is_left_unserved_is_said() {
    let unserved = |words: &[&str]| config(words).unwrap().unserved();
    assert_eq!(config(&[]).unwrap().kernel.steered, Steered::Everybody);
    assert_eq!(unserved(&[]), None);
    assert_eq!(unserved(&["--socket-lb=host", "--pod-devices=all"]), None);
    assert!(unserved(&["--socket-lb=host", "--pod-devices=none"]).unwrap().starts_with("pods of this node;"));
    assert_eq!(unserved(&["--socket-lb=off", "--pod-devices=all"]), None);
    let (off, none) = ("--socket-lb=off", "--network-devices=none");
    assert!(unserved(&[off, "--pod-devices=none"]).unwrap().starts_with("pods of this node;"));
    assert!(unserved(&[off, none]).unwrap().starts_with("processes of this node itself;"));
    assert!(unserved(&[off, none, "--pod-devices=none"]).unwrap().starts_with("this node and its pods;"));
    for (words, itself) in
        [(&[][..], false), (&["--socket-lb=host"], false), (&[off], true), (&["--socket-lb-exclude=a"], true)]
    {
        assert_eq!(config(words).unwrap().devices.itself, itself, "{words:?}");
    }
    for path in ["", "a//b", "1/2/3/4/5/6/7/8/9"] {
        let error = config(&["--socket-lb-exclude", path]).unwrap_err();
        assert!(error.starts_with(&format!("--socket-lb-exclude: {path:?} ")), "{error}");
    }
    let error = config(&["--socket-lb=pods"]).unwrap_err();
    assert_eq!(error, "--socket-lb: \"pods\" is not one of all, host, off");
}

#[test]
fn timeouts_are_kube_proxys_and_zero_leaves_them_to_the_kernel() {
    let asked = Asked { tcp_established: 86_400, tcp_close_wait: 3_600, udp: 0, udp_stream: 0 };
    assert_eq!(config(&[]).unwrap().timeouts, asked);
    for (typed, seconds) in [("0", 0), ("0s", 0), ("90s", 90), ("1h30m0s", 5_400), ("1.5h", 5_400), ("2500ms", 2)] {
        let flag = format!("--conntrack-udp-timeout-stream={typed}");
        assert_eq!(config(&[&flag]).unwrap().timeouts, Asked { udp_stream: seconds, ..asked }, "{typed}");
    }
    for typed in ["", "1", "-1s", "-100ms", "soon", "200000000h"] {
        let error = config(&[&format!("--conntrack-tcp-timeout-established={typed}")]).unwrap_err();
        let expected = "--conntrack-tcp-timeout-established: ";
        assert!(error.starts_with(expected) && error.contains("not a duration such as 24h"), "{typed}: {error}");
    }
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
        (
            &["--fast-path", "--pod-devices=none"],
            "--fast-path: answers are met at all devices or not at all; leave out --network-devices and --pod-devices",
        ),
        (&["--device-order=first"], "--device-order: \"first\" is not one of outermost, innermost"),
        (&["--device-hooks=xdp"], "--device-hooks: \"xdp\" is not one of auto, tcx, clsact"),
        (&["--pin-dir=sluice"], "--pin-dir: sluice is not an absolute path"),
        (&["--max-backends=3"], "--max-backends: 3 is not between 64 and 16777216"),
    ] {
        assert_eq!(config(words).unwrap_err(), message, "{words:?}");
    }
}
