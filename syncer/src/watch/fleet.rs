//! One gateway's watch of the whole fleet: our own news and those of every peer, merged.
//!
//! The serving syncer subscribes to each peer's local watch on the gateway's behalf. A peer that
//! cannot be reached costs nothing but its own news: it is asked again with jitter, from where its
//! news stopped. What is merged needs no order between syncers, because a call has one owner; when
//! the owner changes, epochs say which news is newer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use rate_limit::Backoff;
use sfu_api::{GatewayId, SyncerId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::cursor::Position;
use super::event::{Item, frame};
use super::sse::{Event, Parser};
use super::{Cursor, Source, Watcher};
use crate::ownership::{Owner, Ownership};
use crate::peer::Peers;

/// A comment this often tells proxies, and the other end, that the watch is alive.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Three keep-alives missed: the peer is gone without saying so.
const PEER_SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often the roster is looked at for peers that came or went.
const ROSTER_INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts to subscribe at a peer.
const RECONNECT: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };
/// Events from peers on their way to the client; then peers wait, and coalesce.
const PEER_EVENTS_MAX: usize = 64;
/// The last word of a watch whose gateway has opened too many. Clients that come back by themselves do so rarely
/// then: at once, more of them than there may be would end one another for ever.
const REPLACED: &[u8] = b"retry: 30000\nevent: end\ndata: {\"reason\":\"too_many_watches\"}\n\n";
/// The last word of a watch whose caller is no longer listed, or may do something else.
const CHANGED: &[u8] = b"event: end\ndata: {\"reason\":\"caller_changed\"}\n\n";
/// Text gathered into one write.
const WRITE_BYTES: usize = 16 * 1024;

/// Whose news.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// This syncer's calls.
    Local,
    /// The fleet's calls.
    #[default]
    Fleet,
}

/// A gateway's watch while it lasts.
pub(crate) struct Fleet {
    pub(crate) gateway: GatewayId,
    /// Whether it still may: asked before each write.
    pub(crate) may_hear: Box<dyn FnMut() -> bool + Send>,
    pub(crate) watcher: Watcher,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) ownership: Arc<Ownership>,
    /// `None` when only our own news is wanted.
    pub(crate) peers: Option<Arc<Peers>>,
    pub(crate) cursor: Cursor,
    pub(crate) stop: CancellationToken,
    /// Counts what was sent and what broke.
    pub(crate) metrics: super::WatchMetrics,
}

enum FromPeer {
    Event(SyncerId, Event),
    Lost(SyncerId),
}

// === impl Fleet ===

impl Fleet {
    /// Writes events until the client is gone, the syncer stops, the gateway has too many newer watches, or it may not
    /// hear of them any more.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the watch ends; the client resumes by the last id it saw.
    pub(crate) async fn run(mut self, out: mpsc::Sender<Bytes>) {
        // The last word has its place from the beginning: a client that does not read holds up nobody.
        let Ok(last_word) = out.clone().try_reserve_owned() else { return };
        let replaced = self.watcher.replaced();
        let why = tokio::select! {
            why = self.write(&out) => why,
            () = replaced => Some(REPLACED),
        };
        if let Some(why) = why {
            drop(last_word.send(Bytes::from_static(why)));
        }
    }

