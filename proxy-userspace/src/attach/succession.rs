//! How programs at devices succeed those of another version, which keep flows where ours do not look.
//!
//! ```text
//! begin     what ours do not know goes on to theirs, and what begins too
//! (each hook gets ours; then flows are brought)
//! turn      what begins, begins with ours; what goes on and ours do not know still goes on to theirs
//! (what began with theirs meanwhile is brought)
//! drop      what nobody knows is nobody's
//! ```
//!
//! So every packet meets a program that knows its flow, whichever of two hooks has which program, and each flow has one version
//! that says what becomes of it. Should we die on the way, theirs serve until [`LONGEST`] has passed, and ours alone from then
//! on.
//!
//! In: programs of both. Out: the tables PREDECESSORS and SUCCESSION of ours.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use proxy_common::abi::Succession as Until;
use proxy_common::tables::name;

use super::object::Object;
use crate::sys::CallError;
use crate::sys::bpf::{Map, pin_anew};
use crate::sys::monotonic_seconds;

/// No changeover of tables takes as long.
const LONGEST: Duration = Duration::from_secs(30);

/// One that is under way. Ends when dropped, whatever went wrong.
#[derive(Debug)]
pub struct Succession {
    /// By hook: descriptors of programs.
    predecessors: Map<u32, u32>,
    until: Map<u32, Until>,
}

impl Succession {
    /// Lets `ours` ask `theirs`, at ingress and at egress. `folder` is that of our tables.
    pub fn begin(ours: &Object, theirs: &[Option<OwnedFd>; 2], folder: &Path) -> Result<Self, CallError> {
        let succession = Self { predecessors: ours.own(name::PREDECESSORS)?, until: ours.own(name::SUCCESSION)? };
        // The kernel empties a table of programs when its last pin and descriptor go, and ours do when we die.
        pin_anew(succession.predecessors.as_fd(), &folder.join(name::PREDECESSORS))?;
        for (hook, program) in (0..).zip(theirs) {
            let fd = |program: &OwnedFd| program.as_raw_fd().cast_unsigned();
            let set = program.as_ref().map_or(Ok(()), |program| succession.predecessors.set(&hook, &fd(program)));
            set.map_err(|error| CallError::new("write map", name::PREDECESSORS, error))?;
        }
        succession.say(Until { begin_until: ending(), know_until: ending() })?;
        Ok(succession)
    }

    /// All hooks have our programs.
    pub fn turn(&self) -> Result<(), CallError> {
        self.say(Until { begin_until: 0, know_until: ending() })
    }

    fn say(&self, until: Until) -> Result<(), CallError> {
        self.until.set(&0, &until).map_err(|error| CallError::new("write map", name::SUCCESSION, error))
    }
}

impl Drop for Succession {
    fn drop(&mut self) {
        // They end by themselves, and with our programs.
        let _ = self.say(Until::default());
        for hook in 0..2 {
            let _ = self.predecessors.remove(&hook);
        }
    }
}

fn ending() -> u32 {
    monotonic_seconds() + LONGEST.as_secs() as u32
}
