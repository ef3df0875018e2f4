//! A simulated gateway: joins its sessions, keeps a watch, beats its heart.
//!
//! It behaves as a good gateway should, since a drill with rude clients proves nothing about the
//! syncer: it turns to another syncer when one fails, waits with full jitter, obeys `Retry-After`,
//! resumes its watch, and re-reads when told that it fell behind.

mod bulk;
mod heartbeat;
mod single;
mod watch;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use tokio::sync::{Notify, watch as channel};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Targets;
use crate::desk::{Desk, Op, Verb};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::media::Media;
use crate::pace::full_jitter;
use crate::population::{Population, Road, SessionIx, Wave};
use crate::stats::Stats;
use crate::wire::Answer;

/// Operations of one gateway on the bulk road at once: a round trip's worth at full speed.
const BULK_ON_WIRE_MAX: usize = 512;
/// Single requests of one gateway at once.
const SINGLE_ON_WIRE_MAX: usize = 16;
/// A gateway that cannot get a watch within this time joins anyhow, as people would wait for it.
const WATCH_FIRST_MAX: Duration = Duration::from_secs(5);
/// A re-read is spread over this time, so that gateways that were cut off together do not return together.
const REREAD_OVER: Duration = Duration::from_secs(2);

/// What all gateways of a drill share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) population: Population,
    pub(crate) targets: Targets,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) stats: Stats,
    pub(crate) media: Arc<Media>,
    pub(crate) cancel: CancellationToken,
    /// Once set, news of calls is no longer news: everyone is leaving.
    pub(crate) leaving: AtomicBool,
}

/// One gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    ix: u16,
    name: String,
    token: String,
    incarnation: String,
    client: reqwest::Client,
    shared: Arc<Shared>,
    bulk: Mutex<Desk>,
    single: Mutex<Desk>,
    bulk_bell: Notify,
    single_bell: Notify,
    watching: channel::Sender<bool>,
}

// === impl Shared ===

impl Shared {
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(std::sync::atomic::Ordering::Relaxed)
    }
}

// === impl Gateway ===

impl Gateway {
    /// Gateway `ix` with its sessions; sequence numbers and the incarnation come from `started_unix_ms`.
    pub(crate) fn new(
        ix: u16,
        shared: Arc<Shared>,
        tls: &rustls::ClientConfig,
        started_unix_ms: u64,
    ) -> Result<Arc<Self>, Error> {
        let (name, token) = shared.targets.gateway(usize::from(ix), shared.population.gateway_name(ix));
        let on = |road: Road| {
            let sessions = (0..).zip(shared.population.sessions());
            sessions.filter(move |(_, s)| s.gateway == ix && s.road == road).map(|(session, _)| session)
        };
        // Sequence numbers of a later drill with the same names are higher than those of this one.
        let bulk = Desk::new(on(Road::Bulk), started_unix_ms, BULK_ON_WIRE_MAX);
        let single = Desk::new(on(Road::Single), started_unix_ms, SINGLE_ON_WIRE_MAX);
        Ok(Arc::new(Self {
            ix,
            token,
            incarnation: started_unix_ms.to_string(),
            name,
            client: crate::client::client(tls)?,
            bulk: Mutex::new(bulk),
            single: Mutex::new(single),
            shared,
            bulk_bell: Notify::new(),
            single_bell: Notify::new(),
            watching: channel::Sender::new(false),
        }))
    }

    /// Starts the gateway's tasks on `tracker`; they end when the drill is cancelled.
    pub(crate) fn start(self: &Arc<Self>, tracker: &TaskTracker) {
        let cancel = &self.shared.cancel;
        tracker.spawn(cancel.clone().run_until_cancelled_owned(Arc::clone(self).watch_loop()));
        tracker.spawn(cancel.clone().run_until_cancelled_owned(Arc::clone(self).heartbeat_loop()));
        let (bulk, single) = (Arc::clone(self), Arc::clone(self));
        let tasks = tracker.clone();
        tracker.spawn(cancel.clone().run_until_cancelled_owned(async move {
            bulk.watch_first().await;
            bulk.bulk_loop().await;
        }));
        tracker.spawn(cancel.clone().run_until_cancelled_owned(async move {
            single.watch_first().await;
            single.single_loop(&tasks).await;
        }));
    }

