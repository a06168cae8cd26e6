//! The product's programs at the devices of a node, beside what else is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::net::if_::if_nametoindex;
use proxy_common::packet::cases::build::udp;
use proxy_common::packet::ip::{V4, V6};
use proxy_tests::edge::{Edge, PODS, outside_address};
use proxy_tests::frames::Wire;
use proxy_tests::manifest::{Documents, endpoints, service};
use proxy_tests::probe::{Client, Kind};
use proxy_tests::stage::{PORT, TARGET, VIP4, VIP6, eventually};
use proxy_tests::world::PINS;
use proxy_userspace::attach::devices::{Hook, Standing, Way, standing};
use proxy_userspace::sys::bpf::{self, tcx, tcx_attach};

use crate::stage::{Counting, Tally, passed, ways};

const FAR_VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 11)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x11))];

/// Node ports in front of the pod of the node, and of the one elsewhere.
pub(crate) const NEAR: u16 = 30_080;
pub(crate) const FAR: u16 = 30_081;

/// Frames to the node port, in both families, and what nftables sees of them behind our programs.
struct Frames<'a> {
    stage: &'a Edge,
    wire: Wire,
    /// One of each family.
    questions: [Vec<u8>; 2],
}

impl<'a> Frames<'a> {
    fn new(stage: &'a Edge) -> Self {
        let wire = Wire::between(&stage.outside.netns, "uplink", (&stage.node.netns, "eth0")).unwrap();
        let rules = format!(
            "table netdev behind {{
                counter asked {{ }}
                counter translated {{ }}
                chain behind {{
                    type filter hook ingress device eth0 priority 0
                    udp dport {NEAR} counter name asked
                    udp dport {TARGET} counter name translated
                }}
            }}"
        );
        stage.node.netns.nft(&rules).unwrap();
        let question = |to: SocketAddr| udp(format!("{}:5001 > {}:{NEAR}", outside_address(to.ip()), to.ip()));
        let [v4, v6] = stage.on_node(NEAR).map(question);
        Self { stage, wire, questions: [v4.bytes::<V4>().0, v6.bytes::<V6>().0] }
    }

    /// Sends one of each family with a tag: how many are translated.
    fn translated_of(&self, vlan: u16) -> u64 {
        let seen = || {
            let counters = self.stage.node.netns.counters().unwrap();
            [counters["asked"], counters["translated"]]
        };
        let before = seen();
        for frame in &self.questions {
            let [high, low] = vlan.to_be_bytes();
            self.wire.send_bytes(&[&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()).unwrap();
        }
        eventually("both came by", || seen().iter().sum::<u64>() == before.iter().sum::<u64>() + 2);
        seen()[1] - before[1]
    }
}

/// A Service in front of each pod.
pub(crate) fn serve() -> Edge {
    let stage = Edge::new().unwrap();
    let near = service("near").cluster_ips(&[VIP4, VIP6]).node_ports(PORT, NEAR);
    let far = service("far").cluster_ips(&FAR_VIPS).node_ports(PORT, FAR);
    let slices = |name: &str, pod| endpoints(name).ports(PORT, TARGET).pod(pod);
    let objects: [&dyn Documents; 4] = [&near, &slices("near", &stage.near.pod), &far, &slices("far", &stage.far.pod)];
    stage.manifests.write("manifest", &objects).unwrap();
    stage
}

/// Dials `to` by both protocols, some times; all are answered by `by`.
pub(crate) fn dial(client: &Client, to: SocketAddr, by: &str) {
    for kind in [Kind::Tcp, Kind::Udp].repeat(3) {
        let answer = client.dial(kind, to).unwrap_or_else(|error| panic!("{kind:?} {to}: {error}"));
        assert_eq!((answer.by.as_str(), answer.from), (by, Some(to)), "{kind:?} {to}");
    }
}

#[test]
fn packets_of_a_vlan_are_left_to_its_own_device_but_at_ports_of_bridges() {
    let stage = serve();
    let _agent = stage.agent(&PODS);
    let frames = Frames::new(&stage);
    assert_eq!(frames.translated_of(0), 2, "a priority is no VLAN");
    assert_eq!(frames.translated_of(7), 0, "they belong to eth0.7, if there is one");
    stage.node.netns.ip(&["link add br0 type bridge mcast_snooping 0", "link set eth0 master br0"]).unwrap();
    eventually("at a port they are for the bridge to sort out", || frames.translated_of(7) == 2);
    stage.node.netns.ip(&["link set eth0 nomaster"]).unwrap();
    eventually("and where it is no port any more, they are not", || frames.translated_of(7) == 0);
}

/// What stands at both hooks of a device of the node.
pub(crate) fn both(stage: &Edge, device: &str) -> [Standing; 2] {
    let links = stage.node.pin_dir().join("links");
    let look = || {
        let device = if_nametoindex(device)?;
        Ok(Hook::BOTH.map(|hook| standing(&links, device, hook).unwrap()))
    };
    stage.node.netns.inside(look).unwrap()
}

