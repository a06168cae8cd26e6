//! Each device of the node: what was decided about it, why, and what stands at it.

use std::io;
use std::path::{Path, PathBuf};

use super::{Finding, Status};
use crate::args;
use crate::attach::devices::{FOLDER, Hook, Standing, standing};
use crate::config;
use crate::devices::{Choice, Format, Role, Settings, choose};
use crate::netdev;
use crate::sys::net::inside;

const AREA: &str = "device";

const OFF: &str = "packet programs are off: clients outside of the node, and pods that no socket hook sees, are not served; \
                   without --network-devices=none and --pod-devices=none they are";

/// `agent` is the command line of the one that runs: it says which devices are wanted, and in which network namespace.
pub(super) fn findings(links: &Path, agent: Option<&args::Run>, netns: Option<&Path>) -> Vec<Finding> {
    let netns: Option<PathBuf> = netns.map(Path::to_owned).or_else(|| agent.and_then(|run| run.kernel.netns.clone()));
    let told = agent.and_then(|run| config::devices(run).ok());
    // Without an agent: what it left behind should stand.
    let wanted = told.as_ref().map_or_else(|| links.join(FOLDER).exists(), Settings::wants_any);
    // Where nothing is wanted: what would be chosen.
    let settings = told.filter(Settings::wants_any).unwrap_or_default();
    let mut findings = if wanted { Vec::new() } else { vec![Finding::new(AREA, "all", Status::Note, OFF)] };
    match look(links, netns.as_deref(), &settings) {
        Ok(found) => findings.extend(found.iter().map(|(choice, stands)| finding(choice, stands, wanted))),
        Err(error) => findings.push(Finding::new(AREA, "all", Status::Problem, format!("{error:#}"))),
    }
    findings
}

/// What stands at ingress and at egress.
type Stands = [Result<Standing, String>; 2];

fn look(links: &Path, netns: Option<&Path>, settings: &Settings) -> anyhow::Result<Vec<(Choice, Stands)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let choices = choose(&runtime.block_on(netdev::look(netns))?, settings);
    let stands = |choice: &Choice| {
        let at = |hook| standing(links, choice.index, hook).map_err(|error: io::Error| error.to_string());
        Hook::BOTH.map(at)
    };
    let look = || choices.iter().map(|choice| (choice.clone(), stands(choice))).collect();
    Ok(inside(netns, look)?)
}

/// `wanted`: programs should stand at devices that are chosen.
fn finding(choice: &Choice, stands: &Stands, wanted: bool) -> Finding {
    let layer = if choice.format == Format::Network { 3 } else { 2 };
    let decided = match choice.role() {
        Role::LeftAlone => {
            return Finding::new(AREA, &*choice.name, Status::Ok, format!("left alone: {}", choice.reason));
        }
        Role::Network => format!("faces the network, layer {layer}: {}", choice.reason),
        Role::Pod => format!("faces a pod, layer {layer}: {}", choice.reason),
        Role::Itself => format!("of the node with itself: {}", choice.reason),
    };
    let of_role = || Hook::BOTH.into_iter().zip(stands).filter(|(hook, _)| Hook::of(choice.role()).contains(hook));
    let hooks: Vec<_> = of_role().map(|(hook, stands)| format!("{} {}", hook.name(), say(stands))).collect();
    let all = hooks.join(", ");
    let lacks = of_role().any(|(_, stands)| matches!(stands, Ok(Standing::Nothing) | Err(_)));
    let (status, more) = match (lacks, wanted) {
        (false, _) => (Status::Ok, all),
        (true, false) => (Status::Ok, "no program is wanted".to_owned()),
        (true, true) => (Status::Problem, format!("{all}: an agent that runs attaches it again, its log says why not")),
    };
    Finding::new(AREA, &*choice.name, status, format!("{decided}; {more}"))
}

fn say(stands: &Result<Standing, String>) -> String {
    match stands {
        Ok(Standing::Nothing) => "nothing".to_owned(),
        Ok(Standing::Tcx(own, all)) => {
            let place = all.iter().position(|id| id == own).map_or(0, |place| place + 1);
            format!("program {own} (tcx, {place} of {})", all.len())
        }
        Ok(Standing::Clsact(own)) => format!("program {own} (clsact)"),
        Err(error) => format!("unknown ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Reason;

    #[test]
    fn each_device_shows_what_was_decided_why_and_what_stands_there() {
        let choice = |reason, format| Choice {
            index: 7,
            name: "eth0".to_owned(),
            reason,
            format,
            local_pods: false,
            has_vlans: false,
            source_v4: None,
            source_v6: None,
        };
        let (hardware, tunnel) = (Reason::Hardware, Reason::Tunnel("wireguard".to_owned()));
        let tcx = || Ok(Standing::Tcx(12, vec![9, 12, 30]));
        let nothing = || Ok(Standing::Nothing);
        for (choice, stands, wanted, status, detail) in [
            (
                choice(hardware.clone(), Format::Ethernet),
                [tcx(), Ok(Standing::Clsact(13))],
                true,
                Status::Ok,
                "faces the network, layer 2: hardware; ingress program 12 (tcx, 2 of 3), egress program 13 (clsact)",
            ),
            (
                choice(tunnel, Format::Network),
                [tcx(), nothing()],
                true,
                Status::Problem,
                "faces the network, layer 3: tunnel (wireguard); ingress program 12 (tcx, 2 of 3), egress nothing: an \
                 agent that runs attaches it again, its log says why not",
            ),
            (
                choice(hardware, Format::Ethernet),
                [nothing(), nothing()],
                false,
                Status::Ok,
                "faces the network, layer 2: hardware; no program is wanted",
            ),
            (
                choice(Reason::Unsteered, Format::Loopback),
                [nothing(), tcx()],
                true,
                Status::Ok,
                "of the node with itself: processes of the node may be left out at their sockets; egress program 12 \
                 (tcx, 2 of 3)",
            ),
            (
                choice(Reason::Ports("bridge".to_owned()), Format::Ethernet),
                [nothing(), nothing()],
                true,
                Status::Ok,
                "left alone: bridge: its packets pass its ports",
            ),
        ] {
            let finding = finding(&choice, &stands, wanted);
            assert_eq!((finding.status, finding.detail.as_str()), (status, detail));
        }
    }
}
