//! The product's programs at the devices of a node, beside what else is there.

use std::net::{IpAddr, SocketAddr};

use proxy_common::packet::cases::build::udp;
use proxy_common::packet::ip::{V4, V6};
use proxy_tests::edge::{Edge, PODS, outside_address};
use proxy_tests::frames::Wire;
use proxy_tests::manifest::{endpoints, service};
use proxy_tests::stage::{PORT, TARGET, VIP4, VIP6, eventually};

/// A node port in front of the pod of the node.
const NEAR: u16 = 30_080;

/// Frames to the node port, in both families, and what nftables sees of them behind our programs.
struct Frames<'a> {
    stage: &'a Edge,
    wire: Wire,
    frames: [Vec<u8>; 2],
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
        Self { stage, wire, frames: [v4.bytes::<V4>().0, v6.bytes::<V6>().0] }
    }

    /// Sends one of each family with a tag: how many are translated.
    fn translated_of(&self, vlan: u16) -> u64 {
        let seen = || {
            let counters = self.stage.node.netns.counters().unwrap();
            [counters["asked"], counters["translated"]]
        };
        let before = seen();
        for frame in &self.frames {
            let [high, low] = vlan.to_be_bytes();
            self.wire.send_bytes(&[&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()).unwrap();
        }
        eventually("both came by", || seen().iter().sum::<u64>() == before.iter().sum::<u64>() + 2);
        seen()[1] - before[1]
    }
}

fn serve() -> Edge {
    let stage = Edge::new().unwrap();
    let vips: [IpAddr; 2] = [VIP4, VIP6];
    let near = service("near").cluster_ips(&vips).node_ports(PORT, NEAR);
    stage.manifests.write("manifest", &[&near, &endpoints("near").ports(PORT, TARGET).pod(&stage.near.pod)]).unwrap();
    stage
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
