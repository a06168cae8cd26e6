//! `sluice list`: every frontend and its backends, from the pinned tables alone.
//!
//! In: a [`Snapshot`] and counters. Out: rows for people or JSON for programs, sorted by frontend.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context;
use proxy_common::abi::{Affinity, AffinityKey, Backend, BackendStats, Frontend, FrontendKey, Version};
use proxy_common::addr::{Addr, Be16};
use serde::Serialize;

use super::{Output, PinDir, print, table};
use crate::attach::pins::Folder;
use crate::facts::{kind, protocol};
use crate::hash::HashMap;
use crate::maps::Snapshot;
use crate::maps::pinned::{Pinned, read};
use crate::sys::monotonic_nanos;

/// Show frontends and backends as the kernel has them; works without an agent.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub pins: PinDir,

    /// Show which clients stick to which backend instead.
    #[arg(long)]
    pub affinity: bool,

    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Nothing is pinned here.
const NOTHING_PINNED: u8 = 3;

pub fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let folder = Folder::at(&args.pins.pin_dir).current();
    if let Err(error) = std::fs::metadata(&folder) {
        if error.kind() != ErrorKind::NotFound {
            return Err(error).with_context(|| format!("look at {} (are you root?)", folder.display()));
        }
        eprintln!(
            "Nothing is pinned in {}: sluice has not served on this node, or with another --pin-dir",
            args.pins.pin_dir.display()
        );
        return Ok(ExitCode::from(NOTHING_PINNED));
    }
    let maps = Pinned::open(&folder)?;
    let snapshot = maps.read()?;
    if args.affinity {
        let remembered = read(proxy_common::tables::name::AFFINITY, &maps.affinity)?;
        show_affinity(&sticky(&snapshot, &remembered, monotonic_nanos()), args.output)?;
    } else {
        let stats = read(proxy_common::tables::name::STATS, &maps.stats)?;
        show(&frontends(&snapshot, &stats.into_iter().collect()), args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One frontend as the tables have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrontendRow {
    pub protocol: String,
    pub frontend: SocketAddr,
    pub kind: &'static str,
    pub scheduler: &'static str,
    /// Seconds a client sticks to its backend; 0 for not at all.
    pub persistence: u32,
    pub backends: Vec<BackendRow>,
}

/// One backend that a frontend uses, or that still has flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendRow {
    pub backend: SocketAddr,
    pub forwarding: &'static str,
    pub weight: u32,
    pub state: &'static str,
    /// Connections and UDP flows open now.
    pub active: u32,
    /// Connections and UDP flows ever.
    pub total: u32,
}

/// One client that sticks to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AffinityRow {
    pub client: String,
    pub frontends: Vec<String>,
    pub backend: SocketAddr,
    pub expires_in_seconds: u64,
}

/// The rows of `snapshot`, sorted by protocol, address and port.
pub fn frontends(snapshot: &Snapshot, stats: &BTreeMap<u32, BackendStats>) -> Vec<FrontendRow> {
    let index = Index::new(snapshot);
    let mut frontends: Vec<_> = index.frontends.iter().collect();
    frontends.sort_by_key(|Frontend { key, .. }| (key.proto, IpAddr::from(key.addr), key.port.get()));
    frontends.into_iter().map(|frontend| index.frontend_row(frontend, stats)).collect()
}

/// The clients that stick now, sorted.
pub fn sticky(snapshot: &Snapshot, remembered: &[(AffinityKey, Affinity)], now: u64) -> Vec<AffinityRow> {
    let index = Index::new(snapshot);
    let mut rows: Vec<_> = remembered.iter().filter_map(|(key, value)| index.affinity_row(key, value, now)).collect();
    rows.sort_by(|a, b| (&a.frontends, &a.client).cmp(&(&b.frontends, &b.client)));
    rows
}

/// The snapshot by id.
struct Index {
    frontends: Vec<Frontend>,
    service: HashMap<u32, Version>,
    backends: BTreeMap<u32, Vec<(u32, Backend)>>,
}

impl Index {
    fn new(snapshot: &Snapshot) -> Self {
        let mut backends: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        // Generation 0 is a tombstone.
        for (id, backend) in snapshot.backends.iter().filter(|(_, backend)| backend.generation != 0) {
            backends.entry(backend.service).or_default().push((*id, *backend));
        }
        for list in backends.values_mut() {
            list.sort_by_key(|(_, backend)| socket_addr(backend.addr, backend.port));
        }
        let frontends = snapshot.frontends().map(|(_, frontend)| frontend).collect();
        Self { frontends, service: snapshot.service_versions(), backends }
    }

