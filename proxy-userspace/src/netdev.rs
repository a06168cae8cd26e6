//! The addresses of this node, from the kernel, as they change.
//!
//! In: a network namespace. Out: a [`Host`] whenever it differs from the one before. kube-proxy learns of new addresses
//! with its next full sync, up to an hour later; here it takes milliseconds (specification I).

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::sys::net::in_namespace;

/// Addresses come in bursts (an interface comes up); this long without another message ends one.
const QUIET: Duration = Duration::from_millis(10);
/// A burst that does not end (routes that flap) is cut here.
const LONGEST_BURST: Duration = Duration::from_millis(500);

/// kube-proxy in IPVS mode binds every ClusterIP to this device. What is left of it must not make them own addresses: those
/// are never served.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// The node as its kernel sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Every address of every device, sorted.
    pub own_addresses: Vec<IpAddr>,
    /// Those of the default routes' devices that others can reach, in the kernel's order, IPv4 first.
    pub default_route_addresses: Vec<IpAddr>,
}

/// One item for each message; what a message says is not used: reading everything is cheap, and right even when messages
/// were lost.
type Messages = BoxStream<'static, ()>;

/// Reads the addresses now and follows them for as long as the receiver lives.
pub async fn follow(netns: Option<&Path>) -> Result<watch::Receiver<Host>> {
    let (handle, messages) = connect(netns)?;
    let mut kernel = Kernel { handle, told_of_ipvs: false };
    let host = kernel.read().await.context("list the addresses of this node")?;
    debug!(?host, "addresses of this node");
    let (sender, receiver) = watch::channel(host);
    tokio::spawn(keep_up(kernel, messages, sender));
    Ok(receiver)
}

fn connect(netns: Option<&Path>) -> Result<(Handle, Messages)> {
    let groups =
        [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let open = || rtnetlink::new_multicast_connection(&groups);
    let opened = match netns {
        None => open(),
        Some(path) => {
            let enter = || format!("--netns {}: enter this network namespace", path.display());
            let namespace = File::open(path).with_context(enter)?;
            let runtime = tokio::runtime::Handle::current();
            // The thread that enters the namespace is not one of the runtime's, and its socket needs the runtime.
            in_namespace(&namespace, || {
                let _guard = runtime.enter();
                open()
            })
            .with_context(enter)?
        }
    };
    let (connection, handle, messages) = opened.context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok((handle, messages.map(drop).boxed()))
}

async fn keep_up(mut kernel: Kernel, mut messages: Messages, host: watch::Sender<Host>) {
    while next_burst(&mut messages, &host).await.is_some() {
        match kernel.read().await {
            Ok(now) => {
                let changed = host.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                });
                if changed {
                    debug!(host = ?*host.borrow(), "addresses of this node changed");
                }
            }
            Err(error) => warn!("addresses of this node could not be read, keeping those known: {error}"),
        }
    }
}

async fn next_burst(messages: &mut Messages, host: &watch::Sender<Host>) -> Option<()> {
    tokio::select! {
        message = messages.next() => message?,
        () = host.closed() => return None,
    };
    let quiet = async {
        while let Ok(more) = timeout(QUIET, messages.next()).await {
            more?;
        }
        Some(())
    };
    timeout(LONGEST_BURST, quiet).await.unwrap_or(Some(()))
}

/// Who is asked for addresses.
struct Kernel {
    handle: Handle,
    told_of_ipvs: bool,
}

impl Kernel {
    async fn read(&mut self) -> Result<Host, rtnetlink::Error> {
        let addresses: Vec<AddressMessage> = self.handle.address().get().execute().try_collect().await?;
        let addresses = self.without_ipvs(addresses).await?;
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        let mut devices = Vec::new();
        for family in [v4, v6] {
            let routes: Vec<RouteMessage> = self.handle.route().get(family).execute().try_collect().await?;
            devices.push(default_device(&routes));
        }
        Ok(host(&addresses, devices[0], devices[1]))
    }

    async fn without_ipvs(
        &mut self,
        mut addresses: Vec<AddressMessage>,
    ) -> Result<Vec<AddressMessage>, rtnetlink::Error> {
        let Some(device) = self.device(IPVS_DEVICE).await? else { return Ok(addresses) };
        let left_out = addresses.extract_if(.., |message| message.header.index == device).count();
        if left_out > 0 && !std::mem::replace(&mut self.told_of_ipvs, true) {
            warn!(
                "{left_out} addresses of {IPVS_DEVICE} are left over from kube-proxy in IPVS mode and do not count as this \
                 node's own; remove what it left with `kube-proxy --cleanup`"
            );
        }
        Ok(addresses)
    }

