//! The dirty set: what still has to be done, most urgent first.
//!
//! A call is in at most one place: `Ready`, waiting for a moment, blocked by something, or in
//! flight. Rank is a virtual deadline: the moment the need arose plus the handicap of its class plus
//! that of its [size](smallness). So a repair overtakes a new call that came up to
//! [`Class::handicap`] earlier, a large call a small one of its class, and nothing starves, because
//! handicaps are finite (R10). Lines are kept by class, so that a class can have its [turn](super::Turns) while
//! another has a backlog of minutes, ready or blocked. Ranks are kept to a [tick](Tick), since in a storm every join
//! ranks a call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sfu_api::RegionId;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::line::{Line, TICK_MS, Tick};
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

    /// Head start of older, less urgent work: a new call waits behind every repair whose need arose less than
    /// 15 s after its own. That is more than the age at which admission closes the door (10 s), so that a
    /// crowd which was let in does not stand before a fresh repair; and the widest gap stays below the time
    /// after which a waiting user gives up (~30 s).
    #[must_use]
    pub const fn handicap(self) -> Duration {
        match self {
            Self::Repair => Duration::ZERO,
            Self::New => Duration::from_secs(15),
            Self::Stream => Duration::from_secs(25),
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

/// Handicap of a call with so many sessions: the more people wait, the more urgent. It is another at powers of two
/// alone.
#[must_use]
pub fn smallness(sessions: usize) -> Duration {
    SIZE_STEP * (SIZES - sessions.max(1).ilog2().min(SIZES))
}

// === impl Tick ===

impl Tick {
    /// So much later; to the tick, as class and size are whole ticks.
    pub(super) const fn later(self, by: Duration) -> Self {
        Self(self.0 + ticks(by))
    }

    /// The rank of a call that has become twice as large.
    pub(super) const fn twice_the_size(self) -> Self {
        Self(self.0.saturating_sub(ticks(SIZE_STEP)))
    }
}

/// Ticks in a time. A second has a whole number of them.
const fn ticks(time: Duration) -> u64 {
    time.as_secs() * (1_000 / TICK_MS) + time.subsec_millis() as u64 / TICK_MS
}

/// Ticks are counted from this long before the first need, so that one which began earlier and is noticed later still
/// goes before it.
const BEFORE_FIRST: Duration = Duration::from_secs(60);

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
    Ready(Tick),
    /// To be looked at again at this moment.
    Waiting(Instant),
    /// To be looked at again when this goes away, in order of rank. Boxed, because few calls are blocked
    /// and all have a place.
    Blocked(Box<(Blocker, Tick)>),
    /// An attempt is under way.
    InFlight,
}

/// Calls in order of rank, a line for each class.
type Lines = [Line; Class::ALL.len()];

/// The set, by key. The [`Place`] is kept with the call; every change goes through here.
#[derive(Debug, Default)]
pub struct Dirty {
    ready: Lines,
    waiting: BTreeSet<(Instant, CallKey)>,
    blocked: BTreeMap<Blocker, Lines>,
    /// Where ticks are counted from.
    origin: Option<Instant>,
    /// Calls that were not where they said, or already where they went.
    astray: u64,
}

// === impl Dirty ===

impl Dirty {
    /// Moves `key` from where it is (`place`) to where it shall be. While a call is ready or blocked its
    /// class does not change: it is announced, or no longer, only by an attempt.
    pub(super) fn put(&mut self, key: CallKey, class: Class, place: &mut Place, to: Place) {
        let was_there = match place {
            Place::Ready(at) => self.ready[class as usize].remove(*at, key.index),
            Place::Waiting(at) => self.waiting.remove(&(*at, key)),
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                match self.blocked.get_mut(on) {
                    Some(lines) => {
                        let was_there = lines[class as usize].remove(*at, key.index);
                        if lines.iter().all(Line::is_empty) {
                            self.blocked.remove(on);
                        }
                        was_there
                    }
                    None => false,
                }
            }
            Place::Clean | Place::InFlight => true,
        };
        let is_new = match &to {
            Place::Ready(at) => self.ready[class as usize].insert(*at, key.index),
            Place::Waiting(at) => self.waiting.insert((*at, key)),
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                self.blocked.entry(on.clone()).or_default()[class as usize].insert(*at, key.index)
            }
            Place::Clean | Place::InFlight => true,
        };
        *place = to;
        self.astray += u64::from(!was_there) + u64::from(!is_new);
    }

    /// How many calls were not where they said, or already where they went. There are none (I5).
    pub(super) const fn astray(&self) -> u64 {
        self.astray
    }

    /// A rank as the set keeps it.
    pub(super) fn tick(&mut self, at: Instant) -> Tick {
        let origin = *self.origin.get_or_insert_with(|| at.checked_sub(BEFORE_FIRST).unwrap_or(at));
        let since = at.saturating_duration_since(origin);
        Tick(ticks(since))
    }

    /// The number of the first call, of `class` or of all, and its rank.
    fn first(&self, lines: &Lines, class: Option<Class>) -> Option<(Instant, u32)> {
        let (tick, number) = match class {
            Some(class) => lines[class as usize].iter().next(),
            None => lines.iter().filter_map(|line| line.iter().next()).min_by_key(|(tick, _)| *tick),
        }?;
        self.origin.map(|origin| (origin + Duration::from_millis(tick.0 * TICK_MS), number))
    }

    /// The number of the most urgent ready call, of `class` or of all, and its rank.
    #[must_use]
    pub fn first_ready(&self, class: Option<Class>) -> Option<(Instant, u32)> {
        self.first(&self.ready, class)
    }

    /// The numbers of ready, blocked and waiting calls as they come next in their lines, at most `max` of each line.
    pub fn next_in_line(&self, max: usize) -> impl Iterator<Item = u32> {
        let ranked = self.ready.iter().chain(self.blocked.values().flatten());
        let ranked = ranked.flat_map(move |line| line.iter().take(max).map(|(_, number)| number));
        ranked.chain(self.waiting.iter().take(max).map(|(_, key)| key.index))
    }

    /// Calls that wait for nothing but their turn: how many of each class are ready or held back by buckets and
    /// windows, and the numbers of the next ones, at most `max` of each line.
    pub fn queue(&self, max: usize) -> ([usize; Class::ALL.len()], impl Iterator<Item = u32>) {
        let limited = self.blocked.iter().filter(|(on, _)| matches!(on, Blocker::Limits(_))).map(|(_, lines)| lines);
        let queues: SmallVec<[&Lines; 4]> = [&self.ready].into_iter().chain(limited).collect();
        let queued = std::array::from_fn(|class| queues.iter().map(|lines| lines[class].len()).sum());
        (queued, queues.into_iter().flatten().flat_map(move |line| line.iter().take(max).map(|(_, number)| number)))
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

    /// What blocks calls of `class` now.
    pub fn blockers_of(&self, class: Class) -> impl Iterator<Item = &Blocker> {
        self.blocked.iter().filter(move |(_, lines)| !lines[class as usize].is_empty()).map(|(on, _)| on)
    }

    /// The number of the most urgent call that `on` blocks, of `class` or of all, and its rank.
    #[must_use]
    pub fn first_blocked(&self, on: &Blocker, class: Option<Class>) -> Option<(Instant, u32)> {
        self.first(self.blocked.get(on)?, class)
    }

    /// How many calls `on` blocks.
    #[must_use]
    pub fn blocked_on(&self, on: &Blocker) -> usize {
        self.blocked.get(on).map_or(0, |lines| lines.iter().map(Line::len).sum())
    }

    /// Ready, waiting and blocked calls.
    #[must_use]
    pub fn len(&self) -> (usize, usize, usize) {
        let len = |lines: &Lines| lines.iter().map(Line::len).sum::<usize>();
        (len(&self.ready), self.waiting.len(), self.blocked.values().map(len).sum())
    }

    /// Whether `key` is where `place` says.
    #[must_use]
    pub fn holds(&self, key: CallKey, class: Class, place: &Place) -> bool {
        match place {
            Place::Clean | Place::InFlight => true,
            Place::Ready(at) => self.ready[class as usize].contains(*at, key.index),
            Place::Waiting(at) => self.waiting.contains(&(*at, key)),
            Place::Blocked(blocked) => {
                let (on, at) = &**blocked;
                self.blocked.get(on).is_some_and(|lines| lines[class as usize].contains(*at, key.index))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i05_what_is_not_where_it_says_is_noticed_as_it_moves() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        let key = CallKey { index: 7, generation: 1 };
        let at = dirty.tick(now);
        let ready = Place::Ready(at);
        let blocked = |on| Place::Blocked(Box::new((on, at)));
        let mut place = Place::Clean;
        for to in
            [ready.clone(), Place::Waiting(now), blocked(Blocker::Busy(SfuIdx(1))), Place::InFlight, ready.clone()]
        {
            dirty.put(key, Class::New, &mut place, to);
        }
        assert_eq!((dirty.astray(), &place), (0, &ready));
        // The set has it as a new call, and it says that it is a repair.
        dirty.put(key, Class::Repair, &mut place, Place::Clean);
        assert_eq!(dirty.astray(), 1);
        // It says that it is nowhere, and the set has it.
        dirty.put(key, Class::New, &mut place, ready);
        assert_eq!(dirty.astray(), 2);
        for astray in [Place::Waiting(now), blocked(Blocker::Limits(None)), blocked(Blocker::NoCandidate(None))] {
            let before = dirty.astray();
            dirty.put(key, Class::New, &mut astray.clone(), Place::Clean);
            assert_eq!(dirty.astray(), before + 1, "{astray:?}");
        }
    }
}
