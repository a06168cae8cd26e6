//! What is left when ours go.

use std::os::fd::AsFd;
use std::path::Path;

use proxy_tests::world::PINS;
use proxy_userspace::attach::devices::{Way, remove_all};
use proxy_userspace::sys::bpf::{self, tcx, tcx_attach};

use crate::stage::{Counting, Stage, run, ways};

#[test]
fn cleanup_removes_everything_of_ours_and_nothing_of_others() {
    for &way in ways() {
        let stage = Stage::new();
        stage.uplink();
        stage.veth("pod1");
        let up = stage.index("uplink");
        let other = Counting::new();
        let pin = Path::new(PINS).join("other");
        bpf::pin(other.program.as_fd(), &pin).unwrap();
        let has_links = ways().contains(&Way::Tcx);
        let _link = has_links.then(|| tcx_attach(other.program.as_fd(), up, tcx::INGRESS, 0).unwrap());
        stage.agent(way).end();
        if way == Way::Clsact {
            run(&format!("tc filter add dev uplink ingress pref 10 bpf da object-pinned {}", pin.display()));
        }
        remove_all(&stage.links).unwrap();
        assert!(stage.pins().is_empty(), "{:?}", stage.pins());
        if has_links {
            let left = |hook| bpf::tcx_programs(up, hook).unwrap();
            assert_eq!((left(tcx::INGRESS), left(tcx::EGRESS)), (vec![other.id()], vec![]), "{way:?}");
        }
        let qdiscs = stage.node.output("tc", &["qdisc", "show"]).unwrap();
        let left: Vec<&str> = qdiscs.lines().filter(|line| line.contains("clsact")).collect();
        let expected = usize::from(way == Way::Clsact);
        assert_eq!(left.len(), expected, "clsact stays where another uses it: {left:?}");
    }
}

#[test]
fn clsact_of_somebody_else_is_used_and_left() {
    let stage = Stage::new();
    stage.uplink();
    run("tc qdisc add dev uplink clsact");
    stage.agent(Way::Clsact).end();
    assert!(stage.stands_at(stage.index("uplink")));
    remove_all(&stage.links).unwrap();
    assert!(stage.node.output("tc", &["qdisc", "show", "dev", "uplink"]).unwrap().contains("clsact"));
}
