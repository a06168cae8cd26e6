//! What a source learned, and when: the clock of an update starts with its bytes.

use std::time::Instant;

use crate::model::Change;

/// A change on its way from a source to the agent.
#[derive(Clone, Debug)]
pub struct News {
    pub change: Change,
    /// When its bytes had been read; nothing of them was looked at before.
    pub heard: Instant,
}
