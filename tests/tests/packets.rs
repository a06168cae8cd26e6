//! The programs of devices make of every packet case what the hooks make of it on byte slices.

use std::cell::RefCell;
use std::rc::Rc;

use proxy_common::packet::cases::{observe::observe, run_all};
use proxy_tests::hooks::alone;
use proxy_tests::packets::{load, twin::Twin};

#[test]
fn every_packet_case_ends_in_the_kernel_as_it_does_on_slices() {
    alone("every_packet_case_ends_in_the_kernel_as_it_does_on_slices", &[], |_| {
        let twin = Rc::new(RefCell::new(Twin::new(load().unwrap())));
        let follower = Rc::clone(&twin);
        observe(move |run| follower.borrow_mut().follow(run).unwrap());
        run_all();
        let twin = twin.borrow();
        let cases = twin.cases.len();
        println!("{cases} cases, {} packets; {} cannot be shown to the kernel", twin.compared, twin.left_out);
        // Each of them cut at any byte, too.
        assert!(cases >= 200 && twin.compared > 50_000, "nothing was left out");
    });
}
