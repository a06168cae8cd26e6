//! What tables say, as sorted lines without ids: two tables with the same lines do the same.
//!
//! In: a [`Snapshot`]. Out: one line per fact, read by people, stories and tests.

use std::net::SocketAddr;

use proxy_common::abi::{Backend, Cidr, Config, Frontend, PacketSettings, PortRange, Range, Version, address};
use proxy_common::addr::{Addr, Be16};

use crate::hash::HashMap;
use crate::maps::Snapshot;

/// Every fact that `snapshot` holds, sorted.
pub fn facts(snapshot: &Snapshot) -> Vec<String> {
    let tables = Indexed::new(snapshot);
    let mut facts: Vec<String> = snapshot.published().flat_map(|(id, entry)| tables.entry(id, entry)).collect();
    facts.extend(snapshot.config.iter().flat_map(config));
    facts.extend(snapshot.packets.iter().flat_map(packets));
    facts.sort_unstable();
    facts
}

struct Indexed<'a> {
    service: HashMap<u32, Version>,
    backends: HashMap<u32, Vec<(u32, &'a Backend)>>,
    snapshot: &'a Snapshot,
}

impl<'a> Indexed<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut backends: HashMap<u32, Vec<(u32, &Backend)>> = HashMap::default();
        for (id, backend) in snapshot.backends.iter().filter(|(_, backend)| backend.generation != 0) {
            backends.entry(backend.service).or_default().push((*id, backend));
        }
        Self { service: snapshot.service_versions(), backends, snapshot }
    }

    /// A line for each backend behind a frontend, its allowed sources, and one when nothing serves.
    fn entry(&self, id: u32, entry: Option<Frontend>) -> Vec<String> {
        let Some(frontend) = entry else { return vec![format!("frontend {id} is none that belongs there")] };
        let Frontend { key, service, kind: number } = frontend;
        if number == Frontend::KIND_ADDRESS {
            return vec![format!("ADDRESS {} {}", key.addr, named(service, ADDRESS_FLAGS))];
        }
        let title = format!("{} {} {}", protocol(key.proto), place(key.addr, key.port), kind(number));
        let Some(version) = self.service.get(&frontend.service) else { return vec![format!("{title} has no version")] };
        let title = format!("{title} {}", settings(version));
        let mut lines = self.backend_lines(&title, version);
        lines.extend(self.set_lines(&title, frontend.kind, version));
        if frontend.kind == Frontend::KIND_LOAD_BALANCER && version.flags & Version::SOURCE_RANGES != 0 {
            lines.extend(self.sources(frontend.service).map(|source| format!("{title} allows {source}")));
        }
        lines
    }

    fn backend_lines(&self, title: &str, version: &Version) -> Vec<String> {
        let line = |(id, backend): &(u32, &Backend)| {
            let sets = [("cluster", version.cluster), ("local", version.local)];
            let sets = sets.iter().filter(|(_, range)| self.slots(*range).contains(id)).map(|(name, _)| *name);
            let words: Vec<&str> = sets.chain(words(u32::from(backend.flags), BACKEND_FLAGS)).collect();
            format!("{title} -> {} {}", place(backend.addr, backend.port), words.join(","))
        };
        self.backends.get(&version.service).into_iter().flatten().map(line).collect()
    }

    /// What happens to a client whose set is empty.
    fn set_lines(&self, title: &str, kind: u32, version: &Version) -> Option<String> {
        let local = if kind == Frontend::KIND_CLUSTER_IP { Version::INTERNAL_LOCAL } else { Version::EXTERNAL_LOCAL };
        let set = if version.flags & local == 0 { version.cluster } else { version.local };
        let verdict = if version.flags & Version::HAS_ANY == 0 { "refused" } else { "unreachable" };
        (self.slots(set).is_empty()).then(|| format!("{title} -> {verdict}"))
    }

    fn slots(&self, range: Range) -> &[u32] {
        let (start, len) = (range.start as usize, range.len as usize);
        self.snapshot.slots.get(start..start.saturating_add(len)).unwrap_or(&[])
    }

    fn sources(&self, service: u32) -> impl Iterator<Item = String> {
        let ours = self.snapshot.sources.iter().filter(move |key| key.service == service.to_be_bytes());
        ours.map(|key| Cidr { addr: key.addr, prefix_len: key.prefix_len.saturating_sub(32) }.to_string())
    }
}

