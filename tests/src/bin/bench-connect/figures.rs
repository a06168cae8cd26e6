//! What was measured, as tables, targets and plots.

use proxy_tests::bench::{Bar, Bound, Kind, Line, Percentile, Plot, Report, Summary, Table, Target, services_text};
use proxy_tests::kube_proxy::Mode;

use crate::lane::Metric;
use crate::{Measured, Sizes};

const LOOPBACK: &str = "loopback, ";
const DIRECT: &str = "direct to the pod";
/// What lanes past programs that do less than any hook begin with.
const FLOOR: &str = "direct to the pod, ";
const AGAIN: &str = "direct to the pod, once more";
const MISS: &str = "no Service, through Sluice";
const FOREIGN: &str = ", foreign conntrack rule";
const RANDOM: &str = ", random";

pub(crate) fn fill(report: &mut Report, measured: &Measured, sizes: Sizes, beside: bool) {
    let figures = Figures::new(measured, sizes);
    report.tables.extend(figures.tables.iter().cloned());
    report.tables.extend(figures.loopback.iter().cloned());
    report.side_by_side("From pod to pod, microseconds (and over the first)", &figures.tables);
    report.side_by_side("Within one network namespace, microseconds (and over the first)", &figures.loopback);
    let inside = inside(measured);
    report
        .also_documented("Within the program, while the kernel counts; the empty one is the counting itself", &inside);
    report.tables.push(inside);
    report.headline = figures.headline(beside);
    figures.noise(report);
    figures.against_direct(report);
    figures.flatness(report);
    if beside {
        figures.against_kube_proxy(report);
        figures.plots(report);
    }
}

/// The time inside of the programs. What comes first has none to speak of: the kernel's own counting.
fn inside(measured: &Measured) -> Table {
    let with_hook = measured.lanes.iter().zip(&measured.inside).filter(|(_, samples)| !samples.is_empty());
    let rows = with_hook.map(|((name, _), samples)| (name.clone(), Summary::of(samples)));
    Table::new("Inside of the program of a TCP connect()", "ns", Percentile::P10, rows)
}

struct Figures {
    /// By metric, between pods and within one namespace.
    tables: Vec<Table>,
    loopback: Vec<Table>,
    kinds: Vec<(String, Kind)>,
    sizes: Sizes,
}

impl Figures {
    fn new(measured: &Measured, sizes: Sizes) -> Self {
        let Measured { lanes: kinds, samples, .. } = measured;
        let tables = |inside: bool| {
            let table = |metric: Metric| {
                let lanes = kinds.iter().zip(samples).filter(|((name, _), _)| name.starts_with(LOOPBACK) == inside);
                let rows = lanes.map(|((name, _), samples)| (name.clone(), Summary::of(&samples[metric as usize])));
                let title = if inside { format!("{LOOPBACK}{}", metric.title()) } else { metric.title().to_owned() };
                Table::new(&title, "ns", Percentile::P10, rows)
            };
            Metric::ALL.map(table).to_vec()
        };
        Self { tables: tables(false), loopback: tables(true), kinds: kinds.clone(), sizes }
    }

    /// What README says.
    fn headline(&self, beside: bool) -> String {
        let Sizes { many, .. } = self.sizes;
        let ours = Self::sluice(many);
        let percent = |metric| 100.0 * (self.ratio(metric, &ours, DIRECT) - 1.0);
        let request = percent(Metric::Request);
        let request = if request.abs() < 0.5 { "no longer".to_owned() } else { format!("{request:+.1} %") };
        let text = format!(
            "With {} a TCP `connect()` takes {:.1} % longer than one straight to the pod, and a request on the open \
             connection {request}.",
            services_text("", many).trim_start_matches(", "),
            percent(Metric::Connect),
        );
        if beside {
            let theirs = Self::kube_proxy(Mode::Nftables, many);
            let times = |metric| self.ratio(metric, &theirs, &ours);
            let (connect, request) = (times(Metric::Connect), times(Metric::Request));
            return format!(
                "{text}\nkube-proxy's nftables mode on a node of its own takes {connect:.2} times as long as Sluice to connect and \
                 {request:.2} times as long per request."
            );
        }
        text
    }

