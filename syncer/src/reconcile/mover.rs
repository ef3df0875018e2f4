//! Moves calls away from SFUs that are drained.
//!
//! A loop of its own, since a planned move is no repair: nobody is without an endpoint. It takes what
//! the move budget allows (I10) and, for each room it makes, what a repair would take as well, so the
//! SFUs' buckets hold. A move that fails is not tried again by anyone but the next walk over the SFU's
//! calls, which the budget paces too.
//!
//! While a call waits for its repair, nothing is moved: neither while it waits for its turn, nor for a bucket or a
//! window of those who could take it. What it waits for may be in another region: moves are never urgent, and which
//! of them cost a repair nothing would have to be told for each. Only a repair that no token would bring on stops no
//! move: one whose SFUs are all down, silent, full or out of service, or which waits for its SFU to come back. That may
//! last, and a drain may be part of the cure. Nor does one that is being tried, or waits for its next try.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rate_limit::{Bucket, Outcome};
use tokio::time::{Instant, MissedTickBehavior};

use super::attempt::Attempt;
use super::findings::Findings;
use super::placer::SelectPlacer;
use super::{InFlight, most_urgent};
use crate::context::{Context, SHARDS};
use crate::select::{Care, Excluded, Sfu, Snapshot};
use crate::state::{Blocker, CallKey, Class, Moved, SfuIdx};

/// How often moves are looked for. At the default of 20 moves a second, one token comes in this time.
const PERIOD: Duration = Duration::from_millis(50);

/// Moves in flight, and of the lever `placement.in_flight_max` an eighth at most: new calls and repairs find the window open.
const MOVES_MAX: u64 = 64;

/// Calls without a place to go that one round looks at. The finding of one holds for its region, so
/// more would only repeat it.
const ASIDE_MAX: usize = 32;

/// The loop, and how far it is with each SFU.
#[derive(Debug)]
pub struct Mover {
    ctx: Arc<Context>,
    budget: Bucket,
    /// Into how many parts the fleet's budget was shared when ours was set.
    parts: u32,
    walks: HashMap<SfuIdx, Walk>,
    in_flight: Arc<AtomicU64>,
}

/// How far the walk over one SFU's calls has come.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    shard: usize,
    after: Option<CallKey>,
}

/// What one step did.
enum Step {
    /// A call is on its way.
    Moved,
    /// A call has nowhere to go.
    Aside,
    /// The walk has come to its end, or a limit is reached.
    End,
}

// === impl Mover ===

impl Mover {
    /// A mover of `ctx`.
    #[must_use]
    pub fn new(ctx: Arc<Context>, now: Instant) -> Self {
        let parts = ctx.budget.parts();
        let budget = Bucket::new(ctx.levers.moves().share(parts), now);
        Self { ctx, budget, parts, walks: HashMap::new(), in_flight: Arc::default() }
    }

