//! Who has left a moment ago, so that a late or repeated join does not bring them back.
//!
//! A write may arrive after the leave that followed it, on another connection. While the session is
//! in the call, its entry tells old from new; afterwards this does, for longer than any write can be
//! under way.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::time::Duration;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use sfu_api::{CallId, SessionId};
use tokio::time::Instant;

use super::guilds::Mark;

/// How long a leave is remembered: twice the longest time a gateway's request can be under way.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Leaves that are forgotten at once at most, when there is one more: their time has come, or there are too many. Whoever
/// waits for the shard does not wait for a minute's worth of them.
const FORGOTTEN_AT_ONCE: usize = 8;

/// A session of a call by its hash: names would be five times as much to keep, and to read. Two that have it in common
/// are taken for one, which is less than one chance in 10^14 for each look where 40,000 are remembered. The older joins of
/// one would be ignored then, as long as the leave of the other is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who(u64);

/// A leave. Half a line of the cache, so that one is never in two.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub(super) struct Departure {
    who: Who,
    seq: u64,
    at: Instant,
}

/// The leaves of the last minute.
#[derive(Debug, Default)]
pub struct Gone {
    /// In their order.
    order: VecDeque<Departure>,
    /// The number of the first of them. They are counted from the first there ever was, and again from nothing behind
    /// the largest number.
    first: u32,
    /// The number of each session's last leave.
    last: HashTable<(Mark, u32)>,
    hasher: RandomState,
    forgotten_early: u64,
}

// === impl Departure ===

impl Departure {
    fn is_remembered(&self, now: Instant) -> bool {
        self.at + REMEMBERED_FOR > now
    }

    /// Reads it, so that it is at hand.
    pub(super) const fn touch(&self) -> u8 {
        self.seq.to_le_bytes()[0]
    }
}

// === impl Gone ===

impl Gone {
    /// A session of the call, as it is looked for here. `guild` is what the call's guild hashes to.
    pub(super) fn who(&self, guild: u64, call: &CallId, session: &SessionId) -> Who {
        Who(self.hasher.hash_one((guild, call, session)))
    }

    /// The session left with this `seq`. With more than `max` leaves the oldest are forgotten before their time.
    pub(super) fn note(&mut self, who: Who, seq: u64, max: usize, now: Instant) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let too_many = self.order.len() >= max.max(1);
            if !self.order.front().is_some_and(|first| too_many || !first.is_remembered(now)) {
                break;
            }
            self.forget_first(now);
        }
        let number = self.first.wrapping_add(u32::try_from(self.order.len()).expect("memory ends before"));
        let is_its = |entry: &(Mark, u32)| is_of(&self.order, self.first, *entry, who);
        let seq = match self.last.entry(who.mark().spread(), is_its, |(mark, _)| mark.spread()) {
            Entry::Occupied(mut known) => {
                let (_, before) = std::mem::replace(known.get_mut(), (who.mark(), number));
                let before = numbered(&self.order, self.first, before).filter(|before| before.is_remembered(now));
                before.map_or(seq, |before| seq.max(before.seq)) // an older leave that comes late takes nothing back
            }
            Entry::Vacant(new) => {
                new.insert((who.mark(), number));
                seq
            }
        };
        self.order.push_back(Departure { who, seq, at: now });
    }

    /// Forgets the oldest leave. That session's last one may be another.
    fn forget_first(&mut self, now: Instant) {
        let Some(oldest) = self.order.pop_front() else { return };
        let number = self.first;
        self.first = number.wrapping_add(1);
        if let Ok(last) = self.last.find_entry(oldest.who.mark().spread(), |(_, last)| *last == number) {
            last.remove();
            self.forgotten_early += u64::from(oldest.is_remembered(now));
        }
    }

    /// Whether a join with this `seq` is older than the session's leave.
    pub(super) fn is_late(&self, who: Who, seq: u64, now: Instant) -> bool {
        let is_its = |entry: &(Mark, u32)| is_of(&self.order, self.first, *entry, who);
        let last = self.last.find(who.mark().spread(), is_its);
        let left = last.and_then(|(_, number)| numbered(&self.order, self.first, *number));
        left.is_some_and(|left| seq <= left.seq && left.is_remembered(now))
    }

    /// The leave of a session that will be read, if there is one: probably, by half of its hash.
    pub(super) fn likely(&self, who: Who) -> Option<&Departure> {
        let (_, number) = self.last.find(who.mark().spread(), |(kept, _)| *kept == who.mark())?;
        numbered(&self.order, self.first, *number)
    }

    /// How many leaves were forgotten before their time, because there were too many.
    #[must_use]
    pub const fn forgotten_early(&self) -> u64 {
        self.forgotten_early
    }

    /// How many are kept, with those whose time has come.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

