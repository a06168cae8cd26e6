//! Pods as benchmarks want them: one may have many addresses.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::netns::Netns;

/// A pod with these addresses behind the device `device` of the node, which has `gateway`.
pub fn pod(node: &Netns, device: &str, gateway: Ipv4Addr, addresses: &[Ipv4Addr]) -> Result<Netns> {
    let pod = Netns::new()?;
    node.ip(&[
        format!("link add {device} type veth peer name eth0 netns {}", pod.path()),
        format!("addr add {gateway}/24 dev {device}"),
        format!("link set {device} up"),
    ])?;
    let mut lines = vec!["link set eth0 up".to_owned()];
    lines.extend(addresses.iter().map(|address| format!("addr add {address}/24 dev eth0")));
    lines.push(format!("route add default via {gateway}"));
    pod.ip(&lines)?;
    Ok(pod)
}
