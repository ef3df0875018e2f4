//! What callers do with a cell: ask for a connection, look whether they have one, give up, give back.
//!
//! These are the ways that every request takes, so each is as short as what it changes. The short ones
//! read no clock and decide nothing: taking a free connection, going away from the line, and giving a connection
//! back, be it to nobody or to the first in line. They are sound because nothing else can follow from them:
//! fewer in line, or one connection for one waiter, never makes demand, and never makes a deadline come
//! sooner. The one exception, a front of the line that is trusted to be served soon where the last one was not, is
//! looked for ([`CellState::rests`]); then [`Event::Settle`] does the rest.
//!
//! [`Event::Settle`]: super::Event::Settle

use std::time::Duration;

use tokio::time::Instant;

use super::conns::{Channel, ConnKey, Taken};
use super::event::{Action, Actions, Answer, Awaited, Back, Intake, Joined, Refusal, Ticket};
use super::waiters::{Look, WaiterKey, Waiters};
use super::{CellState, first_generation};
use crate::fault::{self, Point};

/// Callers who gave up that are counted together: a counter that is short by less than so many for each line is true
/// enough while callers are leaving it. The rest is counted within a second.
const GAVE_UP_TOGETHER: u64 = 64;

impl<C: Channel, W, E: Clone> CellState<C, W, E> {
    /// A connection at once, unless others wait for one.
    pub(crate) fn checkout(&mut self, closed: &mut impl FnMut(C)) -> Option<Taken<C>> {
        fault::point(Point::Checkout);
        if self.draining.is_some() || !self.line.is_empty() {
            return None;
        }
        self.conns.take(&self.tuning, closed)
    }

    /// A caller asks for a connection and will wait for it; a fresh one wants a *new* connection, past any
    /// back-off. `waiter` is taken if the caller has to wait. `out` must be executed as [`CellState::apply`]'s is.
    pub(crate) fn join(
        &mut self,
        waiter: &mut Option<W>,
        deadline: Instant,
        fresh: bool,
        now: Instant,
        out: &mut Actions<C, W, E>,
    ) -> Joined<C, E> {
        fault::point(Point::StepBegins);
        let joined = match self.answer_at_once(deadline, fresh, now, out) {
            Some(answer) => Joined::Answered(answer),
            None => match waiter.take() {
                Some(waiter) => {
                    if !fresh && self.line.is_empty() {
                        self.line_since = Some(now);
                    }
                    let key = self.line_mut(fresh).push_back(waiter, deadline, now);
                    Joined::Queued(Ticket::new(fresh, key))
                }
                None => Joined::Answered(Answer::Refused(Refusal::Saturated)),
            },
        };
        fault::point(Point::StepHalf);
        if fresh || matches!(joined, Joined::Answered(_)) || !self.merely_follows(deadline, now) {
            self.settle(now, out);
        }
        fault::point(Point::StepEnds);
        joined
    }

    /// Whether the caller who came last changes nothing for anybody: others are before it, there is no room for a
    /// dial, and a ring comes before its deadline.
    fn merely_follows(&self, deadline: Instant, now: Instant) -> bool {
        self.line.len() > 1
            && self.permits >= self.tuning.connections_max()
            && self.conns.usable() > 0
            && !self.look_again
            && self.rings.last().is_some_and(|ring| now < *ring && *ring <= deadline)
    }

    /// The connection, or the reason, for which a caller need not wait.
    fn answer_at_once(
        &mut self,
        deadline: Instant,
        fresh: bool,
        now: Instant,
        out: &mut Actions<C, W, E>,
    ) -> Option<Answer<C, E>> {
        if let Some(intake) = self.draining {
            let why = if intake == Intake::Surplus { Refusal::Saturated } else { Refusal::Draining };
            return Some(Answer::Refused(why));
        }
        if deadline <= now {
            return Some(Answer::Refused(Refusal::Expired(Awaited::Turn)));
        }
        if !fresh {
            if let Some(taken) = self.checkout(&mut |channel| out.push(Action::Close(channel))) {
                return Some(Answer::Given(taken));
            }
            let why = self.hopeless(now).or_else(|| self.crowded()).or_else(|| self.wont_make(deadline, now));
            if let Some(why) = why {
                return Some(Answer::Refused(why));
            }
        }
        let length = if fresh { self.fresh_len() } else { self.line.len() };
        let full = length >= self.tuning.waiters_max() || !self.places.admit(self.callers(), fresh);
        full.then_some(Answer::Refused(Refusal::Saturated))
    }

