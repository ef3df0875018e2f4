//! The watches that one gateway opened here itself, and which of them end when it opens too many.
//!
//! A gateway needs one. Every other costs as much again: each reads the log and has credentials signed for
//! itself. So there are a few, and beyond them the oldest ends: the newest is what somebody has just asked for,
//! while the oldest may well be of a connection that broke without a word. Refusing the newest instead would
//! lock out whoever comes back.
//!
//! Those that peers open for the gateway's watches there are not counted: each ends with the one it serves,
//! which is counted there.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a gateway's excess is worth a line in the log.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// One gateway's watches, oldest first.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    open: VecDeque<(u64, CancellationToken)>,
    opened: u64,
    warned: Option<Instant>,
}

/// A watch came in.
#[derive(Debug)]
pub(super) struct Entered {
    /// By which it leaves.
    pub(super) number: u64,
    /// Those that have to end for it, to be told when no lock is held.
    pub(super) over: Vec<CancellationToken>,
    /// Whether this is worth a line in the log.
    pub(super) warn: bool,
}

// === impl Crowd ===

impl Crowd {
    /// A watch comes in that ends with `replaced`. Of all, the newest `max` stay, itself at least.
    pub(super) fn enter(&mut self, replaced: CancellationToken, max: usize, now: Instant) -> Entered {
        self.opened += 1;
        self.open.push_back((self.opened, replaced));
        let excess = self.open.len().saturating_sub(max.max(1));
        let over: Vec<_> = self.open.drain(..excess).map(|(_, replaced)| replaced).collect();
        let due = self.warned.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY);
        let warn = due && !over.is_empty();
        if warn {
            self.warned = Some(now);
        }
        Entered { number: self.opened, over, warn }
    }

    /// A watch has ended, by itself or because it had to.
    pub(super) fn leave(&mut self, number: u64) {
        self.open.retain(|(open, _)| *open != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_one_in_a_minute_is_worth_a_line() {
        let start = Instant::now();
        let mut crowd = Crowd::default();
        let mut enter = |max, after_s| {
            let replaced = CancellationToken::new();
            let entered = crowd.enter(replaced.clone(), max, start + Duration::from_secs(after_s));
            let (over, warn) = (entered.over.len(), entered.warn);
            entered.over.iter().for_each(CancellationToken::cancel);
            ((over, warn), entered.number, replaced)
        };
        let all = [enter(2, 0), enter(2, 1), enter(2, 2), enter(2, 61), enter(2, 62)];
        assert_eq!(all.each_ref().map(|(said, ..)| *said), [(0, false), (0, false), (1, true), (1, false), (1, true)]);
        let ended = all.each_ref().map(|(.., replaced)| replaced.is_cancelled());
        assert_eq!(ended, [true, true, true, false, false]);
        // A lower limit holds when the next one comes.
        assert_eq!(enter(1, 63).0, (2, false));
    }

    #[test]
    fn one_that_left_makes_room_and_one_that_had_to_leave_makes_none() {
        let mut crowd = Crowd::default();
        let now = Instant::now();
        let numbers = [0; 3].map(|_| crowd.enter(CancellationToken::new(), 3, now).number);
        crowd.leave(numbers[1]);
        assert!(crowd.enter(CancellationToken::new(), 3, now).over.is_empty());
        assert_eq!(crowd.enter(CancellationToken::new(), 3, now).over.len(), 1);
        crowd.leave(numbers[0]);
        assert_eq!(crowd.enter(CancellationToken::new(), 3, now).over.len(), 1, "it was not there any more");
    }
}
