//! Looks after every SFU: signs of life, and whether both sides have the same rooms.
//!
//! One loop walks over the catalogue ten times a second and starts what is due, a bounded number
//! at a time. A healthy SFU that answered a moment ago is not asked; a suspect one is tried on
//! fresh connections, since only those say anything about the machine.
//!
//! [`Expiry`] is a loop of its own: it looks after the gateways.

mod digest;
mod expiry;
mod order;
mod people;
mod probe;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::time::{Instant, MissedTickBehavior};

use crate::context::Context;
use crate::health::{Evidence, Health, Verdict};
use crate::reconcile::InFlight;
use crate::select::{Sfu, Snapshot};
use crate::state::SfuIdx;

pub use self::expiry::Expiry;

/// How often due work is looked for: a twentieth of the default probe interval.
const PERIOD: Duration = Duration::from_millis(100);

/// Probes of SFUs in order that are in flight: 2,560 a second can be started.
const PROBES_MAX: u64 = 256;

/// Probes of SFUs in doubt that are in flight. Separate, so that silent SFUs, which hold a permit for
/// the whole time-out, cannot keep the others from being looked after; and well below the dials that
/// the pool has in flight at once.
const DOUBTS_MAX: u64 = 64;

/// Digests in flight: they carry lists, so fewer.
const DIGESTS_MAX: u64 = 16;

/// SFUs without calls of ours are asked this much less often.
const IDLE_FACTOR: u32 = 5;

/// A suspect that stays silent is asked half as often each time, down to this factor (~11 s).
const SILENCE_FACTOR_MAX: u32 = 16;

/// Rooms are first compared within this time, and again when we own more slots: as soon as the digests in flight
/// allow, and spread, for with a thousand SFUs it is a thousand requests.
const COMPARE_WITHIN: Duration = Duration::from_secs(2);

/// Comparisons in part after which the next one is an ordinary one: those before come within 2, 4, 8, 16 and 32 s.
const AGAIN_MAX: u32 = 5;

/// How often it is counted which SFUs hold calls of ours.
const COUNT_PERIOD: Duration = Duration::from_secs(1);

/// An SFU that left the catalogue and holds no call of ours is forgotten after this. Until then one that comes back under its
/// name is who it was: longer than holds last by default, and than a mistake in a list takes to be noticed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3_600);

/// As [`FORGOTTEN_AFTER`], where an operator had decided something that lasts. Most machines that are drained never come back.
const DECIDED_FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// When something was last started for an SFU, and whether it is under way.
#[derive(Debug)]
struct Schedule {
    probed: Instant,
    digested: Instant,
    /// Its rooms were not compared since we came to own slots. That is part of a recovery, so no sweep that yields to one.
    first: bool,
    /// Comparisons in a row that had to leave something out.
    again: u32,
    /// Whether the one that has ended is one of those.
    ended_in_part: Arc<Mutex<Option<bool>>>,
    /// Connections that had ended when it was last probed.
    ended: u64,
    /// Probes since it became suspect.
    doubts: u32,
    probing: Arc<AtomicU64>,
    digesting: Arc<AtomicU64>,
    /// When it was last told to drain or to serve.
    ordered: Option<Instant>,
    ordering: Arc<AtomicU64>,
}

/// The loop and its schedule.
#[derive(Debug)]
pub struct Observer {
    ctx: Arc<Context>,
    schedules: HashMap<SfuIdx, Schedule>,
    /// SFUs that hold calls of ours, as counted last.
    held: HashSet<SfuIdx>,
    count_at: Instant,
    /// SFUs that left the catalogue and hold no call of ours, and since when.
    gone: HashMap<SfuIdx, Instant>,
    /// Times that we had come to own more slots when it was looked last.
    gains: u64,
    /// Silence is no death until then: after a freeze, everyone is asked once more before it counts.
    silence_from: Instant,
    /// Where the next walk begins: after the last SFU that got a permit, so that none is for ever last.
    next: usize,
    probes: Arc<AtomicU64>,
    doubts: Arc<AtomicU64>,
    digests: Arc<AtomicU64>,
}

// === impl Observer ===

impl Observer {
    /// An observer of `ctx`'s SFUs.
    #[must_use]
    pub fn new(ctx: Arc<Context>, now: Instant) -> Self {
        Self {
            ctx,
            schedules: HashMap::new(),
            held: HashSet::new(),
            count_at: now,
            gone: HashMap::new(),
            gains: 0,
            silence_from: now,
            next: 0,
            probes: Arc::default(),
            doubts: Arc::default(),
            digests: Arc::default(),
        }
    }

