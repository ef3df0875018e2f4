//! A caller's way to a connection.
//!
//! A future by hand, because it is what a storm is made of: a hundred bytes per caller, and nothing beside it but
//! the caller's node in the cell. No channel and no timer of its own. Its deadline is the cell's business,
//! whose timer rings at the earliest one; should that ring be lost, it is made up for within a second
//! ([`super::timers`]), and should the cell begin a new life ([`super::contain`]), the caller is woken, finds
//! itself unknown and may try again. So nobody waits for ever.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::Cell;
use crate::cell::{Action, Actions, Answer, Awaited, Event, Joined, Look, Refusal, Ticket};
use crate::conn::{Lease, Link};
use crate::error::{Error, Kind, Stage};

/// The callers in line whose wait is timed: the first of this many. A look at the clock, and a histogram whose lock
/// all callers of the partition share, are much of what a wait costs, and a distribution needs no more.
const WAITS_TIMED_ONE_IN: u64 = 8;

/// What a caller is told when a line is full: about the time in which a full line of 4,096 moves on at
/// the rate of a busy but healthy origin.
const SATURATED_RETRY_AFTER: Duration = Duration::from_millis(500);

/// Least time that is told to somebody whose deadline the line would have missed by less.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(10);

/// A connection for one request: at once if one is free, else after a wait in line.
///
/// # Cancel safety
///
/// Dropped, it leaves the line; what was given in the same moment goes back.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Acquire<'a> {
    cell: Cow<'a, Arc<Cell>>,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Asks {
        fresh: bool,
        deadline: Instant,
    },
    /// In line.
    Waits {
        ticket: Ticket,
        since: Instant,
    },
    Done,
}

/// What a caller sees that looks after its place in line.
enum Seen {
    Told,
    Waits,
    /// It waits, and another waker than this would be woken.
    Stale,
    /// It is unknown: the cell has begun a new life.
    Gone,
}

/// A place in line, or an answer at once.
type Asked = Result<Ticket, Result<Lease, Error>>;

// === impl Acquire ===

impl<'a> Acquire<'a> {
    pub(crate) fn new(cell: Cow<'a, Arc<Cell>>, fresh: bool, deadline: Instant) -> Self {
        Self { cell, step: Step::Asks { fresh, deadline } }
    }

    fn ask(&mut self, fresh: bool, deadline: Instant, cx: &Context<'_>) -> Poll<Result<Lease, Error>> {
        self.step = Step::Done;
        let hopeful = !fresh && !self.cell.crowded.load(Ordering::Relaxed);
        if hopeful && let Some(lease) = self.cell.checkout() {
            return Poll::Ready(Ok(lease));
        }
        let now = Instant::now();
        let (joined, actions) = self.cell.join(cx.waker(), deadline, fresh, now);
        // First of all, for what follows runs other people's code: a panic in it must not lose what it is about.
        let answer = match joined {
            Ok(ticket) => {
                self.step = Step::Waits { ticket, since: now };
                Poll::Pending
            }
            Err(answer) => Poll::Ready(answer),
        };
        self.cell.execute_and_pump(actions);
        answer
    }

    fn look(&mut self, ticket: Ticket, since: Instant, cx: &Context<'_>) -> Poll<Result<Lease, Error>> {
        let Some(answer) = self.cell.look(ticket, cx.waker()) else { return Poll::Pending };
        self.step = Step::Done;
        if ticket.number() % WAITS_TIMED_ONE_IN == 1 {
            self.cell.partition().metrics.waited(Instant::now().saturating_duration_since(since));
        }
        Poll::Ready(answer)
    }
}

impl Future for Acquire<'_> {
    type Output = Result<Lease, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.step {
            Step::Asks { fresh, deadline } => self.ask(fresh, deadline, cx),
            Step::Waits { ticket, since } => self.look(ticket, since, cx),
            Step::Done => Poll::Ready(Err(Error::new(Kind::Aborted, Stage::Queue))),
        }
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Step::Waits { ticket, .. } = self.step {
            self.cell.leave(ticket);
        }
    }
}

// === impl Cell ===