    /// The index of a device.
    async fn device(&self, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn host(addresses: &[AddressMessage], device_v4: Option<u32>, device_v6: Option<u32>) -> Host {
    let mut own_addresses: Vec<IpAddr> = addresses.iter().filter_map(address).collect();
    own_addresses.sort_unstable();
    own_addresses.dedup();
    let on = |device: Option<u32>, v4: bool| {
        let reachable = addresses.iter().filter(move |message| {
            Some(message.header.index) == device && message.header.scope == AddressScope::Universe
        });
        reachable.filter_map(address).filter(move |ip| ip.is_ipv4() == v4)
    };
    let default_route_addresses = on(device_v4, true).chain(on(device_v6, false)).collect();
    Host { own_addresses, default_route_addresses }
}

/// The own end: on point-to-point links `Address` is the peer's.
fn address(message: &AddressMessage) -> Option<IpAddr> {
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

/// Where the default route of lowest metric leads.
fn default_device(routes: &[RouteMessage]) -> Option<u32> {
    let default = |route: &&RouteMessage| {
        let RouteHeader { destination_prefix_length, table, kind, .. } = route.header;
        destination_prefix_length == 0 && table == RouteHeader::RT_TABLE_MAIN && kind == RouteType::Unicast
    };
    let metric = |route: &RouteMessage| {
        let metric = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        metric.unwrap_or(0)
    };
    let device = |route: &RouteMessage| {
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(device) => Some(*device),
            _ => None,
        })
    };
    let candidates = routes.iter().filter(default).filter_map(|route| Some((metric(route), device(route)?)));
    candidates.min_by_key(|(metric, _)| *metric).map(|(_, device)| device)
}

/// How long a UDP flow keeps its backend without and with replies: what conntrack would say, where it is.
pub fn udp_timeouts(netns: Option<&Path>) -> (u32, u32) {
    // Where the namespace cannot be entered, `follow` has said so.
    let namespace = netns.and_then(|path| File::open(path).ok());
    let told = namespace.and_then(|namespace| in_namespace(&namespace, conntrack_timeouts).ok());
    let (new, stream) = told.unwrap_or_else(conntrack_timeouts);
    (new.unwrap_or(30), stream.unwrap_or(120))
}

/// As the calling thread's network namespace has them; none without conntrack.
fn conntrack_timeouts() -> (Option<u32>, Option<u32>) {
    let seconds = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
        text.trim().parse().ok()
    };
    (seconds("nf_conntrack_udp_timeout"), seconds("nf_conntrack_udp_timeout_stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(device: u32, scope: AddressScope, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = device;
        message.header.scope = scope;
        message.attributes = attributes;
        message
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(device: u32, scope: AddressScope, text: &str) -> AddressMessage {
        message(device, scope, vec![AddressAttribute::Address(ip(text))])
    }

    fn route(prefix: u8, device: u32, metric: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.destination_prefix_length = prefix;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Oif(device), RouteAttribute::Priority(metric)];
        route
    }

    #[test]
    fn the_default_route_of_lowest_metric_names_the_device() {
        assert_eq!(default_device(&[route(24, 1, 0), route(0, 2, 200), route(0, 3, 100)]), Some(3));
        assert_eq!(default_device(&[route(24, 1, 0)]), None);
    }

    #[test]
    fn of_the_default_routes_device_only_addresses_that_others_can_reach_count() {
        let addresses = [
            at(1, AddressScope::Host, "127.0.0.1"),
            at(2, AddressScope::Universe, "2001:db8::2"),
            at(2, AddressScope::Link, "fe80::2"),
            at(2, AddressScope::Universe, "192.0.2.2"),
            at(3, AddressScope::Universe, "10.0.0.1"),
        ];
        let host = host(&addresses, Some(2), Some(2));
        assert_eq!(host.default_route_addresses, [ip("192.0.2.2"), ip("2001:db8::2")]);
        assert_eq!(host.own_addresses.len(), 5);
    }

    #[test]
    fn on_a_point_to_point_link_the_own_end_counts() {
        let both = vec![AddressAttribute::Address(ip("10.0.0.2")), AddressAttribute::Local(ip("10.0.0.1"))];
        assert_eq!(address(&message(1, AddressScope::Universe, both)), Some(ip("10.0.0.1")));
    }

    #[tokio::test]
    async fn the_loopback_address_of_this_machine_is_its_own() {
        let host = follow(None).await.unwrap().borrow().clone();
        assert!(host.own_addresses.contains(&ip("127.0.0.1")), "{host:?}");
    }

    #[tokio::test]
    async fn a_burst_that_does_not_end_is_cut() {
        let (sender, _receiver) = watch::channel(Host::default());
        let mut messages = futures::stream::repeat(()).then(|()| tokio::time::sleep(QUIET / 10)).boxed();
        let burst = timeout(LONGEST_BURST * 10, next_burst(&mut messages, &sender)).await;
        assert_eq!(burst, Ok(Some(())));
    }
}
