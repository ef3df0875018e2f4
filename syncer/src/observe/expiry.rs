//! Takes sessions out whose gateway vanished or did not tell them again, at a pace.
//!
//! What is due is decided by [`presence`](crate::presence); here are the clock, the locks, the questions to SFUs and the
//! pace. The pace is that of releases to come: whoever was alone in a call leaves a room behind.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rate_limit::Bucket;
use sfu_api::GatewayId;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::people::{self, Talking};
use crate::context::Context;
use crate::presence::Due;
use crate::state::{SfuIdx, Walk};

/// How often due work is looked for: a look walks at most 4,096 gateways.
const PERIOD: Duration = Duration::from_millis(100);

/// Sessions taken out under one lock: ~200 µs.
const STEP_MAX: u32 = 256;

/// From one question to SFUs to the next: gateways that vanish one after the other are asked about together, and a count
/// that may mean either is another one by then.
const ASK_PERIOD: Duration = Duration::from_secs(1);

/// The loop.
#[derive(Debug)]
pub struct Expiry {
    ctx: Arc<Context>,
    pace: Bucket,
    talking: Arc<Talking>,
    /// The question under way.
    question: Option<Question>,
    /// When SFUs may be asked next.
    ask_at: Instant,
}

/// SFUs are asked who is there.
#[derive(Debug)]
struct Question {
    whom: Whom,
    asked: Instant,
    /// None, when the context stopped before all had answered.
    answer: JoinHandle<Option<Talking>>,
}

/// Which SFUs are asked.
#[derive(Clone, Debug)]
enum Whom {
    /// All that may have people of these gateways.
    Of(Vec<GatewayId>),
    /// Those whose last answer may mean either.
    Doubtful(BTreeSet<SfuIdx>),
}

// === impl Expiry ===

impl Expiry {
    /// The expiry of `ctx`'s sessions.
    #[must_use]
    pub fn new(ctx: Arc<Context>, now: Instant) -> Self {
        let pace = Bucket::new(ctx.levers.expire(), now);
        ctx.presence.lock().forget_people();
        Self { ctx, pace, talking: Arc::new(Talking::nobody()), question: None, ask_at: now }
    }

    /// Runs until the context stops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future lets no more sessions expire; what is due stays due. A question under way goes on without
    /// anybody to hear the answer, until it has it, its deadline is over or the context stops. Whoever takes over asks
    /// anew.
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
        if !self.talking.is_empty() && ctx.presence.lock().counts().vanished == 0 {
            self.talking = Arc::new(Talking::nobody()); // all are back, or forgotten
        }
        self.ask(look.ask, now);
        for due in &look.due {
            if !self.expire(due).await {
                return;
            }
        }
    }

    /// Asks SFUs of the people of these gateways, or else those in doubt, unless some are being asked or were a moment ago.
    fn ask(&mut self, of: Vec<GatewayId>, now: Instant) {
        if self.question.is_some() || now < self.ask_at {
            return;
        }
        let whom = if !of.is_empty() {
            Whom::Of(of)
        } else if self.is_in_doubt() {
            Whom::Doubtful(self.talking.doubtful().clone())
        } else {
            return;
        };
        self.ask_at = now + ASK_PERIOD;
        let (ctx, before, gone) = (self.ctx.clone(), self.talking.clone(), self.ctx.presence.lock().gone());
        let asked = whom.clone();
        let answer = self.ctx.tracker.spawn(async move {
            let answers = async {
                let sfus = match asked {
                    Whom::Of(gateways) => people::sfus_of(&ctx, &gateways).await,
                    Whom::Doubtful(sfus) => sfus,
                };
                people::ask(&ctx, sfus, &gone, &before).await
            };
            ctx.stop.run_until_cancelled(answers).await
        });
        self.question = Some(Question { whom, asked: now, answer });
    }

    /// Whether some SFUs are to be asked again at once.
    fn is_in_doubt(&self) -> bool {
        let presence = self.ctx.presence.lock();
        let kept = !self.ctx.levers.kept_max.get().is_zero() && presence.counts().vanished > 0;
        kept && !presence.is_frozen() && !self.talking.doubtful().is_empty()
    }

    /// Takes over what SFUs answered, once all have.
    async fn hear(&mut self, now: Instant) {
        if !self.question.as_ref().is_some_and(|question| question.answer.is_finished()) {
            return;
        }
        let Some(Question { whom, asked, answer }) = self.question.take() else { return };
        let told = match answer.await {
            Ok(Some(told)) => told,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a question to sfus was lost and is asked again");
                self.ctx.metrics.restarts.inc();
                return;
            }
        };
        match whom {
            Whom::Of(gateways) => {
                self.talking = Arc::new(told);
                self.ctx.presence.lock().told(&gateways, asked, now);
            }
            Whom::Doubtful(sfus) => {
                Arc::make_mut(&mut self.talking).take(&sfus, told);
                self.ctx.presence.lock().told_again();
            }
        }
    }

    /// Takes out what is due; `false` when the pace allows no more for now.
    async fn expire(&self, due: &Due) -> bool {
        let ctx = &self.ctx;
        let limits = ctx.levers.limits();
        let mut left = 0;
        for (i, shard) in ctx.shards.iter().enumerate() {
            let keeps = |call| due.but_talking && self.talking.keeps(i, call);
            let mut walk = Walk::over(due.gateway.clone(), due.before);
            loop {
                let now = Instant::now();
                if !ctx.presence.lock().is_due(due) {
                    return true;
                }
                let may = self.pace.available(now).min(STEP_MAX);
                if may == 0 {
                    return false;
                }
                let expired = shard.lock().expire(&mut walk, keeps, may as usize, &limits, now);
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
            left += walk.kept as u64;
        }
        ctx.presence.lock().finished(due, left, Instant::now());
        let vanished = due.before.is_none();
        tracing::info!(gateway = %due.gateway, vanished, kept = left, "sessions out of date are gone");
        true
    }
}
