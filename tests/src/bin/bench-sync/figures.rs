//! What was measured, as tables, targets and plots.

use std::collections::BTreeMap;

use proxy_common::tables::name;
use proxy_tests::bench::{Bound, Line, Percentile, Plot, Report, Summary, Table, Target};
use proxy_tests::cluster::Size;

use crate::feed::Source;
use crate::in_turn::{InTurn, SMALL};
use crate::subject::{Memory, Who};
use crate::trial::{Churn, Cold, Heard};

const MEGA: f64 = 1e6;

/// One proxy with one cluster. Times are in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) who: Who,
    pub(crate) size: Size,
    pub(crate) source: Source,
    pub(crate) cold: Cold,
    /// Bytes of kernel memory by table; Sluice only.
    pub(crate) tables: BTreeMap<String, f64>,
    /// From outside.
    pub(crate) flips: Vec<f64>,
    pub(crate) births: Vec<f64>,
    /// The flips by the agent's own clock.
    pub(crate) heard: Vec<Heard>,
    /// The same in turn with a small cluster.
    pub(crate) in_turn: Option<InTurn>,
    /// After all of these.
    pub(crate) steady: Memory,
    pub(crate) churn: Option<Churn>,
    /// Of one CPU.
    pub(crate) idle: Option<f64>,
    pub(crate) rolled: Vec<Heard>,
}

impl Measured {
    fn is_ours(&self) -> bool {
        self.who == Who::Sluice
    }

    /// Bytes of all tables but those of sockets, whose number has nothing to do with the cluster's size.
    fn table_bytes(&self) -> f64 {
        let of_cluster = self.tables.iter().filter(|(table, _)| !table.starts_with(name::SOCKETS));
        of_cluster.map(|(_, bytes)| bytes).sum()
    }

    fn title(&self) -> String {
        let real = if self.source == Source::Real { ", real API server" } else { "" };
        format!("{}, {}{real}", self.who.name(), title(self.size))
    }
}

fn title(size: Size) -> String {
    format!("{} x {}", size.services, size.endpoints)
}

/// A quantity of one trial: its samples in the unit of its table.
struct Quantity {
    title: &'static str,
    unit: &'static str,
    of: fn(&Measured) -> Vec<f64>,
}

/// What every proxy has.
const COMPARED: [Quantity; 6] = [
    Quantity { title: "Process start to programmed", unit: "s", of: |of| vec![of.cold.from_start] },
    Quantity { title: "List complete to programmed", unit: "s", of: |of| of.cold.from_list.into_iter().collect() },
    Quantity { title: "CPU until programmed, children too", unit: "s", of: |of| vec![of.cold.cpu] },
    Quantity { title: "One changed endpoint, from outside", unit: "ms", of: |of| milliseconds(&of.flips) },
    Quantity { title: "A new Service, from outside", unit: "ms", of: |of| milliseconds(&of.births) },
    Quantity { title: "Resident memory after these changes", unit: "MB", of: |of| vec![of.steady.resident / MEGA] },
];

/// What only Sluice tells.
const OURS: [Quantity; 6] = [
    Quantity { title: "One changed endpoint, agent's clock", unit: "ms", of: |of| of_heard(&of.heard) },
    Quantity { title: "Resident memory after the start", unit: "MB", of: |of| vec![of.cold.memory.resident / MEGA] },
    Quantity { title: "Of it anonymous", unit: "MB", of: |of| vec![of.cold.memory.anonymous / MEGA] },
    Quantity { title: "Its proportional share (Pss)", unit: "MB", of: |of| vec![of.cold.memory.share / MEGA] },
    Quantity { title: "Peak memory", unit: "MB", of: |of| vec![of.steady.peak / MEGA] },
    Quantity { title: "Tables in the kernel, without sockets", unit: "MB", of: |of| vec![of.table_bytes() / MEGA] },
];

fn milliseconds(seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|seconds| seconds * 1e3).collect()
}

fn of_heard(heard: &[Heard]) -> Vec<f64> {
    heard.iter().map(|heard| heard.seconds * 1e3).collect()
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<Measured>);

impl Figures {
    pub(crate) fn add(&mut self, measured: Measured) {
        self.0.push(measured);
    }

    pub(crate) fn fill(&self, report: &mut Report) {
        report.note(
            "Rows: who, Services x endpoints of each. Ratios are to the first row. One proxy at a time on a node of its \
             own; a replayed API server sends lists and changes as JSON over HTTP. Times from outside begin when the bytes \
             of the change leave the API server and end when a connection to the ClusterIP reaches the right pod.",
        );
        report.tables.extend(COMPARED.iter().chain(&OURS).filter_map(|quantity| self.table(quantity)));
        report.tables.extend(self.long_tables());
        self.targets(report);
        self.plots(report);
    }

