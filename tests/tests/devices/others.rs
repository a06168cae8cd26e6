//! Programs of others at the same hook: they see what they saw, on the side that the order says.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proxy_tests::world::PINS;
use proxy_userspace::attach::devices::{Hook, Order, Standing, Way, standing};
use proxy_userspace::devices::Settings;
use proxy_userspace::sys::bpf::{self, tcx, tcx_attach};

use crate::stage::{Counting, Stage, run};

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
