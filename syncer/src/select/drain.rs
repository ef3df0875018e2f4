//! A planned emptying of one SFU.
//!
//! A drain keeps no list of calls. What is left follows from the index of calls by SFU, so it can be
//! undone at any moment: what has moved stays where it went, and the rest stays where it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// A drain of one SFU by this syncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// When it began.
    pub since: Instant,
    /// When moving stops, done or not.
    pub deadline: Instant,
    /// Calls that were there when it began.
    pub at_start: u64,
    /// Calls that have moved.
    pub moved: u64,
    /// An operator took it back.
    pub undone: bool,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrainState {
    /// Calls move, within the move budget.
    Moving,
    /// Nothing of this syncer is left there.
    Done,
    /// The deadline has passed with calls left. They stay, and nothing new is placed there.
    Overdue,
    /// Taken back: the SFU is in service again.
    Undone,
}

/// What the SFU itself was told: others who place calls there hear it from it, and so does whoever restarts.
#[derive(Debug, Default)]
pub struct Orders {
    draining: AtomicBool,
}

// === impl Orders ===

impl Orders {
    /// What it is to be told now: to drain (`true`), to serve (`false`), or nothing. `wanted`: it is to drain;
    /// `accepting`: what it says of itself.
    #[must_use]
    pub fn due(&self, wanted: bool, accepting: bool) -> Option<bool> {
        // Somebody else's drain is not ours to end.
        if wanted { accepting.then_some(true) } else { self.is_draining().then_some(false) }
    }

    /// It was told.
    pub fn told(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether it was told to drain and not yet to serve again.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

// === impl Drain ===

impl Drain {
    /// A drain of `calls` that begins now and moves for `within` at most.
    #[must_use]
    pub fn new(calls: u64, within: Duration, now: Instant) -> Self {
        Self { since: now, deadline: now + within, at_start: calls, moved: 0, undone: false }
    }

    /// How far it is, with `left` calls still there.
    #[must_use]
    pub fn state(&self, left: u64, now: Instant) -> DrainState {
        if self.undone {
            DrainState::Undone
        } else if left == 0 {
            DrainState::Done
        } else if now >= self.deadline {
            DrainState::Overdue
        } else {
            DrainState::Moving
        }
    }

    /// Whether calls are to be moved now.
    #[must_use]
    pub fn moves(&self, now: Instant) -> bool {
        !self.undone && now < self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_done_overdue_or_undone() {
        let t = Instant::now();
        let mut drain = Drain::new(10, Duration::from_secs(60), t);
        let at = |s| t + Duration::from_secs(s);
        assert_eq!((drain.state(10, t), drain.moves(t)), (DrainState::Moving, true));
        assert_eq!((drain.state(3, at(60)), drain.moves(at(60))), (DrainState::Overdue, false));
        assert_eq!(drain.state(0, at(61)), DrainState::Done, "the last of them ended by itself");
        drain.undone = true;
        assert_eq!((drain.state(3, t), drain.moves(t)), (DrainState::Undone, false));
    }
}
