//! What it costs to remember a socket's flow in each place that was considered (`cargo xtask bench sockets`).
//!
//! In: the test object with the programs `cost_*`. Out: a report; `docs/socket-state.md` keeps one. Each place has a
//! cgroup of its own with its programs attached; one process moves from cgroup to cgroup, a batch of sockets in each, so
//! that all meet the same moments of a noisy machine. The first one comes twice: how much the two differ is the noise.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{CgroupAttachMode, Program};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use proxy_tests::bench::{Bar, Bound, Kind, Options, Percentile, Plot, Report, Summary, Table, Target};
use proxy_tests::hooks::{program_alone, test_object};

const ROUNDS: usize = 300;
const QUICK_ROUNDS: usize = 3;
const UDP_BATCH: u32 = 100;
const TCP_BATCH: u32 = 20;

/// A place, and the programs that use it.
struct Place {
    title: &'static str,
    programs: &'static [&'static str],
}

const PLACES: [Place; 6] = [
    Place { title: "nothing", programs: &["cost_nothing"] },
    Place { title: "array by cookie, cleared at release", programs: &["cost_array", "cost_array_release"] },
    Place { title: "LRU hash by cookie", programs: &["cost_lru"] },
    Place { title: "hash by cookie, cleared at release", programs: &["cost_hash", "cost_hash_release"] },
    Place { title: "socket storage", programs: &["cost_storage"] },
    Place { title: "nothing, once more", programs: &["cost_nothing"] },
];

fn main() -> Result<()> {
    let options = Options::parse();
    program_alone(|cgroup| measure(cgroup, &options))
}

fn measure(cgroup: &Path, options: &Options) -> Result<()> {
    let mut report = Report::begin("sockets", options)?;
    let folders = PLACES.iter().enumerate().map(|(number, _)| cgroup.join(format!("cost-{number}")));
    let folders: Vec<PathBuf> = folders.collect();
    let mut ebpf = Ebpf::load(&test_object()?)?;
    for (place, folder) in PLACES.iter().zip(&folders) {
        fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
        for name in place.programs {
            attach(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?, &File::open(folder)?)?;
        }
    }
    let rounds = if options.quick { QUICK_ROUNDS } else { ROUNDS };
    let measured = Measured::take(&folders, rounds);
    // Whatever happened, a cgroup is only removed when nobody is in it.
    enter(cgroup)?;
    for folder in &folders {
        fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    report.note(format!("{rounds} rounds of {UDP_BATCH} UDP and {TCP_BATCH} TCP sockets in each place"));
    measured?.tell(&mut report);
    report.finish(options)
}

fn attach(program: &mut Program, cgroup: &File) -> Result<()> {
    match program {
        Program::CgroupSockAddr(program) => {
            if program.fd().is_err() {
                program.load()?;
            }
            program.attach(cgroup, CgroupAttachMode::Single)?;
        }
        Program::CgroupSock(program) => {
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single)?;
        }
        other => anyhow::bail!("{:?} is no socket hook", other.prog_type()),
    }
    Ok(())
}

/// Sockets belong to the cgroup of the process that makes them.
fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("move to {}", cgroup.display()))
}

/// Nanoseconds per socket, a sample for each batch, by place.
struct Measured {
    udp: Vec<Vec<f64>>,
    tcp: Vec<Vec<f64>>,
}

impl Measured {
    fn take(cgroups: &[PathBuf], rounds: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let to = listener.local_addr()?;
        let mut measured = Self { udp: vec![Vec::new(); cgroups.len()], tcp: vec![Vec::new(); cgroups.len()] };
        for _ in 0..rounds {
            for (place, cgroup) in cgroups.iter().enumerate() {
                enter(cgroup)?;
                measured.udp[place].push(per_socket(UDP_BATCH, || connect_udp(to))?);
                measured.tcp[place].push(per_socket(TCP_BATCH, || cycle_tcp(&listener, to))?);
            }
        }
        Ok(measured)
    }

    fn tell(&self, report: &mut Report) {
        for (title, samples) in [("UDP socket", &self.udp), ("TCP cycle", &self.tcp)] {
            let rows =
                PLACES.iter().zip(samples).map(|(place, samples)| (place.title.to_owned(), Summary::of(samples)));
            let table = Table::new(title, "ns", Percentile::P10, rows);
            let noise = table.rows.last().map_or(f64::NAN, |row| row.ratio);
            report.targets.push(Target::new(format!("{title}: noise"), noise, "", Bound::Between(0.99, 1.01)));
            let bars = table.rows.iter().map(|row| Bar {
                name: row.name.clone(),
                value: row.summary.p10,
                kind: if row.name.starts_with("nothing") { Kind::Baseline } else { Kind::Sluice },
            });
            let plot = Plot::Bars { title: format!("{title} by where its flow is kept, ns"), bars: bars.collect() };
            report.plot(&format!("sockets-{}", &title[..3].to_lowercase()), plot);
            report.tables.push(table);
        }
    }
}

fn per_socket(count: u32, mut one: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..count {
        one()?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(count))
}

/// Made, connected, closed: no packet.
fn connect_udp(to: SocketAddr) -> Result<()> {
    Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.connect(to)?)
}

/// Connected, accepted, closed by a reset: no port is kept waiting.
fn cycle_tcp(listener: &TcpListener, to: SocketAddr) -> Result<()> {
    let client = TcpStream::connect(to)?;
    let _accepted = listener.accept()?;
    setsockopt(&client, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}
