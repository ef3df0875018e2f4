//! Chooses the SFU of one call: in place if that is asked for, else down its ladder.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sfu_api::{Epoch, RegionId, RoomId};
use tokio::time::Instant;

use super::findings::Findings;
use crate::context::Context;
use crate::health::Verdict;
use crate::select::{Care, Descent, Excluded, Footing, Reservation, Sfu, Snapshot, descend};
use crate::state::{Blocker, Decision, How, PlaceWork, Placer, Seed, SfuIdx, Why};

/// Decides for one round, from the catalogue and the budgets, and holds what it took for the caller
/// to fetch.
pub(super) struct SelectPlacer<'a> {
    ctx: &'a Context,
    snapshot: Arc<Snapshot>,
    findings: &'a mut Findings,
    /// Whether calls may leave their region and its group.
    any_region: bool,
    now: Instant,
    rng: StdRng,
    taken: Option<Reservation>,
}

/// What is waited for, for a while, where people are in the room: they talk meanwhile.
const MAY_COME_BACK: [Excluded; 2] = [Excluded::Verdict(Verdict::Suspect), Excluded::Silent];

// === impl SelectPlacer ===

impl<'a> SelectPlacer<'a> {
    pub(super) fn new(ctx: &'a Context, findings: &'a mut Findings, now: Instant) -> Self {
        let rng = StdRng::seed_from_u64(ctx.with_rng(|rng| rng.random()));
        let any_region = ctx.levers.any_region.get();
        Self { ctx, snapshot: ctx.catalogue.now(), findings, any_region, now, rng, taken: None }
    }

    /// The reservation behind the last decision.
    pub(super) fn take(&mut self) -> Option<Reservation> {
        self.taken.take()
    }

    /// On the SFU it was on, which lost its rooms or still has this one: at once, or when it has room for more. `None`:
    /// the call is to go elsewhere.
    fn in_place(&mut self, idx: SfuIdx, work: &PlaceWork) -> Option<Decision> {
        let sfu = self.ctx.catalogue.get(idx)?;
        let against = sfu.fit_by(Care::AnyZone, self.now).err();
        if against.is_none_or(|why| work.found && why.is_of_new_rooms()) {
            if let Some(decision) = self.reserve(&sfu, Why { sfu: idx, how: How::InPlace }) {
                return Some(decision);
            }
            // Somebody else was first, or a limit is behind it: what stands against it now passes.
        } else if !against.is_some_and(|why| why.is_passing() || work.found && MAY_COME_BACK.contains(&why)) {
            return None;
        }
        // People who are in the room lose more by moving than by waiting for a token: they talk meanwhile.
        let limited = against.is_none_or(|why| why.is_busy() || why.is_of_new_rooms());
        let waited = work.since.map_or(Duration::ZERO, |since| self.now.saturating_duration_since(since));
        let waits = work.found && limited || waited < self.ctx.levers.in_place_max.get();
        waits.then(|| self.find(Blocker::Busy(idx), std::slice::from_ref(&sfu)))
    }

    fn reserve(&mut self, sfu: &Arc<Sfu>, why: Why) -> Option<Decision> {
        self.taken = Some(sfu.reserve(self.now)?);
        Some(Decision::Reserve { sfu: sfu.idx, why })
    }

    /// Blocks the call, and remembers for how long nobody needs to look again: until one of `sfus` has a
    /// token.
    fn find(&mut self, on: Blocker, sfus: &[Arc<Sfu>]) -> Decision {
        let soonest = sfus.iter().filter_map(|sfu| sfu.ready_at(self.now)).min();
        self.findings.block(on.clone(), soonest, sfus.len(), self.now);
        Decision::Block(on)
    }

    /// Down the ladder of a call that wants to be in `region`.
    fn down_the_ladder(&mut self, region: Option<&RegionId>) -> Decision {
        let (snapshot, now) = (self.snapshot.clone(), self.now);
        let ladder = snapshot.ladder(region, self.any_region);
        let fit = |sfu: &Sfu, care: Care| sfu.fit_by(care, now);
        let seed = Seed(self.rng.random());
        if let Some(at) = self.findings.footing(region)
            && let Some(step) = ladder.get(at.step)
            && let Some(choice) = step.choose(at.care, seed, fit)
            && let Some(decision) = self.reserve(&step.sfus[choice.index], step.why(&choice, at.care, seed))
        {
            return decision;
        }
        let busy = match descend(&ladder, seed, fit) {
            Descent::Chosen(at, choice) => {
                if at != Footing::TOP {
                    let among = ladder.iter().take(at.step + 1).map(|step| step.sfus.len()).sum();
                    self.findings.stand(region, at, among, now);
                }
                let step = ladder[at.step];
                if let Some(decision) = self.reserve(&step.sfus[choice.index], step.why(&choice, at.care, seed)) {
                    return decision;
                }
                Some(at.step) // somebody else was first: what stands against it now passes
            }
            Descent::Busy(step) => Some(step),
            Descent::Nobody => None,
        };
        match busy {
            Some(step) => self.find(Blocker::Limits(region.cloned()), ladder[step].sfus),
            None => self.find(Blocker::NoCandidate(region.cloned()), &[]),
        }
    }
}

impl Placer for SelectPlacer<'_> {
    fn decide(&mut self, work: &PlaceWork) -> Decision {
        if let Some(decision) = work.in_place.and_then(|idx| self.in_place(idx, work)) {
            return decision;
        }
        let (limits, none) = (Blocker::Limits(work.region.clone()), Blocker::NoCandidate(work.region.clone()));
        for on in [limits, none] {
            if self.findings.barren(&on).is_some() {
                return Decision::Block(on);
            }
        }
        self.down_the_ladder(work.region.as_ref())
    }

    fn room(&self, sfu: SfuIdx, work: &PlaceWork, epoch: Epoch) -> RoomId {
        let taken = self.taken.as_ref().map(Reservation::sfu).filter(|s| s.idx == sfu);
        let sfu = taken.expect("a room is named right after its SFU was reserved");
        sfu.driver().room_name(&work.guild, &work.call, work.slot, epoch)
    }
}
