//! How fast a change of the cluster reaches the kernel, and what following it takes (`cargo xtask bench sync`).
//!
//! In: made-up clusters behind a replayed API server. Out: figures of Sluice and of the real kube-proxy, each alone on a
//! node of its own, one after the other in the same run. What happens before the bytes of a change leave the API server
//! is in none of them.

mod feed;
mod figures;
mod in_turn;
mod probe;
mod subject;
mod trial;

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use proxy_tests::bench::{Options, Report};
use proxy_tests::cluster::Size;
use proxy_tests::kube_proxy::Mode;

use feed::Source;
use figures::{Figures, Measured};
use in_turn::{InTurn, SMALL};
use subject::{Who, tables};
use trial::Trial;

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// No Services, and 100: what everything else is compared with.
    Small,
    /// 1,000 Services of 10 endpoints.
    Medium,
    /// 10,000 Services of 10 endpoints.
    Large,
    /// 5,000 Services of 50 endpoints.
    Wide,
    /// 1,000 Services of 10 endpoints on a real API server.
    ApiServer,
    /// With 10,000 Services: 100 changes a second for a minute.
    Churn,
    /// With 10,000 Services: every endpoint of a Service with 5,000 is replaced.
    Roll,
    /// With 10,000 Services: nothing happens for a minute.
    Idle,
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Measure only this; may be given more than once.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// A cluster to measure with, and who can bear it in reasonable time.
struct Plan {
    part: Part,
    size: Size,
    who: &'static [Who],
    source: Source,
    /// What else is measured with it.
    long: &'static [Part],
}

const NFTABLES: Who = Who::KubeProxy(Mode::Nftables);
const LEGACY: Who = Who::KubeProxy(Mode::IptablesLegacy);
const IPTABLES: Who = Who::KubeProxy(Mode::IptablesNft);

const fn plan(part: Part, services: u32, endpoints: u32, who: &'static [Who]) -> Plan {
    Plan { part, size: Size { services, endpoints }, who, source: Source::Replayed, long: &[] }
}

const LONG: &[Part] = &[Part::Idle, Part::Churn, Part::Roll];

const PLANS: [Plan; 6] = [
    plan(Part::Small, 0, 10, &[Who::Sluice]),
    plan(Part::Small, SMALL.services, SMALL.endpoints, &[Who::Sluice]),
    plan(Part::Medium, 1_000, 10, &[Who::Sluice, NFTABLES, LEGACY, IPTABLES]),
    Plan { long: LONG, ..plan(Part::Large, 10_000, 10, &[Who::Sluice, NFTABLES, LEGACY]) },
    plan(Part::Wide, 5_000, 50, &[Who::Sluice]),
    Plan { source: Source::Real, ..plan(Part::ApiServer, 1_000, 10, &[Who::Sluice, NFTABLES, LEGACY]) },
];

const QUICK: [Plan; 2] = [
    Plan { long: LONG, ..plan(Part::Large, 100, 10, &[Who::Sluice, NFTABLES, LEGACY]) },
    Plan { source: Source::Real, ..plan(Part::ApiServer, 10, 2, &[Who::Sluice, NFTABLES]) },
];

/// Of the Service that is replaced endpoint by endpoint.
const LARGE: u32 = 5_000;
const AT_ONCE: u32 = 25;
const CHANGES_PER_SECOND: u32 = 100;
/// kube-proxy's first sync takes minutes on busy machines.
const PATIENCE: Duration = Duration::from_mins(5);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let mut report = Report::begin("sync", options)?;
    let beside = report.beside_kube_proxy()?;
    let real = env::var_os("SLUICE_KUBE_APISERVER").is_some();
    if !real {
        report.note("Without a real API server: SLUICE_KUBE_APISERVER names none.");
    }
    let plans: &[Plan] = if options.quick { &QUICK } else { &PLANS };
    let minute = Duration::from_secs(if options.quick { 2 } else { 60 });
    let mut figures = Figures::default();
    for plan in plans.iter().filter(|plan| real || plan.source == Source::Replayed) {
        let long: Vec<Part> = plan.long.iter().copied().filter(|part| arguments.wants(*part)).collect();
        if !arguments.wants(plan.part) && long.is_empty() {
            continue;
        }
        for who in plan.who.iter().filter(|who| beside || **who == Who::Sluice) {
            eprintln!("{} with {} Services x {} endpoints", who.name(), plan.size.services, plan.size.endpoints);
            figures.add(measure(*who, plan, &long, minute)?);
        }
    }
    figures.fill(&mut report);
    report.finish(options)
}

fn measure(who: Who, plan: &Plan, long: &[Part], minute: Duration) -> Result<Measured> {
    let ours = who == Who::Sluice;
    let (trial, cold) = Trial::start(who, plan.source, plan.size, PATIENCE)?;
    let tables = if ours { tables(&trial.node)? } else { BTreeMap::new() };
    let (flips, births) = if ours { (200, 50) } else { (6, 3) };
    let from = trial.log_length();
    let flips = trial.flips(flips)?;
    let heard = trial.heard(from);
    let births = trial.births(births)?;
    let in_turn = if ours && plan.part == Part::Large { Some(InTurn::measure(&trial)?) } else { None };
    let steady = trial.subject.memory()?;
    let mut measured = Measured {
        who,
        size: plan.size,
        source: plan.source,
        cold,
        tables,
        flips,
        births,
        heard,
        in_turn,
        steady,
        churn: None,
        idle: None,
        rolled: Vec::new(),
    };
    for part in long {
        match part {
            Part::Idle => measured.idle = Some(trial.idle(minute)?),
            Part::Churn => measured.churn = Some(trial.churn(CHANGES_PER_SECOND, minute)?),
            Part::Roll if ours => measured.rolled = trial.roll(LARGE, AT_ONCE)?,
            _ => {}
        }
    }
    Ok(measured)
}
