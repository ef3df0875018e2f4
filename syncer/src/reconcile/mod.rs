//! What is done next, and at what pace.
//!
//! One loop. It takes the most urgent ready call of all shards, lets the [`Placer`](placer) decide
//! under that shard's lock, and starts the attempt as a task. Work leaves the dirty set only while
//! three things allow it: the bucket over all SFUs (the pace of recovery), this syncer's window of
//! attempts in flight, and the chosen SFU's bucket and window. Whatever does not leave, stays in
//! the set and costs nothing. The loop is the only retry layer (R14).
//!
//! Urgency decides who is next, but for a [turn](Turns) now and then: a repair of minutes must not make
//! every new call wait for minutes.

mod attempt;
mod estimate;
mod findings;
mod losses;
mod mover;
mod placer;
mod release;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::MutexGuard;
use sfu_api::BATCH_OPERATIONS_MAX;
use tokio::time::Instant;

use self::attempt::Attempt;
#[cfg(test)]
pub(crate) use self::attempt::pause;
pub use self::estimate::{Estimate, Flow, Limit, RegionSupply, Supply};
use self::findings::Findings;
pub use self::mover::Mover;
use self::placer::SelectPlacer;
use crate::context::Context;
use crate::drivers::{DriverError, ErrorKind};
use crate::health::{Evidence, Failure};
use crate::select::Sfu;
use crate::state::{Blocker, Class, Demand, Next, SfuIdx, Turns};

/// Longest sleep of the loop: levers are read again at least this often (R20 wants < 1 s).
const NAP_MAX: Duration = Duration::from_millis(250);

/// Least time between two rounds, unless the first left work: every join of a storm wakes the loop, and a round locks
/// every shard. A round decides up to [`DECISIONS_MAX`] placements, so this keeps none back.
const ROUND_APART_MIN: Duration = Duration::from_millis(1);

/// How often blocked calls are looked at again: a tenth of what a user notices.
const UNBLOCK_PERIOD: Duration = Duration::from_millis(100);

/// Blocked calls that are looked at again at once, per blocker: a round of turns. If all of them find a
/// place, the next round looks at as many again, so this bounds what is tried in vain and not what is placed.
const UNBLOCK_MAX: u64 = Turns::ROUND;

/// Calls whose moment has come that one lock of a shard handles: ~100 µs.
const TICK_MAX: usize = 256;

/// Placements decided between two looks at the clock, so that the runtime's other tasks run.
const DECISIONS_MAX: usize = 256;

/// The reconciler's loop and what it remembers between rounds.
#[derive(Debug)]
pub struct Reconciler {
    ctx: Arc<Context>,
    /// What stands unquestioned for a moment.
    findings: Findings,
    /// Placements started, to know whose turn it is.
    started: u64,
    /// When the pace is looked at again.
    look_at: Instant,
    /// How far the windows may open, as the levers said last: the syncer's and each SFU's.
    windows: [u64; 2],
    releasing: Arc<AtomicU64>,
}

// === impl Reconciler ===

impl Reconciler {
    /// A reconciler of `ctx`.
    #[must_use]
    pub fn new(ctx: Arc<Context>, now: Instant) -> Self {
        Self {
            ctx,
            findings: Findings::default(),
            started: 0,
            look_at: now,
            windows: [0; 2],
            releasing: Arc::default(),
        }
    }

