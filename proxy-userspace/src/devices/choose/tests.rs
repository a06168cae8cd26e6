use super::*;
use crate::devices::{OwnAddress, Pattern, Route};

const ETHERNET: Format = Format::Ethernet;

/// Links in the order in which they are added, with indexes from 1 on.
#[derive(Default)]
struct Node(Snapshot);

impl Node {
    fn link(mut self, name: &str, kind: &str) -> Self {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        let link = Link { name, kind, format: ETHERNET, up: true, master: None, lower: Lower::Nothing };
        self.0.links.insert(self.0.links.len() as u32 + 1, link);
        self
    }

    fn index(&self, name: &str) -> u32 {
        *self.0.links.iter().find(|(_, link)| link.name == name).expect("such a link").0
    }

    fn last(&mut self) -> (u32, &mut Link) {
        let (index, link) = self.0.links.iter_mut().next_back().expect("a link");
        (*index, link)
    }

    fn of(mut self, master: &str) -> Self {
        let master = self.index(master);
        self.last().1.master = Some(master);
        self
    }

    fn on(mut self, lower: &str) -> Self {
        let lower = self.index(lower);
        self.last().1.lower = Lower::Here(lower);
        self
    }

    fn elsewhere(mut self) -> Self {
        self.last().1.lower = Lower::OtherNamespace;
        self
    }

    fn down(mut self) -> Self {
        self.last().1.up = false;
        self
    }

    fn format(mut self, format: Format) -> Self {
        self.last().1.format = format;
        self
    }

    fn at(mut self, address: &str) -> Self {
        let net: ipnet::IpNet = address.parse().expect("an address with a prefix");
        let device = self.last().0;
        self.0.addresses.push(OwnAddress { device, ip: net.addr(), prefix_len: net.prefix_len(), reachable: true });
        self
    }

    fn default_route(mut self) -> Self {
        let device = self.last().0;
        self.0.default_routes.push(Route { device, v4: true, main_table: true, metric: 0 });
        self
    }

    fn routed(mut self) -> Self {
        let device = self.last().0;
        self.0.routed.insert(device);
        self
    }

    fn choices(&self, settings: &Settings) -> Vec<Choice> {
        choose(&self.0, settings)
    }

    /// `name: role, reason` of the last link.
    fn told(&self, settings: &Settings) -> String {
        let last = self.choices(settings).pop().expect("a link");
        format!("{:?}: {}", last.role(), last.reason)
    }
}

fn node() -> Node {
    Node::default()
}

