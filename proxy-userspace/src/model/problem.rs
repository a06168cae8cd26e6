//! What could not be served, as data: the agent logs it, stories print it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use super::names::ObjectName;

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

/// An object names addresses that nobody may be sent to by way of a Service: they mean something else on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The object's kind.
    pub kind: &'static str,
    pub object: ObjectName,
    /// Never empty.
    pub ips: Vec<IpAddr>,
}

/// Collects the problems of one object; a slice of a thousand bad endpoints tells ten.
#[derive(Debug, Default)]
pub(super) struct Problems {
    messages: Vec<String>,
    untold: usize,
    refused: Vec<IpAddr>,
}

impl Problems {
    pub(super) fn push(&mut self, message: impl Into<String>) {
        if self.messages.len() < TOLD {
            self.messages.push(message.into());
        } else {
            self.untold += 1;
        }
    }

    /// It is about an address that nobody may name.
    pub(super) fn refuse(&mut self, ip: IpAddr, message: impl Into<String>) {
        self.refused.push(ip);
        self.push(message);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn into_faults(mut self, object: &str) -> Faults {
        if self.untold > 0 {
            self.messages.push(format!("and {} more problems of this object", self.untold));
        }
        let problem = |message| Problem { object: object.into(), message };
        Faults { problems: self.messages.into_iter().map(problem).collect(), refused: self.refused }
    }
}

/// What is wrong with one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) problems: Vec<Problem>,
    /// Addresses that nobody may name.
    pub(super) refused: Vec<IpAddr>,
}

/// What was told about each object, so that an update that changes nothing tells nothing.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<String, Faults>);

impl Told {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The faults of `object` as they are now: given back when they differ from the last ones, addresses without those that
    /// were refused before.
    pub(super) fn news(&mut self, object: String, mut now: Faults) -> Faults {
        if now.problems.is_empty() {
            self.0.remove(&object);
            return now;
        }
        if self.0.get(&object) == Some(&now) {
            return Faults::default();
        }
        if let Some(known) = self.0.insert(object, now.clone()) {
            now.refused.retain(|ip| !known.refused.contains(ip));
        }
        now
    }

    pub(super) fn forget(&mut self, object: &str) {
        self.0.remove(object);
    }
}
