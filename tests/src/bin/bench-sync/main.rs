//! How fast a change of the cluster reaches the kernel, and what following it takes (`cargo xtask bench sync`).
//!
//! In: made-up clusters behind a replayed API server. Out: figures of Sluice and of the real kube-proxy, each alone on a
//! node of its own, one after the other in the same run. What happens before the bytes of a change leave the API server
//! is in none of them.

mod figures;
mod probe;
mod subject;
mod trial;

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use proxy_tests::apiserver::program;
use proxy_tests::bench::{Options, Report};
use proxy_tests::cluster::Size;
use proxy_tests::kube_proxy::Mode;

use figures::{Figures, Measured};
use subject::{Who, tables};
use trial::Trial;

/// A cluster to measure with, and who can bear it in reasonable time.
struct Plan {
    size: Size,
    who: &'static [Who],
    /// Also the long ones: churn, a large Service, doing nothing.
    long: bool,
}

const NFTABLES: Who = Who::KubeProxy(Mode::Nftables);
const LEGACY: Who = Who::KubeProxy(Mode::IptablesLegacy);
const IPTABLES: Who = Who::KubeProxy(Mode::IptablesNft);

const PLANS: [Plan; 5] = [
    Plan { size: Size { services: 0, endpoints: 10 }, who: &[Who::Sluice], long: false },
    Plan { size: Size { services: 100, endpoints: 10 }, who: &[Who::Sluice], long: false },
    Plan {
        size: Size { services: 1_000, endpoints: 10 },
        who: &[Who::Sluice, NFTABLES, LEGACY, IPTABLES],
        long: false,
    },
    Plan { size: Size { services: 10_000, endpoints: 10 }, who: &[Who::Sluice, NFTABLES, LEGACY], long: true },
    Plan { size: Size { services: 5_000, endpoints: 50 }, who: &[Who::Sluice], long: false },
];

const QUICK: [Plan; 1] =
    [Plan { size: Size { services: 100, endpoints: 10 }, who: &[Who::Sluice, NFTABLES, LEGACY], long: true }];

/// Of the Service that is replaced endpoint by endpoint.
const LARGE: u32 = 5_000;
const AT_ONCE: u32 = 25;
const CHANGES_PER_SECOND: u32 = 100;
/// kube-proxy's first sync takes minutes on busy machines.
const PATIENCE: Duration = Duration::from_mins(5);

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::begin("sync", &options)?;
    let beside = env::var_os("SLUICE_KUBE_PROXY").is_some();
    if beside {
        report.machine.program("kube-proxy", Command::new(program("SLUICE_KUBE_PROXY")?).arg("--version"))?;
        report.machine.program("nft", Command::new("nft").arg("--version"))?;
        report.machine.program("iptables", Command::new("iptables").arg("--version"))?;
    } else {
        report.note("Without kube-proxy: SLUICE_KUBE_PROXY names none.");
    }
    let plans: &[Plan] = if options.quick { &QUICK } else { &PLANS };
    let minute = Duration::from_secs(if options.quick { 2 } else { 60 });
    let mut figures = Figures::default();
    for plan in plans {
        for who in plan.who.iter().filter(|who| beside || **who == Who::Sluice) {
            eprintln!("{} with {} Services x {} endpoints", who.name(), plan.size.services, plan.size.endpoints);
            figures.add(measure(*who, plan, minute)?);
        }
    }
    figures.fill(&mut report);
    report.finish(&options)
}

fn measure(who: Who, plan: &Plan, minute: Duration) -> Result<Measured> {
    let ours = who == Who::Sluice;
    let (trial, cold) = Trial::start(who, plan.size, PATIENCE)?;
    let tables = if ours { tables(&trial.node)? } else { BTreeMap::new() };
    let (flips, births) = if ours { (200, 50) } else { (6, 3) };
    let from = trial.log_length();
    let flips = trial.flips(flips)?;
    let heard = trial.heard(from);
    let births = trial.births(births)?;
    let steady = trial.subject.memory()?;
    let mut measured = Measured {
        who,
        size: plan.size,
        cold,
        tables,
        flips,
        births,
        heard,
        steady,
        churn: None,
        idle: None,
        rolled: Vec::new(),
    };
    if plan.long {
        measured.idle = Some(trial.idle(minute)?);
        measured.churn = Some(trial.churn(CHANGES_PER_SECOND, minute)?);
        measured.rolled = if ours { trial.roll(LARGE, AT_ONCE)? } else { Vec::new() };
    }
    Ok(measured)
}
