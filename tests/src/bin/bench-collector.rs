//! What it costs to look for flows that are over (`cargo xtask bench collector`).
//!
//! In: tables of flows, full of made ones. Out: the time that the agent's thread has on a processor for one look, user space and
//! kernel together, and the share of a processor that this is at one look a minute.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::Pod;
use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{Flow, FlowKey, PacketSettings};
use proxy_common::addr::{Addr, Be16};
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::packet::tcp::seen;
use proxy_common::socket::TCP;
use proxy_common::tables::name;
use proxy_tests::bench::{Bound, Options, Percentile, Report, Summary, Table, Target, pin_to_one_cpu};
use proxy_tests::packets::wire::Wire;
use proxy_tests::world::{PINS, World};
use proxy_userspace::flows::{BATCH, Collector, INTERVAL, REST};
use proxy_userspace::sys::bpf::Map;

const SAMPLES: usize = 20;
/// What the target is about.
const MANY: u32 = 500_000;
/// Flows to one address and port, which differ in the client's port.
const PORTS: u32 = 50_000;

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::begin("collector", &options)?;
    let (samples, many) = if options.quick { (3, MANY / 100) } else { (SAMPLES, MANY) };
    let _world = World::new()?;
    pin_to_one_cpu()?;
    let (interval, rest) = (INTERVAL.as_secs(), REST.as_millis());
    report
        .note(format!("A look every {interval} s, with {rest} ms of rest after each {BATCH} entries; a flow has two."));
    let tables = Tables::new(many)?;
    let mut rows = vec![("no flows".to_owned(), tables.look(samples)?)];
    for (what, flows) in [("a tenth of the IPv4 flows", many / 10), ("IPv4 flows", many)] {
        tables.fill::<V4>(name::FLOWS4, flows)?;
        rows.push((format!("{flows}, {what}"), tables.look(samples)?));
    }
    let four = rows[rows.len() - 1].1.p50;
    tables.fill::<V6>(name::FLOWS6, many)?;
    rows.push((format!("{many} IPv4 flows, as many IPv6 flows"), tables.look(samples)?));
    let both = rows[rows.len() - 1].1.p50;
    let share = |milliseconds: f64| milliseconds / INTERVAL.as_secs_f64() / 10.0;
    for (family, milliseconds) in [("IPv4", four), ("IPv6", both - four)] {
        let what = format!("{many} {family} flows: share of a processor");
        report.targets.push(Target::new(what, share(milliseconds), "%", Bound::AtMost(2.0)));
    }
    // Each is forgotten once: there is one sample.
    let over = tables.forget_all()?;
    rows.push((format!("{} flows that are over, all of them forgotten", 2 * many), Summary::once(over)));
    let table = Table::new("one look at the tables of flows, time on a processor", "ms", Percentile::P50, rows);
    report.also_documented("One look at the tables of flows, time on a processor", &table);
    report.tables.push(table);
    report.finish(&options)
}

/// Tables with room for so many flows each, and where they are pinned.
struct Tables {
    folder: PathBuf,
    wire: Wire,
    settings: PacketSettings,
}

impl Tables {
    fn new(flows: u32) -> Result<Self> {
        let folder = Path::new(PINS).join("collector");
        fs::create_dir(&folder)?;
        // An LRU keeps some of its entries apart for each CPU.
        let mut wire = Wire::new(flows + flows / 8)?;
        wire.pin(&folder)?;
        let mut settings = PacketSettings::default();
        wire.settings(|now| settings = *now)?;
        ensure!(settings.ports.count > 0, "nobody has told the programs how long flows last");
        Ok(Self { folder, wire, settings })
    }

    /// Established connections of so many clients.
    fn fill<A: Ip>(&self, table: &str, flows: u32) -> Result<()>
    where
        FlowKey<A>: Pod,
        Flow<A>: Pod,
    {
        let map = Map::<FlowKey<A>, Flow<A>>::open(&self.folder.join(table))?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec().try_into()?;
        for flow in (0..flows).map(|client| established::<A>(client, now)) {
            map.set(&flow.request_key(), &flow)?;
            map.set(&flow.reply_key(self.settings.ports), &flow.mirrored())?;
        }
        Ok(())
    }

    /// Milliseconds of looks at which nothing is forgotten.
    fn look(&self, samples: usize) -> Result<Summary> {
        let mut collector = Collector::default();
        let look = |_| {
            let (forgotten, milliseconds) = self.time(&mut collector)?;
            ensure!(forgotten == 0, "{forgotten} flows were forgotten");
            Ok(milliseconds)
        };
        Ok(Summary::of(&(0..samples).map(look).collect::<Result<Vec<_>>>()?))
    }

    /// Milliseconds of the look at which every flow is.
    fn forget_all(mut self) -> Result<f64> {
        self.wire.settings(|settings| settings.tcp.established = 0)?;
        std::thread::sleep(Duration::from_secs(2));
        let (forgotten, milliseconds) = self.time(&mut Collector::default())?;
        ensure!(forgotten > 0, "no flow was forgotten");
        Ok(milliseconds)
    }

    /// How many flows were forgotten, and milliseconds of this thread.
    fn time(&self, collector: &mut Collector) -> Result<(usize, f64)> {
        let spent = || Ok::<_, nix::Error>(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?));
        let before = spent()?;
        let forgotten = collector.look(&self.folder, REST)?.forgotten;
        Ok((forgotten, spent()?.saturating_sub(before).as_secs_f64() * 1e3))
    }
}

fn established<A: Ip>(client: u32, now: u32) -> Flow<A> {
    let shown = seen::SPOKE | seen::SYN | seen::ACK;
    let address = |host: u32| {
        let [a, b, c, d] = host.to_be_bytes();
        let mapped = Addr::v4([a, b, c, d]);
        // Of the same host, in the range for documents.
        let mut six = mapped.octets();
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        A::of(&if A::HEADER == V4::HEADER { mapped } else { Addr::new(six) })
    };
    let flow = Flow {
        client: address(0xc612_0000 + client / PORTS),
        frontend: address(0xcb00_7105),
        backend: address(0x0af4_0105),
        source: A::ANY,
        client_port: Be16::new((10_000 + client % PORTS) as u16),
        frontend_port: Be16::new(80),
        backend_port: Be16::new(8080),
        source_port: Be16::new((10_000 + client % PORTS) as u16),
        backend_id: 1,
        generation: 1,
        seal: 0,
        used: now,
        seen: shown,
        seen_other: shown,
        flags: 0,
        proto: TCP,
        pad: 0,
    };
    flow.sealed()
}
