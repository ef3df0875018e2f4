//! Chooses the SFU of one call: in place if that is asked for, else region by region.

use std::collections::HashSet;
use std::sync::Arc;

use sfu_api::{Epoch, RegionId, RoomId};
use tokio::time::Instant;

use crate::context::Context;
use crate::select::{Reservation, Sfu, Snapshot, choose};
use crate::state::{Blocker, Decision, PlaceWork, Placer, SfuIdx};

/// Decides for one round, from the catalogue and the budgets, and holds what it took for the caller
/// to fetch.
pub(super) struct SelectPlacer<'a> {
    ctx: &'a Context,
    snapshot: Arc<Snapshot>,
    now: Instant,
    taken: Option<Reservation>,
    /// Regions (or any, with `None`) found without a fit SFU in this round: looking at all of them
    /// again for every waiting call would make a shortage cost calls × SFUs.
    barren: HashSet<Option<RegionId>>,
}

// === impl SelectPlacer ===

impl<'a> SelectPlacer<'a> {
    pub(super) fn new(ctx: &'a Context, now: Instant) -> Self {
        Self { ctx, snapshot: ctx.catalogue.now(), now, taken: None, barren: HashSet::new() }
    }

    /// The reservation behind the last decision.
    pub(super) fn take(&mut self) -> Option<Reservation> {
        self.taken.take()
    }

    fn in_place(&mut self, idx: SfuIdx) -> Option<Decision> {
        let sfu = self.ctx.catalogue.get(idx)?;
        sfu.fit(self.now).ok()?;
        self.reserve(&sfu, format!("its room is made again in place on {}", sfu.id))
    }

    fn among(&mut self, sfus: &[Arc<Sfu>], ladder: &str) -> Option<Decision> {
        let now = self.now;
        let choice = self.ctx.with_rng(|rng| choose(sfus.len(), rng, |i| sfus[i].fit(now).ok()))?;
        let chosen = &sfus[choice.index];
        let why = match choice.rival {
            Some((rival, score)) => format!(
                "{} with score {:.4} won against {} with {score:.4}, drawn from {} in {ladder}",
                chosen.id,
                choice.score,
                sfus[rival].id,
                sfus.len()
            ),
            None => format!(
                "{} with score {:.4} was the only fit one of {} in {ladder}",
                chosen.id,
                choice.score,
                sfus.len()
            ),
        };
        self.reserve(chosen, why)
    }

    fn reserve(&mut self, sfu: &Arc<Sfu>, why: String) -> Option<Decision> {
        self.taken = Some(sfu.reserve(self.now)?);
        Some(Decision::Reserve { sfu: sfu.idx, why: why.into() })
    }

    /// The call's region, then any. Down only when the region has nobody left, not while it is
    /// merely busy: a recovery must not spill over to the other side of the world to save a second.
    fn down_the_ladder(&mut self, region: Option<&RegionId>) -> Option<Decision> {
        let snapshot = self.snapshot.clone();
        let Some(region) = region else { return self.among(&snapshot.all, "any region") };
        let own = snapshot.by_region.get(region).map_or(&[][..], Vec::as_slice);
        self.among(own, &format!("region {region}")).or_else(|| {
            let gone = own.iter().all(|sfu| !sfu.verdict().takes_new());
            (gone && self.ctx.levers.any_region.get()).then(|| self.among(&snapshot.all, "any region")).flatten()
        })
    }
}

impl Placer for SelectPlacer<'_> {
    fn decide(&mut self, work: &PlaceWork) -> Decision {
        if let Some(decision) = work.in_place.and_then(|idx| self.in_place(idx)) {
            return decision;
        }
        if !self.barren.contains(&work.region) {
            if let Some(decision) = self.down_the_ladder(work.region.as_ref()) {
                return decision;
            }
            self.barren.insert(work.region.clone());
        }
        Decision::Block(Blocker::NoCandidate(work.region.clone()))
    }

    fn room(&self, sfu: SfuIdx, work: &PlaceWork, epoch: Epoch) -> RoomId {
        let taken = self.taken.as_ref().map(Reservation::sfu).filter(|s| s.idx == sfu);
        let sfu = taken.expect("a room is named right after its SFU was reserved");
        sfu.driver.room_name(&work.guild, &work.call, work.slot, epoch)
    }
}
