//! Of which calls one gateway has to be told, the latest state of each, in order, bounded. Pure.
//!
//! A note says that a call changed, not what it changed to: that is read where it is true, when the
//! note is told. A million notes are small then, and none holds endpoints or sessions of the past.
//!
//! A later announcement of a call replaces the earlier one wherever it stands, so a watcher that
//! comes late sees only the last, and memory is bounded by calls, not by events. Watchers keep
//! nothing here but a number, so a slow one costs only itself.
//!
//! News that was let go takes its place in [`Log::push`]'s memory along: from then on the log would
//! take that call's past for news. Nothing tells it: announcing follows the change at once, and what
//! is let go is older than `watch.resume_window` or the oldest of as many as its limits allow.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use sfu_api::{CallId, Epoch, GuildId};

use tokio::time::Instant;

use crate::engine::{Announcement, Cause};

/// Which call.
pub(crate) type CallKey = (GuildId, CallId);

/// The log of one gateway.
#[derive(Debug)]
pub(crate) struct Log {
    ring: BTreeMap<u64, Arc<Note>>,
    /// Number of each call's note.
    latest: HashMap<ByCall, u64>,
    /// Everything up to here may have been dropped: whoever stands below has missed news.
    floor: u64,
    /// When news came or a watcher went.
    touched: Instant,
    /// Taken out of the hub: nobody will read it.
    closed: bool,
}

/// A call came to this state. One for all gateways it concerns.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) guild: GuildId,
    pub(crate) call: CallId,
    pub(crate) epoch: Epoch,
    pub(crate) phase: u8,
    pub(crate) cause: Cause,
    /// When it was told to the logs.
    pub(crate) at: Instant,
}

/// A note under its call's name.
#[derive(Debug)]
struct ByCall(Arc<Note>);

/// A watcher stands below what the log still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind;

// === impl Log ===

impl Log {
    /// An empty log whose past, up to `floor`, is unknown.
    pub(crate) fn new(floor: u64, now: Instant) -> Self {
        Self { ring: BTreeMap::new(), latest: HashMap::new(), floor, touched: now, closed: false }
    }

    /// Takes a note under the next number. One that does not grow in (epoch, phase) is dropped: it was
    /// overtaken on its way here. Beyond `events_max` the oldest go.
    pub(crate) fn push(&mut self, seq: u64, note: Arc<Note>, events_max: usize) -> bool {
        let key = ByCall(Arc::clone(&note));
        if let Some(at) = self.latest.get(&key) {
            if self.ring.get(at).is_some_and(|kept| kept.state() >= note.state()) {
                return false;
            }
            self.ring.remove(at);
            self.latest.remove(&key); // with its note, which the map would keep as the name
        }
        self.touched = note.at;
        self.latest.insert(key, seq);
        self.ring.insert(seq, note);
        self.trim(events_max);
        true
    }

    /// Lets the oldest news go until there is no more than this.
    pub(crate) fn trim(&mut self, events_max: usize) {
        while self.ring.len() > events_max {
            self.drop_oldest();
        }
    }

    /// The next news after `seq`, oldest first, at most `limit`.
    pub(crate) fn after(&self, seq: u64, limit: usize) -> Result<Vec<(u64, Arc<Note>)>, Behind> {
        if seq < self.floor {
            return Err(Behind);
        }
        Ok(self.ring.range(seq.saturating_add(1)..).take(limit).map(|(n, k)| (*n, Arc::clone(k))).collect())
    }

    /// Whether a watcher that has seen everything up to `seq` can go on.
    pub(crate) const fn reaches(&self, seq: u64) -> bool {
        seq >= self.floor
    }

    /// Number of the oldest news.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.ring.keys().next().copied()
    }

    /// How much news it holds.
    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    /// Lets news go that is as old as `age`.
    pub(crate) fn drop_older(&mut self, age: Duration, now: Instant) {
        while self.ring.first_key_value().is_some_and(|(_, note)| now.saturating_duration_since(note.at) >= age) {
            self.drop_oldest();
        }
    }

    /// Lets news go up to this number.
    pub(crate) fn drop_through(&mut self, seq: u64) {
        while self.oldest().is_some_and(|at| at <= seq) {
            self.drop_oldest();
        }
    }

    /// A watcher went.
    pub(crate) fn touch(&mut self, now: Instant) {
        self.touched = now;
    }

    /// Whether it is empty and nothing happened for `age`.
    pub(crate) fn is_idle(&self, age: Duration, now: Instant) -> bool {
        self.ring.is_empty() && now.saturating_duration_since(self.touched) >= age
    }

    /// Lets everything go; the log is of no more use.
    pub(crate) fn close(&mut self) {
        self.drop_through(u64::MAX);
        self.closed = true;
    }

    /// Whether it was closed: whoever holds it has to ask the hub again.
    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    fn drop_oldest(&mut self) {
        let Some((seq, note)) = self.ring.pop_first() else { return };
        self.floor = seq;
        self.latest.remove(&ByCall(note));
    }
}

// === impl Note ===

impl Note {
    pub(crate) fn of(news: &Announcement, now: Instant) -> Self {
        Self {
            guild: news.guild.clone(),
            call: news.call.clone(),
            epoch: news.epoch,
            phase: news.phase,
            cause: news.cause,
            at: now,
        }
    }

    /// What grows for every call.
    pub(crate) const fn state(&self) -> (Epoch, u8) {
        (self.epoch, self.phase)
    }
}

// === impl ByCall ===

impl PartialEq for ByCall {
    fn eq(&self, other: &Self) -> bool {
        self.0.call == other.0.call && self.0.guild == other.0.guild
    }
}

impl Eq for ByCall {}

impl Hash for ByCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.guild.hash(state);
        self.0.call.hash(state);
    }
}