    fn frontend_row(&self, frontend: &Frontend, stats: &BTreeMap<u32, BackendStats>) -> FrontendRow {
        let key = &frontend.key;
        let version = self.service.get(&frontend.service);
        let set = version.map_or(Backend::IN_CLUSTER_SET, |version| set_of(frontend.kind, version));
        let members = self.backends.get(&frontend.service).into_iter().flatten();
        let backends = members.filter_map(|(id, backend)| {
            let state = state(backend, set)?;
            Some(backend_row(backend, state, stats.get(id).copied().unwrap_or_default()))
        });
        FrontendRow {
            protocol: protocol(key.proto),
            frontend: socket_addr(key.addr, key.port),
            kind: kind(frontend.kind),
            scheduler: "random",
            persistence: version.map_or(0, |version| version.affinity_seconds),
            backends: backends.collect(),
        }
    }

    /// `None` when the client may go anywhere again.
    fn affinity_row(&self, key: &AffinityKey, value: &Affinity, now: u64) -> Option<AffinityRow> {
        let version = self.service.get(&key.service)?;
        let expires = value.used + u64::from(version.affinity_seconds) * 1_000_000_000;
        let backends = self.backends.get(&key.service)?;
        let (_, backend) = backends.iter().find(|(id, _)| *id == value.backend)?;
        if backend.generation != value.generation || expires <= now {
            return None;
        }
        Some(AffinityRow {
            client: client(key),
            frontends: self.frontends_of(key.service),
            backend: socket_addr(backend.addr, backend.port),
            expires_in_seconds: (expires - now).div_ceil(1_000_000_000),
        })
    }

    fn frontends_of(&self, service: u32) -> Vec<String> {
        let frontends = self.frontends.iter().filter(|frontend| frontend.service == service);
        let mut keys: Vec<_> = frontends.map(|frontend| frontend.key).collect();
        keys.sort_unstable();
        let name = |key: &FrontendKey| format!("{} {}", protocol(key.proto), socket_addr(key.addr, key.port));
        keys.iter().map(name).collect()
    }
}

/// Which set a frontend of `kind` chooses from.
fn set_of(kind: u32, version: &Version) -> u16 {
    let local = if kind == Frontend::KIND_CLUSTER_IP { Version::INTERNAL_LOCAL } else { Version::EXTERNAL_LOCAL };
    if version.flags & local == 0 { Backend::IN_CLUSTER_SET } else { Backend::IN_LOCAL_SET }
}

/// What a backend is to a frontend that chooses from `set`; `None` when it is nothing to it.
fn state(backend: &Backend, set: u16) -> Option<&'static str> {
    let is = |flag| backend.flags & flag != 0;
    let in_some_set = is(Backend::IN_CLUSTER_SET | Backend::IN_LOCAL_SET);
    match () {
        () if is(Backend::TERMINATING) && (is(set) || !in_some_set) => Some("terminating"),
        () if is(set) && is(Backend::ON_THIS_NODE) => Some("local"),
        () if is(set) => Some("active"),
        () if !in_some_set => Some("draining"),
        () => None,
    }
}

fn backend_row(backend: &Backend, state: &'static str, stats: BackendStats) -> BackendRow {
    BackendRow {
        backend: socket_addr(backend.addr, backend.port),
        forwarding: "Socket",
        weight: 1,
        state,
        // The gauge wraps below zero for a moment when a close overtakes its open.
        active: stats.open.cast_signed().max(0).cast_unsigned(),
        total: stats.total,
    }
}

fn client(key: &AffinityKey) -> String {
    match key.client.octets() {
        [0xff, 0, 0, 0, 0, 0, 0, 0, cookie @ ..] => format!("namespace {}", u64::from_be_bytes(cookie)),
        _ => IpAddr::from(key.client).to_string(),
    }
}

fn socket_addr(addr: Addr, port: Be16) -> SocketAddr {
    (IpAddr::from(addr), port.get()).into()
}

fn show(rows: &[FrontendRow], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(rows)?);
        return Ok(());
    }
    let mut table = table(&["PROTOCOL", "FRONTEND", "SCHEDULER", "PERSISTENCE", "", "", ""]);
    table.add_row(["", "-> BACKEND", "FORWARDING", "WEIGHT", "STATE", "ACTIVE", "TOTAL"]);
    for row in rows {
        let persistence = if row.persistence == 0 { "-".to_owned() } else { format!("{}s", row.persistence) };
        table.add_row([&row.protocol, &row.frontend.to_string(), row.scheduler, &persistence]);
        for backend in &row.backends {
            let address = format!("-> {}", backend.backend);
            let [weight, active, total] = [backend.weight, backend.active, backend.total].map(|n| n.to_string());
            table.add_row(["", &address, backend.forwarding, &weight, backend.state, &active, &total]);
        }
    }
    print(&table);
    Ok(())
}

