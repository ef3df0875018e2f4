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
use crate::state::{Blocker, Decision, How, PlaceWork, Placer, SfuIdx, Why};

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
            Ok(_) => self.reserve(&sfu, How::InPlace),
            Err(Excluded::SfuBucket | Excluded::RegionBucket | Excluded::Window | Excluded::Held) => {
                let waited = since.map_or(Duration::ZERO, |since| self.now.saturating_duration_since(since));
                (waited < IN_PLACE_MAX).then_some(Decision::Block(Blocker::Busy(idx)))
            }
            Err(_) => None,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "scores are shown with four digits")]
    fn among(&mut self, sfus: &[Arc<Sfu>], any_region: bool) -> Option<Decision> {
        let now = self.now;
        let choice = choose(sfus.len(), &mut self.rng, |i| sfus[i].fit(now).ok())?;
        let how = How::Drawn {
            score: choice.score as f32,
            rival: choice.rival.map(|(rival, score)| (sfus[rival].idx, score as f32)),
            among: u32::try_from(sfus.len()).unwrap_or(u32::MAX),
            any_region,
        };
        self.reserve(&sfus[choice.index], how)
    }

    fn reserve(&mut self, sfu: &Arc<Sfu>, how: How) -> Option<Decision> {
        self.taken = Some(sfu.reserve(self.now)?);
        Some(Decision::Reserve { sfu: sfu.idx, why: Why { sfu: sfu.idx, how } })
    }

    /// The call's region, then any. Down only when the region has nobody left, not while it is
    /// merely busy: a recovery must not spill over to the other side of the world to save a second.
    fn down_the_ladder(&mut self, region: Option<&RegionId>) -> Option<Decision> {
        let snapshot = self.snapshot.clone();
        let Some(region) = region else { return self.among(&snapshot.all, true) };
        let own = snapshot.by_region.get(region).map_or(&[][..], Vec::as_slice);
        self.among(own, false).or_else(|| {
            let out = |sfu: &Arc<Sfu>| {
                use Excluded::{Cordoned, Full, NotAccepting, Verdict};
                matches!(sfu.fit(self.now), Err(Verdict(_) | Cordoned | NotAccepting | Full))
            };
            let gone = own.iter().all(out);
            (gone && self.ctx.levers.any_region.get()).then(|| self.among(&snapshot.all, true)).flatten()
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