    /// What has become of a caller in line. What it is told, it is told once.
    pub(crate) fn look(&mut self, ticket: Ticket) -> Look<'_, W, Answer<C, E>> {
        fault::point(Point::Look);
        self.line_mut(ticket.is_fresh()).look(ticket.key())
    }

    /// A caller gives up. What would have woken it must be dropped after the lock is released; with `false`,
    /// [`Event::Settle`] must follow. `None` if it is not in line: what it was told is still there.
    ///
    /// [`Event::Settle`]: super::Event::Settle
    #[inline]
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<(W, bool)> {
        let line = self.line_mut(ticket.is_fresh());
        let first = line.front() == Some(ticket.key());
        let left = line.leave(ticket.key());
        self.places.fit(self.callers());
        fault::point(Point::Leave);
        left.map(|left| (left, self.draining.is_none() && (!first || self.rests())))
    }

    /// One more caller gave up. Returns how many of them are to be counted now: a counter that others share costs as much
    /// as the rest of a leave, so while there is a line they are counted together.
    pub(crate) fn gave_up(&mut self) -> u64 {
        self.gave_up += 1;
        if self.callers() > 0 && self.gave_up < GAVE_UP_TOGETHER { 0 } else { self.uncounted() }
    }

    /// Callers who gave up and are not counted yet.
    pub(crate) fn uncounted(&mut self) -> u64 {
        std::mem::take(&mut self.gave_up)
    }

    /// A request is done with a connection that is well. If anybody waits, it is the next one's; else it falls
    /// idle, if a timer will look after it. A connection that was only held (no `now`) has not been used, so
    /// its idleness goes on and no clock is needed. What its server said about idling must be known already.
    pub(crate) fn put_back(
        &mut self,
        key: ConnKey,
        channel: &mut Option<C>,
        now: Option<Instant>,
        keep_alive: Option<Duration>,
    ) -> Back<W> {
        fault::point(Point::PutBack);
        if self.silent && now.is_some() {
            self.silent = false; // What is not so need not be written.
        }
        let told = keep_alive.map(|told| told.min(self.tuning.idle_timeout.get()));
        if told.is_some() && told != self.conns.idle_timeout(key) {
            return Back::Not;
        }
        let Some(armed) = self.rings.last().copied().filter(|_| self.draining.is_none()) else { return Back::Not };
        if self.conns.usable() > self.tuning.connections_max() {
            return Back::Not;
        }
        if self.line.is_empty() {
            return if self.conns.put_back(key, channel, armed, now) { Back::Idle } else { Back::Not };
        }
        if !self.rests() {
            return Back::Not;
        }
        let Some(taken) = self.conns.pass_on(key, channel, now, &self.tuning) else { return Back::Not };
        let waiter = self.line.front().and_then(|first| self.line.answer(first, Answer::Given(taken)));
        self.places.fit(self.callers());
        match waiter {
            Some(waiter) => Back::PassedOn(waiter),
            None => Back::Not, // Nobody waits: it was looked at above.
        }
    }

    /// Whether nothing has to be done when the front of the line changes: nobody is trusted to be served soon
    /// without a ring that comes when that turned out to be wrong. Without room for a dial the ring would
    /// change nothing.
    fn rests(&self) -> bool {
        if self.permits >= self.tuning.connections_max() {
            return true;
        }
        let rung_by = |at: Instant| self.rings.last().is_some_and(|ring| *ring <= at);
        self.trust_ends().is_none_or(rung_by)
    }

    /// Answers a waiter and has it woken.
    pub(super) fn tell(&mut self, fresh: bool, key: WaiterKey, answer: Answer<C, E>, out: &mut Actions<C, W, E>) {
        out.extend(self.line_mut(fresh).answer(key, answer).map(Action::Wake));
    }

    pub(super) fn fresh_len(&self) -> usize {
        self.fresh_line.as_ref().map_or(0, |line| line.len())
    }

    pub(super) fn fresh_front(&self) -> Option<WaiterKey> {
        self.fresh_line.as_ref().and_then(|line| line.front())
    }

    /// The earliest deadline of all who wait.
    pub(super) fn next_deadline(&mut self) -> Option<Instant> {
        let fresh = self.fresh_line.as_mut().and_then(|line| line.next_deadline());
        self.line.next_deadline().into_iter().chain(fresh).min()
    }

    pub(super) fn line_mut(&mut self, fresh: bool) -> &mut Waiters<W, Answer<C, E>> {
        if !fresh {
            return &mut self.line;
        }
        self.fresh_line.get_or_insert_with(|| Box::new(Waiters::new(first_generation(self.life))))
    }
}
