//! A bell for changes of files and folders.

use std::sync::Arc;

use notify::{Event, RecommendedWatcher};
use tokio::sync::Notify;

/// A watcher of nothing yet that rings `bell` whenever something changes where it is told to look.
pub(crate) fn watcher(bell: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let bell = Arc::clone(bell);
    notify::recommended_watcher(move |event| {
        if is_change(&event) {
            bell.notify_one();
        }
    })
}

/// Our own reading is an event too: who looked because of it would never rest. An error may hide a change.
fn is_change(event: &notify::Result<Event>) -> bool {
    !event.as_ref().is_ok_and(|event| event.kind.is_access())
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, AccessMode, CreateKind};
    use notify::{Error, EventKind};

    use super::*;

    #[test]
    fn reading_is_no_change_and_what_was_lost_may_be_one() {
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(!is_change(&Ok(Event::new(opened))));
        assert!(is_change(&Ok(Event::new(EventKind::Create(CreateKind::Folder)))));
        assert!(is_change(&Err(Error::generic("lost"))));
    }
}
