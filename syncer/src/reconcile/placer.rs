//! Chooses the SFU of one call: in place if that is asked for, else region by region.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sfu_api::{Epoch, RegionId, RoomId};
use tokio::time::Instant;

use crate::context::Context;
use crate::select::{Excluded, Reservation, Sfu, Snapshot, choose};
use crate::state::{Blocker, Decision, How, PlaceWork, Placer, SfuIdx, Why};

/// What was found to keep calls from being placed, and until when the finding stands. Looking at all
/// SFUs again for every waiting call would make a shortage cost calls × SFUs.
pub(super) type Barren = HashMap<Blocker, Instant>;

/// A finding stands at least this long: 200 looks at all SFUs a second are ~2 % of a core.
const FINDING_MIN: Duration = Duration::from_millis(5);

/// And at most this long: a tenth of what a user notices. Verdicts and windows change unannounced.
const FINDING_MAX: Duration = Duration::from_millis(100);

/// Decides for one round, from the catalogue and the budgets, and holds what it took for the caller
/// to fetch.
pub(super) struct SelectPlacer<'a> {
    ctx: &'a Context,
    snapshot: Arc<Snapshot>,
    barren: &'a mut Barren,
    now: Instant,
    rng: StdRng,
    taken: Option<Reservation>,
}

// === impl SelectPlacer ===

impl<'a> SelectPlacer<'a> {
    pub(super) fn new(ctx: &'a Context, barren: &'a mut Barren, now: Instant) -> Self {
        let rng = StdRng::seed_from_u64(ctx.with_rng(|rng| rng.random()));
        Self { ctx, snapshot: ctx.catalogue.now(), barren, now, rng, taken: None }
    }

    /// The reservation behind the last decision.
    pub(super) fn take(&mut self) -> Option<Reservation> {
        self.taken.take()
    }

    /// On the SFU it was on, which lost its rooms: at once, or when it has room for more. `None`: the
    /// call is to go elsewhere.
    fn in_place(&mut self, idx: SfuIdx, since: Option<Instant>) -> Option<Decision> {
        let sfu = self.ctx.catalogue.get(idx)?;
        match sfu.fit(self.now) {
            Ok(_) => {
                if let Some(decision) = self.reserve(&sfu, How::InPlace) {
                    return Some(decision);
                }
                // Somebody else was first: what stands against it now passes.
            }
            Err(why) if why.is_passing() => {}
            Err(_) => return None,
        }
        let waited = since.map_or(Duration::ZERO, |since| self.now.saturating_duration_since(since));
        (waited < self.ctx.levers.in_place_max.get()).then(|| self.find(Blocker::Busy(idx), std::slice::from_ref(&sfu)))
    }

    fn among(&mut self, sfus: &[Arc<Sfu>], any_region: bool, at_last: bool) -> Option<Decision> {
        let now = self.now;
        let fit = |i: usize| if at_last { sfus[i].fit_at_last(now) } else { sfus[i].fit(now) };
        let choice = choose(sfus.len(), &mut self.rng, |i| fit(i).ok())?;
        let why = choice.why(sfus.len(), any_region, |i| sfus[i].idx);
        self.reserve(&sfus[choice.index], why.how)
    }

    fn reserve(&mut self, sfu: &Arc<Sfu>, how: How) -> Option<Decision> {
        self.taken = Some(sfu.reserve(self.now)?);
        Some(Decision::Reserve { sfu: sfu.idx, why: Why { sfu: sfu.idx, how } })
    }

    /// Blocks the call, and remembers for how long nobody needs to look again: until one of `sfus` has a
    /// token.
    fn find(&mut self, on: Blocker, sfus: &[Arc<Sfu>]) -> Decision {
        let soonest = sfus.iter().filter_map(|sfu| sfu.ready_at(self.now)).min();
        let until = soonest.unwrap_or(self.now + FINDING_MAX).clamp(self.now + FINDING_MIN, self.now + FINDING_MAX);
        self.barren.entry(on.clone()).or_insert(until);
        Decision::Block(on)
    }

    /// The call's region, then any. Down only when the region has nobody left, not while it is
    /// merely busy: a recovery must not spill over to the other side of the world to save a second.
    fn down_the_ladder(&mut self, region: Option<&RegionId>) -> Option<Decision> {
        let snapshot = self.snapshot.clone();
        let Some(region) = region else { return self.among(&snapshot.all, true, false) };
        let own = snapshot.by_region.get(region).map_or(&[][..], Vec::as_slice);
        self.among(own, false, false).or_else(|| {
            let gone = own.iter().all(|sfu| sfu.fit(self.now).is_err_and(|why| !why.is_passing()));
            (gone && self.ctx.levers.any_region.get()).then(|| self.among(&snapshot.all, true, false)).flatten()
        })
    }
}

impl Placer for SelectPlacer<'_> {
    fn decide(&mut self, work: &PlaceWork) -> Decision {
        if let Some(decision) = work.in_place.and_then(|idx| self.in_place(idx, work.since)) {
            return decision;
        }
        let (limits, none) = (Blocker::Limits(work.region.clone()), Blocker::NoCandidate(work.region.clone()));
        for on in [limits, none] {
            if self.barren.contains_key(&on) {
                return Decision::Block(on);
            }
        }
        if let Some(decision) = self.down_the_ladder(work.region.as_ref()) {
            return decision;
        }
        let snapshot = self.snapshot.clone();
        let own = work.region.as_ref().map_or(Some(&snapshot.all), |region| snapshot.by_region.get(region));
        let own = own.map_or(&[][..], Vec::as_slice);
        let able = |sfu: &Arc<Sfu>| sfu.fit(self.now).err().is_none_or(Excluded::is_passing);
        if own.iter().any(able) {
            self.find(Blocker::Limits(work.region.clone()), own)
        } else if let Some(decision) = self.among(own, work.region.is_none(), true) {
            decision // those that fall again and again are better than none
        } else {
            self.find(Blocker::NoCandidate(work.region.clone()), &[])
        }
    }

    fn room(&self, sfu: SfuIdx, work: &PlaceWork, epoch: Epoch) -> RoomId {
        let taken = self.taken.as_ref().map(Reservation::sfu).filter(|s| s.idx == sfu);
        let sfu = taken.expect("a room is named right after its SFU was reserved");
        sfu.driver().room_name(&work.guild, &work.call, work.slot, epoch)
    }
}
