//! When what is left of a zone is left alone.
//!
//! The SFUs of a zone share power, cooling, switches. When several of them fail at once, the next to fail is
//! probably one of the others there, and whoever is placed on it loses his endpoint soon after he got it. So nothing
//! new is placed in such a zone while the rung of the call's ladder has SFUs elsewhere that are fit, or will be
//! in a moment. It is a preference and no verdict: what is there stays, rooms are made again in place there, and
//! where nobody else is left its SFUs are taken as ever.
//!
//! Only SFUs that fail count, not those that are slow. Slow is what a crowd makes of an SFU too, and a crowd goes
//! where placements go: a zone that is avoided for it would send the crowd to the next.
//!
//! A zone is a zone of its region: `a` here and `a` there are two.
//!
//! The whole fleet is looked at as often as for the [freeze](crate::health::Freeze), ten times a second, by one
//! task; selection reads one flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sfu_api::{RegionId, ZoneId};
use tokio::time::Instant;

use super::Snapshot;

/// SFUs that must fail, however small the zone: one alone says nothing of its neighbours.
const BAD_MIN: usize = 2;

/// How long a zone counts as failing after it was last over its share: five probes of each SFU with calls, by
/// default. SFUs that fail and answer by turns would otherwise have the zone avoided and sought by turns.
const CALM: Duration = Duration::from_secs(10);

/// How a zone has been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    /// It counts as failing until then, unless it is seen to be over its share again.
    failing_until: Option<Instant>,
}

/// A zone of a region.
#[derive(Debug)]
pub struct Zone {
    /// Its region.
    pub region: RegionId,
    /// Its name there.
    pub id: ZoneId,
    number: usize,
    course: Mutex<Course>,
    failing: AtomicBool,
}

/// A zone has begun to fail, or no longer fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneChange {
    /// Its region.
    pub region: RegionId,
    /// The zone.
    pub zone: ZoneId,
    /// Whether it fails now.
    pub failing: bool,
    /// Its SFUs that fail.
    pub bad: usize,
    /// Its SFUs.
    pub all: usize,
}

// === impl Course ===

impl Course {
    /// Looks again: of `all` SFUs of the zone, `bad` fail. Returns whether the zone counts as failing: from when at least
    /// `share` of its SFUs do, and no less than two, until 10 s after that was last so. A share of 1
    /// is no share: then nothing is left to leave alone.
    pub fn look(&mut self, bad: usize, all: usize, share: f64, now: Instant) -> bool {
        let over = bad >= BAD_MIN && bad as f64 >= share * all as f64;
        if share >= 1.0 {
            self.failing_until = None;
        } else if over {
            self.failing_until = Some(now + CALM);
        }
        self.failing_until.is_some_and(|until| now < until)
    }
}

// === impl Zone ===

impl Zone {
    pub(super) fn new(region: RegionId, id: ZoneId, number: usize) -> Self {
        Self { region, id, number, course: Mutex::default(), failing: AtomicBool::new(false) }
    }

    /// Whether new calls go elsewhere if they can.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Looks at every zone again; returns those that have changed. `share`: how many of a zone's SFUs must fail.
    pub fn look_at_zones(&self, share: f64, now: Instant) -> Vec<ZoneChange> {
        let mut counts = vec![(0, 0); self.zones.len()];
        for sfu in &self.all {
            let entry = sfu.entry();
            if let Some((bad, all)) = entry.zone().and_then(|zone| counts.get_mut(zone.number)) {
                *all += 1;
                // One that is kept for debugging is broken by itself.
                *bad += usize::from(sfu.verdict().is_bad() && !sfu.is_quarantined());
            }
        }
        let mut changes = Vec::new();
        for zone in self.zones.values() {
            let (bad, all) = counts.get(zone.number).copied().unwrap_or_default();
            let failing = zone.course.lock().look(bad, all, share, now);
            if zone.failing.swap(failing, Ordering::Relaxed) != failing {
                let (region, zone) = (zone.region.clone(), zone.id.clone());
                changes.push(ZoneChange { region, zone, failing, bad, all });
            }
        }
        changes
    }
}