    fn table(&self, metric: Metric) -> &Table {
        &self.tables[metric as usize]
    }

    fn ratio(&self, metric: Metric, of: &str, to: &str) -> f64 {
        self.table(metric).ratio(of, to).unwrap_or(f64::NAN)
    }

    fn sluice(services: u32) -> String {
        services_text("Sluice", services)
    }

    fn kube_proxy(mode: Mode, services: u32) -> String {
        services_text(&format!("kube-proxy {}", mode.name()), services)
    }

    /// The same lane twice.
    fn noise(&self, report: &mut Report) {
        for metric in Metric::ALL {
            let what = format!("noise: {}, direct once more / direct", metric.title());
            // What is held to half a per cent must be known better than that.
            let bound = match metric {
                Metric::Request | Metric::Stream => Bound::Between(0.997, 1.003),
                _ => Bound::Between(0.99, 1.01),
            };
            report.targets.push(Target::new(what, self.ratio(metric, AGAIN, DIRECT), "", bound));
        }
    }

    fn against_direct(&self, report: &mut Report) {
        let many = Self::sluice(self.sizes.many);
        let mut target = |what: &str, value: f64, bound: Bound, stretch: Option<f64>| {
            let target = Target::new(format!("{what}: {many} / direct"), value, "", bound);
            report.targets.push(match stretch {
                Some(stretch) => target.stretch(Bound::AtMost(stretch)),
                None => target,
            });
        };
        let over_direct = |metric| self.ratio(metric, &many, DIRECT);
        target("TCP connect()", over_direct(Metric::Connect), Bound::AtMost(1.03), Some(1.02));
        let inside = &self.loopback[Metric::Connect as usize];
        let (of, to) = (format!("{LOOPBACK}{many}"), format!("{LOOPBACK}{DIRECT}"));
        target("loopback, TCP connect()", inside.ratio(&of, &to).unwrap_or(f64::NAN), Bound::AtMost(1.04), Some(1.02));
        target("UDP connect()", over_direct(Metric::UdpConnect), Bound::AtMost(1.5), Some(1.4));
        target("UDP connect(), release of the socket counted too", self.udp_life(&many), Bound::AtMost(1.5), Some(1.4));
        target("UDP first sendto()", over_direct(Metric::UdpFirst), Bound::AtMost(1.5), Some(1.4));
        let even = Bound::Between(0.995, 1.005);
        target("TCP request", over_direct(Metric::Request), even, None);
        target("TCP stream", over_direct(Metric::Stream), even, None);
        let missed = self.ratio(Metric::Connect, MISS, DIRECT);
        let what = "TCP connect() to no Service: with Sluice / without";
        report.targets.push(Target::new(what, missed, "", Bound::AtMost(1.02)).stretch(Bound::AtMost(1.015)));
    }

    /// All that Sluice adds to the life of a UDP socket, as if `connect()` had taken it.
    fn udp_life(&self, name: &str) -> f64 {
        let p10 = |metric: Metric, name: &str| {
            let row = self.table(metric).rows.iter().find(|row| row.name == name);
            row.map_or(f64::NAN, |row| row.summary.p10)
        };
        let added = p10(Metric::UdpSocket, name) - p10(Metric::UdpSocket, DIRECT);
        1.0 + added / p10(Metric::UdpConnect, DIRECT)
    }

    fn flatness(&self, report: &mut Report) {
        let (one, most) = (Self::sluice(self.sizes.one), Self::sluice(self.sizes.most));
        for of in [most.clone(), format!("{most}{RANDOM}")] {
            let value = self.ratio(Metric::Connect, &of, &one);
            let what = format!("TCP connect(): {of} / 1 Service");
            report.targets.push(Target::new(what, value, "", Bound::AtMost(1.02)).stretch(Bound::AtMost(1.01)));
        }
    }

