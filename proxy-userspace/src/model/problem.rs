//! What could not be served, as data: the agent logs it, stories print it.

use std::collections::HashMap;
use std::fmt;

/// How many problems of one object are told one by one.
const TOLD: usize = 10;

/// Something in one object that is left out, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Kind and name, as in `Service shop/web`.
    pub object: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// Collects the problems of one object; a slice of a thousand bad endpoints tells ten.
#[derive(Debug, Default)]
pub(super) struct Problems {
    messages: Vec<String>,
    untold: usize,
}

impl Problems {
    pub(super) fn push(&mut self, message: impl Into<String>) {
        if self.messages.len() < TOLD {
            self.messages.push(message.into());
        } else {
            self.untold += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn into_list(mut self, object: &str) -> Vec<Problem> {
        if self.untold > 0 {
            self.messages.push(format!("and {} more problems of this object", self.untold));
        }
        self.messages.into_iter().map(|message| Problem { object: object.into(), message }).collect()
    }
}

/// What was told about each object, so that an update that changes nothing tells nothing.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<String, Vec<Problem>>);

impl Told {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problems of `object` as they are now: given back when they differ from the last ones.
    pub(super) fn news(&mut self, object: String, now: Vec<Problem>) -> Vec<Problem> {
        if now.is_empty() {
            self.0.remove(&object);
            return now;
        }
        if self.0.get(&object) == Some(&now) {
            return Vec::new();
        }
        self.0.insert(object, now.clone());
        now
    }

    pub(super) fn forget(&mut self, object: &str) {
        self.0.remove(object);
    }
}
