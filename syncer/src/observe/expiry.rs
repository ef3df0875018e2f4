//! Takes sessions out whose gateway vanished or did not tell them again, at a pace.
//!
//! What is due is decided by [`presence`](crate::presence); here are the clock, the locks and the pace. The
//! pace is that of releases to come: whoever was alone in a call leaves a room behind.

use std::sync::Arc;
use std::time::Duration;

use rate_limit::Bucket;
use tokio::time::{Instant, MissedTickBehavior};

use crate::context::Context;
use crate::presence::Due;

/// How often due work is looked for: a look walks at most 4,096 gateways.
const PERIOD: Duration = Duration::from_millis(100);

/// Sessions taken out under one lock: ~200 µs.
const STEP_MAX: u32 = 256;

/// The loop.
#[derive(Debug)]
pub struct Expiry {
    ctx: Arc<Context>,
    pace: Bucket,
}

// === impl Expiry ===

impl Expiry {
    /// The expiry of `ctx`'s sessions.
    #[must_use]
    pub fn new(ctx: Arc<Context>, now: Instant) -> Self {
        let pace = Bucket::new(ctx.levers.expire(), now);
        Self { ctx, pace }
    }

    /// Runs until the context stops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets no more sessions expire; what is due stays due.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.ctx.stop.cancelled() => return,
                _ = ticks.tick() => self.walk(Instant::now()).await,
            }
        }
    }

    async fn walk(&self, now: Instant) {
        let ctx = &self.ctx;
        let quota = ctx.levers.expire();
        if self.pace.quota() != quota {
            self.pace.set_limit(quota, now);
        }
        let look = ctx.presence.lock().look(&ctx.levers.presence(), now);
        for gateway in &look.vanished {
            ctx.metrics.gateways_vanished.inc();
            tracing::info!(%gateway, "gateway vanished, its sessions are kept for the resume window");
        }
        match look.turned {
            Some(true) => {
                tracing::error!("most gateways are silent at once: sessions do not expire, it is probably us")
            }
            Some(false) => tracing::info!("sessions of silent gateways expire again"),
            None => {}
        }
        for due in &look.due {
            if !self.expire(due).await {
                return;
            }
        }
    }

    /// Takes out what is due; `false` when the pace allows no more for now.
    async fn expire(&self, due: &Due) -> bool {
        let ctx = &self.ctx;
        let limits = ctx.levers.limits();
        for shard in &ctx.shards {
            loop {
                let now = Instant::now();
                if !ctx.presence.lock().is_due(due) {
                    return true;
                }
                let may = self.pace.available(now).min(STEP_MAX);
                if may == 0 {
                    return false;
                }
                let expired = shard.lock().expire(&due.gateway, due.before, may as usize, &limits, now);
                if expired.sessions > 0 {
                    // Only this task takes from the bucket, so what was available is.
                    let taken = self.pace.try_take(u32::try_from(expired.sessions).unwrap_or(may), now);
                    debug_assert!(taken.is_ok(), "no more expires than may");
                    ctx.metrics.sessions_expired.inc_by(expired.sessions as u64);
                    ctx.presence.lock().expired(due);
                }
                if !expired.more {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        ctx.presence.lock().finished(due, Instant::now());
        tracing::info!(gateway = %due.gateway, vanished = due.before.is_none(), "sessions out of date are gone");
        true
    }
}