    /// Runs until the context stops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future starts nothing more; what is under way ends by its own time-out.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.ctx.stop.cancelled() => return,
                _ = ticks.tick() => self.walk(Instant::now()),
            }
        }
    }

    /// Looks at every SFU of the catalogue, and at those that left it and still hold calls.
    fn walk(&mut self, now: Instant) {
        let snapshot = self.ctx.catalogue.now();
        if now >= self.count_at {
            self.count_at = now + COUNT_PERIOD;
            self.held = self.ctx.shards.iter().flat_map(|s| s.lock().sfus_in_use()).collect();
            self.forget(&snapshot, now);
        }
        let looked_after = |held: &HashSet<SfuIdx>, sfu: &Sfu| held.contains(&sfu.idx) || snapshot.lists(sfu);
        let sfus: Vec<Arc<Sfu>> = snapshot.known().filter(|s| looked_after(&self.held, s)).cloned().collect();
        if sfus.is_empty() {
            return;
        }
        self.ctx.look_at_fleet(now);
        if self.ctx.is_frozen() {
            let levers = &self.ctx.levers;
            let look = levers.suspect_probe_interval.get() * SILENCE_FACTOR_MAX + levers.probe_timeout.get();
            self.silence_from = now + look;
        }
        let gains = self.ctx.gains.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.gains, gains) != gains {
            self.schedules.values_mut().for_each(|schedule| schedule.compare_soon(&self.ctx, now));
        }
        let frozen = now < self.silence_from;
        let start = self.next % sfus.len();
        for i in (start..sfus.len()).chain(0..start) {
            let sfu = &sfus[i];
            self.ctx.observe(sfu, &Evidence::Tick { silence_counts: !frozen }, now);
            if self.look_at(sfu, now) {
                self.next = i + 1;
            }
        }
        // As many entries as SFUs looked after.
        self.schedules.retain(|idx, _| snapshot.get(*idx).is_some_and(|sfu| looked_after(&self.held, sfu)));
    }

    /// Forgets SFUs that left the catalogue long ago.
    fn forget(&mut self, snapshot: &Snapshot, now: Instant) {
        let before = std::mem::take(&mut self.gone);
        let mut forgotten = Vec::new();
        for sfu in snapshot.known().filter(|s| !self.held.contains(&s.idx) && !snapshot.lists(s)) {
            let since = before.get(&sfu.idx).copied().unwrap_or(now);
            let after = if sfu.is_decided() { DECIDED_FORGOTTEN_AFTER } else { FORGOTTEN_AFTER };
            if now.saturating_duration_since(since) >= after {
                forgotten.push(sfu.idx);
            } else {
                self.gone.insert(sfu.idx, since);
            }
        }
        if !forgotten.is_empty() {
            self.ctx.catalogue.forget(forgotten);
        }
    }

    /// Starts what is due for one SFU; returns whether it was probed.
    fn look_at(&mut self, sfu: &Arc<Sfu>, now: Instant) -> bool {
        let ctx = &self.ctx;
        let schedule = self.schedules.entry(sfu.idx).or_insert_with(|| Schedule::spread(ctx, now));
        let verdict = sfu.verdict();
        let in_doubt = verdict != Verdict::Healthy;
        if !in_doubt {
            schedule.doubts = 0;
        }
        let ended = sfu.driver().connections_ended();
        let (permits, max) = if in_doubt { (&self.doubts, DOUBTS_MAX) } else { (&self.probes, PROBES_MAX) };
        let mut probed = false;
        if schedule.probe_due(ctx, sfu, ended, self.held.contains(&sfu.idx), now)
            && let Some(mine) = InFlight::enter(&schedule.probing, 1)
            && let Some(permit) = InFlight::enter(permits, max)
        {
            probed = true;
            schedule.probed = now + jitter(ctx, PERIOD);
            schedule.ended = ended;
            schedule.doubts = schedule.doubts.saturating_add(u32::from(in_doubt));
            let (ctx, sfu) = (ctx.clone(), sfu.clone());
            ctx.tracker.clone().spawn(async move {
                probe::run(&ctx, &sfu).await;
                drop((mine, permit));
            });
        }
        let every = ctx.levers.digest_interval.get();
        schedule.compare_rest(ctx, now);
        let due = now.saturating_duration_since(schedule.digested) >= every;
        if due
            && verdict.answers()
            && !ctx.levers.digest_paused.get()
            && !sfu.is_quarantined()
            && (schedule.first || schedule.may_sweep(ctx, every, now))
            && let Some(mine) = InFlight::enter(&schedule.digesting, 1)
            && let Some(permit) = InFlight::enter(&self.digests, DIGESTS_MAX)
        {
            let first = std::mem::take(&mut schedule.first);
            // All are compared at once the first time, and sweeps are spread.
            schedule.digested =
                if first { ago(now, jitter(ctx, every)) } else { now + jitter(ctx, every.mul_f64(0.1)) };
            let (ctx, sfu, ended) = (ctx.clone(), sfu.clone(), schedule.ended_in_part.clone());
            ctx.tracker.clone().spawn(async move {
                *ended.lock() = Some(digest::run(&ctx, &sfu, first).await);
                drop((mine, permit));
            });
        }
        schedule.order(ctx, sfu, self.held.contains(&sfu.idx), now);
        probed
    }
}

