//! Chooses the SFU of one call: in place if that is asked for, else region by region.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sfu_api::{Epoch, RegionId, RoomId};
use tokio::time::Instant;

use crate::context::Context;
use crate::select::{Excluded, Reservation, Sfu, Snapshot, choose};
use crate::state::{Blocker, Decision, PlaceWork, Placer, SfuIdx};

/// How long a call waits for its own SFU to have a token again before it goes elsewhere. A restarted
/// SFU is refilled at its bucket's pace; beyond this, moving is kinder than waiting.
const IN_PLACE_MAX: Duration = Duration::from_secs(10);

/// Regions (or any, with `None`) found without a fit SFU. Looking at all SFUs again for every waiting
/// call would make a shortage cost calls × SFUs, so the finding stands for a tenth of a second.
pub(super) type Barren = HashSet<Option<RegionId>>;

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
            Ok(_) => self.reserve(&sfu, format!("its room is made again in place on {}", sfu.id)),
            Err(Excluded::SfuBucket | Excluded::RegionBucket | Excluded::Window | Excluded::Held) => {
                let waited = since.map_or(Duration::ZERO, |since| self.now.saturating_duration_since(since));
                (waited < IN_PLACE_MAX).then_some(Decision::Block(Blocker::Busy(idx)))
            }
            Err(_) => None,
        }
    }

    fn among(&mut self, sfus: &[Arc<Sfu>], ladder: &str) -> Option<Decision> {
        let now = self.now;
        let choice = choose(sfus.len(), &mut self.rng, |i| sfus[i].fit(now).ok())?;
        let chosen = &sfus[choice.index];
        let (id, score, n) = (&chosen.id, choice.score, sfus.len());
        let why = match choice.rival {
            Some((rival, other)) => {
                let rival = &sfus[rival].id;
                format!("{id} with score {score:.4} won against {rival} with {other:.4}, drawn from {n} in {ladder}")
            }
            None => format!("{id} with score {score:.4} was the only fit one of {n} in {ladder}"),
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
            let out = |sfu: &Arc<Sfu>| {
                use Excluded::{Cordoned, Full, NotAccepting, Verdict};
                matches!(sfu.fit(self.now), Err(Verdict(_) | Cordoned | NotAccepting | Full))
            };
            let gone = own.iter().all(out);
            (gone && self.ctx.levers.any_region.get()).then(|| self.among(&snapshot.all, "any region")).flatten()
        })
    }
}

impl Placer for SelectPlacer<'_> {
    fn decide(&mut self, work: &PlaceWork) -> Decision {
        if let Some(decision) = work.in_place.and_then(|idx| self.in_place(idx, work.since)) {
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
        sfu.driver().room_name(&work.guild, &work.call, work.slot, epoch)
    }
}
