//! What a client outside of the node saw, as tables, targets and plots.

use proxy_tests::bench::{Bar, Bound, Percentile, Plot, Report, Summary, Table, Target, services_text};
use proxy_tests::kube_proxy::Mode;

use super::inside::Counted;
use super::{Lane, Metric};

pub(super) const DIRECT: &str = "routed to the pod";
pub(super) const AGAIN: &str = "routed to the pod, once more";
pub(super) const SLUICE: &str = "Sluice";
pub(super) const PAST: &str = "Sluice --fast-path";

pub(super) fn kube_proxy(mode: Mode) -> String {
    format!("kube-proxy {}", mode.name())
}

pub(super) fn tell(report: &mut Report, lanes: &[Lane], sizes: &[u32], beside: bool) {
    let tables = Metric::ALL.map(|metric| table(metric, lanes));
    for (metric, table) in Metric::ALL.into_iter().zip(&tables) {
        let noise = table.ratio(AGAIN, DIRECT).unwrap_or(f64::NAN);
        let what = format!("noise: {}, once more / {DIRECT}", metric.title());
        report.targets.push(Target::new(what, noise, "", Bound::Between(0.99, 1.01)));
        for (services, mode) in sizes.iter().flat_map(|services| MODES.map(|mode| (*services, mode))) {
            let theirs = services_text(&kube_proxy(mode), services);
            for ours in [SLUICE, PAST].map(|ours| services_text(ours, services)) {
                let target = |ratio| {
                    let what = format!("{}: {theirs} / {ours}", metric.title());
                    Target::new(what, ratio, "", Bound::AtLeast(1.0)).stretch(Bound::AtLeast(1.15))
                };
                report.targets.extend(table.ratio(&theirs, &ours).map(target));
            }
        }
        for services in sizes {
            let [through, past] = [SLUICE, PAST].map(|ours| services_text(ours, *services));
            let what = format!("{}: {through} / {past}", metric.title());
            let target = |ratio| Target::new(what, ratio, "", Bound::AtLeast(1.0));
            report.targets.extend(table.ratio(&through, &past).map(target));
        }
    }
    report.side_by_side("From outside to a node port, microseconds (and over the first)", &tables);
    for (metric, title) in [(Metric::Cycle, "Connections a second"), (Metric::Request, "Requests a second")] {
        let rates = rates(title, &tables[metric as usize]);
        report.also_documented(&format!("{title}, one after another"), &rates);
        report.tables.push(rates);
    }
    for table in &tables {
        report.also_documented("From outside, each by itself", table);
    }
    if beside {
        for (metric, name) in Metric::ALL.into_iter().zip(["connect", "cycle", "request"]) {
            report.plot(&format!("outside-{name}"), plot(metric, lanes));
        }
    }
    report.tables.extend(tables);
}

/// What the kernel counts in the programs. Held to nothing: between two runs, the stacks of client and server have used all
/// caches, and what else a packet costs comes first to whoever touches it first.
pub(super) fn tell_inside(report: &mut Report, counted: &[Counted]) {
    let rows = counted.iter().map(|counted| (counted.name.clone(), Summary::of(&counted.nanoseconds)));
    let table = Table::new("Inside of the programs while requests pass", "ns", Percentile::P10, rows);
    report.also_documented("Inside of the programs, as the kernel counts it", &table);
    report.tables.push(table);
}

const MODES: [Mode; 2] = [Mode::Nftables, Mode::IptablesLegacy];

fn table(metric: Metric, lanes: &[Lane]) -> Table {
    let rows = lanes.iter().map(|lane| (lane.name.clone(), Summary::of(&lane.samples[metric as usize])));
    Table::new(metric.title(), "ns", Percentile::P10, rows)
}

/// How many of what takes so long there are in a second.
fn rates(title: &str, table: &Table) -> Table {
    let rows = table.rows.iter().map(|row| (row.name.clone(), Summary::once(1e9 / row.summary.get(table.compared))));
    Table::new(title, "1/s", Percentile::P10, rows)
}

fn plot(metric: Metric, lanes: &[Lane]) -> Plot {
    let shown = lanes.iter().filter(|lane| lane.name != AGAIN);
    let bars = shown.map(|lane| {
        let value = Summary::of(&lane.samples[metric as usize]).p10 / 1e3;
        Bar { name: lane.name.clone(), value, kind: lane.kind }
    });
    Plot::Bars { title: format!("{} at a node port, from outside, µs", metric.title()), bars: bars.collect() }
}
