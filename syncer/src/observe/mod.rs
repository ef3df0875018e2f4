//! Looks after every SFU: signs of life, and whether both sides have the same rooms.
//!
//! One loop walks over the catalogue ten times a second and starts what is due, a bounded number
//! at a time. A healthy SFU that answered a moment ago is not asked; a suspect one is tried on
//! fresh connections, since only those say anything about the machine.

mod digest;
mod probe;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::{Instant, MissedTickBehavior};

use crate::context::Context;
use crate::health::{Evidence, Verdict};
use crate::reconcile::InFlight;
use crate::select::Sfu;
use crate::state::SfuIdx;

/// How often due work is looked for: a twentieth of the default probe interval.
const PERIOD: Duration = Duration::from_millis(100);

/// Probes in flight. With a 2 s time-out, 256 try 128 silent SFUs a second; a probe is ~10 KiB.
const PROBES_MAX: u64 = 256;

/// Digests in flight: they carry lists, so fewer.
const DIGESTS_MAX: u64 = 16;

/// SFUs without calls of ours are asked this much less often.
const IDLE_FACTOR: u32 = 5;

/// When something was last started for an SFU, and whether it is under way.
#[derive(Debug, Default)]
struct Schedule {
    probe_at: Option<Instant>,
    digest_at: Option<Instant>,
    probing: Arc<AtomicU64>,
    digesting: Arc<AtomicU64>,
}

/// The loop and its schedule.
#[derive(Debug)]
pub struct Observer {
    ctx: Arc<Context>,
    schedules: HashMap<SfuIdx, Schedule>,
    probes: Arc<AtomicU64>,
    digests: Arc<AtomicU64>,
}

// === impl Observer ===

impl Observer {
    /// An observer of `ctx`'s catalogue.
    #[must_use]
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, schedules: HashMap::new(), probes: Arc::default(), digests: Arc::default() }
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

    fn walk(&mut self, now: Instant) {
        let snapshot = self.ctx.catalogue.now();
        // As many entries as the catalogue; SFUs that left it take theirs along.
        self.schedules
            .retain(|idx, _| self.ctx.catalogue.get(*idx).is_some_and(|s| snapshot.by_id.contains_key(&s.id)));
        for sfu in &snapshot.all {
            self.ctx.observe(sfu, &Evidence::Tick, now);
            self.look_at(sfu, now);
        }
    }

    fn look_at(&mut self, sfu: &Arc<Sfu>, now: Instant) {
        let ctx = &self.ctx;
        let schedule = self.schedules.entry(sfu.idx).or_default();
        let interval = probe_interval(ctx, sfu);
        // Spread over one interval at first, so that a start does not ask everyone at once.
        let probe_at =
            *schedule.probe_at.get_or_insert_with(|| now + jitter(ctx, interval.min(Duration::from_secs(1))));
        let answered = sfu.with_health(crate::health::Health::last_good);
        let fresh_answer = sfu.verdict() == Verdict::Healthy
            && answered.is_some_and(|at| now.saturating_duration_since(at) < interval);
        if now >= probe_at
            && !fresh_answer
            && let Some(mine) = InFlight::enter(&schedule.probing, 1)
            && let Some(permit) = InFlight::enter(&self.probes, PROBES_MAX)
        {
            schedule.probe_at = Some(now + interval.mul_f64(0.9) + jitter(ctx, interval.mul_f64(0.2)));
            let (ctx, sfu) = (ctx.clone(), sfu.clone());
            ctx.tracker.clone().spawn(async move {
                probe::run(&ctx, &sfu).await;
                drop((mine, permit));
            });
        }
        let every = ctx.levers.digest_interval.get();
        // A lowered interval counts at once.
        let latest = now + every.mul_f64(1.1);
        let digest_at = (*schedule.digest_at.get_or_insert_with(|| now + jitter(ctx, every))).min(latest);
        if now >= digest_at
            && sfu.verdict().takes_new()
            && !ctx.levers.digest_paused.get()
            && let Some(mine) = InFlight::enter(&schedule.digesting, 1)
            && let Some(permit) = InFlight::enter(&self.digests, DIGESTS_MAX)
        {
            schedule.digest_at = Some(now + every.mul_f64(0.9) + jitter(ctx, every.mul_f64(0.2)));
            let (ctx, sfu) = (ctx.clone(), sfu.clone());
            ctx.tracker.clone().spawn(async move {
                digest::run(&ctx, &sfu).await;
                drop((mine, permit));
            });
        } else {
            schedule.digest_at = Some(digest_at);
        }
    }
}

fn probe_interval(ctx: &Context, sfu: &Sfu) -> Duration {
    let steady = ctx.levers.probe_interval.get();
    let eager = ctx.levers.suspect_probe_interval.get();
    match sfu.verdict() {
        Verdict::Slow | Verdict::Suspect | Verdict::Restarted => eager.min(steady),
        Verdict::Dead => steady,
        Verdict::Healthy => {
            let held = ctx.shards.iter().any(|s| s.lock().calls_on(sfu.idx) > 0);
            if held { steady } else { steady * IDLE_FACTOR }
        }
    }
}

fn jitter(ctx: &Context, within: Duration) -> Duration {
    within.mul_f64(ctx.with_rng(|rng| rng.random::<f64>()))
}
