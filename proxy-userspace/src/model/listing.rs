//! Complete lists: who is not in one is gone.

use super::names::ObjectName;
use crate::hash::HashSet;

/// Where the listing of one kind stands.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// A list has been seen to its end.
    pub(super) complete: bool,
    /// The objects of the list that is being read.
    seen: Option<HashSet<ObjectName>>,
}

impl Listing {
    /// Starts over, also when the last list broke off.
    pub(super) fn begin(&mut self) {
        self.seen = Some(HashSet::default());
    }

    pub(super) fn see(&mut self, name: &ObjectName) {
        if let Some(seen) = &mut self.seen {
            seen.insert(name.clone());
        }
    }

    /// Which of `known` the list did not contain. An end without a beginning tells nothing.
    pub(super) fn end(&mut self, known: impl Iterator<Item = ObjectName>) -> Vec<ObjectName> {
        let Some(seen) = self.seen.take() else { return Vec::new() };
        self.complete = true;
        known.filter(|name| !seen.contains(name)).collect()
    }
}
