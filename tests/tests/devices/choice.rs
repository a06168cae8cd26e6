//! Which devices of a real node are chosen.

use std::collections::BTreeMap;

use proxy_userspace::attach::devices::{Hook, Order, Standing, Way, standing};
use proxy_userspace::devices::{Choice, Scope, Settings, choose};
use proxy_userspace::netdev;

use crate::stage::Stage;

#[test]
fn real_devices_are_chosen_by_what_they_are() {
    let stage = Stage::new();
    stage.uplink();
    stage.veth("pod1");
    stage
        .node
        .ip(&[
            "link add cni0 type bridge",
            "addr add 10.244.1.1/24 dev cni0",
            "link set pod1 master cni0",
            "link add vx0 up type vxlan id 1 dstport 4789 dev uplink",
            "link add vx1 type vxlan id 2 dstport 4790 dev uplink",
            "link add link uplink name mac0 type macvlan mode bridge",
            "link add left type veth peer name right",
            "link add ifb7 type ifb",
            "tuntap add tap0 mode tap",
            "tuntap add tun0 mode tun",
            "route add default via 10.0.0.2",
        ])
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let snapshot = runtime.block_on(netdev::look(None)).unwrap();
    let choices = choose(&snapshot, &Settings::default());
    let told = |choice: &Choice| (choice.name.clone(), format!("{:?}: {}", choice.role(), choice.reason));
    let told: BTreeMap<String, String> = choices.iter().map(told).collect();
    for (device, expected) in [
        ("lo", "LeftAlone: traffic of the node with itself is translated at its sockets"),
        ("uplink", "Network: a default route leads there"),
        ("pod1", "Pod: veth, its other end is in another network namespace"),
        ("cni0", "LeftAlone: bridge: its packets pass its ports"),
        ("vx0", "Network: tunnel (vxlan)"),
        ("vx1", "LeftAlone: tunnel (vxlan) that is down"),
        ("mac0", "LeftAlone: its packets pass uplink"),
        ("left", "LeftAlone: its other end is right, in the same network namespace"),
        ("ifb7", "LeftAlone: ifb: no packet leaves the node by it"),
        ("tap0", "Pod: tap: its other end is a process"),
        ("tun0", "Network: tunnel (tun)"),
    ] {
        assert_eq!(told[device], expected, "{device}");
    }
}

#[test]
fn devices_that_users_leave_out_have_no_program() {
    let stage = Stage::new();
    stage.uplink();
    stage.veth("pod1");
    let settings = Settings { pods: Scope::None, ..Settings::default() };
    let _agent = stage.agent_with(Way::of_this_kernel(), Order::default(), settings);
    assert!(stage.stands_at(stage.index("uplink")));
    assert_eq!(standing(&stage.links, stage.index("pod1"), Hook::Ingress).unwrap(), Standing::Nothing);
}
