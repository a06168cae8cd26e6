//! Devices on top of others: VLANs and bonds. A kernel without them says so.

use std::net::{IpAddr, SocketAddr};

use proxy_tests::edge::{Edge, PODS, devices};
use proxy_tests::netns::Netns;
use proxy_tests::probe::Client;
use proxy_tests::stage::{TARGET, eventually};
use proxy_userspace::attach::devices::Standing;

use crate::real::{FAR, NEAR, both, dial, serve};

/// Adds a device of `kind` where the kernel has any.
fn add(netns: &Netns, device: &str, kind: &str) -> bool {
    match netns.ip(&[format!("link add {device} type {kind}")]) {
        Ok(()) => true,
        Err(error) => {
            assert!(error.to_string().contains("Unknown device type"), "{kind}: {error}");
            false
        }
    }
}

/// Gives the node a network of its own, in which it has the address 11 and the client outside the address 1.
fn address(stage: &Edge, network: u8, here: &str, there: &str) -> [IpAddr; 2] {
    for (netns, device, host) in [(&stage.node.netns, here, 11), (&stage.outside.netns, there, 1)] {
        netns
            .ip(&[
                format!("link set {device} up"),
                format!("addr add 192.0.{network}.{host}/24 dev {device}"),
                format!("addr add 2001:db8:{network}::{host}/64 dev {device} nodad"),
            ])
            .unwrap();
    }
    [[192, 0, network, 11].into(), format!("2001:db8:{network}::11").parse().unwrap()]
}

/// Whether ours stands at both hooks of a device of the node.
fn stands(stage: &Edge, device: &str) -> bool {
    both(stage, device).iter().all(|found| *found != Standing::Nothing)
}

/// Whether it stands at neither.
fn is_bare(stage: &Edge, device: &str) -> bool {
    both(stage, device).iter().all(|found| *found == Standing::Nothing)
}

/// Whether `sluice check` says this of a device.
fn is_told(stage: &Edge, line: &str) -> bool {
    devices(&stage.node).iter().any(|found| found.starts_with(line))
}

/// Both Services, by this address of the node.
fn serves_at(client: &Client, addresses: [IpAddr; 2]) {
    for address in addresses {
        dial(client, SocketAddr::new(address, NEAR), "a");
        dial(client, SocketAddr::new(address, FAR), "b");
    }
}

const EVERYWHERE: &str = "--nodeport-addresses=0.0.0.0/0,::/0";

#[test]
fn packets_of_a_vlan_are_translated_at_its_device_and_not_under_it() {
    let stage = serve();
    if !add(&stage.node.netns, "link eth0 name eth0.7", "vlan id 7") {
        return;
    }
    assert!(add(&stage.outside.netns, "link uplink name uplink.7", "vlan id 7"));
    let addresses = address(&stage, 7, "eth0.7", "uplink.7");
    let _agent = stage.agent(&[&PODS[..], &[EVERYWHERE]].concat());
    assert!(is_told(
        &stage,
        "eth0.7: faces the network, layer 2: VLAN of eth0: packets come without their tag; ingress"
    ));
    assert!(stands(&stage, "eth0.7") && stands(&stage, "eth0"));
    let chain = |name: &str, device: &str| {
        format!(
            "counter asked-{name} {{ }}
             counter translated-{name} {{ }}
             chain {name} {{
                 type filter hook ingress device \"{device}\" priority 0
                 meta l4proto {{ tcp, udp }} th dport {{ {NEAR}, {FAR} }} counter name asked-{name}
                 meta l4proto {{ tcp, udp }} th dport {TARGET} counter name translated-{name}
             }}"
        )
    };
    let rules = [chain("below", "eth0"), chain("above", "eth0.7")].join("\n");
    stage.node.netns.nft(&format!("table netdev behind {{\n{rules}\n}}")).unwrap();
    serves_at(&Client::start(&stage.outside).unwrap(), addresses);
    let counters = stage.node.netns.counters().unwrap();
    let of = |name: &str| counters[name];
    assert!(of("asked-below") > 0, "requests pass it untranslated");
    assert_eq!(of("translated-below"), 0);
    assert_eq!((of("asked-above"), of("translated-above")), (0, of("asked-below")), "each once");
}

#[test]
fn packets_of_a_bond_are_translated_at_the_bond_and_not_at_its_members() {
    let stage = serve();
    let (node, outside) = (&stage.node.netns, &stage.outside.netns);
    if !add(node, "bond0", "bond mode active-backup miimon 20") {
        return;
    }
    outside.ip(&["link add switch up type bridge mcast_snooping 0"]).unwrap();
    let join = |member: &str| {
        node.ip(&[format!("link add {member} type veth peer name p-{member} netns {}", outside.path())]).unwrap();
        outside.ip(&[format!("link set p-{member} master switch up")]).unwrap();
    };
    join("first");
    node.ip(&["link set first master bond0"]).unwrap();
    let addresses = address(&stage, 8, "bond0", "switch");
    let _agent = stage.agent(&[&PODS[..], &[EVERYWHERE]].concat());
    let bond = "bond0: faces the network, layer 2: bond: the packets of its members pass here; ingress";
    assert!(is_told(&stage, bond));
    assert!(is_told(&stage, "first: left alone: its packets pass bond0"));
    assert!(stands(&stage, "bond0") && is_bare(&stage, "first"));
    let client = Client::start(&stage.outside).unwrap();
    serves_at(&client, addresses);
    join("second");
    eventually("what may become a member is a device like others", || stands(&stage, "second"));
    node.ip(&["link set second master bond0"]).unwrap();
    eventually("a member has no program", || is_bare(&stage, "second"));
    assert!(is_told(&stage, "second: left alone: its packets pass bond0"));
    node.ip(&["link set first nomaster"]).unwrap();
    assert!(stands(&stage, "bond0"));
    serves_at(&client, addresses);
}
