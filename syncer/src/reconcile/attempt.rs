//! One attempt to make a room, from the reservation to the commit.

use std::sync::Arc;
use std::time::Duration;

use rate_limit::{Backoff, Outcome};
use sfu_api::{Epoch, RoomId};
use tokio::time::Instant;

use super::evidence;
use crate::context::Context;
use crate::drivers::{DriverError, ErrorKind, RoomReady, RoomSpec};
use crate::health::Evidence;
use crate::select::{Reservation, Sfu};
use crate::state::{Committed, PlaceWork, Release};

/// Wait before a call is tried again. The failed SFU is out of selection by then, so the first
/// steps are short; 10 s bounds what a call waits once the fleet is well again.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(10) };

/// Wait before the room of a lost answer is ended: by then the SFU has finished making it.
const GHOST_AFTER: Duration = Duration::from_secs(2);

/// How long an SFU that serves nothing is left alone at this step: at least half of the step's bound, so that the
/// steps of an outage can be counted.
pub(crate) fn pause(step: u32, rng: &mut impl rand::Rng) -> Duration {
    BACKOFF.bound(step) / 2 + BACKOFF.full_jitter(step, rng) / 2
}

pub(super) struct Attempt {
    ctx: Arc<Context>,
    work: PlaceWork,
    epoch: Epoch,
    room: RoomId,
    /// `None` once the attempt has ended.
    reservation: Option<Reservation>,
}

// === impl Attempt ===

impl Attempt {
    pub(super) fn new(ctx: &Arc<Context>, work: PlaceWork, epoch: Epoch, room: RoomId, taken: Reservation) -> Self {
        Self { ctx: ctx.clone(), work, epoch, room, reservation: Some(taken) }
    }

    /// Sends the request and acts on its end. Bounded by the lever `placement.attempt_timeout`.
    pub(super) async fn run(self) {
        Self::run_all(vec![self]).await;
    }

    /// As [`Self::run`], for attempts on one SFU, in one exchange: none waits for another to be sent.
    pub(super) async fn run_all(mut attempts: Vec<Self>) {
        let Some(first) = attempts.first() else { return };
        let ctx = first.ctx.clone();
        let Some(sfu) = first.sfu().cloned() else { return };
        let asked = Instant::now();
        let deadline = asked + ctx.levers.attempt_timeout.get();
        let mut specs: Vec<RoomSpec> = attempts.iter().map(|attempt| attempt.spec(&sfu)).collect();
        let results = match specs.pop() {
            Some(only) if specs.is_empty() => {
                sfu.driver().ensure_room(only, deadline).await.map(|ready| vec![Ok(ready)])
            }
            last => sfu.driver().ensure_rooms(specs.into_iter().chain(last).collect(), deadline).await,
        };
        let now = Instant::now();
        ctx.pace.attempt(now.saturating_duration_since(asked));
        // What failed as a whole is one piece of evidence, not one for each call.
        let blamed = results.as_ref().err().cloned();
        // Before the places are given back: nobody takes one ahead of the pause.
        if let (Some(error), Some(first)) = (&blamed, attempts.first()) {
            first.hold(&sfu, error, asked, now);
        }
        let results = results.unwrap_or_else(|error| vec![Err(error); attempts.len()]);
        for (attempt, result) in attempts.iter_mut().zip(results) {
            let Some(reservation) = attempt.reservation.take() else { continue };
            match result {
                Ok(ready) => attempt.made(&sfu, reservation, ready, asked, now),
                Err(error) => {
                    if blamed.is_none() {
                        attempt.blame(&sfu, &error, asked, now);
                    }
                    attempt.failed(&sfu, reservation, &error, now);
                }
            }
        }
        // And this after it: its load report comes from when they were taken. The pause has begun and stays as it is.
        if let (Some(error), Some(first)) = (blamed, attempts.first()) {
            first.blame(&sfu, &error, asked, now);
        }
        ctx.wake.notify_one();
    }