/// `d` before `at`, as far as the clock goes back.
fn ago(at: Instant, d: Duration) -> Instant {
    at.checked_sub(d).unwrap_or(at)
}

// === impl Schedule ===

impl Schedule {
    /// So that a start does not ask every SFU at once; but the first sign of life within a second, and rooms are
    /// compared soon.
    fn spread(ctx: &Context, now: Instant) -> Self {
        let probe = ctx.levers.probe_interval.get();
        let probed = ago(now, probe.saturating_sub(jitter(ctx, probe.min(Duration::from_secs(1)))));
        let mut schedule = Self {
            probed,
            digested: now,
            first: true,
            again: 0,
            ended_in_part: Arc::default(),
            ended: 0,
            doubts: 0,
            probing: Arc::default(),
            digesting: Arc::default(),
            ordered: None,
            ordering: Arc::default(),
        };
        schedule.compare_soon(ctx, now);
        schedule
    }

    /// Rooms are compared within a second or two: with people in them there may be some of whose calls we know nothing.
    fn compare_soon(&mut self, ctx: &Context, now: Instant) {
        (self.first, self.again) = (true, 0);
        let every = ctx.levers.digest_interval.get();
        self.digested = ago(now, every.saturating_sub(jitter(ctx, every.min(COMPARE_WITHIN))));
    }

    /// Compares again what was left out, whose slots are claimed again within a second; less and less often, should the
    /// SFU go on refusing, and in the end no more than others.
    fn compare_rest(&mut self, ctx: &Context, now: Instant) {
        match self.ended_in_part.lock().take() {
            Some(true) => self.again += 1,
            Some(false) => self.again = 0,
            None => return,
        }
        // We own more since: then all of it is compared, and soon.
        if self.first || self.again == 0 || self.again > AGAIN_MAX {
            return;
        }
        let wait = COMPARE_WITHIN * (1 << (self.again - 1));
        self.first = true;
        self.digested = ago(now + wait / 2 + jitter(ctx, wait / 2), ctx.levers.digest_interval.get());
    }

    /// Tells an SFU that is drained, or no longer is, so. What it says of itself decides, so one that restarted
    /// is told again. `held`: it has calls of ours.
    fn order(&mut self, ctx: &Arc<Context>, sfu: &Arc<Sfu>, held: bool, now: Instant) {
        let wanted = sfu.is_draining() && (!held || sfu.driver().capabilities().drain_keeps_sessions);
        let again = |at: Instant| now.saturating_duration_since(at) >= ctx.levers.probe_interval.get();
        if let Some(draining) = sfu.orders.due(wanted, sfu.is_accepting())
            && sfu.verdict() == Verdict::Healthy
            && self.ordered.is_none_or(again)
            && let Some(mine) = InFlight::enter(&self.ordering, 1)
        {
            self.ordered = Some(now);
            let (ctx, sfu) = (ctx.clone(), sfu.clone());
            ctx.tracker.clone().spawn(async move {
                order::run(&ctx, &sfu, draining).await;
                drop(mine);
            });
        }
    }

    /// Whether admission lets a digest pass now; if not, it is asked again a tenth of the interval later.
    fn may_sweep(&mut self, ctx: &Context, every: Duration, now: Instant) -> bool {
        let may = ctx.admission.may_sweep(now, || ctx.with_rng(|rng| rng.random::<f64>()));
        if !may {
            self.digested = ago(now, every.mul_f64(0.9));
        }
        may
    }

    /// Whether the SFU is to be probed now.
    fn probe_due(&self, ctx: &Context, sfu: &Sfu, ended: u64, held: bool, now: Instant) -> bool {
        let steady = ctx.levers.probe_interval.get();
        let eager = ctx.levers.suspect_probe_interval.get().min(steady);
        let since = now.saturating_duration_since(self.probed);
        if sfu.with_health(Health::is_asked_to_look) {
            return true; // a peer waits for what we see
        }
        if since < eager {
            return false;
        }
        match sfu.verdict() {
            Verdict::Restarted | Verdict::Slow => true,
            Verdict::Suspect => {
                // Refusals are confirmed at once; silence is asked less and less often.
                let refused = sfu.with_health(Health::is_refusing);
                let factor = if refused { 1 } else { 1 << self.doubts.min(4) };
                since >= eager * SILENCE_FACTOR_MAX.min(factor)
            }
            Verdict::Dead => since >= steady,
            // A connection that ended may be the first word of a death: look at once.
            Verdict::Healthy if ended != self.ended => true,
            Verdict::Healthy => {
                let answered = sfu.with_health(Health::last_good);
                let quiet = answered.map_or(since, |at| now.saturating_duration_since(at).min(since));
                quiet >= if held || answered.is_none() { steady } else { steady * IDLE_FACTOR }
            }
        }
    }
}

fn jitter(ctx: &Context, within: Duration) -> Duration {
    within.mul_f64(ctx.with_rng(|rng| rng.random::<f64>()))
}
