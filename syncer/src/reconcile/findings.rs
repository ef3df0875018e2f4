//! What was found by looking at many SFUs, and for how long nobody needs to look again.
//!
//! Looking at all SFUs again for every waiting call would make a shortage cost calls × SFUs.

use std::collections::HashMap;
use std::time::Duration;

use sfu_api::RegionId;
use tokio::time::Instant;

use crate::select::Footing;
use crate::state::Blocker;

/// A finding stands at least this long: 200 looks at all SFUs a second are ~2 % of a core.
const STANDS_MIN: Duration = Duration::from_millis(5);

/// And at most this long: a tenth of what a user notices. Verdicts and windows change unannounced.
const STANDS_MAX: Duration = Duration::from_millis(100);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What keeps calls from being placed.
    barren: HashMap<Blocker, Instant>,
    /// Where calls go for whom nobody is left further up. Only while there are such calls.
    footings: HashMap<Option<RegionId>, (Footing, Instant)>,
}

// === impl Findings ===

impl Findings {
    /// Forgets what stood long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        self.barren.retain(|_, until| *until > now);
        self.footings.retain(|_, (_, until)| *until > now);
    }

    /// Until when `on` keeps calls from being placed, if it does.
    pub(super) fn barren(&self, on: &Blocker) -> Option<Instant> {
        self.barren.get(on).copied()
    }

    /// When findings of what keeps calls from being placed end.
    pub(super) fn ends(&self) -> impl Iterator<Item = Instant> {
        self.barren.values().copied()
    }

    /// `on` keeps calls from being placed, until about `soonest` if that is known.
    pub(super) fn block(&mut self, on: Blocker, soonest: Option<Instant>, now: Instant) {
        let until = soonest.unwrap_or(now + STANDS_MAX).clamp(now + STANDS_MIN, now + STANDS_MAX);
        self.barren.entry(on).or_insert(until);
    }

    /// Where calls of `region` were found to stand.
    pub(super) fn footing(&self, region: Option<&RegionId>) -> Option<Footing> {
        if self.footings.is_empty() {
            return None;
        }
        self.footings.get(&region.cloned()).map(|(at, _)| *at)
    }

    /// Nobody is left above `at` for calls of `region`.
    pub(super) fn stand(&mut self, region: Option<&RegionId>, at: Footing, now: Instant) {
        self.footings.insert(region.cloned(), (at, now + STANDS_MIN));
    }
}
