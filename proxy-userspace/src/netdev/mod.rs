//! The devices and addresses of this node, from the kernel, as they change.
//!
//! In: a network namespace. Out: a [`Snapshot`] whenever it differs from the one before, and a [`Host`] from it. kube-proxy
//! learns of new addresses with its next full sync, up to an hour later; here it takes milliseconds (specification I).
//!
//! Messages of the kernel only ring: whatever one says, everything is read again. That is right even when messages were
//! lost (ENOBUFS is a message like any other), and cheap because bursts are read once.

mod read;

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::devices::Snapshot;
use crate::sys::net::in_namespace;

/// Messages come in bursts (an interface comes up): those of this long are one.
const GATHER: Duration = Duration::from_millis(10);
/// Reading takes a tenth of the time at most...
const REST_PER_READ: u32 = 9;
/// ...as long as the next one begins this soon after the one before, so that changes are known within 250 ms, also where a
/// busy machine makes reading slow.
const NEXT_WITHIN: Duration = Duration::from_millis(50);

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

impl Host {
    pub fn of(snapshot: &Snapshot) -> Self {
        let counts = |device| snapshot.links.get(&device).is_none_or(|link| link.name != IPVS_DEVICE);
        let own = snapshot.addresses.iter().filter(|address| counts(address.device));
        let mut own_addresses: Vec<IpAddr> = own.map(|address| address.ip).collect();
        own_addresses.sort_unstable();
        own_addresses.dedup();
        let on = |v4| {
            let device = snapshot.default_device(v4).into_iter();
            let reachable = device.flat_map(|device| snapshot.reachable(device));
            reachable.map(|address| address.ip).filter(move |ip| ip.is_ipv4() == v4)
        };
        Self { own_addresses, default_route_addresses: on(true).chain(on(false)).collect() }
    }
}

/// What a message rings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    Changed,
    /// Somebody removed a filter, or what filters hang on. Nothing of a snapshot shows that.
    FilterRemoved,
}

type Rings = BoxStream<'static, Ring>;

/// Reads everything now and follows it for as long as the receiver lives. `netns`: the node, our own namespace otherwise.
pub async fn follow(netns: Option<&Path>) -> Result<watch::Receiver<Snapshot>> {
    let (handle, rings) = connect(netns)?;
    let snapshot = read::everything(&handle).await.context("list the devices and addresses of this node")?;
    debug!(host = ?Host::of(&snapshot), "addresses of this node");
    tell_of_ipvs(&snapshot);
    let (sender, receiver) = watch::channel(snapshot);
    tokio::spawn(keep_up(handle, rings, sender));
    Ok(receiver)
}

/// Reads everything once.
pub async fn look(netns: Option<&Path>) -> Result<Snapshot> {
    let (handle, _rings) = connect(netns)?;
    read::everything(&handle).await.context("list the devices and addresses of this node")
}

fn connect(netns: Option<&Path>) -> Result<(Handle, Rings)> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Tc,
    ];
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
    let ring = |payload| match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::DelTrafficFilter(_) | RouteNetlinkMessage::DelQueueDiscipline(_),
        ) => Some(Ring::FilterRemoved),
        // New filters, by whomever, change nothing of ours.
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewTrafficFilter(_) | RouteNetlinkMessage::NewQueueDiscipline(_),
        ) => None,
        _ => Some(Ring::Changed),
    };
    Ok((handle, messages.filter_map(move |(message, _)| std::future::ready(ring(message.payload))).boxed()))
}

async fn keep_up(handle: Handle, mut rings: Rings, known: watch::Sender<Snapshot>) {
    let mut removals = 0;
    while let Some(rung) = next_burst(&mut rings, &known).await {
        removals += u64::from(rung == Ring::FilterRemoved);
        let started = Instant::now();
        match read::everything(&handle).await {
            Ok(snapshot) => tell(&known, Snapshot { removals, ..snapshot }),
            Err(error) => warn!("devices and addresses of this node could not be read, keeping those known: {error}"),
        }
        sleep(rest_after(started.elapsed())).await;
    }
}

