//! What the command line says about devices and the packets that pass them.

use proxy_common::abi::PortRange;
use proxy_common::policy::Steered;

use super::{Result, detector, invalid};
use crate::args;
use crate::attach::devices::{Order, Way};
use crate::devices::{Pattern, Scope, Settings};

/// Which devices get programs, from the flags alone.
pub(crate) fn devices(run: &args::Run) -> Result<Settings> {
    Ok(Settings {
        network: scope("network-devices", &run.network_devices)?,
        pods: scope("pod-devices", &run.pod_devices)?,
        itself: super::steered(&run.socket_lb)? == Steered::Nobody || !run.socket_lb_exclude.is_empty(),
        detector: detector(run)?,
    })
}

fn scope(flag: &'static str, typed: &[String]) -> Result<Scope> {
    match typed {
        [only] if only == "all" => Ok(Scope::Chosen),
        [only] if only == "none" => Ok(Scope::None),
        list => {
            let pattern = |text: &String| match Pattern::new(text) {
                Some(pattern) if text != "all" && text != "none" => Ok(pattern),
                _ => invalid(
                    flag,
                    format!("{text:?} is not the name of a device; give all, none, or names such as eth0,ens*"),
                ),
            };
            list.iter().map(pattern).collect::<Result<_>>().map(Scope::Named)
        }
    }
}

/// Answers must be met wherever they come in: by a device without a program they would go through the stack.
pub(super) fn fast_path(is_asked: bool, devices: &Settings) -> Result<bool> {
    if is_asked && (&devices.network, &devices.pods) != (&Scope::Chosen, &Scope::Chosen) {
        return invalid(
            "fast-path",
            "answers are met at all devices or not at all; leave out --network-devices and --pod-devices",
        );
    }
    Ok(is_asked)
}

pub(super) fn source_ports(typed: &str) -> Result<PortRange> {
    let ends = typed.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match ends {
        Some((first, last)) if (1024..=last).contains(&first) => Ok(PortRange { first, count: last - first + 1 }),
        _ => invalid(
            "source-ports",
            format!("{typed:?} is not a range of ports above 1023; give one such as 61000-65535"),
        ),
    }
}

pub(super) fn device_order(typed: &str) -> Result<Order> {
    match typed {
        "outermost" => Ok(Order::Outermost),
        "innermost" => Ok(Order::Innermost),
        _ => invalid("device-order", format!("{typed:?} is not one of outermost, innermost")),
    }
}

pub(super) fn device_way(typed: &str) -> Result<Option<Way>> {
    match typed {
        "auto" => Ok(None),
        "tcx" => Ok(Some(Way::Tcx)),
        "clsact" => Ok(Some(Way::Clsact)),
        _ => invalid("device-hooks", format!("{typed:?} is not one of auto, tcx, clsact")),
    }
}
