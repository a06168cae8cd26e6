//! How programs at devices succeed those of another version, which keep flows where ours do not look.
//!
//! ```text
//! begin     what ours do not know goes on to theirs, and what begins too
//! (each hook gets ours; then flows are brought)
//! turn      what begins, begins with ours; what goes on and ours do not know still goes on to theirs
//! (what began with theirs meanwhile is brought)
//! end       what nobody knows is nobody's
//! ```
//!
//! So every packet meets a program that knows its flow, whichever of two hooks has which program, and each flow has one version
//! that says what becomes of it. Should we die on the way, it stays as it is until another agent goes on with it: how far it
//! came is pinned beside our tables.
//!
//! In: programs of both. Out: the tables PREDECESSORS and SUCCESSION of ours.

use std::os::fd::{AsRawFd, OwnedFd};

use proxy_common::abi::Succession as State;
use proxy_common::tables::name;
use tracing::warn;

use super::object::Object;
use crate::sys::CallError;
use crate::sys::bpf::Map;

/// One that may be under way.
#[derive(Debug)]
pub struct Succession {
    /// By hook: descriptors of programs.
    predecessors: Map<u32, u32>,
    state: Map<u32, State>,
}

impl Succession {
    /// That of programs that ask others; none of those that do not.
    pub fn of(ours: &Object) -> Result<Option<Self>, CallError> {
        if !ours.succeeds {
            return Ok(None);
        }
        Ok(Some(Self { predecessors: ours.own(name::PREDECESSORS)?, state: ours.own(name::SUCCESSION)? }))
    }

    /// Lets ours ask `theirs`, at ingress and at egress; one that had begun goes on from where it was. Whether anybody is asked.
    pub fn begin(&self, theirs: Option<[&OwnedFd; 2]>) -> Result<bool, CallError> {
        let state = self.state.get(&0).map_err(|error| CallError::new("read map", name::SUCCESSION, error))?;
        let has_begun = state.is_some_and(|state| state != State::default());
        let Some(theirs) = theirs else { return Ok(has_begun) };
        for (hook, program) in (0..).zip(theirs) {
            if let Err(error) = self.predecessors.set(&hook, &program.as_raw_fd().cast_unsigned()) {
                warn!(%error, "programs of another version are not asked: what begins meanwhile may have to begin again");
                return Ok(has_begun);
            }
        }
        if !has_begun {
            self.say(State { begins: 1, goes_on: 1 })?;
        }
        Ok(true)
    }

    /// All hooks have our programs.
    pub fn turn(&self) -> Result<(), CallError> {
        self.say(State { begins: 0, goes_on: 1 })
    }

    /// All flows are ours.
    pub fn end(self) -> Result<(), CallError> {
        self.say(State::default())?;
        (0..2).try_for_each(|hook| {
            let removed = self.predecessors.remove(&hook);
            removed.map_err(|error| CallError::new("write map", name::PREDECESSORS, error))
        })
    }

    fn say(&self, state: State) -> Result<(), CallError> {
        self.state.set(&0, &state).map_err(|error| CallError::new("write map", name::SUCCESSION, error))
    }
}
