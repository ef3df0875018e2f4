//! One gateway's outgoing operations: what is due when, what is on the wire, what comes next.
//!
//! Level-triggered like the system it tests: the desk holds the *wanted* state of each session and
//! when it may next be asked for, never a queue of requests. A retry, a ramp and a re-read after
//! `resync` are the same thing: a session with a due time. So memory is bounded by the number of
//! sessions, and a `Retry-After` is obeyed by construction: a session cannot be taken before.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use crate::population::SessionIx;

/// What to do with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Join or update.
    Join,
    /// Leave.
    Leave,
}

/// An operation to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    /// Position at this desk.
    pub slot: usize,
    /// The session.
    pub session: SessionIx,
    /// What to do.
    pub verb: Verb,
    /// Sequence number of the session's operation.
    pub seq: u64,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send this.
    Send(Op),
    /// Nothing before this time.
    WaitUntil(Instant),
    /// Nothing before an operation on the wire is answered.
    WaitForAnswers,
    /// Nothing at all.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing to do.
    Rest,
    /// In the heap.
    Due,
    /// On the wire since then.
    Wire(Instant),
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    session: SessionIx,
    verb: Verb,
    seq: u64,
    attempts: u32,
    place: Place,
    /// Wanted again while on the wire.
    again: bool,
    /// Sent at least once.
    asked: bool,
}

/// The sessions of one gateway on one road.
#[derive(Debug)]
pub(crate) struct Desk {
    seats: Vec<Seat>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    on_wire: usize,
    on_wire_max: usize,
}

// === impl Desk ===

impl Desk {
    /// A desk for these sessions; their sequence numbers start above `seq_start`.
    #[must_use]
    pub(crate) fn new(sessions: impl IntoIterator<Item = SessionIx>, seq_start: u64, on_wire_max: usize) -> Self {
        let seat = |session| Seat {
            session,
            verb: Verb::Join,
            seq: seq_start,
            attempts: 0,
            place: Place::Rest,
            again: false,
            asked: false,
        };
        Self { seats: sessions.into_iter().map(seat).collect(), due: BinaryHeap::new(), on_wire: 0, on_wire_max }
    }

