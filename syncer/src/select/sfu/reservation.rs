//! What a placement takes of an SFU, and how it is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rate_limit::{Bucket, Outcome};
use tokio::time::Instant;

use super::Sfu;

/// A placement's claim on an SFU. Dropped unsettled, it is given back.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    pub(super) sfu: Arc<Sfu>,
    pub(super) region_bucket: Arc<Bucket>,
    /// [`Sfu::losses`] when it was made.
    pub(super) losses: u64,
    pub(super) made_at: Instant,
    pub(super) settled: bool,
}

// === impl Reservation ===

impl Reservation {
    /// The SFU.
    #[must_use]
    pub fn sfu(&self) -> &Arc<Sfu> {
        &self.sfu
    }

    /// [`Sfu::losses`] when it was made: what was made before a loss is lost.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// When it was made.
    #[must_use]
    pub const fn made_at(&self) -> Instant {
        self.made_at
    }

    /// The attempt has ended, and the SFU may have a room more than before.
    pub fn settle(mut self, outcome: Outcome, now: Instant) {
        self.settled = true;
        self.sfu.window.leave(outcome, now);
    }

    /// The attempt was never sent, or found that the room was there: its tokens were not used.
    pub fn unused(mut self, outcome: Outcome, now: Instant) {
        self.settled = true;
        self.sfu.window.leave(outcome, now);
        self.sfu.bucket.give_back_late(1, self.made_at, now);
        self.region_bucket.give_back_late(1, self.made_at, now);
        self.release();
    }

    fn release(&self) {
        // A report may have reset the count meanwhile; it never goes below zero.
        self.sfu.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.settled {
            self.sfu.window.leave(Outcome::Neutral, Instant::now());
            self.release();
        }
    }
}