/// A protocol as people write it.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        6 => "TCP".into(),
        17 => "UDP".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

fn place(addr: Addr, port: Be16) -> SocketAddr {
    SocketAddr::new(addr.into(), port.get())
}

/// A kind of frontend as people write it.
pub(crate) fn kind(kind: u32) -> &'static str {
    match kind {
        Frontend::KIND_CLUSTER_IP => "ClusterIP",
        Frontend::KIND_NODE_PORT => "NodePort",
        Frontend::KIND_EXTERNAL_IP => "ExternalIP",
        Frontend::KIND_LOAD_BALANCER => "LoadBalancer",
        _ => "unknown",
    }
}

/// Scheduler, policies and affinity.
fn settings(version: &Version) -> String {
    let mut words = vec!["random".to_owned()];
    words.extend(self::words(version.flags, VERSION_FLAGS).map(str::to_owned));
    if version.affinity_seconds > 0 {
        words.push(format!("affinity={}s", version.affinity_seconds));
    }
    words.join(",")
}

const VERSION_FLAGS: &[(u32, &str)] = &[
    (Version::INTERNAL_LOCAL, "internal=local"),
    (Version::EXTERNAL_LOCAL, "external=local"),
    (Version::SOURCE_RANGES, "sources"),
    (Version::SOURCE_NODE_ALLOWED, "node-allowed"),
];

const BACKEND_FLAGS: &[(u32, &str)] = &[
    (Backend::SERVING as u32, "serving"),
    (Backend::ON_THIS_NODE as u32, "here"),
    (Backend::TERMINATING as u32, "terminating"),
];

const ADDRESS_FLAGS: &[(u32, &str)] = &[
    (address::OWN, "own"),
    (address::NODE_PORT, "node-port"),
    (address::CLUSTER_IP, "cluster-ip"),
    (address::LOOPBACK, "loopback"),
    (address::EXTERNAL, "external"),
];

fn words(flags: u32, names: &'static [(u32, &'static str)]) -> impl Iterator<Item = &'static str> {
    names.iter().filter(move |(flag, _)| flags & flag != 0).map(|(_, name)| *name)
}

fn named(flags: u32, names: &'static [(u32, &'static str)]) -> String {
    words(flags, names).collect::<Vec<_>>().join(",")
}

fn packets(packets: &PacketSettings) -> Vec<String> {
    let PortRange { first, count } = packets.ports;
    let mut lines = vec![format!("PORTS {first} to {}", (u32::from(first) + u32::from(count)).saturating_sub(1))];
    let pods = packets.pods.iter().filter(|range| **range != Cidr::default());
    lines.extend(pods.map(|range| format!("PODS {range}")));
    let flags =
        [(PacketSettings::MASQUERADE_ALL, "MASQUERADE all"), (PacketSettings::PODS_BY_DEVICE, "PODS by device")];
    lines.extend(flags.iter().filter(|(flag, _)| packets.flags & flag != 0).map(|(_, line)| (*line).to_owned()));
    lines
}

fn config(config: &Config) -> Vec<String> {
    let count = (config.service_cidr_count as usize).min(config.service_cidrs.len());
    let cidr = |cidr: &Cidr| format!("SERVICE-CIDR {cidr}");
    let mut lines: Vec<String> = config.service_cidrs[..count].iter().map(cidr).collect();
    let detectors = [(Config::DETECTOR_V4, "DETECTOR IPv4"), (Config::DETECTOR_V6, "DETECTOR IPv6")];
    lines.extend(detectors.iter().filter(|(flag, _)| config.flags & flag != 0).map(|(_, line)| (*line).to_owned()));
    lines.push(format!("UDP-TIMEOUT {}s {}s", config.udp_timeout, config.udp_stream_timeout));
    lines
}