/// Where ours stands at `eth0` among the programs of others: how many come first.
fn place(stage: &Edge, way: Way, hook: Hook) -> usize {
    match (way, &both(stage, "eth0")[hook as usize]) {
        (Way::Tcx, Standing::Tcx(ours, all)) => all.iter().position(|id| id == ours).unwrap(),
        (Way::Clsact, Standing::Clsact(_)) => {
            let filters = stage.node.netns.output("tc", &["filter", "show", "dev", "eth0", hook.name()]).unwrap();
            filters.lines().filter(|line| line.contains("handle")).position(|line| line.contains("sluice")).unwrap()
        }
        (way, standing) => panic!("{way:?}: {standing:?}"),
    }
}

/// Puts a program there, before or behind all others where that can be said.
fn put(stage: &Edge, way: Way, program: &Counting, is_first: bool) -> Vec<OwnedFd> {
    let netns = &stage.node.netns;
    match way {
        Way::Tcx => {
            let place = if is_first { tcx::FIRST } else { tcx::LAST };
            let attach = |hook| {
                netns.inside(|| Ok(tcx_attach(program.program.as_fd(), if_nametoindex("eth0")?, hook, place)?)).unwrap()
            };
            [tcx::INGRESS, tcx::EGRESS].map(attach).into()
        }
        Way::Clsact => {
            let pin = Path::new(PINS).join(format!("other-{is_first}"));
            bpf::pin(program.program.as_fd(), &pin).unwrap();
            let (pin, priority) = (pin.display().to_string(), if is_first { "10" } else { "20" });
            for hook in ["ingress", "egress"] {
                let filter =
                    ["filter", "add", "dev", "eth0", hook, "pref", priority, "bpf", "da", "object-pinned", &pin];
                netns.output("tc", &filter).unwrap();
            }
            Vec::new()
        }
    }
}

/// Three programs: which places ours has at ingress and at egress, with the first agent and with one of each order. A link
/// was there before those of the others, which asked to be first and last.
fn places(way: Way) -> [[usize; 2]; 3] {
    match way {
        Way::Tcx => [[1, 1], [2, 0], [0, 2]],
        Way::Clsact => [[0, 2], [2, 0], [0, 2]],
    }
}

#[test]
fn programs_of_others_see_every_packet_of_a_service_whatever_the_order() {
    for &way in ways() {
        let stage = serve();
        let (early, late) = (Counting::new(), Counting::new());
        let (client, mut links) = (Client::start(&stage.outside).unwrap(), Vec::new());
        let hooks = if way == Way::Tcx { "--device-hooks=tcx" } else { "--device-hooks=clsact" };
        for (order, places) in ["outermost", "innermost", "outermost"].into_iter().zip(places(way)) {
            let order = format!("--device-order={order}");
            let _agent = stage.agent(&[&PODS[..], &[hooks, &order]].concat());
            if links.is_empty() {
                links = vec![put(&stage, way, &early, true), put(&stage, way, &late, false)];
            }
            assert_eq!(Hook::BOTH.map(|hook| place(&stage, way, hook)), places, "{way:?} {order}");
            let [passed_by, early_seen, late_seen] =
                [&|| passed(&stage.node.netns, "eth0") as _, &|| early.seen(), &|| late.seen()]
                    as [&dyn Fn() -> u64; 3];
            let tallies = [early_seen, late_seen].map(|seen| Tally::new(passed_by, seen));
            for to in stage.on_node(NEAR) {
                dial(&client, to, "a");
            }
            // In IPv6 the kernel of the node tells the client of a shorter way, which ours keeps from it.
            dial(&client, stage.on_node(FAR)[0], "b");
            for (who, tally) in ["before", "behind"].into_iter().zip(&tallies) {
                let all = || tally.since().0 == tally.since().1;
                eventually(&format!("{who} ours each packet is seen, {way:?} {order}: {:?}", tally.since()), all);
            }
            assert!(tallies[0].since().0 > 60, "requests and replies, of which those to elsewhere pass twice");
        }
    }
}

#[test]
fn a_node_with_another_address_serves_there_and_backends_elsewhere_see_that_one() {
    let stage = serve();
    let _agent = stage.agent(&PODS);
    let client = Client::start(&stage.outside).unwrap();
    dial(&client, stage.on_node(FAR)[0], "b");
    let new: IpAddr = [192, 0, 2, 77].into();
    let lines = [
        format!("addr del {}/24 dev eth0", stage.node.v4),
        format!("addr add {new}/24 dev eth0"),
        "route add default via 192.0.2.1".to_owned(),
    ];
    stage.node.netns.ip(&lines).unwrap();
    stage.node.route_pods_of(&stage.other).unwrap();
    let (near, far) = (SocketAddr::new(new, NEAR), SocketAddr::new(new, FAR));
    eventually("the new address serves", || client.dial(Kind::Tcp, near).is_ok_and(|answer| answer.by == "a"));
    for kind in [Kind::Tcp, Kind::Udp] {
        let answer = client.dial(kind, far).unwrap();
        assert_eq!((answer.by.as_str(), answer.seen_as.ip()), ("b", new), "{kind:?}");
    }
}