    /// The SFU it is on; `None` once it has ended.
    pub(super) fn sfu(&self) -> Option<&Arc<Sfu>> {
        self.reservation.as_ref().map(Reservation::sfu)
    }

    fn spec(&self, sfu: &Sfu) -> RoomSpec {
        let work = &self.work;
        RoomSpec {
            room: self.room.clone(),
            guild: work.guild.clone(),
            call: work.call.clone(),
            kind: work.kind,
            slot: work.slot,
            owner_term: work.term,
            epoch: self.epoch,
            op_id: self.ctx.op_id("ensure", work.slot, self.epoch, 0),
            boot_id: sfu.with_health(|h| h.boot_id().cloned()),
            // What a call may grow to: rooms are not made again when it does.
            capacity: u32::try_from(self.ctx.levers.participants_per_call_max.get()).unwrap_or(u32::MAX),
        }
    }

    fn made(&self, sfu: &Arc<Sfu>, reservation: Reservation, ready: RoomReady, asked: Instant, now: Instant) {
        let ctx = &self.ctx;
        self.count();
        ctx.metrics.attempt_ended("made");
        let boot_id = ready.boot_id.clone();
        let took = now.saturating_duration_since(asked);
        ctx.observe(sfu, &Evidence::Answered { boot_id, asked, took }, now);
        sfu.clear_failures();
        let losses = reservation.losses();
        if ready.created {
            reservation.settle(Outcome::Success, now);
        } else {
            ctx.budget.overall().give_back_late(1, reservation.made_at(), now);
            reservation.unused(Outcome::Success, now);
        }
        ctx.window.leave(Outcome::Success, now);
        if let Some(load) = ready.load {
            sfu.report(load, now);
        }
        let current = sfu.with_health(|h| h.boot_id().cloned());
        let of_now = ready.boot_id.is_none() || ready.boot_id == current;
        let limits = ctx.levers.limits();
        let mut shard = ctx.shard(self.work.slot).lock();
        // A loss is counted before it passes over the shards. Seen here, under the lock, it happened
        // while the answer was under way; not seen, the pass is still to come and finds the call.
        if sfu.losses() != losses || !of_now {
            let not_before = now + ctx.with_rng(|rng| BACKOFF.full_jitter(0, rng));
            shard.fail(self.work.key, self.epoch, true, not_before);
            drop(shard);
            ctx.release_later(self.ghost(sfu), now + GHOST_AFTER);
            return;
        }
        let committed = shard.commit(self.work.key, self.epoch, ready.endpoint, &limits, now);
        drop(shard);
        match committed {
            Committed::Placed { news, moved, awaited, class, left } => {
                ctx.metrics.placements.inc();
                if moved {
                    ctx.metrics.moves.inc();
                }
                if let Some(awaited) = awaited {
                    ctx.pace.placed(class, now);
                    ctx.metrics.awaited(class, awaited.as_secs_f64());
                }
                if let Some(news) = news {
                    ctx.announce(news);
                }
                if let Some(left) = left {
                    if let Some(from) = ctx.catalogue.get(left.sfu) {
                        from.count_moved();
                    }
                    ctx.metrics.planned_moves.inc();
                    // Its clients leave first: they have only just heard.
                    ctx.release_later(*left, now + GHOST_AFTER);
                }
            }
            Committed::Stale => {
                ctx.metrics.stale.inc();
                ctx.release(self.ghost(sfu), now);
            }
        }
    }