impl Cell {
    /// Asks for a connection. `Ok` means that the caller is in line. What is to be done comes with it.
    fn join(
        self: &Arc<Self>,
        waker: &Waker,
        deadline: Instant,
        fresh: bool,
        now: Instant,
    ) -> (Asked, Actions<Link, Waker, Error>) {
        let mut waiter = Some(waker.clone());
        let mut actions = Actions::new();
        let mut joined = None;
        self.locked(|state| joined = Some(state.join(&mut waiter, deadline, fresh, now, &mut actions)));
        if joined.is_none() {
            actions.retain(|action| matches!(action, Action::Wake(_)));
        }
        let asked = match joined {
            Some(Joined::Queued(ticket)) => {
                self.note_crowded(true);
                Ok(ticket)
            }
            Some(Joined::Answered(answer)) => {
                if matches!(answer, Answer::Given(_)) {
                    self.note_crowded(false);
                }
                Err(self.told(answer))
            }
            None => Err(Err(Error::new(Kind::Aborted, Stage::Queue))),
        };
        (asked, actions)
    }

    /// What a caller in line is told, if it is. Else it is woken by `waker`, sooner or later.
    fn look(self: &Arc<Self>, ticket: Ticket, waker: &Waker) -> Option<Result<Lease, Error>> {
        let (mut newer, mut told) = (None, None);
        loop {
            let seen = self.locked(|state| match state.look(ticket) {
                Look::Answered(answer) => {
                    told = Some(answer);
                    Seen::Told
                }
                Look::Gone => Seen::Gone,
                Look::Waiting(stored) if stored.will_wake(waker) => Seen::Waits,
                Look::Waiting(stored) => newer.as_mut().map_or(Seen::Stale, |newer| {
                    std::mem::swap(stored, newer);
                    Seen::Waits
                }),
            });
            match seen {
                Some(Seen::Told) => return told.map(|answer| self.told(answer)),
                Some(Seen::Waits) => return None,
                // Copying a waker runs somebody else's code, which has no business under the lock.
                Some(Seen::Stale) => newer = Some(waker.clone()),
                Some(Seen::Gone) | None => return Some(Err(Error::new(Kind::Aborted, Stage::Queue))),
            }
        }
    }

    /// A caller in line gives up. What it was given in the same moment goes on.
    fn leave(self: &Arc<Self>, ticket: Ticket) {
        let (mut left, mut settled, mut gave_up) = (None, true, 0);
        self.locked(|state| {
            if let Some((waker, rests)) = state.leave(ticket) {
                left = Some(waker);
                settled = rests;
            }
            gave_up = state.gave_up();
        });
        self.count_gave_up(gave_up);
        if left.is_none() {
            drop(self.look(ticket, Waker::noop()));
        }
        drop(left);
        if !settled {
            self.apply(Event::Settle);
        }
    }

    fn told(self: &Arc<Self>, answer: Answer<Link, Error>) -> Result<Lease, Error> {
        match answer {
            Answer::Given(taken) => Ok(Lease::new(self, taken)),
            Answer::Refused(why) => Err(self.explain(why)),
        }
    }

    fn explain(&self, why: Refusal<Error>) -> Error {
        let metrics = &self.partition().metrics;
        match why {
            Refusal::Expired(awaited) => {
                metrics.shed(&Kind::Timeout);
                let late = |stage| Error::new(Kind::Timeout, stage);
                match awaited {
                    Awaited::Turn => late(Stage::Queue),
                    Awaited::Slot => late(Stage::DialSlot),
                    Awaited::Dial => late(self.progress.stage()),
                    Awaited::SharedDial => late(self.progress.stage()).shared(),
                }
            }
            Refusal::Saturated => {
                metrics.shed(&Kind::Saturated);
                Error::saturated(Stage::Queue, SATURATED_RETRY_AFTER)
            }
            Refusal::WontMakeDeadline { excess } => {
                metrics.shed(&Kind::WontMakeDeadline);
                Error::new(Kind::WontMakeDeadline, Stage::Queue).with_retry_after(excess.max(RETRY_AFTER_MIN))
            }
            Refusal::Draining => {
                metrics.shed(&Kind::Draining);
                Error::new(Kind::Draining, Stage::Queue)
            }
            Refusal::Dial(error) => error,
            Refusal::Shared { error, retry_after } => {
                metrics.failed_fast.inc();
                error.shared().with_retry_after(retry_after)
            }
        }
    }
}
