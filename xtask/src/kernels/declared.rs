//! Which tests guests run: two lists, of tests that no run takes and of tests that runs take.
//!
//! Every test that needs root could run in every guest, but for what is [`LEFT_OUT`] with its reason. A difference that a
//! test can see is asserted by the test itself, which asks the kernel (`hooks::told`: EPERM for every refusal before
//! 5.18); the list is of what has nothing left to assert there, and of what emulated processors are too slow for.
//!
//! All of that on every kernel takes emulated processors an hour and more, so [`RUNS`] chooses, by what differs between
//! kernels and not by what passes. The oldest lacks most of what programs and agent ask for, so it shows most; what works
//! there and on the machine itself, whose kernel runs every test, can only differ in between where the kernel does
//! something for us. Every run loads every program on every kernel.
//!
//! | run | on every kernel | on the newest | on the oldest |
//! |---|---|---|---|
//! | usual | two tests that between them run each program | also VLANs and bonds, which the machine's own kernel may lack | those, and one test of each thing that a kernel does for the agent |
//! | `--all` | those, VLANs and bonds, and one of each thing that a kernel does for the agent | also every test of the programs | every test |

use anyhow::{Result, ensure};

use crate::kernels::TestProgram;
use crate::kernels::fetch::{SERIES, Series};

/// A test that guests do not run, or all tests of a program.
#[derive(Debug)]
pub(super) struct LeftOut {
    pub(super) program: &'static str,
    /// All of them unless one is named.
    pub(super) test: Option<&'static str>,
    /// The first kernel that runs it; without one, no guest does.
    pub(super) before: Option<(u32, u32)>,
    pub(super) reason: &'static str,
}

const fn program(program: &'static str, reason: &'static str) -> LeftOut {
    LeftOut { program, test: None, before: None, reason }
}

/// A test of the devices that is about links.
const fn needs_tcx(test: &'static str) -> LeftOut {
    LeftOut {
        program: "devices",
        test: Some(test),
        before: Some((6, 6)),
        reason: "no program stands at a device by a link there",
    }
}

/// A test of how soon something is done.
const fn measures_time(program: &'static str, test: &'static str) -> LeftOut {
    LeftOut { program, test: Some(test), before: None, reason: "measures time" }
}

/// A test whose node, which is in a namespace of its own, has to be told from its pods.
const fn needs_cookies(program: &'static str, test: &'static str) -> LeftOut {
    LeftOut {
        program,
        test: Some(test),
        before: Some((5, 14)),
        reason: "only the initial namespace can be a node there",
    }
}

