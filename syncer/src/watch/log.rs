//! What one gateway has to be told: the latest news of each call, in order, bounded. Pure.
//!
//! A later announcement of a call replaces the earlier one wherever it stands, so a watcher that
//! comes late sees only the last, and memory is bounded by calls, not by events. Watchers keep
//! nothing here but a number, so a slow one costs only itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sfu_api::{CallId, Epoch, GuildId};

use crate::engine::Announcement;

/// Which call.
pub(crate) type CallKey = (GuildId, CallId);

/// The log of one gateway.
#[derive(Debug)]
pub(crate) struct Log {
    ring: BTreeMap<u64, Arc<Announcement>>,
    latest: HashMap<CallKey, (u64, Epoch, u8)>,
    /// Everything up to here may have been dropped: whoever stands below has missed news.
    floor: u64,
    events_max: usize,
}

/// A watcher stands below what the log still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Behind;

// === impl Log ===

impl Log {
    /// An empty log whose past, up to `floor`, is unknown.
    pub(crate) fn new(floor: u64, events_max: usize) -> Self {
        Self { ring: BTreeMap::new(), latest: HashMap::new(), floor, events_max }
    }

    /// Takes news under the next number. News that does not grow in (epoch, phase) is dropped:
    /// it was overtaken on its way here.
    pub(crate) fn push(&mut self, seq: u64, news: Arc<Announcement>) -> bool {
        let key = (news.guild.clone(), news.call.clone());
        let state = (news.epoch, news.phase);
        if let Some(&(at, epoch, phase)) = self.latest.get(&key) {
            if (epoch, phase) >= state {
                return false;
            }
            self.ring.remove(&at);
        }
        self.latest.insert(key, (seq, state.0, state.1));
        self.ring.insert(seq, news);
        while self.ring.len() > self.events_max {
            let Some((dropped, old)) = self.ring.pop_first() else { break };
            self.floor = dropped;
            self.latest.remove(&(old.guild.clone(), old.call.clone()));
        }
        true
    }

    /// The next news after `seq`, oldest first, at most `limit`.
    pub(crate) fn after(&self, seq: u64, limit: usize) -> Result<Vec<(u64, Arc<Announcement>)>, Behind> {
        if seq < self.floor {
            return Err(Behind);
        }
        Ok(self.ring.range(seq.saturating_add(1)..).take(limit).map(|(n, a)| (*n, Arc::clone(a))).collect())
    }

    /// Whether a watcher that has seen everything up to `seq` can go on.
    pub(crate) const fn reaches(&self, seq: u64) -> bool {
        seq >= self.floor
    }
}
