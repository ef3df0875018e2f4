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

/// And at least this long for each SFU that was looked at, which took ~0.1 µs: 5 % of a core in the largest fleets.
const STANDS_MIN_EACH: Duration = Duration::from_micros(2);

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

    /// `on` keeps calls from being placed, until about `soonest` if that is known. It was found among so many SFUs.
    pub(super) fn block(&mut self, on: Blocker, soonest: Option<Instant>, among: usize, now: Instant) {
        let until = soonest.unwrap_or(now + STANDS_MAX).clamp(now + stands_min(among), now + STANDS_MAX);
        self.barren.entry(on).or_insert(until);
    }

    /// Where calls of `region` were found to stand.
    pub(super) fn footing(&self, region: Option<&RegionId>) -> Option<Footing> {
        if self.footings.is_empty() {
            return None;
        }
        self.footings.get(&region.cloned()).map(|(at, _)| *at)
    }

    /// Nobody is left above `at` for calls of `region`, which was found among so many SFUs.
    pub(super) fn stand(&mut self, region: Option<&RegionId>, at: Footing, among: usize, now: Instant) {
        self.footings.insert(region.cloned(), (at, now + stands_min(among)));
    }
}

fn stands_min(among: usize) -> Duration {
    let each = STANDS_MIN_EACH.saturating_mul(u32::try_from(among).unwrap_or(u32::MAX));
    each.clamp(STANDS_MIN, STANDS_MAX)
}
