//! Complete lists: who is not in one is gone.

use super::names::ObjectName;
use crate::hash::HashSet;

/// Where the listing of one kind stands.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// A list has been seen to its end.
    pub(super) complete: bool,
    /// Objects that were known before and that the list which is being read has not named yet. A first list has none.
    missing: Option<HashSet<ObjectName>>,
}

impl Listing {
    /// Starts over, also when the last list broke off.
    pub(super) fn begin(&mut self, known: impl IntoIterator<Item = ObjectName>) {
        self.missing = Some(known.into_iter().collect());
    }

    pub(super) fn see(&mut self, name: &ObjectName) {
        if let Some(missing) = &mut self.missing {
            missing.remove(name);
        }
    }

    /// What was known and the list did not contain. An end without a beginning tells nothing.
    pub(super) fn end(&mut self) -> impl Iterator<Item = ObjectName> + use<> {
        let missing = self.missing.take();
        self.complete |= missing.is_some();
        missing.into_iter().flatten()
    }
}
