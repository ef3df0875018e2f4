//! The dirty set: what still has to be done, most urgent first.
//!
//! A call is in at most one place: `Ready`, waiting for a moment, blocked by something, or in
//! flight. Rank is a virtual deadline: the moment the need arose plus the handicap of its class.
//! So a repair overtakes a new call that came up to [`Class::handicap`] earlier, and nothing
//! starves, because a handicap is finite (R10).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sfu_api::RegionId;
use tokio::time::Instant;

use super::{CallKey, SfuIdx};

/// Classes of placement work, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A live call that lost its place.
    Repair,
    /// A new voice call.
    New,
    /// A new stream.
    Stream,
}

impl Class {
    /// Head start of older, less urgent work: a new call waits behind every repair whose need
    /// arose less than 5 s after its own; the widest gap stays below the time after which a
    /// waiting user gives up (~30 s).
    #[must_use]
    pub const fn handicap(self) -> Duration {
        match self {
            Self::Repair => Duration::ZERO,
            Self::New => Duration::from_secs(5),
            Self::Stream => Duration::from_secs(15),
        }
    }

    /// The class's name, as in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::New => "new",
            Self::Stream => "stream",
        }
    }
}

/// What keeps a call from being placed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Blocker {
    /// No SFU of the region (or of any, with `None`) can take it now.
    NoCandidate(Option<RegionId>),
    /// The SFU whose rooms are made again in place takes no more for the moment.
    Busy(SfuIdx),
}

/// Where a call is in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing to do.
    Clean,
    /// To be done, at this rank.
    Ready(Instant),
    /// To be looked at again at this moment.
    Waiting(Instant),
    /// To be looked at again when this goes away, in order of rank. Boxed, because few calls are blocked
    /// and all have a place.
    Blocked(Box<(Blocker, Instant)>),
    /// An attempt is under way.
    InFlight,
}

/// The set, by key. The [`Place`] is kept with the call; every change goes through here.
#[derive(Debug, Default)]
pub struct Dirty {
    ready: BTreeSet<(Instant, CallKey)>,
    waiting: BTreeSet<(Instant, CallKey)>,
    blocked: BTreeMap<Blocker, BTreeSet<(Instant, CallKey)>>,
}

// === impl Dirty ===

impl Dirty {
    /// Moves `key` from where it is (`place`) to where it shall be.
    pub(super) fn put(&mut self, key: CallKey, place: &mut Place, to: Place) {
        match place {
            Place::Ready(at) => {
                self.ready.remove(&(*at, key));
            }
            Place::Waiting(at) => {
                self.waiting.remove(&(*at, key));
            }
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                if let Some(keys) = self.blocked.get_mut(on) {
                    keys.remove(&(*at, key));
                    if keys.is_empty() {
                        self.blocked.remove(on);
                    }
                }
            }
            Place::Clean | Place::InFlight => {}
        }
        match &to {
            Place::Ready(at) => {
                self.ready.insert((*at, key));
            }
            Place::Waiting(at) => {
                self.waiting.insert((*at, key));
            }
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                self.blocked.entry(on.clone()).or_default().insert((*at, key));
            }
            Place::Clean | Place::InFlight => {}
        }
        *place = to;
    }

    /// The most urgent ready call and its rank.
    #[must_use]
    pub fn first_ready(&self) -> Option<(Instant, CallKey)> {
        self.ready.first().copied()
    }

    /// The first moment a waiting call wants to be looked at again.
    #[must_use]
    pub fn first_waiting(&self) -> Option<(Instant, CallKey)> {
        self.waiting.first().copied()
    }

    /// What blocks calls now.
    pub fn blockers(&self) -> impl Iterator<Item = &Blocker> {
        self.blocked.keys()
    }

    /// The calls that `on` blocks, most urgent first, at most `max`.
    #[must_use]
    pub fn blocked_on(&self, on: &Blocker, max: usize) -> Vec<CallKey> {
        self.blocked.get(on).map(|keys| keys.iter().take(max).map(|(_, key)| *key).collect()).unwrap_or_default()
    }

    /// Ready, waiting and blocked calls.
    #[must_use]
    pub fn len(&self) -> (usize, usize, usize) {
        (self.ready.len(), self.waiting.len(), self.blocked.values().map(BTreeSet::len).sum())
    }

    /// Whether `key` is where `place` says (for the invariants).
    #[must_use]
    pub fn holds(&self, key: CallKey, place: &Place) -> bool {
        match place {
            Place::Clean | Place::InFlight => true,
            Place::Ready(at) => self.ready.contains(&(*at, key)),
            Place::Waiting(at) => self.waiting.contains(&(*at, key)),
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                self.blocked.get(on).is_some_and(|keys| keys.contains(&(*at, key)))
            }
        }
    }
}