    /// Returns what is still to be said.
    async fn write(&mut self, out: &mpsc::Sender<Bytes>) -> Option<&'static [u8]> {
        let (to_us, mut from_peers) = mpsc::channel(PEER_EVENTS_MAX);
        // Dropped with this future, and all subscriptions with it.
        let mut tasks = JoinSet::new();
        let mut subscribed: BTreeMap<SyncerId, (Arc<str>, AbortHandle)> = BTreeMap::new();
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        let mut roster = interval_at(Instant::now(), ROSTER_INTERVAL);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        roster.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Says at once that the watch stands, and how soon to come back when it breaks.
        if out.send(Bytes::from_static(b"retry: 1000\n: watching\n\n")).await.is_err() {
            return None;
        }
        loop {
            let text = tokio::select! {
                () = self.stop.cancelled() => return None,
                () = out.closed() => return None,
                item = self.watcher.next(&*self.source) => self.own(item),
                Some(news) = from_peers.recv() => self.foreign(news),
                _ = keep_alive.tick() => ": keep-alive\n\n".to_owned(),
                _ = roster.tick(), if self.peers.is_some() => {
                    self.follow_roster(&mut subscribed, &mut tasks, &to_us);
                    continue;
                }
            };
            if text.is_empty() {
                continue;
            }
            if !(self.may_hear)() {
                return Some(CHANGED);
            }
            if out.send(Bytes::from(text)).await.is_err() {
                return None;
            }
        }
    }

    /// Our own news, as many as fit one write.
    fn own(&mut self, first: Item) -> String {
        let mut text = String::new();
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Resync { reason } => text.push_str(&resync(reason)),
                Item::Endpoint { data, seq } => {
                    let id = seq.map(|seq| {
                        let me = self.ownership.me().clone();
                        self.cursor.0.insert(me, self.watcher.position(seq));
                        self.cursor.to_string()
                    });
                    text.push_str(&frame("endpoint", id.as_deref(), &data));
                    self.metrics.sent.inc();
                }
            }
            next = if text.len() < WRITE_BYTES { self.watcher.rendered() } else { None };
        }
        text
    }

    fn foreign(&mut self, news: FromPeer) -> String {
        match news {
            FromPeer::Lost(peer) => {
                self.metrics.peers_lost.inc();
                self.metrics.resyncs.inc();
                self.cursor.0.remove(&peer);
                resync("peer_lost")
            }
            FromPeer::Event(peer, event) => {
                // The peer's cursor names the peer alone.
                let at = event.id.and_then(|id| id.parse::<Cursor>().ok()?.0.remove(&peer));
                let id = at.map(|at| {
                    self.cursor.0.insert(peer, at);
                    self.cursor.to_string()
                });
                self.metrics.sent.inc();
                frame(&event.event, id.as_deref(), &event.data)
            }
        }
    }

    fn follow_roster(
        &self,
        subscribed: &mut BTreeMap<SyncerId, (Arc<str>, AbortHandle)>,
        tasks: &mut JoinSet<()>,
        to_us: &mpsc::Sender<FromPeer>,
    ) {
        let Some(peers) = &self.peers else { return };
        while tasks.try_join_next().is_some() {}
        let view = self.ownership.view();
        let wanted: BTreeMap<&SyncerId, &Arc<Owner>> = view.peers().map(|p| (&p.id, p)).collect();
        subscribed.retain(|id, (url, task)| {
            let keep = wanted.get(id).is_some_and(|p| p.url == *url) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for (id, peer) in wanted {
            if !subscribed.contains_key(id) {
                let subscription = Subscription {
                    peers: Arc::clone(peers),
                    peer: Arc::clone(peer),
                    gateway: self.gateway.clone(),
                    at: self.cursor.0.get(id).copied(),
                    to: to_us.clone(),
                };
                subscribed.insert(id.clone(), (Arc::clone(&peer.url), tasks.spawn(subscription.run())));
            }
        }
    }
}

fn resync(reason: &str) -> String {
    frame("resync", None, &format!("{{\"reason\":\"{reason}\"}}"))
}

/// One peer's local watch, kept open.
struct Subscription {
    peers: Arc<Peers>,
    peer: Arc<Owner>,
    gateway: GatewayId,
    at: Option<Position>,
    to: mpsc::Sender<FromPeer>,
}

/// How a subscription ended.
enum Ended {
    /// It broke; go on from where it stopped.
    Broken,
    /// The peer no longer has what follows our position.
    Outdated,
    /// Nobody listens any more.
    Unwanted,
}

// === impl Subscription ===

impl Subscription {
    async fn run(mut self) {
        let mut failed = 0;
        loop {
            let before = self.at;
            match self.once().await {
                Ended::Unwanted => return,
                Ended::Outdated => {
                    self.at = None;
                    if self.to.send(FromPeer::Lost(self.peer.id.clone())).await.is_err() {
                        return;
                    }
                }
                Ended::Broken => {}
            }
            failed = if self.at == before { failed + 1 } else { 0 };
            let pause = RECONNECT.full_jitter(failed, &mut rand::rng());
            sleep(pause).await;
        }
    }

    async fn once(&mut self) -> Ended {
        let cursor = self.at.map(|at| Cursor([(self.peer.id.clone(), at)].into()).to_string());
        let (status, mut body) = match self.peers.watch(&self.peer.url, &self.gateway, cursor.as_deref()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(peer = %self.peer.id, %error, "no watch at a peer");
                return Ended::Broken;
            }
        };
        match status {
            StatusCode::OK => {}
            StatusCode::GONE | StatusCode::BAD_REQUEST if self.at.is_some() => return Ended::Outdated,
            _ => return Ended::Broken,
        }
        let mut parser = Parser::default();
        loop {
            let Ok(Some(Ok(frame))) = tokio::time::timeout(PEER_SILENCE_MAX, body.frame()).await else {
                return Ended::Broken;
            };
            let Ok(bytes) = frame.into_data() else { continue };
            let Ok(events) = parser.push(&bytes) else { return Ended::Broken };
            for event in events {
                if event.event == "end" {
                    return Ended::Broken; // of our own watch at the peer: the gateway's goes on
                }
                if let Some(id) = &event.id
                    && let Ok(mut cursor) = id.parse::<Cursor>()
                    && let Some(at) = cursor.0.remove(&self.peer.id)
                {
                    self.at = Some(at);
                }
                if self.to.send(FromPeer::Event(self.peer.id.clone(), event)).await.is_err() {
                    return Ended::Unwanted;
                }
            }
        }
    }
}