    /// Runs until the context stops. Attempts under way go on, on the context's tracker.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops new work; nothing is lost, the set stays as it is.
    pub async fn run(mut self) {
        loop {
            let now = Instant::now();
            let next = self.round(now);
            if next <= now {
                tokio::task::yield_now().await; // more to do, after the others had a turn
                if self.ctx.stop.is_cancelled() {
                    return;
                }
                continue;
            }
            tokio::select! {
                () = self.ctx.stop.cancelled() => return,
                () = self.ctx.wake.notified() => tokio::time::sleep_until(now + ROUND_APART_MIN).await,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// One round; returns when the next one is due unless something wakes it earlier.
    fn round(&mut self, now: Instant) -> Instant {
        self.adjust_budget(now);
        self.look(now);
        let passing = losses::pass(&self.ctx, now);
        let due = self.tick_shards(now);
        let released = release::start(&self.ctx, &self.releasing, now);
        let placed = self.place(now);
        [passing, due, released, placed].into_iter().flatten().fold(now + NAP_MAX, Instant::min).max(now)
    }

    fn adjust_budget(&mut self, now: Instant) {
        let ctx = &self.ctx;
        let windows = [ctx.levers.in_flight_max.get(), ctx.levers.sfu_in_flight_max.get()];
        if std::mem::replace(&mut self.windows, windows) != windows {
            ctx.apply_windows();
        }
        let decided = ctx.budget.set_fleet(ctx.levers.quotas(), now);
        let moved = decided | ctx.budget.tick(now);
        let share = ctx.budget.sfu_share();
        if decided {
            let changed = |sfu: &&Arc<Sfu>| sfu.bucket.quota() != share;
            ctx.catalogue.now().all.iter().filter(changed).for_each(|sfu| sfu.bucket.set_limit(share, now));
        }
        if moved {
            ctx.pace.forget(now);
            ctx.apply_shares(now);
            tracing::info!(syncers = ctx.budget.parts(), sfu_rate_per_s = share.rate_per_s, "shares of limits changed");
        }
    }

    /// Notes what waits, so that the measured pace is known to be one of work and not of idleness.
    fn look(&mut self, now: Instant) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + NAP_MAX;
        let mut demand = Demand::default();
        for shard in &self.ctx.shards {
            demand.merge(shard.lock().demand());
        }
        self.ctx.pace.look(&demand, now);
    }

    /// Calls whose moment has come, and blocked ones when what blocks them may be gone.
    fn tick_shards(&mut self, now: Instant) -> Option<Instant> {
        self.findings.expire(now);
        let mut next: Option<Instant> = None;
        let mut releases = Vec::new();
        let mut blockers = BTreeSet::new();
        for shard in &self.ctx.shards {
            let mut shard = shard.lock();
            while shard.tick(now, TICK_MAX, &mut releases) {
                MutexGuard::bump(&mut shard); // whoever waits goes first
            }
            next = [next, shard.dirty().first_waiting().map(|(at, _)| at)].into_iter().flatten().min();
            blockers.extend(shard.dirty().blockers().cloned());
        }
        for on in blockers {
            let until = self.findings.barren(&on);
            if until.is_none() {
                self.unblock(&on, now);
            }
            let again = until.unwrap_or(now + UNBLOCK_PERIOD);
            next = Some(next.map_or(again, |next| next.min(again)));
        }
        for release in releases {
            self.ctx.release(release, now);
        }
        next
    }

    /// Makes the most urgent of the blocked calls ready, and some of each class, so that it has one when its
    /// turn comes: where a region's bucket is the limit, everything waits here.
    fn unblock(&self, on: &Blocker, now: Instant) {
        let first = |class| {
            let heads = self.ctx.shards.iter().enumerate();
            heads.filter_map(|(i, s)| s.lock().dirty().first_blocked(on, class).map(|(at, _)| (at, i))).min()
        };
        let turns = self.ctx.levers.turns();
        for class in (0..UNBLOCK_MAX).map(|number| turns.whose(number)) {
            let favoured = class.and_then(|_| first(class)).map(|(_, shard)| (shard, class));
            let Some((shard, class)) = favoured.or_else(|| first(None).map(|(_, shard)| (shard, None))) else { return };
            self.ctx.shards[shard].lock().unblock(on, class, now);
        }
    }

    /// Starts attempts while the limits allow. Returns when a limit allows more.
    fn place(&mut self, now: Instant) -> Option<Instant> {
        let mut attempts = Vec::new();
        let next = self.decide(now, &mut attempts);
        start(&self.ctx, attempts);
        next.into_iter().chain(self.findings.ends()).min()
    }

    fn decide(&mut self, now: Instant, attempts: &mut Vec<Attempt>) -> Option<Instant> {
        let ctx = &self.ctx.clone();
        if ctx.levers.paused.get() {
            return None;
        }
        let mut placer = SelectPlacer::new(ctx, &mut self.findings, now);
        for _ in 0..DECISIONS_MAX {
            // What may be done is asked before what there is to do, for which every shard has to be locked.
            if let Err(not_yet) = ctx.budget.overall().try_take(1, now) {
                return Some(not_yet.ready_at);
            }
            if !ctx.window.try_enter() {
                ctx.budget.overall().give_back(1, now);
                return None; // an attempt that ends wakes the loop
            }
            let due = whose_turn(ctx, self.started);
            let decided = due.map(|(shard, class)| ctx.shards[shard].lock().place_next(class, &mut placer));
            let started = match decided {
                Some(Next::Reserved { work, epoch, room }) => {
                    placer.take().map(|reservation| Attempt::new(ctx, work, epoch, room, reservation))
                }
                Some(Next::Idle | Next::PutAside) | None => None,
            };
            match started {
                Some(attempt) => {
                    self.started += 1;
                    attempts.push(attempt);
                }
                None => {
                    ctx.window.leave(rate_limit::Outcome::Neutral, now);
                    ctx.budget.overall().give_back(1, now);
                    due?; // nothing is ready
                }
            }
        }
        Some(now) // more to do: after the others had a turn
    }
}

/// Sends what one round decided. Attempts on the same SFU go in one request, if it takes that: nobody
/// waits for company, so a call alone is as fast as ever, and a crowd costs one exchange.
fn start(ctx: &Context, attempts: Vec<Attempt>) {
    let mut by_sfu: BTreeMap<SfuIdx, Vec<Attempt>> = BTreeMap::new();
    for attempt in attempts {
        let batched = attempt.sfu().filter(|sfu| sfu.driver().capabilities().batches).map(|sfu| sfu.idx);
        let Some(idx) = batched else {
            ctx.tracker.spawn(attempt.run());
            continue;
        };
        let company = by_sfu.entry(idx).or_default();
        company.push(attempt);
        if company.len() >= BATCH_OPERATIONS_MAX {
            ctx.tracker.spawn(Attempt::run_all(std::mem::take(company)));
        }
    }
    for company in by_sfu.into_values().filter(|company| !company.is_empty()) {
        ctx.tracker.spawn(Attempt::run_all(company));
    }
}

/// The shard of the next call, and its class if the call has that to thank.
fn whose_turn(ctx: &Context, number: u64) -> Option<(usize, Option<Class>)> {
    let class = ctx.levers.turns().whose(number);
    let favoured = class.and_then(|_| most_urgent(ctx, class)).map(|(_, shard)| (shard, class));
    favoured.or_else(|| most_urgent(ctx, None).map(|(_, shard)| (shard, None)))
}

/// The rank of the most urgent ready call, of `class` or of all, and its shard.
fn most_urgent(ctx: &Context, class: Option<Class>) -> Option<(Instant, usize)> {
    let heads = ctx.shards.iter().enumerate();
    heads.filter_map(|(i, s)| s.lock().dirty().first_ready(class).map(|(at, _)| (at, i))).min()
}

/// What an error proves of the SFU, if anything.
#[must_use]
pub fn evidence(error: &DriverError, asked: Instant, now: Instant) -> Option<Evidence> {
    let failed = |failure| Some(Evidence::Failed { failure, fresh: error.is_dead_evidence() });
    match error.kind() {
        ErrorKind::Refused | ErrorKind::Reset => failed(Failure::Unreachable),
        ErrorKind::Tls => failed(Failure::Tls),
        ErrorKind::TimedOutBeforeSend | ErrorKind::TimedOutAfterSend => failed(Failure::TimedOut),
        ErrorKind::Internal => failed(Failure::ServerError),
        ErrorKind::Protocol => failed(Failure::Garbage),
        ErrorKind::Overloaded
        | ErrorKind::Draining
        | ErrorKind::Fenced
        | ErrorKind::Restarted
        | ErrorKind::Rejected => Some(Evidence::Answered {
            boot_id: error.boot_id().cloned(),
            asked,
            took: now.saturating_duration_since(asked),
        }),
        ErrorKind::FailFast | ErrorKind::Saturated | ErrorKind::Queued | ErrorKind::Local => None,
    }
}

/// Counts one unit of work in flight for as long as it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<AtomicU64>);

impl InFlight {
    /// Enters while fewer than `max` are inside. Only one task enters, so the check cannot race.
    pub(crate) fn enter(count: &Arc<AtomicU64>, max: u64) -> Option<Self> {
        if count.load(Ordering::Relaxed) >= max {
            return None;
        }
        count.fetch_add(1, Ordering::Relaxed);
        Some(Self(count.clone()))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
