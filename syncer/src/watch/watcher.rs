//! One watcher of this syncer's own calls: a position in its gateway's log.
//!
//! Making credentials is what costs, so a watcher works in steps of about a millisecond and yields
//! between them: a thousand gateways that come back at once share the threads with everyone else.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sfu_api::{Epoch, GatewayId};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::cursor::Position;
use super::event::{Item, Telling};
use super::log::{Behind, CallKey};
use super::{CursorError, GatewayLog, Hub, Source};
use crate::engine::{Announcement, NewsCursor};

/// News taken from the log at a time: one lock.
const BATCH: usize = 64;
/// Events or credentials made in one step, whichever are more; a large call's last part may add as
/// many again. Signing takes ~20 µs each.
pub(super) const STEP_COST_MAX: usize = 64;

/// One watcher of this syncer's own calls.
#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    log: Arc<GatewayLog>,
    head: watch::Receiver<u64>,
    gateway: GatewayId,
    seq: u64,
    /// What the last snapshot told of each call that had no greater news since: news made before
    /// the snapshot may still come after it, and must not be told.
    told: HashMap<CallKey, (Epoch, u8)>,
    /// When `told` may be forgotten: nothing is on its way to the log for that long.
    told_until: Option<Instant>,
    /// To be rendered.
    work: VecDeque<Telling>,
    /// Rendered.
    ready: VecDeque<Item>,
    /// A snapshot is due, for this reason (`None`: the watcher is new, nothing was missed).
    snapshot: Option<Option<&'static str>>,
    /// Where the rest of the snapshot begins.
    rest: Option<NewsCursor>,
    /// Its number among the gateway's own, if it is one of them.
    own: Option<u64>,
    /// Newer ones have taken its place.
    replaced: CancellationToken,
}

// === impl Hub ===

impl Hub {
    /// Starts watching for `gateway`: from a position, or with the present state.
    pub(crate) fn watch(
        self: &Arc<Self>,
        gateway: &GatewayId,
        from: Option<Position>,
        now: Instant,
    ) -> Result<Watcher, CursorError> {
        loop {
            let log = self.log(gateway, now).ok_or(CursorError::TooOld)?;
            let ring = log.log.lock();
            if ring.is_closed() {
                continue;
            }
            let latest = self.seq.load(Ordering::Acquire);
            let (seq, snapshot) = match from {
                None => (latest, Some(None)),
                Some(p) if p.boot != self.boot => (latest, Some(Some("syncer_restarted"))),
                Some(p) if p.seq > latest => return Err(CursorError::Invalid),
                Some(p) if !ring.reaches(p.seq) => return Err(CursorError::TooOld),
                Some(p) => (p.seq, None),
            };
            log.watchers.fetch_add(1, Ordering::AcqRel);
            drop(ring);
            self.metrics.watchers.inc();
            return Ok(Watcher {
                hub: Arc::clone(self),
                head: log.head.subscribe(),
                log,
                gateway: gateway.clone(),
                seq,
                told: HashMap::new(),
                told_until: None,
                work: VecDeque::new(),
                ready: VecDeque::new(),
                snapshot,
                rest: None,
                own: None,
                replaced: CancellationToken::new(),
            });
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(number) = self.own {
            self.log.own.lock().leave(number);
        }
        // From now on the gateway has the resume window to come back.
        self.log.log.lock().touch(Instant::now());
        self.log.watchers.fetch_sub(1, Ordering::AcqRel);
        self.hub.metrics.watchers.dec();
    }
}

// === impl Watcher ===

impl Watcher {
    /// The gateway has opened it here itself, and may have `max` like it: beyond, its oldest end.
    pub(crate) fn count_as_own(&mut self, max: usize, now: Instant) {
        let entered = self.log.own.lock().enter(self.replaced.clone(), max, now);
        self.own = Some(entered.number);
        self.hub.metrics.replaced.inc_by(entered.over.len() as u64);
        entered.over.iter().for_each(CancellationToken::cancel);
        if entered.warn {
            tracing::warn!(gateway = %self.gateway, max, "gateway has too many watches open, its oldest end");
        }
    }