    /// Runs until the context stops. Moves under way go on, on the context's tracker.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future starts nothing more.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.ctx.stop.cancelled() => return,
                _ = ticks.tick() => self.round(Instant::now()),
            }
        }
    }

    fn round(&mut self, now: Instant) {
        let ctx = Arc::clone(&self.ctx);
        let parts = ctx.budget.parts();
        let share = ctx.levers.moves().share(parts);
        let shared = std::mem::replace(&mut self.parts, parts) != parts;
        if self.budget.quota() != share {
            // Whoever took a part counts on what we owe. An operator who turned a lever does not.
            let set = if shared { Bucket::set_quota } else { Bucket::set_limit };
            set(&self.budget, share, now);
        }
        let snapshot = ctx.catalogue.now();
        let due = |sfu: &&Arc<Sfu>| sfu.drain().is_some_and(|d| d.moves(now));
        let mut sfus: Vec<&Arc<Sfu>> = snapshot.known().filter(|s| s.is_draining()).filter(due).collect();
        let walked: HashSet<SfuIdx> = sfus.iter().map(|s| s.idx).collect();
        self.walks.retain(|idx, _| walked.contains(idx));
        if sfus.is_empty() || ctx.levers.paused.get() || ctx.is_draining() || self.budget.available(now) == 0 {
            return;
        }
        if repairs_want_tokens(&ctx, &snapshot, now) {
            return;
        }
        let mut findings = Findings::default();
        let mut placer = SelectPlacer::new(&ctx, &mut findings, now);
        let mut aside = 0;
        // One call of each SFU in turn, until the budget is used or every walk has ended.
        while !sfus.is_empty() && aside < ASIDE_MAX {
            sfus.retain(|sfu| match self.step(sfu, &mut placer, now) {
                Step::Moved => true,
                Step::Aside => {
                    aside += 1;
                    true
                }
                Step::End => false,
            });
        }
    }

    /// Moves the next call of `sfu`, if the limits allow.
    fn step(&mut self, sfu: &Arc<Sfu>, placer: &mut SelectPlacer<'_>, now: Instant) -> Step {
        let ctx = &self.ctx;
        let repairs = !ctx.losses.is_empty() || most_urgent(ctx, Some(Class::Repair)).is_some();
        if repairs || self.budget.available(now) == 0 {
            return Step::End;
        }
        let moves_max = MOVES_MAX.min((ctx.levers.in_flight_max.get() / 8).max(1));
        let Some(permit) = InFlight::enter(&self.in_flight, moves_max) else { return Step::End };
        if ctx.budget.overall().try_take(1, now).is_err() {
            return Step::End;
        }
        if !ctx.window.try_enter() {
            ctx.budget.overall().give_back(1, now);
            return Step::End;
        }
        let walk = self.walks.entry(sfu.idx).or_default();
        let moved = walk.next(ctx, sfu.idx, placer);
        if let Moved::Reserved { work, epoch, room } = &moved
            && let Some(reservation) = placer.take()
        {
            // Only this loop takes from it, and it was looked at above.
            self.budget.try_take(1, now).ok();
            let attempt = Attempt::new(ctx, work.clone(), *epoch, room.clone(), reservation);
            ctx.tracker.spawn(async move {
                attempt.run().await;
                drop(permit);
            });
            return Step::Moved;
        }
        ctx.window.leave(Outcome::Neutral, now);
        ctx.budget.overall().give_back(1, now);
        ctx.wake.notify_one(); // whoever found no room in the window may have waited for this
        if matches!(moved, Moved::Aside(_)) { Step::Aside } else { Step::End }
    }
}

/// Whether a repair waits for nothing but a bucket or a window. What is ready is looked at before each move.
fn repairs_want_tokens(ctx: &Context, snapshot: &Snapshot, now: Instant) -> bool {
    let mut blockers = BTreeSet::new();
    for shard in &ctx.shards {
        blockers.extend(shard.lock().dirty().blockers_of(Class::Repair).cloned());
    }
    let limited = |sfu: &Arc<Sfu>| sfu.fit_by(Care::AtLast, now).err().is_none_or(Excluded::is_busy);
    blockers.iter().any(|on| match on {
        Blocker::Limits(region) => {
            let ladder = snapshot.ladder(region.as_ref(), ctx.levers.any_region.get());
            ladder.iter().any(|step| step.sfus.iter().any(limited))
        }
        Blocker::Busy(idx) => ctx.catalogue.get(*idx).as_ref().is_some_and(limited),
        Blocker::NoCandidate(_) => false,
    })
}

// === impl Walk ===

impl Walk {
    /// The next call in the order of shards and keys; at the end the walk begins again.
    fn next(&mut self, ctx: &Context, from: SfuIdx, placer: &mut SelectPlacer<'_>) -> Moved {
        while self.shard < SHARDS {
            let moved = ctx.shards[self.shard].lock().move_next(from, self.after, placer);
            match &moved {
                Moved::Nothing => *self = Self { shard: self.shard + 1, after: None },
                Moved::Aside(key) => self.after = Some(*key),
                Moved::Reserved { work, .. } => self.after = Some(work.key),
            }
            if !matches!(moved, Moved::Nothing) {
                return moved;
            }
        }
        *self = Self::default();
        Moved::Nothing
    }
}
