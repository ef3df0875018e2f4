//! What operators do with one SFU. Each verb concerns this syncer's own calls; the fleet is reached by
//! telling every syncer.

use std::sync::Arc;
use std::time::Duration;

use sfu_api::SfuId;
use tokio::time::Instant;

use super::{CallFilter, CallName, DrainView, Engine, SfuView};
use crate::health::Evidence;
use crate::select::{Drain, Sfu};

/// Longest drain: what takes more than a day is not a drain.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Calls that are listed as left behind.
const LEFT_MAX: usize = 100;

impl Engine {
    fn known(&self, id: &SfuId) -> Option<Arc<Sfu>> {
        self.ctx.catalogue.now().named(id).cloned()
    }

    /// One SFU, with the calls that a drain has left there. `None`: there is no such SFU.
    #[must_use]
    pub fn sfu(&self, id: &SfuId) -> Option<SfuView> {
        let mut view = self.sfu_view(&*self.known(id)?);
        if let Some(drain) = &mut view.drain {
            let filter = CallFilter { sfu: Some(id.clone()), limit: LEFT_MAX, ..CallFilter::default() };
            let left = self.calls(&filter).calls.into_iter();
            drain.left_calls = left.map(|c| CallName { guild: c.guild, call: c.call }).collect();
        }
        Some(view)
    }

    /// Takes an SFU out of selection, or puts it back. `None`: there is no such SFU.
    #[must_use]
    pub fn cordon(&self, id: &SfuId, cordoned: bool) -> Option<SfuView> {
        let sfu = self.known(id)?;
        sfu.set_cordoned(cordoned);
        self.ctx.wake.notify_one();
        Some(self.sfu_view(&sfu))
    }

    /// Moves an SFU's calls on an operator's word. `None`: there is no such SFU.
    #[must_use]
    pub fn declare_dead(&self, id: &SfuId, now: Instant) -> Option<SfuView> {
        let sfu = self.known(id)?;
        self.ctx.observe(&sfu, &Evidence::DeclaredDead, now);
        Some(self.sfu_view(&sfu))
    }

    /// Moves this syncer's calls away from an SFU as planned, within the move budget and for `within`
    /// at most (no longer than a day). Asked again, it gets the new deadline. `None`: there is no such
    /// SFU.
    #[must_use]
    pub fn drain_sfu(&self, id: &SfuId, within: Duration, now: Instant) -> Option<SfuView> {
        let sfu = self.known(id)?;
        sfu.start_drain(Drain::new(self.calls_on(&sfu), within.min(DRAIN_MAX), now));
        self.sfu(id)
    }

    /// Takes a drain back: what has moved stays where it went, the rest stays. `None`: there is no such
    /// SFU.
    #[must_use]
    pub fn undrain_sfu(&self, id: &SfuId) -> Option<SfuView> {
        let sfu = self.known(id)?;
        // Told by an earlier life of this syncer, perhaps: then nobody else will take it back.
        sfu.orders.told(true);
        if sfu.undo_drain() {
            self.ctx.wake.notify_one();
        }
        self.sfu(id)
    }

    /// Takes an SFU out of service for debugging, or puts it back. Its calls move as in a drain; what
    /// stays on it is neither compared nor swept. `None`: there is no such SFU.
    #[must_use]
    pub fn quarantine(&self, id: &SfuId, quarantined: bool, now: Instant) -> Option<SfuView> {
        self.known(id)?.set_quarantined(quarantined);
        if quarantined { self.drain_sfu(id, DRAIN_MAX, now) } else { self.undrain_sfu(id) }
    }

    pub(super) fn calls_on(&self, sfu: &Sfu) -> u64 {
        self.ctx.shards.iter().map(|s| s.lock().calls_on(sfu.idx) as u64).sum()
    }
}

pub(super) fn drain_view(sfu: &Sfu, left: u64, now: Instant) -> Option<DrainView> {
    let drain = sfu.drain()?;
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Some(DrainView {
        state: drain.state(left, now),
        told: sfu.orders.is_draining(),
        at_start: drain.at_start,
        moved: drain.moved,
        left,
        elapsed_ms: ms(now.saturating_duration_since(drain.since)),
        remaining_ms: ms(drain.deadline.saturating_duration_since(now)),
        left_calls: Vec::new(),
    })
}
