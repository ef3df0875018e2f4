//! Who has left a moment ago, so that a late or repeated join does not bring them back.
//!
//! A write may arrive after the leave that followed it, on another connection. While the session is
//! in the call, its entry tells old from new; afterwards this does, for longer than any write can be
//! under way.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};
use sfu_api::{CallId, GuildId, SessionId};
use tokio::time::Instant;

/// How long a leave is remembered: twice the longest time a gateway's request can be under way.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(60);

type Who = (GuildId, CallId, SessionId);

/// Asks for a [`Who`] without making one.
#[derive(Hash)]
struct Asked<'a>(&'a GuildId, &'a CallId, &'a SessionId);

/// The leaves of the last minute.
#[derive(Debug, Default)]
pub struct Gone {
    last: HashMap<Who, (u64, Instant), RandomState>,
    order: VecDeque<(Instant, Who)>,
    forgotten_early: u64,
}

// === impl Gone ===

impl Gone {
    /// The session left with this `seq`. With more than `max` leaves the oldest are forgotten before their time.
    pub fn note(&mut self, who: Who, seq: u64, max: usize, now: Instant) {
        while self.order.len() >= max.max(1) || self.order.front().is_some_and(|(at, _)| *at + REMEMBERED_FOR <= now) {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            // One that was noted again since stays, under its later entry.
            if self.last.get(&oldest).is_some_and(|(_, noted)| *noted == at) {
                self.last.remove(&oldest);
                self.forgotten_early += u64::from(at + REMEMBERED_FOR > now);
            }
        }
        let (highest, noted) = self.last.entry(who.clone()).or_insert((seq, now));
        (*highest, *noted) = (seq.max(*highest), now);
        self.order.push_back((now, who));
    }

    /// Whether a join with this `seq` is older than the session's leave.
    #[must_use]
    pub fn is_late(&self, guild: &GuildId, call: &CallId, session: &SessionId, seq: u64) -> bool {
        self.last.get(&Asked(guild, call, session)).is_some_and(|(left, _)| seq <= *left)
    }

    /// How many leaves were forgotten before their time, because there were too many.
    #[must_use]
    pub const fn forgotten_early(&self) -> u64 {
        self.forgotten_early
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

// === impl Asked ===

impl Equivalent<Who> for Asked<'_> {
    fn equivalent(&self, (guild, call, session): &Who) -> bool {
        self.0 == guild && self.1 == call && self.2 == session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i09_leaves_are_remembered_for_a_while_and_never_too_many() {
        let who = |n: usize| {
            let session = SessionId::new(format!("s{n}")).expect("valid");
            (GuildId::new("g").expect("valid"), CallId::new("c").expect("valid"), session)
        };
        let (t, max) = (Instant::now(), 1_000);
        let mut gone = Gone::default();
        for n in 0..(max + 10) {
            gone.note(who(n), 5, max, t);
        }
        assert_eq!((gone.len(), gone.forgotten_early()), (max, 10));
        let late = |gone: &Gone, n: usize, seq: u64| {
            let (guild, call, session) = who(n);
            gone.is_late(&guild, &call, &session, seq)
        };
        assert!(!late(&gone, 0, 1), "the oldest went first");
        assert!(late(&gone, 500, 5) && !late(&gone, 500, 6));
        gone.note(who(0), 7, max, t + REMEMBERED_FOR);
        assert_eq!((gone.len(), late(&gone, 0, 7), late(&gone, 500, 5)), (1, true, false));
        gone.note(who(0), 3, max, t + REMEMBERED_FOR);
        assert_eq!(gone.forgotten_early(), 10, "nor did their time come too early");
        assert!(late(&gone, 0, 7), "an older leave that came late takes nothing back");
    }
}
