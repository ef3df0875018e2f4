//! Who has left a moment ago, so that a late or repeated join does not bring them back.
//!
//! A write may arrive after the leave that followed it, on another connection. While the session is
//! in the call, its entry tells old from new; afterwards this does, for longer than any write can be
//! under way.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sfu_api::{CallId, GuildId, SessionId};
use tokio::time::Instant;

/// How long a leave is remembered: twice the longest time a gateway's request can be under way.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Leaves remembered per shard: 200 a second for the whole time, ~2 MiB. Beyond, the oldest go first.
pub const REMEMBERED_MAX: usize = 12_000;

type Who = (GuildId, CallId, SessionId);

/// The leaves of the last minute.
#[derive(Debug, Default)]
pub struct Gone {
    last: HashMap<Who, (u64, Instant)>,
    order: VecDeque<(Instant, Who)>,
}

// === impl Gone ===

impl Gone {
    /// The session left with this `seq`.
    pub fn note(&mut self, who: Who, seq: u64, now: Instant) {
        while self.order.len() >= REMEMBERED_MAX
            || self.order.front().is_some_and(|(at, _)| *at + REMEMBERED_FOR <= now)
        {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            // One that was noted again since stays, under its later entry.
            if self.last.get(&oldest).is_some_and(|(_, noted)| *noted == at) {
                self.last.remove(&oldest);
            }
        }
        let highest = self.last.get(&who).map_or(seq, |(last, _)| seq.max(*last));
        self.last.insert(who.clone(), (highest, now));
        self.order.push_back((now, who));
    }

    /// Whether a join with this `seq` is older than the session's leave.
    #[must_use]
    pub fn is_late(&self, who: &Who, seq: u64) -> bool {
        self.last.get(who).is_some_and(|(left, _)| seq <= *left)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i09_leaves_are_remembered_for_a_while_and_never_too_many() {
        let who = |n: usize| {
            let session = SessionId::new(format!("s{n}")).expect("valid");
            (GuildId::new("g").expect("valid"), CallId::new("c").expect("valid"), session)
        };
        let t = Instant::now();
        let mut gone = Gone::default();
        for n in 0..(REMEMBERED_MAX + 10) {
            gone.note(who(n), 5, t);
        }
        assert_eq!(gone.len(), REMEMBERED_MAX);
        assert!(!gone.is_late(&who(0), 1), "the oldest went first");
        assert!(gone.is_late(&who(500), 5) && !gone.is_late(&who(500), 6));
        gone.note(who(0), 7, t + REMEMBERED_FOR);
        assert_eq!((gone.len(), gone.is_late(&who(0), 7), gone.is_late(&who(500), 5)), (1, true, false));
    }
}
