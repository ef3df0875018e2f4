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
use crate::health::{Evidence, Health, Verdict};
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
#[derive(Debug)]
struct Schedule {
    probed: Instant,
    digested: Instant,
    /// Connections that had ended when it was last probed.
    ended: u64,
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
        let schedule = self.schedules.entry(sfu.idx).or_insert_with(|| Schedule::spread(ctx, now));
        // A connection that ends may be the first word of a death: look at once.
        let ended = sfu.driver.connections_ended();
        if (ended != schedule.ended || probe_due(ctx, sfu, schedule.probed, now))
            && let Some(mine) = InFlight::enter(&schedule.probing, 1)
            && let Some(permit) = InFlight::enter(&self.probes, PROBES_MAX)
        {
            schedule.probed = now + jitter(ctx, PERIOD);
            schedule.ended = ended;
            let (ctx, sfu) = (ctx.clone(), sfu.clone());
            ctx.tracker.clone().spawn(async move {
                probe::run(&ctx, &sfu).await;
                drop((mine, permit));
            });
        }
        let every = ctx.levers.digest_interval.get();
        let due = now.saturating_duration_since(schedule.digested) >= every;
        if due
            && sfu.verdict().takes_new()
            && !ctx.levers.digest_paused.get()
            && let Some(mine) = InFlight::enter(&schedule.digesting, 1)
            && let Some(permit) = InFlight::enter(&self.digests, DIGESTS_MAX)
        {
            schedule.digested = now + jitter(ctx, every.mul_f64(0.1));
            let (ctx, sfu) = (ctx.clone(), sfu.clone());
            ctx.tracker.clone().spawn(async move {
                digest::run(&ctx, &sfu).await;
                drop((mine, permit));
            });
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// As if everything had been done at a moment drawn from the last interval, so that a start
    /// does not ask every SFU at once; but the first sign of life within a second.
    fn spread(ctx: &Context, now: Instant) -> Self {
        let probe = ctx.levers.probe_interval.get();
        let ago = |at: Instant, d: Duration| at.checked_sub(d).unwrap_or(at);
        let probed = ago(now, probe.saturating_sub(jitter(ctx, probe.min(Duration::from_secs(1)))));
        let digested = ago(now, jitter(ctx, ctx.levers.digest_interval.get()));
        Self { probed, digested, ended: 0, probing: Arc::default(), digesting: Arc::default() }
    }
}

/// Whether `sfu`, last probed then, is to be probed now.
fn probe_due(ctx: &Context, sfu: &Sfu, probed: Instant, now: Instant) -> bool {
    let steady = ctx.levers.probe_interval.get();
    let eager = ctx.levers.suspect_probe_interval.get().min(steady);
    let since = now.saturating_duration_since(probed);
    match sfu.verdict() {
        Verdict::Slow | Verdict::Suspect | Verdict::Restarted => since >= eager,
        Verdict::Dead => since >= steady,
        Verdict::Healthy => {
            let answered = sfu.with_health(Health::last_good);
            let quiet = answered.map_or(since, |at| now.saturating_duration_since(at).min(since));
            let held = || ctx.shards.iter().any(|s| s.lock().calls_on(sfu.idx) > 0);
            quiet >= steady && (answered.is_none() || quiet >= steady * IDLE_FACTOR || held())
        }
    }
}

fn jitter(ctx: &Context, within: Duration) -> Duration {
    within.mul_f64(ctx.with_rng(|rng| rng.random::<f64>()))
}