    fn table(&self, quantity: &Quantity) -> Option<Table> {
        let ours_only = OURS.iter().any(|of| of.title == quantity.title);
        let trials = self.0.iter().filter(|of| !ours_only || of.is_ours());
        let samples = trials.map(|of| (of.title(), (quantity.of)(of)));
        let rows: Vec<_> = samples.filter(|(_, samples)| !samples.is_empty()).collect();
        let rows = rows.into_iter().map(|(title, samples)| (title, Summary::of(&samples)));
        (rows.len() > 0).then(|| Table::new(quantity.title, quantity.unit, Percentile::P50, rows))
    }

    fn long_tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        let mut add = |title: &str, unit: &str, rows: Vec<(String, Vec<f64>)>| {
            let rows: Vec<_> = rows.into_iter().filter(|(_, samples)| !samples.is_empty()).collect();
            if !rows.is_empty() {
                let rows = rows.into_iter().map(|(title, samples)| (title, Summary::of(&samples)));
                tables.push(Table::new(title, unit, Percentile::P50, rows));
            }
        };
        let churned = |of: fn(&Churn) -> Vec<f64>| {
            self.0.iter().filter_map(|trial| Some((trial.title(), of(trial.churn.as_ref()?)))).collect()
        };
        add("100 changes a second, agent's clock", "ms", churned(|churn| of_heard(&churn.heard)));
        add("100 changes a second, CPU", "% of a core", churned(|churn| vec![churn.share * 100.0]));
        add("The change after them, from outside", "ms", churned(|churn| vec![churn.backlog * 1e3]));
        let in_turn = self.0.iter().filter_map(|trial| Some((trial.size, trial.in_turn.as_ref()?)));
        let in_turn = in_turn.flat_map(|(size, InTurn { small, large })| {
            [(title(SMALL), of_heard(small)), (title(size), of_heard(large))]
        });
        add("One changed endpoint, both clusters in turn, agent's clock", "ms", in_turn.collect());
        let idle = self.0.iter().filter_map(|trial| Some((trial.title(), vec![trial.idle? * 100.0])));
        add("Nothing happens, CPU", "% of a core", idle.collect());
        let rolled = |of: fn(&Heard) -> f64| {
            self.0.iter().map(|trial| (trial.title(), trial.rolled.iter().map(of).collect())).collect()
        };
        add("25 of 5,000 endpoints replaced, agent's clock", "ms", rolled(|heard| heard.seconds * 1e3));
        add("25 of 5,000 endpoints replaced", "writes", rolled(|heard| f64::from(heard.writes)));
        tables
    }

    fn replayed(&self) -> impl Iterator<Item = &Measured> {
        self.0.iter().filter(|of| of.source == Source::Replayed)
    }

    fn ours(&self, services: u32, endpoints: u32) -> Option<&Measured> {
        self.replayed().find(|of| of.is_ours() && of.size == Size { services, endpoints })
    }

    /// Median of a quantity over that of Sluice with the same cluster.
    fn times_ours(&self, who: Who, services: u32, of: fn(&Measured) -> Vec<f64>) -> Option<f64> {
        let theirs = self.replayed().find(|trial| trial.who == who && trial.size.services == services)?;
        let median = |trial: &Measured| Summary::of(&of(trial)).p50;
        Some(median(theirs) / median(self.ours(services, theirs.size.endpoints)?))
    }

    fn targets(&self, report: &mut Report) {
        let mut add = |target: Target| report.targets.push(target);
        let at_most = |what: &str, value, unit, bound| Target::new(what, value, unit, Bound::AtMost(bound));
        if let Some(large) = self.ours(10_000, 10) {
            let (cold, heard) = (&large.cold, Summary::of(&of_heard(&large.heard)));
            if let Some(from_list) = cold.from_list {
                add(at_most("12: list complete to last write", from_list, "s", 0.5).stretch(Bound::AtMost(0.25)));
            }
            add(at_most("12: process start to programmed", cold.from_start, "s", 1.0));
            add(at_most("12: CPU until programmed", cold.cpu, "s", 0.7));
            add(at_most("13: one change, median", heard.p50, "ms", 1.0).stretch(Bound::AtMost(0.4)));
            add(at_most("13: one change, p99", heard.p99, "ms", 5.0));
            let outside = Summary::of(&milliseconds(&large.flips));
            add(at_most("13: one change from outside, median", outside.p50, "ms", 1.0).stretch(Bound::AtMost(0.4)));
            add(at_most("13: one change from outside, p99", outside.p99, "ms", 5.0));
            if let Some(InTurn { small, large }) = &large.in_turn {
                let median = |of: &[Heard]| Summary::of(&of_heard(of)).p50;
                add(at_most("13: 10,000 Services over 100, in turn, median", median(large) / median(small), "x", 1.2));
            }
            if let Some(churn) = &large.churn {
                let p99 = Summary::of(&of_heard(&churn.heard)).p99;
                add(at_most("14: 100 changes a second, p99", p99, "ms", 20.0));
                add(at_most("14: CPU", churn.share * 100.0, "%", 5.0));
            }
            if !large.rolled.is_empty() {
                let rolled = Summary::of(&of_heard(&large.rolled));
                add(at_most("15: change of 5,000 endpoints", rolled.p50, "ms", 2.0).stretch(Bound::AtMost(1.0)));
            }
            add(at_most("16: peak memory", large.steady.peak / MEGA, "MB", 80.0));
            let tables = large.table_bytes() / MEGA;
            add(at_most("17: tables without sockets", tables, "MB", 8.0).stretch(Bound::AtMost(4.0)));
            if let Some(idle) = large.idle {
                add(at_most("19: nothing happens", idle * 100.0, "%", 0.05));
            }
        }
        for (services, bound) in [(0, 12.0), (1_000, 16.0), (10_000, 40.0)] {
            if let Some(of) = self.ours(services, 10) {
                let what = format!("16: resident memory, {services} Services");
                add(at_most(&what, of.cold.memory.resident / MEGA, "MB", bound));
            }
        }
        if let Some(times) = self.times_ours(crate::NFTABLES, 10_000, |of| vec![of.cold.memory.resident]) {
            add(at_most("16: resident memory, Sluice over kube-proxy nftables", 1.0 / times, "x", 0.14));
        }
        if let Some(times) = self.times_ours(crate::NFTABLES, 10_000, |of| vec![of.steady.resident]) {
            add(at_most("16: the same after changes", 1.0 / times, "x", 0.08));
        }
        if let Some([service, endpoint]) = self.slopes() {
            add(at_most("18: bytes of a Service, user and kernel", service, "B", 500.0).stretch(Bound::AtMost(300.0)));
            add(at_most("18: bytes of an endpoint", endpoint, "B", 120.0).stretch(Bound::AtMost(60.0)));
        }
        for (who, services, bound) in
            [(crate::NFTABLES, 1_000, 50.0), (crate::NFTABLES, 10_000, 1000.0), (crate::LEGACY, 10_000, 300.0)]
        {
            if let Some(times) = self.times_ours(who, services, |of| of.flips.clone()) {
                let what = format!("13: {} over Sluice, {services} Services", who.name());
                add(Target::new(what, times, "x", Bound::AtLeast(bound)));
            }
        }
        if let Some(times) = self.times_ours(crate::NFTABLES, 10_000, |of| of.cold.from_list.into_iter().collect()) {
            add(Target::new("12: full sync, kube-proxy nftables over Sluice", times, "x", Bound::AtLeast(25.0)));
        }
    }

    /// Bytes that one more Service and one more endpoint take, from three clusters of different shape.
    fn slopes(&self) -> Option<[f64; 2]> {
        let bytes = |of: &Measured| of.cold.memory.resident + of.table_bytes();
        let small = self.ours(1_000, 10)?;
        let step = |of: &Measured| {
            let endpoints = |size: Size| f64::from(size.services) * f64::from(size.endpoints);
            let services = f64::from(of.size.services) - f64::from(small.size.services);
            [services, endpoints(of.size) - endpoints(small.size), bytes(of) - bytes(small)]
        };
        let (many, wide) = (step(self.ours(10_000, 10)?), step(self.ours(5_000, 50)?));
        // Two equations: services * x + endpoints * y = bytes.
        let minor = |left: usize, right: usize| many[left] * wide[right] - many[right] * wide[left];
        Some([minor(2, 1) / minor(0, 1), minor(0, 2) / minor(0, 1)])
    }

    fn plots(&self, report: &mut Report) {
        let lines = |of: fn(&Measured) -> f64| {
            let mut lines: Vec<Line> = Vec::new();
            for trial in self.replayed().filter(|trial| trial.size.endpoints == 10 && trial.size.services > 0) {
                let (name, point) = (trial.who.name(), (f64::from(trial.size.services), of(trial)));
                match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line { name, points: vec![point], kind: trial.who.kind() }),
                }
            }
            lines
        };
        let mut plot = |name: &str, title: &str, y: &str, of: fn(&Measured) -> f64| {
            let (title, x, y) = (title.to_owned(), "Services of 10 endpoints".to_owned(), y.to_owned());
            report.plot(name, Plot::Lines { title, x, y, y_log: true, lines: lines(of) });
        };
        let change = |of: &Measured| Summary::of(&of.flips).p50 * 1e3;
        plot("sync-change", "One changed endpoint until connections follow, median", "ms", change);
        plot("sync-start", "Process start until every Service is served", "s", |of| of.cold.from_start);
        plot("sync-memory", "Resident memory of the process", "MB", |of| of.steady.resident / MEGA);
    }
}
