//! Messages of rtnetlink(7) into a [`Snapshot`].

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use crate::devices::{Format, Link, Lower, OwnAddress, Route, Snapshot};

/// Links, addresses and routes. What changes in between rings again.
pub(super) async fn everything(handle: &Handle) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot::default();
    // Counters are most of a message, and nothing here asks for them.
    let links = handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
    let links: Vec<LinkMessage> = links.execute().try_collect().await?;
    snapshot.links = links.iter().map(|message| (message.header.index, link(message))).collect();
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    snapshot.addresses = addresses.iter().filter_map(own_address).collect();
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for family in [v4, v6] {
        // Not collected: a router has a million of them.
        let mut routes = Box::pin(handle.route().get(family).execute());
        while let Some(message) = routes.try_next().await? {
            add_route(&mut snapshot, &message);
        }
    }
    Ok(snapshot)
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        kind: String::new(),
        format: format(message.header.link_layer_type),
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        lower: Lower::Nothing,
    };
    let mut in_other_namespace = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Link(lower) if *lower != 0 => link.lower = Lower::Here(*lower),
            LinkAttribute::LinkNetNsId(_) => in_other_namespace = true,
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    if in_other_namespace {
        link.lower = Lower::OtherNamespace;
    }
    link
}

fn kind(infos: &[LinkInfo]) -> String {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kind.unwrap_or_default()
}

fn format(layer: LinkLayerType) -> Format {
    match layer {
        LinkLayerType::Ether => Format::Ethernet,
        LinkLayerType::Loopback => Format::Loopback,
        LinkLayerType::None
        | LinkLayerType::Ppp
        | LinkLayerType::Rawip
        | LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre => Format::Network,
        other => Format::Other(other.into()),
    }
}

fn own_address(message: &AddressMessage) -> Option<OwnAddress> {
    let (device, prefix_len) = (message.header.index, message.header.prefix_len);
    let reachable = message.header.scope == AddressScope::Universe;
    address(message).map(|ip| OwnAddress { device, ip, prefix_len, reachable })
}

/// The own end: on point-to-point links `Address` is the peer's.
fn address(message: &AddressMessage) -> Option<std::net::IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

/// Routes to own addresses and to groups say nothing about where others are, and those of a device's own network follow
/// from its addresses.
fn add_route(snapshot: &mut Snapshot, message: &RouteMessage) {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return;
    }
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    for device in devices(message) {
        if header.destination_prefix_length == 0 {
            let v4 = header.address_family == AddressFamily::Inet;
            let main_table = header.table == RouteHeader::RT_TABLE_MAIN;
            snapshot.default_routes.push(Route { device, v4, main_table, metric: metric.unwrap_or(0) });
        } else if !is_link_local(message) {
            snapshot.routed.insert(device);
        }
    }
}

/// Every IPv6 device has such a route.
fn is_link_local(message: &RouteMessage) -> bool {
    use netlink_packet_route::route::RouteAddress;
    message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => ip.is_unicast_link_local(),
        _ => false,
    })
}

/// Where a route leads, by one or by several ways.
fn devices(message: &RouteMessage) -> impl Iterator<Item = u32> {
    message.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(device) => vec![*device],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::InfoKind;
    use netlink_packet_route::route::RouteNextHop;

    fn route(prefix: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.destination_prefix_length = prefix;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    fn read(routes: &[RouteMessage]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for route in routes {
            add_route(&mut snapshot, route);
        }
        snapshot
    }

    #[test]
    fn the_default_route_of_lowest_metric_names_the_device() {
        let to =
            |prefix, device, metric| route(prefix, vec![RouteAttribute::Oif(device), RouteAttribute::Priority(metric)]);
        let snapshot = read(&[to(24, 1, 0), to(0, 2, 200), to(0, 3, 100)]);
        assert_eq!(snapshot.default_device(true), Some(3));
        assert_eq!(snapshot.default_device(false), None);
        assert_eq!(snapshot.routed, [1].into());
        assert_eq!(read(&[to(24, 1, 0)]).default_device(true), None);
    }

    #[test]
    fn a_default_route_with_several_ways_leads_to_each() {
        let hop = |device| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = device;
            hop
        };
        let snapshot = read(&[route(0, vec![RouteAttribute::MultiPath(vec![hop(4), hop(5)])])]);
        assert_eq!(snapshot.default_routes.iter().map(|route| route.device).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn on_a_point_to_point_link_the_own_end_counts() {
        let ip = |text: &str| text.parse().unwrap();
        let mut message = AddressMessage::default();
        message.attributes = vec![AddressAttribute::Address(ip("10.0.0.2")), AddressAttribute::Local(ip("10.0.0.1"))];
        assert_eq!(address(&message), Some(ip("10.0.0.1")));
    }

    #[test]
    fn the_other_end_of_a_pair_is_here_only_without_a_namespace() {
        let read = |more: Vec<LinkAttribute>| {
            let mut message = LinkMessage::default();
            message.header.link_layer_type = LinkLayerType::Ether;
            message.attributes = vec![
                LinkAttribute::IfName("veth1".to_owned()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
            ];
            message.attributes.extend(more);
            link(&message)
        };
        let pair = read(vec![LinkAttribute::LinkNetNsId(0), LinkAttribute::Link(2)]);
        assert_eq!((pair.kind.as_str(), pair.lower), ("veth", Lower::OtherNamespace));
        assert_eq!(read(vec![LinkAttribute::Link(2)]).lower, Lower::Here(2));
    }
}
