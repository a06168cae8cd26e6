//! The golden table of specification B5, endpoint sets: one local and one remote endpoint, both ready. Who is
//! masqueraded is checked where the rule is, in `proxy_common::policy`.

use proxy_common::policy::{Place, Set, endpoint_set};

use super::*;

/// A Service with every kind of frontend.
fn exposed() -> Service {
    web().node_port(30080).external_ip("203.0.113.1").load_balancer_ip("203.0.113.2")
}

/// Which of `L`ocal and `R`emote a client reaches through each frontend of `kinds`; they must agree.
fn reached(wanted: &WantedService, is_cluster_ip: bool, place: Place, detector: bool) -> String {
    let mut answers: Vec<String> = wanted
        .frontends
        .iter()
        .filter(|frontend| (frontend.kind == Frontend::KIND_CLUSTER_IP) == is_cluster_ip)
        .map(|frontend| match endpoint_set(frontend.kind, wanted.flags, place, detector) {
            Set::Cluster => with_flag(wanted, Backend::IN_CLUSTER_SET).concat(),
            Set::Local => with_flag(wanted, Backend::IN_LOCAL_SET).concat(),
        })
        .collect();
    answers.dedup();
    assert_eq!(answers.len(), 1, "kinds of external frontends differ: {answers:?}");
    answers.remove(0).replace("10.1.0.1", "L").replace("10.1.0.2", "R")
}

#[test]
fn every_row_reaches_the_endpoints_of_the_golden_table() {
    use Place::{Node, Outside, Pod};
    // Columns: default policies, eTP Local, iTP Local; then the same without a detector.
    for (sentence, is_cluster_ip, place, with_detector, without_detector) in [
        ("pod to ClusterIP", true, Pod, ["LR", "LR", "L"], ["LR", "LR", "L"]),
        ("pod to external", false, Pod, ["LR", "LR", "LR"], ["LR", "L", "LR"]),
        ("node to ClusterIP", true, Node, ["LR", "LR", "L"], ["LR", "LR", "L"]),
        ("node to external", false, Node, ["LR", "LR", "LR"], ["LR", "LR", "LR"]),
        ("outside to ClusterIP", true, Outside, ["LR", "LR", "L"], ["LR", "LR", "L"]),
        ("outside to external", false, Outside, ["LR", "L", "LR"], ["LR", "L", "LR"]),
    ] {
        let policies = [exposed(), exposed().external_local(), exposed().internal_local()];
        for (column, service) in policies.iter().enumerate() {
            let slice = web_slice().endpoint("10.1.0.1").on(HERE).endpoint("10.1.0.2").on(ELSEWHERE);
            let wanted = only([service.apply(), slice.apply()]);
            for (detector, expected) in [(true, with_detector), (false, without_detector)] {
                let found = reached(&wanted, is_cluster_ip, place, detector);
                assert_eq!(found, expected[column], "{sentence}, policy column {column}, detector {detector}");
            }
        }
    }
}