    async fn watch_first(&self) {
        let mut watching = self.watching.subscribe();
        let up = watching.wait_for(|up| *up);
        // Whether it came up or not, joining begins.
        drop(tokio::time::timeout(WATCH_FIRST_MAX, up).await);
    }

    /// A wave is due: its sessions of this gateway join, spread over the wave's time.
    pub(crate) fn join_wave(&self, wave: &Wave, now: Instant) {
        self.want_all(Verb::Join, now, wave.over, |session| wave.sessions.contains(&session));
    }

    /// Every session leaves.
    pub(crate) fn leave_all(&self, now: Instant) {
        self.want_all(Verb::Leave, now, Duration::ZERO, |_| true);
    }

    /// Whether nothing is due and nothing on the wire.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        use crate::desk::Step;
        matches!(self.bulk.lock().peek(now), Step::Idle) && matches!(self.single.lock().peek(now), Step::Idle)
    }

    fn want_all(&self, verb: Verb, now: Instant, over: Duration, wanted: impl Fn(SessionIx) -> bool) {
        self.bulk.lock().want_all(verb, now, over, &wanted);
        self.single.lock().want_all(verb, now, over, &wanted);
        self.bulk_bell.notify_one();
        self.single_bell.notify_one();
    }

    /// What was announced may have been missed: every session that joined asks again.
    fn reread(&self, now: Instant) {
        self.shared.stats.resyncs.add(1);
        if self.shared.is_leaving() {
            return;
        }
        let from = now + REREAD_OVER.mul_f64(rand::rng().random_range(0.0..0.2));
        for (desk, bell) in [(&self.bulk, &self.bulk_bell), (&self.single, &self.single_bell)] {
            desk.lock().want_joined_again(from, REREAD_OVER);
            bell.notify_one();
        }
    }

    fn desk(&self, road: Road) -> (&Mutex<Desk>, &Notify) {
        match road {
            Road::Bulk => (&self.bulk, &self.bulk_bell),
            Road::Single => (&self.single, &self.single_bell),
        }
    }

    fn sending(&self, op: Op, now: Instant) {
        if op.verb == Verb::Join {
            self.shared.ledger.lock().join_sent(self.shared.population.session(op.session).call, now);
        }
    }

    /// Takes an answer to `op`.
    fn answered(&self, road: Road, op: Op, answer: &Answer, now: Instant) {
        let stats = &self.shared.stats;
        let (desk, bell) = self.desk(road);
        let wait = answer.retry_after();
        match answer.status {
            200..300 => {
                if desk.lock().done(op.slot, op.seq, now) {
                    match op.verb {
                        Verb::Join => self.joined(op, answer, now),
                        Verb::Leave => stats.left.add(1),
                    }
                }
            }
            429 | 503 => {
                stats.throttled.add(1);
                let attempts = desk.lock().attempts(op.slot);
                // The server spreads its callers itself; a little jitter on top does no harm.
                let jitter = full_jitter(0, &mut rand::rng());
                let wait = wait.map_or_else(|| full_jitter(attempts, &mut rand::rng()), |w| w + jitter);
                self.retry(road, op, now + wait);
            }
            408 | 421 | 500.. => {
                stats.error(answer.error_code.as_deref().unwrap_or("server_error"));
                let attempts = desk.lock().attempts(op.slot);
                let wait = wait.unwrap_or_else(|| full_jitter(attempts, &mut rand::rng()));
                self.retry(road, op, now + wait);
            }
            status => {
                let code = answer.error_code.as_deref().unwrap_or("refused");
                stats.error(code);
                stats.refused.add(1);
                tracing::debug!(status, code, message = answer.message.as_deref(), "operation refused");
                desk.lock().done(op.slot, op.seq, now);
            }
        }
        bell.notify_one();
    }

    fn retry(&self, road: Road, op: Op, at: Instant) {
        let (desk, bell) = self.desk(road);
        if desk.lock().retry(op.slot, op.seq, at) {
            self.shared.stats.retries.add(1);
        }
        bell.notify_one();
    }

    fn joined(&self, op: Op, answer: &Answer, now: Instant) {
        self.shared.stats.joined.add(1);
        let call = self.shared.population.session(op.session).call;
        let Some(news) = answer.news(call) else { return };
        self.shared.ledger.lock().answer(self.ix, news, now);
        if let (Some(endpoint), Some(token)) = (&answer.endpoint, &answer.token) {
            self.shared.media.offer(op.session, news.epoch, endpoint, token);
        }
    }
}