pub(super) const LEFT_OUT: [LeftOut; 33] = [
    program("api", "needs the Kubernetes programs"),
    program("beside", "needs the Kubernetes programs"),
    program("bench", "measures time"),
    program("chroot", "is about files, not about the kernel"),
    program("crash", "starts the agent some hundred times"),
    program("flows", "gives the kernel some million packets one by one"),
    program("packets", "gives the kernel some 30,000 packets one by one"),
    program("stress", "wants real processors"),
    program("three_nodes", "keeps three agents and some thirty processes busy at once"),
    needs_tcx("keep::what_somebody_detaches_is_attached_again_without_a_trigger"),
    needs_tcx("keep::with_another_way_of_attaching_nothing_of_the_first_one_is_left"),
    needs_tcx("others::programs_of_others_before_and_after_still_see_every_packet"),
    needs_tcx("others::the_order_says_on_which_side_of_the_others_a_new_program_stands"),
    needs_cookies("rules", "abuse::nobody_outside_and_no_pod_reaches_loopback_of_the_node"),
    needs_cookies("rules", "policies::everybody_is_served_as_the_truth_table_says_where_pods_can_be_told"),
    needs_cookies(
        "rules",
        "policies::everybody_is_served_as_the_truth_table_says_where_pods_cannot_be_told_and_where_all_is_masqueraded",
    ),
    needs_cookies(
        "rules",
        "policies::source_ranges_are_held_against_everybody_who_dials_a_load_balancer_address_and_against_no_other",
    ),
    needs_cookies("socket", "external_policy_local_spares_the_node_and_with_a_detector_its_pods"),
    needs_cookies("socket", "policy_local_without_a_local_endpoint_is_unreachable"),
    needs_cookies("socket", "source_ranges_are_decided_for_the_node_and_refused_for_pods"),
    needs_cookies(
        "socket",
        "with_the_defaults_of_iptables_mode_node_ports_are_served_on_every_own_address_and_on_ipv4_loopback",
    ),
    LeftOut {
        program: "rules",
        test: Some("icmp::clients_are_not_redirected_to_backends_that_they_do_not_know"),
        before: Some((6, 6)),
        reason: "redirects are not dropped there",
    },
    LeftOut {
        program: "topologies",
        test: Some("a_small_hop_on_the_way_of_answers_that_go_past_the_stack_is_told_to_the_pod_that_answers"),
        before: Some((5, 12)),
        reason: "nothing goes past the stack there, whose bridges lose what netfilter took together (IPv6)",
    },
    measures_time(
        "devices",
        "follow::a_device_that_becomes_something_else_is_known_as_that_within_a_quarter_of_a_second",
    ),
    measures_time("devices", "follow::five_hundred_veths_a_minute_are_each_known_within_a_quarter_of_a_second"),
    measures_time("devices", "keep::what_somebody_detaches_is_attached_again_without_a_trigger"),
    LeftOut {
        program: "growth",
        test: Some("ten_thousand_services_take_what_was_calculated_and_less_than_eight_megabytes"),
        before: Some((6, 4)),
        reason: "the kernel tells what a full table would take there",
    },
    measures_time("pins", "a_quarter_of_a_million_endpoints_take_less_than_a_second_to_write_and_to_read"),
    measures_time("reap", "sockets_move_within_a_tenth_of_a_second_whether_they_have_a_slot_or_not"),
    measures_time(
        "rules",
        "policies::node_ports_are_served_on_an_address_half_a_second_after_it_came_and_no_more_a_second_after_it_went",
    ),
    LeftOut {
        program: "socket",
        test: Some("multipath_tcp_reaches_the_service_but_names_its_backend_as_the_peer"),
        before: Some((6, 1)),
        reason: "Debian's kernel has no Multipath TCP there",
    },
    LeftOut {
        program: "refused",
        test: Some("a_start_whose_programs_load_over_no_pinned_table_serves_from_new_ones_and_says_so"),
        before: Some((6, 18)),
        reason: "no map belongs to one program there",
    },
    LeftOut {
        program: "refused",
        test: Some("programs_for_devices_that_are_refused_leave_sockets_served_and_are_tried_again"),
        before: Some((6, 18)),
        reason: "no map belongs to one program there",
    },
];

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breadth {
    Usual,
    All,
}

/// A test, or all tests of a program, and which kernels run it.
#[derive(Debug)]
struct Run {
    program: &'static str,
    test: Option<&'static str>,
    usual: On,
    all: On,
}

/// Some of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Every,
    Ends,
    Oldest,
    No,
}

/// A test of what programs do.
const fn hooks(test: &'static str) -> Run {
    Run { program: "hooks", test: Some(test), usual: On::Every, all: On::Every }
}

/// A test of what a kernel does for the agent.
const fn agent(program: &'static str, test: &'static str) -> Run {
    Run { program, test: Some(test), usual: On::Oldest, all: On::Every }
}

/// A test of devices that the machine's own kernel may lack.
const fn devices(test: &'static str) -> Run {
    Run { program: "devices", test: Some(test), usual: On::Ends, all: On::Every }
}

const RUNS: [Run; 9] = [
    Run { program: "hooks", test: None, usual: On::No, all: On::Ends },
    // connect, getpeername and the end of a socket, IPv4 and IPv6
    hooks("a_tcp_connection_reaches_a_backend_and_its_peer_is_what_was_dialled"),
    // sendmsg and recvmsg, IPv4 and IPv6
    hooks("an_answer_to_a_datagram_comes_from_what_was_dialled"),
    // pins, links, programs swapped in them
    agent("pins", "a_restart_keeps_tables_and_links_and_swaps_the_programs_under_load"),
    // tables copied into larger ones
    agent("growth", "clients_with_affinity_stay_where_they_are_when_more_can_be_remembered"),
    // sockets found, taken out of other processes and connected anew
    agent("reap", "a_connected_socket_moves_in_place_in_every_namespace_and_others_stay"),
    // sockets listed in every namespace
    agent("sweep", "a_slot_is_freed_when_its_socket_is_gone_and_kept_while_it_lives"),
    devices("upper::packets_of_a_vlan_are_translated_at_its_device_and_not_under_it"),
    devices("upper::packets_of_a_bond_are_translated_at_the_bond_and_not_at_its_members"),
];