// === impl Who ===

impl Who {
    const fn mark(self) -> Mark {
        Mark::of(self.0)
    }
}

fn numbered(order: &VecDeque<Departure>, first: u32, number: u32) -> Option<&Departure> {
    order.get(number.wrapping_sub(first) as usize)
}

fn is_of(order: &VecDeque<Departure>, first: u32, (mark, number): (Mark, u32), who: Who) -> bool {
    mark == who.mark() && numbered(order, first, number).is_some_and(|left| left.who == who)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn who(gone: &Gone, session: usize) -> Who {
        let session = SessionId::new(format!("s{session}")).expect("valid");
        gone.who(7, &CallId::new("c").expect("valid"), &session)
    }

    #[test]
    fn i09_leaves_are_remembered_for_a_while_and_never_too_many() {
        let (t, max) = (Instant::now(), 1_000);
        let later = t + REMEMBERED_FOR;
        let mut gone = Gone::default();
        let note = |gone: &mut Gone, n: usize, seq: u64, at: Instant| gone.note(who(gone, n), seq, max, at);
        let late = |gone: &Gone, n: usize, seq: u64, at: Instant| gone.is_late(who(gone, n), seq, at);
        for n in 0..(max + 10) {
            note(&mut gone, n, 5, t);
        }
        assert_eq!((gone.len(), gone.forgotten_early()), (max, 10));
        assert!(!late(&gone, 0, 1, t), "the oldest went first");
        assert!(late(&gone, 500, 5, t) && !late(&gone, 500, 6, t));
        assert!(!late(&gone, 500, 5, later), "its minute is over, though nobody has left since");
        note(&mut gone, 0, 7, later);
        assert_eq!((gone.len(), late(&gone, 0, 7, later)), (max + 1 - FORGOTTEN_AT_ONCE, true));
        for n in 1..max - 1 {
            note(&mut gone, n, 7, later);
        }
        assert_eq!((gone.len(), gone.forgotten_early()), (max - 1, 10), "nor did their time come too early");
        note(&mut gone, 0, 3, later);
        assert!(late(&gone, 0, 7, later), "an older leave that came late takes nothing back");
        assert_eq!(gone.forgotten_early(), 10, "it is still remembered");
        for n in 0..max {
            gone.note(who(&gone, n), 8, 10, later);
        }
        assert_eq!(gone.len(), 10, "a lower limit is come to a few at a time");
    }

    const SESSIONS: usize = 12;

    /// Who leaves, with which `seq`, and how many seconds later than who left before: mostly at once, so that there is much
    /// to be forgotten when a minute has passed.
    fn steps() -> impl Strategy<Value = Vec<(usize, u64, u64)>> {
        let later = prop_oneof![30 => Just(0), 4 => 1u64..20, 1 => 50u64..70];
        prop::collection::vec((0..SESSIONS, 0u64..9, later), 1..200)
    }

    proptest! {
        /// They are a map from sessions to the highest `seq` of their leaves, and when the last was; without those whose
        /// last one is a minute old or too many back. Their numbers may begin again from nothing.
        #[test]
        fn i09_leaves_are_a_map(steps in steps(), max in 1usize..60) {
            let start = Instant::now();
            let (mut now, mut model) = (start, BTreeMap::new());
            let mut gone = Gone { first: u32::MAX - 20, ..Gone::default() };
            for (nth, (session, seq, later)) in steps.into_iter().enumerate() {
                now += Duration::from_secs(later);
                gone.note(who(&gone, session), seq, max, now);
                model.retain(|_, (at, last, _)| now < *at + REMEMBERED_FOR && nth - *last < max);
                let highest = model.get(&session).map_or(seq, |(_, _, highest)| seq.max(*highest));
                model.insert(session, (now, nth, highest));
                for session in 0..SESSIONS {
                    let left = model.get(&session).map(|(_, _, highest)| *highest);
                    for seq in 0..10 {
                        prop_assert_eq!(gone.is_late(who(&gone, session), seq, now), left.is_some_and(|left| seq <= left));
                    }
                }
                prop_assert!(model.len() <= gone.last.len() && gone.last.len() <= gone.len() && gone.len() <= max);
            }
        }
    }
}
