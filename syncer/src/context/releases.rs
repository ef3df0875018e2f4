//! Rooms to be ended, each with the moment it may be tried (again).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rate_limit::Lever;
use tokio::time::Instant;

use crate::state::Release;

/// The list.
#[derive(Debug)]
pub struct Releases {
    rooms_max: Lever<u64>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_time: BTreeMap<(Instant, u64), (Release, u32)>,
    number: u64,
}

// === impl Releases ===

impl Releases {
    /// An empty list of at most so many rooms.
    #[must_use]
    pub fn new(rooms_max: Lever<u64>) -> Self {
        Self { rooms_max, inner: Mutex::default() }
    }

    /// Adds a room that has been tried `attempts` times. `false`: the list is full.
    #[must_use]
    pub fn push(&self, release: Release, attempts: u32, not_before: Instant) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.by_time.len() as u64 >= self.rooms_max.get() {
            return false;
        }
        inner.number += 1;
        inner.by_time.insert((not_before, inner.number), (release, attempts));
        true
    }

    /// The next room whose moment has come, and how often it was tried.
    pub fn pop(&self, now: Instant) -> Option<(Release, u32)> {
        let inner = &mut *self.inner.lock();
        let entry = inner.by_time.first_entry().filter(|e| e.key().0 <= now)?;
        Some(entry.remove())
    }

    /// The moment of the next room.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.inner.lock().by_time.first_key_value().map(|((at, _), _)| *at)
    }

    /// How many rooms wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().by_time.len()
    }

    /// Whether no room waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use rate_limit::Levers;
    use sfu_api::{Epoch, OwnerTerm, RoomId, Slot};

    use super::*;
    use crate::context::EngineLevers;
    use crate::state::SfuIdx;

    #[test]
    fn r20_as_many_are_remembered_as_the_lever_says_now() {
        let levers = Levers::new();
        let releases = Releases::new(EngineLevers::register(&levers).releases_max);
        let now = Instant::now();
        let term = OwnerTerm { generation: 1, revision: 1 };
        let room = || RoomId::new("r").expect("an id");
        let one = || Release {
            sfu: SfuIdx(0),
            room: room(),
            slot: Slot::new(0).expect("a slot"),
            term,
            epoch: Epoch { term, n: 1 },
        };
        let taken = || (0..5).filter(|_| releases.push(one(), 0, now)).count();
        assert_eq!(taken(), 5);
        for (max, more) in [(7, 2), (3, 0), (8, 1)] {
            levers.set("release.remembered_max", &max.into(), "test", None, 0).expect("in range");
            assert_eq!(taken(), more, "{max} at most");
        }
        assert_eq!(releases.len(), 8);
    }
}