fn named(patterns: &[&str]) -> Scope {
    Scope::Named(patterns.iter().map(|text| Pattern::new(text).expect("a pattern")).collect())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn each_device_has_a_role_and_a_reason() {
    let network = Format::Network;
    for (case, node, told) in [
        (
            "loopback is left to the sockets",
            node().link("lo", "").format(Format::Loopback),
            "LeftAlone: traffic of the node with itself is translated at its sockets",
        ),
        ("a network card faces the network", node().link("eth0", ""), "Network: hardware"),
        (
            "an uplink that is a veth is told from pods by its default route",
            node().link("eth0", "veth").elsewhere().default_route(),
            "Network: a default route leads there",
        ),
        (
            "a second uplink that is a veth is told from pods by its network",
            node().link("eth1", "veth").elsewhere().at("192.168.7.2/24"),
            "Network: has an address of a network",
        ),
        (
            "a veth to another namespace faces a pod",
            node().link("cali1", "veth").elsewhere(),
            "Pod: veth, its other end is in another network namespace",
        ),
        (
            "a pod's gateway address is no network",
            node().link("veth1", "veth").elsewhere().at("10.244.1.1/32").routed(),
            "Pod: veth, its other end is in another network namespace",
        ),
        (
            "netkit is for pods too",
            node().link("lxc1", "netkit").elsewhere(),
            "Pod: netkit, its other end is in another network namespace",
        ),
        (
            "a veth with both ends here would see packets twice",
            node().link("a", "veth").link("b", "veth").on("a"),
            "LeftAlone: its other end is a, in the same network namespace",
        ),
        ("a tap faces a virtual machine", node().link("tap0", "tun"), "Pod: tap: its other end is a process"),
        (
            "a bridge is left alone",
            node().link("cni0", "bridge").at("10.244.1.1/24"),
            "LeftAlone: bridge: its packets pass its ports",
        ),
        (
            "a bridge that carries the default route is left alone all the same",
            node().link("br0", "bridge").default_route(),
            "LeftAlone: bridge: its packets pass its ports",
        ),
        (
            "a veth that is a bridge's port faces a pod",
            node().link("cni0", "bridge").link("veth1", "veth").elsewhere().of("cni0"),
            "Pod: veth, its other end is in another network namespace",
        ),
        (
            "a network card that is a bridge's port faces the network",
            node().link("br0", "bridge").link("eth0", "").of("br0"),
            "Network: hardware",
        ),
        (
            "a bond stands for its members",
            node().link("bond0", "bond"),
            "Network: bond: the packets of its members pass here",
        ),
        (
            "a member of a bond is left alone",
            node().link("bond0", "bond").link("eth0", "").of("bond0"),
            "LeftAlone: its packets pass bond0",
        ),
        (
            "a member of a team is left alone",
            node().link("team0", "team").link("eth0", "").of("team0"),
            "LeftAlone: its packets pass team0",
        ),
        (
            "a virtual function that a network card has taken is left alone",
            node().link("eth0", "").link("enP1", "").of("eth0"),
            "LeftAlone: its packets pass eth0",
        ),
        (
            "a bond that is a bridge's port faces the network",
            node().link("br0", "bridge").link("bond0", "bond").of("br0"),
            "Network: bond: the packets of its members pass here",
        ),
        (
            "a VLAN device sees packets without their tag",
            node().link("eth0", "").link("eth0.100", "vlan").on("eth0"),
            "Network: VLAN of eth0: packets come without their tag",
        ),
        (
            "a VLAN of a bond is hooked beside the bond",
            node().link("bond0", "bond").link("bond0.7", "vlan").on("bond0"),
            "Network: VLAN of bond0: packets come without their tag",
        ),
        (
            "a VRF is left alone",
            node().link("red", "vrf").format(ETHERNET),
            "LeftAlone: vrf: its packets pass its ports",
        ),
        (
            "a member of a VRF is hooked itself",
            node().link("red", "vrf").link("eth1", "").of("red"),
            "Network: hardware",
        ),
        ("vxlan is a tunnel", node().link("flannel.1", "vxlan"), "Network: tunnel (vxlan)"),
        ("geneve is a tunnel", node().link("gnv0", "geneve"), "Network: tunnel (geneve)"),
        ("wireguard is a tunnel", node().link("wg0", "wireguard").format(network), "Network: tunnel (wireguard)"),
        ("IP in IP is a tunnel", node().link("tunl0", "ipip").format(network), "Network: tunnel (ipip)"),
        ("a tun device is a tunnel", node().link("tailscale0", "tun").format(network), "Network: tunnel (tun)"),
        (
            "a tunnel that nobody set up is left alone",
            node().link("sit0", "sit").format(network).down(),
            "LeftAlone: tunnel (sit) that is down",
        ),
        (
            "a dummy is left alone",
            node().link("kube-ipvs0", "dummy").at("10.96.0.1/32"),
            "LeftAlone: dummy: no packet leaves the node by it",
        ),
        (
            "a macvlan is seen at its parent",
            node().link("eth0", "").link("mac0", "macvlan").on("eth0"),
            "LeftAlone: its packets pass eth0",
        ),
        (
            "a macvlan whose parent is elsewhere is the network card of a container",
            node().link("eth0", "macvlan").elsewhere(),
            "Network: macvlan of a device in another network namespace",
        ),
        (
            "what cannot be read is left alone",
            node().link("ib0", "").format(Format::Other(32)),
            "LeftAlone: packets are neither Ethernet nor IP (ARPHRD 32)",
        ),
        ("an unknown kind counts by its routes", node().link("new0", "new").routed(), "Network: routes lead there"),
        (
            "an unknown kind counts by its address",
            node().link("new0", "new").at("10.0.0.1/8"),
            "Network: has an address of a network",
        ),
        (
            "an unknown kind without either is left alone",
            node().link("new0", "new"),
            "LeftAlone: new without address and route",
        ),
    ] {
        assert_eq!(node.told(&Settings::default()), told, "{case}");
    }
}

#[test]
fn patterns_decide_before_everything_but_what_cannot_be() {
    let wide = Settings { network: named(&["eth*"]), pods: named(&["cali*", "br0"]), ..Settings::default() };
    let no_pods = Settings { pods: Scope::None, ..Settings::default() };
    let no_network = Settings { network: Scope::None, ..Settings::default() };
    let itself = Settings { itself: true, ..Settings::default() };
    for (case, node, settings, told) in [
        ("a named device is taken", node().link("eth0", "dummy"), &wide, "Network: named by --network-devices"),
        ("a name counts for pods", node().link("br0", "bridge"), &wide, "Pod: named by --pod-devices"),
        (
            "what is not named is not taken",
            node().link("wlan0", ""),
            &wide,
            "LeftAlone: not named by --network-devices",
        ),
        (
            "nor is a pod's device",
            node().link("veth1", "veth").elsewhere(),
            &wide,
            "LeftAlone: not named by --pod-devices",
        ),
        (
            "no pod devices at all",
            node().link("veth1", "veth").elsewhere(),
            &no_pods,
            "LeftAlone: not named by --pod-devices",
        ),
        (
            "without pod devices an uplink that is a veth stays",
            node().link("eth0", "veth").elsewhere().default_route(),
            &no_pods,
            "Network: a default route leads there",
        ),
        (
            "no network devices at all",
            node().link("eth0", ""),
            &no_network,
            "LeftAlone: not named by --network-devices",
        ),
        (
            "what the node sends to itself is looked at where its sockets may not be",
            node().link("lo", "").format(Format::Loopback),
            &itself,
            "Itself: processes of the node may be left out at their sockets",
        ),
        (
            "but not without network devices",
            node().link("lo", "").format(Format::Loopback),
            &Settings { network: Scope::None, ..itself.clone() },
            "LeftAlone: traffic of the node with itself is translated at its sockets",
        ),
        (
            "a named loopback stays loopback",
            node().link("eth-lo", "").format(Format::Loopback),
            &wide,
            "LeftAlone: traffic of the node with itself is translated at its sockets",
        ),
        (
            "a device left alone by what it is keeps its reason",
            node().link("bond0", "bond").link("ens1", "").of("bond0"),
            &wide,
            "LeftAlone: its packets pass bond0",
        ),
    ] {
        assert_eq!(node.told(settings), told, "{case}");
    }
}

#[test]
fn masquerading_takes_an_address_of_the_device_or_of_its_bridge_or_of_the_node() {
    let node = node().link("eth0", "").default_route().at("192.0.2.7/24").at("192.0.2.8/24").at("2001:db8::7/64");
    let node = node.link("cni0", "bridge").at("10.244.1.1/24").link("veth1", "veth").elsewhere().of("cni0");
    let node = node.link("cali1", "veth").elsewhere();
    let choices = node.choices(&Settings::default());
    let sources = |name: &str| {
        let choice = choices.iter().find(|choice| choice.name == name).unwrap();
        (choice.source_v4.unwrap().to_string(), choice.source_v6.unwrap().to_string())
    };
    let told = |v4: &str| (v4.to_owned(), "2001:db8::7".to_owned());
    assert_eq!(sources("eth0"), told("192.0.2.7"));
    assert_eq!(sources("veth1"), told("10.244.1.1"));
    assert_eq!(sources("cali1"), told("192.0.2.7"));
}

#[test]
fn a_detector_by_interface_counts_a_port_as_its_bridge() {
    let node = node().link("cni0", "bridge").link("veth1", "veth").elsewhere().of("cni0");
    let node = node.link("bond0", "bond").link("cni-eth", "").of("bond0").link("eth1", "");
    let local = |detector| {
        let settings = Settings { detector, ..Settings::default() };
        let local = node.choices(&settings).into_iter().filter(|choice| choice.local_pods);
        local.map(|choice| choice.name).collect::<Vec<_>>()
    };
    assert_eq!(local(Detector::BridgeInterface("cni0".into())), ["cni0", "veth1"]);
    assert_eq!(local(Detector::InterfaceNamePrefix("cni".into())), ["cni0", "veth1", "cni-eth"]);
    assert_eq!(local(Detector::InterfaceNamePrefix("bond".into())), ["bond0"], "a bond's member is no port");
    assert!(local(Detector::NodeCidr).is_empty());
}

#[test]
fn packets_of_vlans_are_for_ports_of_bridges_and_switches_and_for_nobody_else() {
    let node = node().link("br0", "bridge").link("eth0", "").of("br0").link("ovs-system", "openvswitch");
    let node = node.link("eth1", "").of("ovs-system").link("red", "vrf").link("eth2", "").of("red");
    let node = node.link("bond0", "bond").link("eth3", "").of("bond0").link("eth4", "");
    let choices = node.choices(&Settings::default());
    let taken = choices.iter().filter(|choice| choice.has_vlans);
    assert_eq!(taken.map(|choice| choice.name.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
}
