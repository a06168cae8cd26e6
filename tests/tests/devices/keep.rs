//! One program of ours stays at each hook: whoever removes it, and whoever takes its place.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use proxy_tests::stage::eventually;
use proxy_userspace::attach::devices::Way;
use proxy_userspace::sys::bpf::{self, tcx};

use crate::stage::{Counting, Stage, Tally, exchange, passed, run, since, ways};

#[test]
fn what_somebody_detaches_is_attached_again_without_a_trigger() {
    let stage = Stage::new();
    stage.uplink();
    let up = stage.index("uplink");
    let _agent = stage.agent(Way::Tcx);
    let pin = stage.links.join(format!("devices/{up}-egress"));
    let mut took = Vec::new();
    for _ in 0..10 {
        for harm in ["bpftool link detach pinned", "rm"] {
            run(&format!("{harm} {}", pin.display()));
            let harmed = SystemTime::now();
            eventually(&format!("after {harm} it stands again"), || stage.stands_at(up));
            took.push(since(harmed, stage.pinned_at(up)));
            let exactly_one = || bpf::tcx_programs(up, tcx::EGRESS).unwrap() == [stage.ours.id()];
            eventually(&format!("exactly one of ours, after {harm}"), exactly_one);
        }
    }
    // One in twenty may wait longer for a processor.
    took.sort_unstable();
    assert!(took[took.len() * 19 / 20 - 1] <= Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_filter_that_somebody_removes_is_back_at_once() {
    let stage = Stage::new();
    stage.uplink();
    let up = stage.index("uplink");
    let _agent = stage.agent(Way::Clsact);
    for harm in
        ["tc filter del dev uplink ingress", "tc filter del dev uplink egress", "tc qdisc del dev uplink clsact"]
    {
        run(harm);
        eventually(&format!("after {harm} it stands again"), || stage.stands_at(up));
        let filters = stage.node.output("tc", &["filter", "show", "dev", "uplink", "ingress"]).unwrap();
        assert_eq!(filters.matches("sluice").count(), 1, "exactly one of ours, after {harm}: {filters}");
    }
}

#[test]
fn a_new_agent_takes_over_what_stands_and_swaps_programs_in_place() {
    for &way in ways() {
        let mut stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        stage.agent(way).end();
        let link = |stage: &Stage| {
            let pin = bpf::Pin::open(&stage.links.join(format!("devices/{up}-ingress"))).unwrap();
            bpf::tcx_link_info(pin.fd.as_fd()).map(|info| info.id).ok()
        };
        let before = link(&stage);
        assert!(stage.stands_at(up), "without an agent it serves on ({way:?})");
        let old = std::mem::replace(&mut stage.ours, Counting::new());
        let _agent = stage.agent(way);
        assert!(stage.stands_at(up), "the new program has taken its place ({way:?})");
        if way == Way::Tcx {
            assert_eq!(link(&stage), before, "it is the same link");
        }
        let until_now = old.seen();
        stage.exchange(5);
        assert_eq!(old.seen(), until_now, "the old program is not called any more ({way:?})");
    }
}

#[test]
fn every_packet_meets_exactly_one_program_while_they_are_swapped() {
    for &way in ways() {
        let stage = Stage::new();
        stage.uplink();
        let agent = stage.agent(way);
        let other = Counting::new();
        let tally = Tally::new(|| passed(&stage.node, "uplink"), || stage.ours.seen() + other.seen());
        let (outside, done) = (&stage.outside, AtomicBool::new(false));
        let had_its_turn = || stage.ours.seen() > 500 && other.seen() > 500;
        let swaps = thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    exchange(outside, 100);
                }
            });
            let mut swaps = 0;
            while !had_its_turn() && !traffic.is_finished() {
                for program in [&other, &stage.ours] {
                    agent.hooks.lock().unwrap().serve_by(stage.programs_of(program)).unwrap();
                    swaps += 1;
                }
            }
            done.store(true, Ordering::Relaxed);
            swaps
        });
        assert!(had_its_turn());
        // Neighbours may still be talking; a packet that was missed or seen twice stays so.
        let once = || tally.since().0 == tally.since().1;
        eventually(&format!("each packet was seen once, {way:?}, {swaps} swaps"), once);
    }
}

#[test]
fn with_another_way_of_attaching_nothing_of_the_first_one_is_left() {
    for (first, second) in [(Way::Tcx, Way::Clsact), (Way::Clsact, Way::Tcx)] {
        let stage = Stage::new();
        stage.uplink();
        let up = stage.index("uplink");
        stage.agent(first).end();
        let _agent = stage.agent(second);
        let filters = stage.node.output("tc", &["filter", "show", "dev", "uplink", "ingress"]).unwrap();
        let (links, filters) = (bpf::tcx_programs(up, tcx::INGRESS).unwrap().len(), filters.matches("sluice").count());
        let expected = if second == Way::Tcx { (1, 0) } else { (0, 1) };
        assert_eq!((links, filters), expected, "from {first:?} to {second:?}");
    }
}