    /// Until newer watches of the gateway have taken this one's place.
    pub(crate) fn replaced(&self) -> WaitForCancellationFutureOwned {
        self.replaced.clone().cancelled_owned()
    }

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
            if let Some(item) = self.ready.pop_front() {
                return item;
            }
            if self.step(source, Instant::now()) {
                tokio::task::yield_now().await;
            } else if self.head.changed().await.is_err() {
                // The hub holds the sender for as long as we hold the log.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next item, if it costs nothing.
    pub(crate) fn rendered(&mut self) -> Option<Item> {
        self.ready.pop_front()
    }

    /// The next item, if there is one now.
    #[cfg(test)]
    pub(crate) fn poll(&mut self, source: &dyn Source, now: Instant) -> Option<Item> {
        while self.ready.is_empty() {
            if !self.step(source, now) {
                return None;
            }
        }
        self.rendered()
    }

    /// One bounded step towards the next items; `false` when there is nothing to do.
    fn step(&mut self, source: &dyn Source, now: Instant) -> bool {
        // One piece of news is kept back until it is known whether it is the snapshot's last.
        if let Some(at) = self.rest.filter(|_| self.work.len() <= 1) {
            self.read_page(at, source, now);
        } else if !self.work.is_empty() {
            self.render(source);
        } else if let Some(reason) = self.snapshot.take() {
            self.begin_snapshot(reason);
        } else {
            return self.read_log(source, now);
        }
        true
    }

    /// Takes the next news from the log; `false` when there is none.
    fn read_log(&mut self, source: &dyn Source, now: Instant) -> bool {
        if self.told_until.is_some_and(|until| now >= until) {
            (self.told, self.told_until) = (HashMap::new(), None);
        }
        drop(self.head.borrow_and_update());
        match self.read_batch(true, source) {
            Ok(read) => read > 0,
            Err(Behind) => {
                self.snapshot = Some(Some("fell_behind"));
                true
            }
        }
    }

    /// Takes a batch of news from the log, each with its position or without; says how many there were.
    fn read_batch(&mut self, positions: bool, source: &dyn Source) -> Result<usize, Behind> {
        let batch = self.log.log.lock().after(self.seq, BATCH)?;
        let read = batch.len();
        for (seq, note) in batch {
            self.seq = seq;
            let key = (note.guild.clone(), note.call.clone());
            if self.told.get(&key).is_some_and(|told| *told >= note.state()) {
                continue;
            }
            let news = source.call(&self.gateway, &note.guild, &note.call);
            // Nobody there any more, or another note comes, or is in this batch.
            let Some(news) = news.filter(|n| (n.epoch, n.phase) == note.state()) else { continue };
            self.told.remove(&key);
            let news = Arc::new(Announcement { cause: note.cause, ..news });
            self.work.push_back(Telling::new(news, positions.then_some(seq)));
        }
        Ok(read)
    }

    /// The present state of all calls, a page at a time, and what happened meanwhile. Only the last event
    /// carries a position: whoever is cut off in the middle starts again.
    fn begin_snapshot(&mut self, reason: Option<&'static str>) {
        self.seq = self.hub.seq.load(Ordering::Acquire);
        if let Some(reason) = reason {
            self.hub.metrics.resyncs.inc();
            self.ready.push_back(Item::Resync { reason });
        }
        self.told.clear();
        self.rest = Some(NewsCursor::default());
    }

    fn read_page(&mut self, at: NewsCursor, source: &dyn Source, now: Instant) {
        let (page, rest) = source.current(&self.gateway, at);
        self.rest = rest;
        self.told_until = Some(now + self.hub.limits.resume_window.get() + super::SWEEP_EVERY); // as long as news may be kept
        for news in page {
            self.told.insert((news.guild.clone(), news.call.clone()), (news.epoch, news.phase));
            self.work.push_back(Telling::new(Arc::new(news), None));
        }
        if self.rest.is_none() {
            // What came meanwhile, a whole log at most, belongs to it: a position in between would tell some of it again.
            for _ in 0..self.hub.limits.per_gateway().div_ceil(BATCH) {
                match self.read_batch(false, source) {
                    Ok(BATCH) => {}
                    Ok(_) => break,
                    Err(Behind) => return, // found again when all this is told
                }
            }
            if let Some(last) = self.work.back_mut() {
                last.ends_at(self.seq);
            }
        }
    }

    fn render(&mut self, source: &dyn Source) {
        let mut cost = 0;
        let kept_back = usize::from(self.rest.is_some());
        while cost < STEP_COST_MAX
            && self.work.len() > kept_back
            && let Some(telling) = self.work.front_mut()
        {
            let (item, credentials, last) = telling.next(&self.gateway, source);
            cost += credentials.max(1);
            self.ready.push_back(item);
            if last {
                self.work.pop_front();
            }
        }
    }
}