fn show_affinity(rows: &[AffinityRow], output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(rows)?);
        return Ok(());
    }
    let mut table = table(&["CLIENT", "FRONTEND", "BACKEND", "EXPIRES IN"]);
    for row in rows {
        let expires = format!("{}s", row.expires_in_seconds);
        table.add_row([&row.client, &row.frontends.join(", "), &row.backend.to_string(), &expires]);
    }
    print(&table);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::Range;
    use proxy_common::index::{WORDS, Word};

    use super::*;

    const TCP: u8 = 6;

    fn key(address: &str, port: u16) -> FrontendKey {
        FrontendKey { addr: Addr::from(address.parse::<IpAddr>().unwrap()), port: Be16::new(port), proto: TCP, pad: 0 }
    }

    fn backend(address: &str, flags: u16) -> Backend {
        let addr = Addr::from(address.parse::<IpAddr>().unwrap());
        Backend { addr, port: Be16::new(8080), flags, service: 1, generation: 1, zone: 0 }
    }

    /// Service port 1 with a ClusterIP and, with externalTrafficPolicy Local, a node port.
    fn snapshot() -> Snapshot {
        let version = Version {
            cluster: Range::default(),
            local: Range::default(),
            affinity_seconds: 60,
            flags: Version::EXTERNAL_LOCAL,
            service: 1,
            scheduler: 0,
        };
        let (cluster, node) = (key("10.96.0.1", 80), key("0.0.0.0", 30080));
        let both = Backend::IN_CLUSTER_SET | Backend::IN_LOCAL_SET | Backend::SERVING | Backend::ON_THIS_NODE;
        let frontend = vec![
            (0, Frontend { key: cluster, service: 1, kind: Frontend::KIND_CLUSTER_IP }),
            (1, Frontend { key: node, service: 1, kind: Frontend::KIND_NODE_PORT }),
        ];
        let mut bucket = [0; WORDS];
        for (place, (id, frontend)) in bucket.iter_mut().zip(&frontend) {
            *place = Word::leading_to(*id, frontend).word();
        }
        Snapshot {
            index: vec![bucket],
            frontend,
            service: vec![(1, 7)],
            version: vec![(7, version)],
            backends: vec![
                (3, backend("10.0.0.3", Backend::SERVING)),
                (2, backend("10.0.0.2", Backend::IN_CLUSTER_SET | Backend::SERVING)),
                (1, backend("10.0.0.1", both)),
                (4, Backend { generation: 0, ..backend("10.0.0.4", 0) }),
            ],
            ..Snapshot::default()
        }
    }

    fn states(row: &FrontendRow) -> Vec<(String, &'static str)> {
        row.backends.iter().map(|backend| (backend.backend.ip().to_string(), backend.state)).collect()
    }

    #[test]
    fn each_frontend_shows_the_backends_its_policy_allows_and_those_that_drain() {
        let rows = frontends(&snapshot(), &BTreeMap::new());
        assert_eq!(rows[0].frontend.to_string(), "0.0.0.0:30080");
        assert_eq!(states(&rows[0]), [("10.0.0.1".into(), "local"), ("10.0.0.3".into(), "draining")]);
        assert_eq!(rows[1].frontend.to_string(), "10.96.0.1:80");
        assert_eq!(
            states(&rows[1]),
            [("10.0.0.1".into(), "local"), ("10.0.0.2".into(), "active"), ("10.0.0.3".into(), "draining")]
        );
    }

    #[test]
    fn a_gauge_below_zero_shows_as_zero() {
        let stats = BTreeMap::from([(2, BackendStats { total: 5, open: u32::MAX })]);
        let row = &frontends(&snapshot(), &stats)[1].backends[1];
        assert_eq!((row.active, row.total), (0, 5));
    }

    #[test]
    fn only_clients_that_still_stick_are_listed() {
        let remembered = |client: Addr, backend, generation, used| {
            (AffinityKey { client, service: 1, pad: 0 }, Affinity { backend, generation, used })
        };
        let second = 1_000_000_000;
        let pod = Addr::v4([10, 1, 0, 9]);
        let rows = sticky(
            &snapshot(),
            &[
                (AffinityKey::namespace(42, 1), Affinity { backend: 2, generation: 1, used: 100 * second }),
                remembered(pod, 1, 1, 99 * second),
                remembered(pod, 1, 2, 100 * second),
                remembered(pod, 1, 1, 40 * second),
                remembered(pod, 9, 1, 100 * second),
            ],
            100 * second,
        );
        let shown: Vec<_> = rows.iter().map(|row| (row.client.as_str(), row.expires_in_seconds)).collect();
        assert_eq!(shown, [("10.1.0.9", 59), ("namespace 42", 60)]);
        assert_eq!(rows[0].frontends, ["TCP 0.0.0.0:30080", "TCP 10.96.0.1:80"]);
    }

    #[test]
    fn a_frontend_that_is_just_being_replaced_is_left_out() {
        let mut snapshot = snapshot();
        snapshot.frontend[0].1.key = key("10.96.0.9", 80);
        assert_eq!(frontends(&snapshot, &BTreeMap::new()).len(), 1);
    }
}