    fn failed(&self, sfu: &Arc<Sfu>, taken: Reservation, error: &DriverError, now: Instant) {
        let ctx = &self.ctx;
        let sent = !error.is_local() || error.room_may_exist();
        ctx.metrics.attempt_ended(error.kind().as_str());
        tracing::debug!(sfu = %sfu.id, call = %self.work.call, epoch = %self.epoch, %error, "attempt failed");
        if sent {
            self.count();
            // One that fails fast must not look idle: its failures count as load until it reports.
            let outcome = if error.is_overload() { Outcome::Overload } else { Outcome::Neutral };
            taken.settle(outcome, now);
        } else {
            ctx.budget.overall().give_back_late(1, taken.made_at(), now);
            taken.unused(Outcome::Neutral, now);
        }
        // The syncer's own window follows local signals alone: dead SFUs must not slow the repair
        // on the others.
        let local = if error.kind() == ErrorKind::Saturated { Outcome::Overload } else { Outcome::Neutral };
        ctx.window.leave(local, now);
        if error.kind() == ErrorKind::Fenced {
            self.fenced(error);
        }
        let wait = ctx.with_rng(|rng| BACKOFF.full_jitter(self.work.attempts, rng));
        ctx.shard(self.work.slot).lock().fail(self.work.key, self.epoch, sent, now + wait);
        if error.room_may_exist() {
            ctx.release_later(self.ghost(sfu), now + GHOST_AFTER);
        }
    }

    /// Draws the conclusions about the SFU itself.
    fn blame(&self, sfu: &Arc<Sfu>, error: &DriverError, asked: Instant, now: Instant) {
        if let Some(load) = error.load() {
            sfu.report(load, now);
        }
        if error.kind() == ErrorKind::Draining {
            sfu.set_accepting(false);
        }
        self.hold(sfu, error, asked, now);
        if let Some(evidence) = evidence(error, asked, now) {
            self.ctx.observe(sfu, &evidence, now);
        }
    }

    /// Keeps the SFU out of selection for as long as it asked, or longer with every step in a row
    /// in which it refuses, although its probes are fine. The call itself goes elsewhere.
    fn hold(&self, sfu: &Sfu, error: &DriverError, since: Instant, now: Instant) {
        // A fence or another incarnation concerns one room, not the SFU's ability to serve.
        let refused = matches!(error.kind(), ErrorKind::Rejected | ErrorKind::Internal | ErrorKind::Overloaded);
        let asked = error.retry_after();
        if refused || asked.is_some() {
            sfu.leave_alone(since, now, |step| asked.unwrap_or_else(|| self.ctx.with_rng(|rng| pause(step, rng))));
        }
        match asked.map(|after| now + after) {
            Some(until) if error.kind() == ErrorKind::Overloaded => sfu.overloaded_until(until),
            Some(until) => sfu.hold_until(until),
            None => {}
        }
    }

    /// Somebody wrote there with a higher term, or we did, in a life we do not remember.
    fn fenced(&self, error: &DriverError) {
        let ours = self.work.term;
        if let Some(epoch) = error.highest_epoch().filter(|e| e.term == ours) {
            self.ctx.shard(self.work.slot).lock().raise_placements(epoch);
        }
        if let Some(term) = error.highest_term().max(error.highest_epoch().map(|e| e.term)).filter(|t| *t > ours) {
            self.ctx.fenced_by([(self.work.slot, term)]);
        }
    }

    fn count(&self) {
        self.ctx.metrics.attempts.inc();
        if self.work.attempts == 0 {
            self.ctx.metrics.first_attempts.inc();
        }
    }

    /// The room this attempt made, or may have made, for nobody.
    fn ghost(&self, sfu: &Sfu) -> Release {
        Release { sfu: sfu.idx, room: self.room.clone(), slot: self.work.slot, term: self.work.term, epoch: self.epoch }
    }
}

impl Drop for Attempt {
    /// A panic in a driver, or a runtime that shuts down: nothing stays taken and the call is
    /// looked at again.
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else { return };
        let now = Instant::now();
        drop(reservation);
        self.ctx.window.leave(Outcome::Neutral, now);
        self.ctx.metrics.attempt_ended("abandoned");
        self.ctx.shard(self.work.slot).lock().fail(self.work.key, self.epoch, true, now + BACKOFF.max);
        self.ctx.wake.notify_one();
    }
}
