//! Takes sessions out whose gateway vanished or did not tell them again, at a pace.
//!
//! What is due is decided by [`presence`](crate::presence); here are the clock, the locks, the questions to SFUs and the
//! pace. The pace is that of releases to come: whoever was alone in a call leaves a room behind.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rate_limit::Bucket;
use sfu_api::GatewayId;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::people::{self, Talking};
use crate::context::Context;
use crate::presence::Due;

/// How often due work is looked for: a look walks at most 4,096 gateways.
const PERIOD: Duration = Duration::from_millis(100);

/// Sessions taken out under one lock: ~200 µs.
const STEP_MAX: u32 = 256;

/// From one question to SFUs to the next: gateways that vanish one after the other are asked about together.
const ASK_PERIOD: Duration = Duration::from_secs(1);

/// The loop.
#[derive(Debug)]
pub struct Expiry {
    ctx: Arc<Context>,
    pace: Bucket,
    /// Where people talk whose gateways are gone, as SFUs said when they were asked last.
    talking: Talking,
    /// The question under way.
    question: Option<Question>,
    /// When SFUs may be asked next.
    ask_at: Instant,
}

/// SFUs are asked who is there.
#[derive(Debug)]
struct Question {
    /// Of the people of these gateways.
    of: Vec<GatewayId>,
    asked: Instant,
    answer: JoinHandle<Talking>,
}

// === impl Expiry ===

impl Expiry {
    /// The expiry of `ctx`'s sessions.
    #[must_use]
    pub fn new(ctx: Arc<Context>, now: Instant) -> Self {
        let pace = Bucket::new(ctx.levers.expire(), now);
        ctx.presence.lock().forget_people();
        Self { ctx, pace, talking: people::nobody(), question: None, ask_at: now }
    }

    /// Runs until the context stops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets no more sessions expire; what is due stays due. A question under way ends by its own
    /// time-out.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.ctx.stop.cancelled() => return,
                _ = ticks.tick() => self.walk(Instant::now()).await,
            }
        }
    }

    async fn walk(&mut self, now: Instant) {
        self.hear(now).await;
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
        ctx.metrics.sessions_kept.set(i64::try_from(look.kept).unwrap_or(i64::MAX));
        self.ask(look.ask, now);
        for due in &look.due {
            if !self.expire(due).await {
                return;
            }
        }
    }

    /// Asks SFUs of the people of these gateways, unless they are being asked or were a moment ago.
    fn ask(&mut self, of: Vec<GatewayId>, now: Instant) {
        if of.is_empty() || self.question.is_some() || now < self.ask_at {
            return;
        }
        self.ask_at = now + ASK_PERIOD;
        let (ctx, gone) = (self.ctx.clone(), self.ctx.presence.lock().gone());
        let these = of.clone();
        let answer = self.ctx.tracker.spawn(async move { people::ask(&ctx, &these, &gone).await });
        self.question = Some(Question { of, asked: now, answer });
    }

    /// Takes over what SFUs answered, once all have.
    async fn hear(&mut self, now: Instant) {
        if !self.question.as_ref().is_some_and(|question| question.answer.is_finished()) {
            return;
        }
        let Some(Question { of, asked, answer }) = self.question.take() else { return };
        let Ok(talking) = answer.await else { return }; // it panicked, and is asked again
        self.talking = talking;
        self.ctx.presence.lock().told(&of, asked, now);
    }

    /// Takes out what is due; `false` when the pace allows no more for now.
    async fn expire(&self, due: &Due) -> bool {
        let ctx = &self.ctx;
        let limits = ctx.levers.limits();
        let (nobody, mut left) = (HashSet::new(), 0);
        for (shard, talking) in ctx.shards.iter().zip(&self.talking) {
            let kept = if due.but_talking { talking } else { &nobody };
            loop {
                let now = Instant::now();
                if !ctx.presence.lock().is_due(due) {
                    return true;
                }
                let may = self.pace.available(now).min(STEP_MAX);
                if may == 0 {
                    return false;
                }
                let expired = shard.lock().expire(&due.gateway, due.before, kept, may as usize, &limits, now);
                if expired.sessions > 0 {
                    // Only this task takes from the bucket, so what was available is.
                    let taken = self.pace.try_take(u32::try_from(expired.sessions).unwrap_or(may), now);
                    debug_assert!(taken.is_ok(), "no more expires than may");
                    ctx.metrics.sessions_expired.inc_by(expired.sessions as u64);
                    ctx.presence.lock().expired(due);
                }
                if !expired.more {
                    left += expired.kept as u64;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        ctx.presence.lock().finished(due, left, Instant::now());
        let vanished = due.before.is_none();
        tracing::info!(gateway = %due.gateway, vanished, kept = left, "sessions out of date are gone");
        true
    }
}