    fn against_kube_proxy(&self, report: &mut Report) {
        let Sizes { one, some, many, .. } = self.sizes;
        let mut target = |metric: Metric, of: &str, to: &str, bound, stretch| {
            let what = format!("{}: {of} / {to}", metric.title());
            let target = Target::new(what, self.ratio(metric, of, to), "", bound);
            report.targets.push(target.stretch(stretch));
        };
        let most = Bound::AtMost;
        for services in [some, many] {
            let (ours, theirs) = (Self::sluice(services), Self::kube_proxy(Mode::Nftables, services));
            target(Metric::Connect, &ours, &theirs, most(0.78), most(0.74));
            target(Metric::Cycle, &ours, &theirs, most(0.85), most(0.82));
            target(Metric::Request, &ours, &theirs, most(0.87), most(0.84));
        }
        let (ours, theirs) = (format!("{}{FOREIGN}", Self::sluice(some)), Self::kube_proxy(Mode::Nftables, some));
        for metric in [Metric::Connect, Metric::Cycle, Metric::Request] {
            target(metric, &ours, &theirs, most(0.98), most(0.97));
        }
        let (ours, theirs) = (Self::sluice(many), Self::kube_proxy(Mode::IptablesLegacy, many));
        let (ours, theirs) = (format!("{ours}{RANDOM}"), format!("{theirs}{RANDOM}"));
        target(Metric::Connect, &ours, &theirs, most(0.35), most(0.25));
        for mode in [Mode::Nftables, Mode::IptablesLegacy] {
            for metric in [Metric::Connect, Metric::Cycle, Metric::Request, Metric::UdpFirst, Metric::UdpNext] {
                let (ours, theirs) = (Self::sluice(one), Self::kube_proxy(mode, one));
                target(metric, &theirs, &ours, Bound::AtLeast(1.0), Bound::AtLeast(1.15));
            }
        }
    }

    fn plots(&self, report: &mut Report) {
        for (name, metric, title) in [
            ("connect", Metric::Connect, "TCP connect() from pod to pod, µs (less is better)"),
            ("connect-cycle", Metric::Cycle, "TCP socket, connect, accept, close, µs (less is better)"),
            ("connect-request", Metric::Request, "one byte there and back over TCP, µs (less is better)"),
            ("connect-udp", Metric::UdpFirst, "first UDP datagram of a socket, µs (less is better)"),
        ] {
            let kind = |name: &str| self.kinds.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
            // iptables walks its rules one by one: so long a bar would hide all others. The lines show it.
            let endless = services_text("", self.sizes.many);
            let told = |name: &str| {
                let hides_all = name.contains("iptables") && name.contains(&endless);
                !(name.contains(FOREIGN) || name == AGAIN || name.starts_with(FLOOR) || hides_all)
            };
            let rows = self.table(metric).rows.iter().filter(|row| told(&row.name));
            let bars = rows.filter_map(|row| {
                Some(Bar { name: row.name.clone(), value: row.summary.p10 / 1e3, kind: kind(&row.name)? })
            });
            report.plot(name, Plot::Bars { title: title.to_owned(), bars: bars.collect() });
        }
        report.plot("connect-services", self.by_services());
    }

    /// `connect()` over the number of Services.
    fn by_services(&self) -> Plot {
        let Sizes { one, some, many, most } = self.sizes;
        let rows = &self.table(Metric::Connect).rows;
        let line = |label: &str, kind: Kind, named: &dyn Fn(u32) -> String| {
            let point = |services: u32| {
                let row = rows.iter().find(|row| row.name == named(services))?;
                Some((f64::from(services), row.summary.p10 / 1e3))
            };
            Line {
                name: label.to_owned(),
                kind,
                points: [one, some, many, most].into_iter().filter_map(point).collect(),
            }
        };
        let lines = vec![
            line("direct to the pod", Kind::Baseline, &|_| DIRECT.to_owned()),
            line("Sluice", Kind::Sluice, &Self::sluice),
            line("kube-proxy, nftables", Kind::Nftables, &|services| Self::kube_proxy(Mode::Nftables, services)),
            line("kube-proxy, iptables-legacy", Kind::IptablesLegacy, &|services| {
                Self::kube_proxy(Mode::IptablesLegacy, services)
            }),
        ];
        Plot::Lines {
            title: "TCP connect() by number of Services".to_owned(),
            x: "Services".to_owned(),
            y: "µs".to_owned(),
            y_log: true,
            lines,
        }
    }
}
