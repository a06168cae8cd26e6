//! Programs of others at the same hook: they see what they saw, on the side that the order says.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proxy_tests::stage::eventually;
use proxy_tests::world::PINS;
use proxy_userspace::attach::devices::{DeviceHooks, Hook, Order, Standing, Way, standing};
use proxy_userspace::devices::{Settings, choose};
use proxy_userspace::netdev;
use proxy_userspace::sys::bpf::{self, tcx, tcx_attach};

use crate::stage::{Counting, Stage, Tally, exchange, passed, run, ways};

#[test]
fn programs_of_others_before_and_after_still_see_every_packet() {
    for order in [Order::Outermost, Order::Innermost] {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        let (early, agent) = (Counting::new(), stage.agent_with(Way::Tcx, order, Settings::default()));
        let late = Counting::new();
        let _links: Vec<OwnedFd> = [tcx::INGRESS, tcx::EGRESS]
            .into_iter()
            .flat_map(|hook| {
                [(&early, tcx::FIRST), (&late, tcx::LAST)]
                    .map(|(program, place)| tcx_attach(program.program.as_fd(), up, hook, place).unwrap())
            })
            .collect();
        let in_order = vec![early.id(), stage.ours.id(), late.id()];
        assert_eq!(standing(&stage.links, up, Hook::Ingress).unwrap(), Standing::Tcx(stage.ours.id(), in_order));
        stage.exchange(20);
        for (who, program) in [("before", &early), ("ours", &stage.ours), ("after", &late)] {
            assert!(program.seen() >= 40, "{who}: {} of 40 packets", program.seen());
        }
        agent.end();
    }
}

#[test]
fn the_order_says_on_which_side_of_the_others_a_new_program_stands() {
    for (order, ingress_first) in [(Order::Outermost, true), (Order::Innermost, false)] {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        let other = Counting::new();
        let _links = [tcx::INGRESS, tcx::EGRESS].map(|hook| tcx_attach(other.program.as_fd(), up, hook, 0).unwrap());
        let _agent = stage.agent_with(Way::Tcx, order, Settings::default());
        for hook in Hook::BOTH {
            let first = ingress_first == (hook == Hook::Ingress);
            let (ours, other) = (stage.ours.id(), other.id());
            let expected = if first { vec![ours, other] } else { vec![other, ours] };
            assert_eq!(standing(&stage.links, up, hook).unwrap(), Standing::Tcx(ours, expected), "{order:?} {hook:?}");
        }
    }
}

/// Where a program stands at a hook, among the filters: its priority.
fn priority(stage: &Stage, hook: Hook) -> u32 {
    let filters = stage.node.output("tc", &["filter", "show", "dev", "uplink", hook.name()]).unwrap();
    let ours: Vec<&str> = filters.lines().filter(|line| line.contains("sluice")).collect();
    let [ours] = ours[..] else { panic!("one of ours: {filters}") };
    ours.split(' ').skip_while(|word| *word != "pref").nth(1).unwrap().parse().unwrap()
}

#[test]
fn another_order_holds_from_the_next_agent_on_and_no_packet_is_missed_meanwhile() {
    for &way in ways() {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        let (other, next) = (Counting::new(), Counting::new());
        let _links = [tcx::INGRESS, tcx::EGRESS]
            .map(|hook| (way == Way::Tcx).then(|| tcx_attach(other.program.as_fd(), up, hook, 0).unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let choices = choose(&runtime.block_on(netdev::look(None)).unwrap(), &Settings::default());
        let serve = |program: &Counting, order| {
            let mut hooks = DeviceHooks::new(&stage.links, Some(way), order);
            hooks.serve_by(stage.programs_of(program)).unwrap();
            hooks.want(&choices);
            assert!(hooks.failed().is_empty(), "{:?}", hooks.failed());
            for hook in Hook::BOTH {
                let first = (order == Order::Outermost) == (hook == Hook::Ingress);
                let (ours, other) = (program.id(), other.id());
                if way == Way::Tcx {
                    let expected = if first { vec![ours, other] } else { vec![other, ours] };
                    assert_eq!(standing(&stage.links, up, hook).unwrap(), Standing::Tcx(ours, expected), "{order:?}");
                } else {
                    assert_eq!(priority(&stage, hook), if first { 1 } else { 65_535 }, "{order:?} {hook:?}");
                }
            }
        };
        serve(&stage.ours, Order::Outermost);
        let tally = Tally::new(|| passed(&stage.node, "uplink"), || stage.ours.seen() + next.seen());
        let (outside, done) = (&stage.outside, AtomicBool::new(false));
        let had_its_turn = || stage.ours.seen() > 500 && next.seen() > 500;
        thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    exchange(outside, 100);
                }
            });
            while !had_its_turn() && !traffic.is_finished() {
                serve(&next, Order::Innermost);
                serve(&stage.ours, Order::Outermost);
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(had_its_turn());
        let all_seen = || {
            let (passed, seen) = tally.since();
            passed <= seen
        };
        eventually(&format!("each packet was seen by one of ours at least, {way:?}"), all_seen);
        serve(&next, Order::Outermost);
        assert!(stage.pins().iter().all(|pin| !pin.ends_with("-new")), "{:?}", stage.pins());
    }
}

#[test]
fn filters_of_others_before_and_after_still_see_every_packet() {
    for order in [Order::Outermost, Order::Innermost] {
        let stage = Stage::new();
        stage.uplink();
        let _agent = stage.agent_with(Way::Clsact, order, Settings::default());
        let other = Counting::new();
        let pin = Path::new(PINS).join("other");
        bpf::pin(other.program.as_fd(), &pin).unwrap();
        for hook in ["ingress", "egress"] {
            run(&format!("tc filter add dev uplink {hook} pref 10 bpf da object-pinned {}", pin.display()));
        }
        stage.exchange(20);
        // One of the two hooks has it before ours, the other one after.
        for (who, program) in [("ours", &stage.ours), ("the other's", &other)] {
            assert!(program.seen() >= 40, "{who}: {} of 40 packets", program.seen());
        }
    }
}
