//! The work of one test, shared by several scenes at once: each waits for the kernel and for its agent more than it computes.

use std::thread;

const LANES: usize = 3;

/// One scene's share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane(usize);

impl Lane {
    /// Whether it is this one that does piece `number` of the work.
    pub(crate) fn takes(self, number: usize) -> bool {
        number % LANES == self.0
    }
}

/// Plays in all lanes; the test fails with any of them.
pub(crate) fn in_lanes(play: impl Fn(Lane) + Sync) {
    thread::scope(|scope| {
        for number in 0..LANES {
            let play = &play;
            scope.spawn(move || play(Lane(number)));
        }
    });
}
