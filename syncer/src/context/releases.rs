//! Rooms to be ended, each with the moment it may be tried (again).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::state::Release;

/// Rooms remembered for release. Beyond, the digests find them: an orphan costs an SFU a little
/// memory, a list without bound costs the syncer its life.
pub const RELEASES_MAX: usize = 100_000;

/// The list.
#[derive(Debug, Default)]
pub struct Releases {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_time: BTreeMap<(Instant, u64), (Release, u32)>,
    number: u64,
}

// === impl Releases ===

impl Releases {
    /// Adds a room that has been tried `attempts` times. `false`: the list is full.
    #[must_use]
    pub fn push(&self, release: Release, attempts: u32, not_before: Instant) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.by_time.len() >= RELEASES_MAX {
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