fn rest_after(reading: Duration) -> Duration {
    (reading * REST_PER_READ).min(NEXT_WITHIN.saturating_sub(reading))
}

fn tell(known: &watch::Sender<Snapshot>, now: Snapshot) {
    known.send_if_modified(|known| {
        let changed = *known != now;
        *known = now;
        changed
    });
}

/// What rings next, with everything that rings soon after.
async fn next_burst(rings: &mut Rings, known: &watch::Sender<Snapshot>) -> Option<Ring> {
    let mut rung = tokio::select! {
        ring = rings.next() => ring?,
        () = known.closed() => return None,
    };
    sleep(GATHER).await;
    while let Some(more) = rings.next().now_or_never() {
        if more? == Ring::FilterRemoved {
            rung = Ring::FilterRemoved;
        }
    }
    Some(rung)
}

fn tell_of_ipvs(snapshot: &Snapshot) {
    let Some((device, _)) = snapshot.links.iter().find(|(_, link)| link.name == IPVS_DEVICE) else { return };
    let left = snapshot.addresses.iter().filter(|address| address.device == *device).count();
    if left > 0 {
        warn!(
            "{left} addresses of {IPVS_DEVICE} are left over from kube-proxy in IPVS mode and do not count as this \
             node's own; remove what it left with `kube-proxy --cleanup`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Format, Link, Lower, OwnAddress, Route};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(device: u32, reachable: bool, text: &str) -> OwnAddress {
        OwnAddress { device, ip: ip(text), prefix_len: 24, reachable }
    }

    fn default_route(device: u32, v4: bool, metric: u32) -> Route {
        Route { device, v4, main_table: true, metric }
    }

    #[test]
    fn of_the_default_routes_device_only_addresses_that_others_can_reach_count() {
        let snapshot = Snapshot {
            addresses: vec![
                at(1, false, "127.0.0.1"),
                at(2, true, "2001:db8::2"),
                at(2, false, "fe80::2"),
                at(2, true, "192.0.2.2"),
                at(3, true, "10.0.0.1"),
            ],
            default_routes: vec![default_route(3, true, 200), default_route(2, true, 100), default_route(2, false, 0)],
            ..Snapshot::default()
        };
        let host = Host::of(&snapshot);
        assert_eq!(host.default_route_addresses, [ip("192.0.2.2"), ip("2001:db8::2")]);
        assert_eq!(host.own_addresses.len(), 5);
    }

    #[test]
    fn what_ipvs_mode_left_behind_is_not_the_nodes_own() {
        let link = |name: &str| Link {
            name: name.to_owned(),
            kind: "dummy".to_owned(),
            format: Format::Ethernet,
            up: false,
            master: None,
            lower: Lower::Nothing,
        };
        let snapshot = Snapshot {
            links: [(1, link(IPVS_DEVICE)), (2, link("nodelocaldns"))].into(),
            addresses: vec![at(1, true, "10.96.0.1"), at(2, true, "169.254.20.10")],
            ..Snapshot::default()
        };
        assert_eq!(Host::of(&snapshot).own_addresses, [ip("169.254.20.10")]);
    }

    #[tokio::test]
    async fn the_loopback_address_of_this_machine_is_its_own() {
        let host = Host::of(&follow(None).await.unwrap().borrow());
        assert!(host.own_addresses.contains(&ip("127.0.0.1")), "{host:?}");
    }

    #[test]
    fn whatever_reading_takes_the_next_one_is_not_put_off() {
        let rests = [2, 10, 60, 500].map(|reading| rest_after(Duration::from_millis(reading)).as_millis());
        assert_eq!(rests, [18, 40, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_rings_in_a_burst_is_one_and_a_removed_filter_is_not_lost_in_it() {
        let (known, _receiver) = watch::channel(Snapshot::default());
        let burst = [Ring::Changed, Ring::FilterRemoved, Ring::Changed];
        let mut rings = futures::stream::iter(burst).chain(futures::stream::pending()).boxed();
        assert_eq!(next_burst(&mut rings, &known).await, Some(Ring::FilterRemoved));
        assert_eq!(rings.next().now_or_never(), None, "nothing of it is left to ring again");
    }
}