/// Whether a guest with a kernel of `series` runs `test`.
pub(super) fn runs(program: &str, test: &str, series: Series, breadth: Breadth) -> bool {
    let (oldest, newest) = (SERIES.first() == Some(&series), SERIES.last() == Some(&series));
    let applies = |on: On| match on {
        On::Every => true,
        On::Ends => oldest || newest,
        On::Oldest => oldest,
        On::No => false,
    };
    let chosen = |run: &Run| match breadth {
        Breadth::Usual => applies(run.usual),
        Breadth::All => applies(run.all),
    };
    (breadth == Breadth::All && oldest)
        || RUNS.iter().any(|run| chosen(run) && is(run.program, run.test, program, test))
}

/// Whether a line that names a program, and perhaps a test, is about this test.
fn is(named: &str, only: Option<&str>, program: &str, test: &str) -> bool {
    named == program && only.is_none_or(|only| only == test)
}

impl LeftOut {
    fn is(&self, program: &str, test: &str) -> bool {
        is(self.program, self.test, program, test)
    }

    /// In which guests.
    pub(super) fn kernels(&self) -> String {
        self.before.map_or("all".to_owned(), |(major, minor)| format!("before {major}.{minor}"))
    }
}

/// Why a guest with a kernel of `version` does not run `test`.
pub(super) fn of(program: &str, test: &str, version: (u32, u32)) -> Option<&'static LeftOut> {
    let applies = |line: &&LeftOut| line.is(program, test) && line.before.is_none_or(|first| version < first);
    LEFT_OUT.iter().find(applies)
}

/// A line about a test that is not there would hide the next one of that name, or run nothing.
pub(super) fn check(programs: &[TestProgram]) -> Result<()> {
    let left_out = LEFT_OUT.iter().map(|line| (line.program, line.test));
    let runs = RUNS.iter().map(|run| (run.program, run.test));
    for (program, test) in left_out.chain(runs) {
        let exists = |built: &TestProgram| built.tests.iter().any(|one| is(program, test, &built.name, one));
        let named = test.map_or(String::new(), |test| format!(" {test}"));
        ensure!(
            programs.iter().any(exists),
            "there is no test {program}{named}: correct the lists in xtask/src/kernels/declared.rs"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_one_test_or_all_of_a_program_on_some_kernels_or_all() {
        let all = program("api", "");
        let one = LeftOut { program: "hooks", test: Some("a_dial"), before: Some((5, 14)), reason: "" };
        assert!(all.is("api", "anything") && !all.is("hooks", "anything"));
        assert!(one.is("hooks", "a_dial") && !one.is("hooks", "another"));
        assert_eq!([all.kernels(), one.kernels()], ["all", "before 5.14"]);
    }

    #[test]
    fn the_oldest_kernel_runs_the_most_and_every_kernel_the_tests_that_run_each_program() {
        let on = |program, test, breadth| SERIES.map(|series| runs(program, test, series, breadth));
        let [tcp, reap] = [1, 5].map(|at| RUNS[at].test.unwrap());
        assert_eq!(on("hooks", tcp, Breadth::Usual), [true; 5]);
        assert_eq!(on("hooks", "a_test_of_tomorrow", Breadth::Usual), [false; 5]);
        assert_eq!(on("reap", reap, Breadth::Usual), [true, false, false, false, false]);
        assert_eq!(on("reap", "a_test_of_tomorrow", Breadth::Usual), [false; 5]);
        assert_eq!(on("hooks", "a_test_of_tomorrow", Breadth::All), [true, false, false, false, true]);
        assert_eq!(on("reap", reap, Breadth::All), [true; 5]);
        assert_eq!(on("reap", "a_test_of_tomorrow", Breadth::All), [true, false, false, false, false]);
    }

    #[test]
    fn a_list_that_names_what_is_not_there_is_an_error() {
        let error = check(&[]).unwrap_err().to_string();
        assert!(error.starts_with("there is no test api: correct"), "{error}");
    }
}