    /// Sessions of this desk with their positions.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = (usize, SessionIx)> {
        self.seats.iter().enumerate().map(|(slot, seat)| (slot, seat.session))
    }

    /// Wants `verb` done for the session at `slot`, not before `at`; a session that is due already
    /// keeps its time.
    pub(crate) fn want(&mut self, slot: usize, verb: Verb, at: Instant) {
        let seat = &mut self.seats[slot];
        seat.verb = verb;
        match seat.place {
            Place::Wire(_) => seat.again = true,
            // Keeps its time: it may be waiting out a `Retry-After`.
            Place::Due => {}
            Place::Rest => self.put(slot, at),
        }
    }

    fn put(&mut self, slot: usize, at: Instant) {
        self.seats[slot].place = Place::Due;
        self.due.push(Reverse((at, slot)));
    }

    /// What there is to do now, without taking it.
    #[must_use]
    pub(crate) fn peek(&self, now: Instant) -> Step {
        let Some(&Reverse((at, slot))) = self.due.peek() else {
            return if self.on_wire > 0 { Step::WaitForAnswers } else { Step::Idle };
        };
        if self.on_wire >= self.on_wire_max {
            return Step::WaitForAnswers;
        }
        if at > now {
            return Step::WaitUntil(at);
        }
        let seat = &self.seats[slot];
        Step::Send(Op { slot, session: seat.session, verb: seat.verb, seq: seat.seq + 1 })
    }

    /// What to do now; an operation to send counts as on the wire from here on.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        let step = self.peek(now);
        if let Step::Send(op) = step {
            self.due.pop();
            let seat = &mut self.seats[op.slot];
            seat.seq = op.seq;
            seat.attempts = seat.attempts.saturating_add(1);
            seat.asked = true;
            seat.place = Place::Wire(now);
            self.on_wire += 1;
        }
        step
    }

    /// Session at `slot`, and what is wanted for it.
    #[must_use]
    pub(crate) fn at(&self, slot: usize) -> Option<(SessionIx, Verb)> {
        self.seats.get(slot).map(|seat| (seat.session, seat.verb))
    }

    /// The operation was done (or refused for good). False when it was not on the wire any more.
    pub(crate) fn done(&mut self, slot: usize, seq: u64, now: Instant) -> bool {
        self.answered(slot, seq, None, now)
    }

    /// The operation must be tried again, not before `at`. False when it was not on the wire any more.
    pub(crate) fn retry(&mut self, slot: usize, seq: u64, at: Instant) -> bool {
        self.answered(slot, seq, Some(at), at)
    }

    fn answered(&mut self, slot: usize, seq: u64, retry_at: Option<Instant>, now: Instant) -> bool {
        let Some(seat) = self.seats.get_mut(slot) else { return false };
        if seat.seq != seq || !matches!(seat.place, Place::Wire(_)) {
            return false;
        }
        self.on_wire -= 1;
        seat.place = Place::Rest;
        let again = std::mem::take(&mut seat.again);
        if retry_at.is_none() {
            seat.attempts = 0;
        }
        if retry_at.is_some() || again {
            self.put(slot, retry_at.unwrap_or(now));
        }
        true
    }

    /// How often the operation at `slot` was tried without success.
    #[must_use]
    pub(crate) fn attempts(&self, slot: usize) -> u32 {
        self.seats.get(slot).map_or(0, |seat| seat.attempts)
    }

    /// Takes back what was put on the wire before `sent_before`: its answer will not come. Each is
    /// due again at the time `at` gives. Returns how many.
    pub(crate) fn take_back(&mut self, sent_before: Instant, mut at: impl FnMut() -> Instant) -> usize {
        let mut taken = 0;
        for slot in 0..self.seats.len() {
            if self.on_wire == 0 {
                break;
            }
            if let Place::Wire(since) = self.seats[slot].place
                && since <= sent_before
            {
                let seq = self.seats[slot].seq;
                self.answered(slot, seq, Some(at()), sent_before);
                taken += 1;
            }
        }
        taken
    }

    /// Operations on the wire.
    #[must_use]
    pub(crate) fn on_wire(&self) -> usize {
        self.on_wire
    }

    /// Asks again for every session that was asked for before, spread evenly from `from` over `over`.
    pub(crate) fn want_joined_again(&mut self, from: Instant, over: Duration) {
        let slots: Vec<usize> = (0..self.seats.len()).filter(|slot| self.seats[*slot].asked).collect();
        self.want_each(&slots, Verb::Join, from, over);
    }

    /// Wants every session for which `wanted` says so, spread evenly from `from` over `over`.
    pub(crate) fn want_all(&mut self, verb: Verb, from: Instant, over: Duration, wanted: impl Fn(SessionIx) -> bool) {
        let slots: Vec<usize> = self.sessions().filter(|(_, s)| wanted(*s)).map(|(slot, _)| slot).collect();
        self.want_each(&slots, verb, from, over);
    }

    fn want_each(&mut self, slots: &[usize], verb: Verb, from: Instant, over: Duration) {
        let step = over / u32::try_from(slots.len().max(1)).unwrap_or(u32::MAX);
        for (n, &slot) in (0..).zip(slots) {
            self.want(slot, verb, from + step * n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(step: Step) -> Op {
        let Step::Send(op) = step else { panic!("{step:?}") };
        op
    }

    #[test]
    fn nothing_is_taken_before_it_is_due() {
        let now = Instant::now();
        let mut desk = Desk::new([7, 8], 100, 10);
        assert_eq!(desk.step(now), Step::Idle);
        desk.want_all(Verb::Join, now, Duration::from_secs(2), |_| true);
        let first = send(desk.step(now));
        assert_eq!((first.session, first.seq), (7, 101));
        assert_eq!(desk.step(now), Step::WaitUntil(now + Duration::from_secs(1)));
        // A refusal with Retry-After 3 s comes after the second session.
        assert!(desk.retry(first.slot, first.seq, now + Duration::from_secs(3)));
        let second = send(desk.step(now + Duration::from_secs(2)));
        assert_eq!(second.session, 8);
        assert_eq!(desk.step(now + Duration::from_secs(2)), Step::WaitUntil(now + Duration::from_secs(3)));
        let again = send(desk.step(now + Duration::from_secs(3)));
        assert_eq!((again.session, again.seq), (7, 102));
        assert_eq!(desk.attempts(again.slot), 2);
    }

    #[test]
    fn answers_count_once_and_only_for_their_own_attempt() {
        let now = Instant::now();
        let mut desk = Desk::new([7], 0, 10);
        desk.want(0, Verb::Join, now);
        let op = send(desk.step(now));
        assert_eq!(desk.take_back(now, || now), 1);
        assert!(!desk.done(op.slot, op.seq, now), "taken back before");
        let op = send(desk.step(now));
        assert!(!desk.done(op.slot, op.seq - 1, now), "answer of an earlier attempt");
        assert!(desk.done(op.slot, op.seq, now));
        assert!(!desk.done(op.slot, op.seq, now));
        assert_eq!(desk.step(now), Step::Idle);
    }

    #[test]
    fn the_wire_is_bounded_and_a_want_during_flight_is_not_lost() {
        let now = Instant::now();
        let mut desk = Desk::new([1, 2], 0, 1);
        desk.want_all(Verb::Join, now, Duration::ZERO, |_| true);
        let op = send(desk.step(now));
        assert_eq!(desk.step(now), Step::WaitForAnswers);
        desk.want(op.slot, Verb::Leave, now);
        assert!(desk.done(op.slot, op.seq, now));
        let verbs: Vec<_> = (0..2)
            .map(|_| {
                let op = send(desk.step(now));
                assert!(desk.done(op.slot, op.seq, now));
                op.verb
            })
            .collect();
        assert!(verbs.contains(&Verb::Leave) && verbs.contains(&Verb::Join));
        assert_eq!(desk.step(now), Step::Idle);
    }
}
