//! One watcher of this syncer's own calls: a position in its gateway's log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sfu_api::{Epoch, GatewayId};
use tokio::sync::watch;

use super::cursor::Position;
use super::event::{Item, endpoint_items};
use super::log::{Behind, CallKey};
use super::{CursorError, GatewayLog, Hub, Source};

/// News rendered at a time: one lock and up to ~1 ms of signing, then others get their turn.
const BATCH: usize = 64;

/// One watcher of this syncer's own calls.
#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    log: Arc<GatewayLog>,
    head: watch::Receiver<u64>,
    gateway: GatewayId,
    seq: u64,
    /// What the last snapshot told, so that news made before it is not told again after it.
    told: HashMap<CallKey, (Epoch, u8)>,
    ready: VecDeque<Item>,
    /// A snapshot is due, for this reason (`None`: the watcher is new, nothing was missed).
    snapshot: Option<Option<&'static str>>,
}

// === impl Hub ===

impl Hub {
    /// Starts watching for `gateway`: from a position, or with the present state.
    pub(crate) fn watch(self: &Arc<Self>, gateway: &GatewayId, from: Option<Position>) -> Result<Watcher, CursorError> {
        let log = self.log(gateway).ok_or(CursorError::TooOld)?;
        let latest = self.seq.load(Ordering::Acquire);
        let (seq, snapshot) = match from {
            None => (latest, Some(None)),
            Some(p) if p.boot != self.boot => (latest, Some(Some("syncer_restarted"))),
            Some(p) if p.seq > latest => return Err(CursorError::Invalid),
            Some(p) if !log.log.lock().reaches(p.seq) => return Err(CursorError::TooOld),
            Some(p) => (p.seq, None),
        };
        log.watchers.fetch_add(1, Ordering::Relaxed);
        self.metrics.watchers.inc();
        Ok(Watcher {
            hub: Arc::clone(self),
            head: log.head.subscribe(),
            log,
            gateway: gateway.clone(),
            seq,
            told: HashMap::new(),
            ready: VecDeque::new(),
            snapshot,
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.log.watchers.fetch_sub(1, Ordering::Relaxed);
        self.hub.metrics.watchers.dec();
    }
}

// === impl Watcher ===

impl Watcher {
    /// Where the watcher stands after item number `seq`.
    pub(crate) fn position(&self, seq: u64) -> Position {
        Position { boot: self.hub.boot, seq }
    }

    /// Where the watcher stands now.
    #[cfg(test)]
    pub(crate) fn now(&self) -> Position {
        self.position(self.seq)
    }

    /// The next item.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(crate) async fn next(&mut self, source: &dyn Source) -> Item {
        loop {
            if let Some(item) = self.poll(source) {
                return item;
            }
            if self.head.changed().await.is_err() {
                // The hub holds the sender for as long as we hold the log.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next item, if there is one now.
    pub(crate) fn poll(&mut self, source: &dyn Source) -> Option<Item> {
        while self.ready.is_empty() {
            match self.snapshot.take() {
                Some(reason) => self.fill_snapshot(reason, source),
                None => {
                    if !self.fill(source) {
                        return None;
                    }
                }
            }
        }
        self.ready.pop_front()
    }

    /// Renders the next news of the log; `false` when there is none.
    fn fill(&mut self, source: &dyn Source) -> bool {
        drop(self.head.borrow_and_update());
        let news = match self.log.log.lock().after(self.seq, BATCH) {
            Ok(news) => news,
            Err(Behind) => {
                self.snapshot = Some(Some("fell_behind"));
                return true;
            }
        };
        let any = !news.is_empty();
        for (seq, news) in news {
            self.seq = seq;
            let key = (news.guild.clone(), news.call.clone());
            if self.told.remove(&key).is_some_and(|told| told >= (news.epoch, news.phase)) {
                continue;
            }
            self.ready.extend(endpoint_items(&news, &self.gateway, Some(seq), source));
        }
        any
    }

    /// The present state of all calls. Its last event carries the position from before it was
    /// taken: whoever is cut off in the middle starts again.
    fn fill_snapshot(&mut self, reason: Option<&'static str>, source: &dyn Source) {
        self.seq = self.hub.seq.load(Ordering::Acquire);
        if let Some(reason) = reason {
            self.hub.metrics.resyncs.inc();
            self.ready.push_back(Item::Resync { reason });
        }
        self.told.clear();
        let all = source.current(&self.gateway);
        for (n, news) in all.iter().enumerate() {
            self.told.insert((news.guild.clone(), news.call.clone()), (news.epoch, news.phase));
            let seq = (n + 1 == all.len()).then_some(self.seq);
            self.ready.extend(endpoint_items(news, &self.gateway, seq, source));
        }
    }
}
