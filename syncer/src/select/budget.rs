//! How many rooms may be created: over all, per region, per SFU.
//!
//! The operator states limits for the *fleet*; each syncer enforces its share, the limit divided
//! by the ready syncers (R9). Views differ for a while when membership changes, so a share shrinks
//! at once and grows only one [`grow_after`](Quotas::grow_after) later: between two views the sum
//! of all shares never exceeds the limit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rate_limit::{Bucket, Quota};
use sfu_api::RegionId;
use tokio::time::Instant;

/// Limits of the whole fleet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quotas {
    /// Creations on all SFUs.
    pub overall: Quota,
    /// Creations on the SFUs of one region.
    pub region: Quota,
    /// Creations on one SFU.
    pub sfu: Quota,
    /// How long after a view change a share may grow.
    pub grow_after: Duration,
}

/// This syncer's share of the limits.
#[derive(Debug)]
pub struct Budget {
    overall: Bucket,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    fleet: Quotas,
    /// Syncers the shares are cut for now.
    parts: u32,
    /// A smaller number of syncers, in force from then on.
    growing: Option<(u32, Instant)>,
    regions: HashMap<RegionId, Arc<Bucket>>,
}

// === impl Budget ===

impl Budget {
    /// The whole budget, as if this syncer were alone.
    #[must_use]
    pub fn new(fleet: Quotas, now: Instant) -> Self {
        let state = State { fleet, parts: 1, growing: None, regions: HashMap::new() };
        Self { overall: Bucket::new(fleet.overall, now), state: Mutex::new(state) }
    }

    /// The bucket over all SFUs.
    #[must_use]
    pub const fn overall(&self) -> &Bucket {
        &self.overall
    }

    /// The bucket of a region. As many as the catalogue names.
    #[must_use]
    pub fn region(&self, region: &RegionId, now: Instant) -> Arc<Bucket> {
        let state = &mut *self.state.lock();
        let quota = state.fleet.region.share(state.parts);
        state.regions.entry(region.clone()).or_insert_with(|| Arc::new(Bucket::new(quota, now))).clone()
    }

    /// This syncer's share of one SFU's quota.
    #[must_use]
    pub fn sfu_share(&self) -> Quota {
        let state = self.state.lock();
        state.fleet.sfu.share(state.parts)
    }

    /// Takes over new fleet limits. Returns whether there were any. They hold from now on: what was used under the
    /// old ones is no reason to stop.
    pub fn set_fleet(&self, fleet: Quotas, now: Instant) -> bool {
        let state = &mut *self.state.lock();
        let changed = state.fleet != fleet;
        state.fleet = fleet;
        if changed {
            // What did not change keeps its debt, which may be of a larger share.
            let set = |bucket: &Bucket, quota| {
                if bucket.quota() != quota {
                    bucket.set_limit(quota, now)
                }
            };
            self.apply(state, set);
        }
        changed
    }

    /// There are `ready` syncers now. Returns whether shares changed at once.
    pub fn set_ready(&self, ready: u32, now: Instant) -> bool {
        let state = &mut *self.state.lock();
        let ready = ready.max(1);
        if ready >= state.parts {
            let changed = ready > state.parts;
            state.parts = ready;
            state.growing = None;
            if changed {
                self.apply(state, |bucket, quota| bucket.set_quota(quota, now));
            }
            return changed;
        }
        let from = now + state.fleet.grow_after;
        match state.growing {
            // A view with more members than the last one restarts nothing that is already due later.
            Some((parts, _)) if parts == ready => {}
            _ => state.growing = Some((ready, from)),
        }
        false
    }

    /// Lets shares grow whose time has come. Returns whether they did.
    pub fn tick(&self, now: Instant) -> bool {
        let state = &mut *self.state.lock();
        let Some((parts, _)) = state.growing.filter(|(_, at)| *at <= now) else { return false };
        state.parts = parts;
        state.growing = None;
        self.apply(state, |bucket, quota| bucket.set_quota(quota, now));
        true
    }

    /// The number of syncers the shares are cut for.
    #[must_use]
    pub fn parts(&self) -> u32 {
        self.state.lock().parts
    }

    fn apply(&self, state: &State, set: impl Fn(&Bucket, Quota)) {
        set(&self.overall, state.fleet.overall.share(state.parts));
        let region = state.fleet.region.share(state.parts);
        for bucket in state.regions.values() {
            set(bucket, region);
        }
    }
}
