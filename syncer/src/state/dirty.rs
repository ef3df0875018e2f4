//! The dirty set: what still has to be done, most urgent first.
//!
//! A call is in at most one place: `Ready`, waiting for a moment, blocked by something, or in
//! flight. Rank is a virtual deadline: the moment the need arose plus the handicap of its class plus
//! that of its [size](smallness). So a repair overtakes a new call that came up to
//! [`Class::handicap`] earlier, a large call a small one of its class, and nothing starves, because
//! handicaps are finite (R10). Ready calls are kept by class, so that a class can have its turn while
//! another has a backlog of minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sfu_api::RegionId;
use smallvec::SmallVec;
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
    /// Every class, most urgent first.
    pub const ALL: [Self; 3] = [Self::Repair, Self::New, Self::Stream];

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

/// Calls of so many sessions, as a power of two, and larger ones are alike.
const SIZES: u32 = 8;

/// Head start of a call over one of half its size. Times [`SIZES`], 3.2 s: below the narrowest gap
/// between two classes, so that the smallest repair still goes before the largest new call.
const SIZE_STEP: Duration = Duration::from_millis(400);

/// Handicap of a call with so many sessions: the more people wait, the more urgent.
#[must_use]
pub fn smallness(sessions: usize) -> Duration {
    SIZE_STEP * (SIZES - sessions.max(1).ilog2().min(SIZES))
}

/// What keeps a call from being placed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Blocker {
    /// SFUs of the region (or of any, with `None`) could take it, but for buckets and windows.
    Limits(Option<RegionId>),
    /// No SFU of the region (or of any, with `None`) is fit to take it.
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
    ready: [BTreeSet<(Instant, CallKey)>; Class::ALL.len()],
    waiting: BTreeSet<(Instant, CallKey)>,
    blocked: BTreeMap<Blocker, BTreeSet<(Instant, CallKey)>>,
}

// === impl Dirty ===

impl Dirty {
    /// Moves `key` from where it is (`place`) to where it shall be. While a call is ready its class does
    /// not change: it is announced, or no longer, only by an attempt.
    pub(super) fn put(&mut self, key: CallKey, class: Class, place: &mut Place, to: Place) {
        match place {
            Place::Ready(at) => {
                self.ready[class as usize].remove(&(*at, key));
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
                self.ready[class as usize].insert((*at, key));
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

    /// The most urgent ready call, of `class` or of all, and its rank.
    #[must_use]
    pub fn first_ready(&self, class: Option<Class>) -> Option<(Instant, CallKey)> {
        match class {
            Some(class) => self.ready[class as usize].first().copied(),
            None => self.ready.iter().filter_map(BTreeSet::first).min().copied(),
        }
    }

    /// Ready, waiting and blocked calls as they come next in their lines, at most `max` of each line.
    pub fn next_in_line(&self, max: usize) -> impl Iterator<Item = CallKey> {
        let lines = self.ready.iter().chain([&self.waiting]).chain(self.blocked.values());
        lines.flat_map(move |line| line.iter().take(max).map(|(_, key)| *key))
    }

    /// Calls that wait for nothing but their turn: how many are ready or held back by buckets and windows, and
    /// the next ones, at most `max` of each line.
    pub fn queue(&self, max: usize) -> (usize, impl Iterator<Item = CallKey>) {
        let limited = self.blocked.iter().filter(|(on, _)| matches!(on, Blocker::Limits(_))).map(|(_, line)| line);
        let lines: SmallVec<[_; 8]> = self.ready.iter().chain(limited).collect();
        let queued = lines.iter().map(|line| line.len()).sum();
        (queued, lines.into_iter().flat_map(move |line| line.iter().take(max).map(|(_, key)| *key)))
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

    /// The most urgent call that `on` blocks, and its rank.
    #[must_use]
    pub fn first_blocked(&self, on: &Blocker) -> Option<(Instant, CallKey)> {
        self.blocked.get(on)?.first().copied()
    }

    /// How many calls `on` blocks.
    #[must_use]
    pub fn blocked_on(&self, on: &Blocker) -> usize {
        self.blocked.get(on).map_or(0, BTreeSet::len)
    }

    /// Ready, waiting and blocked calls.
    #[must_use]
    pub fn len(&self) -> (usize, usize, usize) {
        (self.ready.iter().map(BTreeSet::len).sum(), self.waiting.len(), self.blocked.values().map(BTreeSet::len).sum())
    }

    /// Whether `key` is where `place` says (for the invariants).
    #[must_use]
    pub fn holds(&self, key: CallKey, class: Class, place: &Place) -> bool {
        match place {
            Place::Clean | Place::InFlight => true,
            Place::Ready(at) => self.ready[class as usize].contains(&(*at, key)),
            Place::Waiting(at) => self.waiting.contains(&(*at, key)),
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                self.blocked.get(on).is_some_and(|keys| keys.contains(&(*at, key)))
            }
        }
    }
}
