//! One origin's state: connections, waiters, dial demand, breaker.
//!
//! A cell is a state machine without I/O: [`CellState::apply`] takes an event and the time, changes state
//! and says what to do; what callers do has ways of its own ([`callers`]). The shell ([`crate::partition`])
//! holds one mutex around it and does the doing after it let go: nothing wakes, dials, drops a connection, logs
//! or calls back under the lock. The alternatives were measured: an actor per origin costs 18 µs a checkout
//! where this costs 77 ns.
//!
//! What a waiter is told is put beside its place in line, and it is woken to fetch it: no allocation, no
//! channel, nothing to be lost on the way. Whoever gives up fetches it too, and passes a connection on.
//!
//! Dial demand is a *number* computed from who waits and what is under way ([`demand`]), read
//! again when a dial slot is free. It is never a list of requested dials, so a thousand callers who came
//! and gave up leave nothing behind.
//!
//! Invariant I8: `permits = live + dialling`. Invariant I9: no line is longer than its cap.

mod breaker;
mod callers;
mod conns;
mod demand;
mod estimate;
mod event;
mod looks;
mod places;
mod tuning;
mod waiters;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use self::breaker::Breaker;
pub use self::breaker::BreakerState;
use self::conns::Conns;
pub(crate) use self::conns::{Channel, ConnKey, Taken, Verdict};
use self::estimate::Estimates;
pub(crate) use self::event::{
    Action, Actions, Answer, Awaited, Back, Blame, CellCounts, CloseReason, Epoch, Event, FailedDial, Intake, Joined,
    Refusal, Ticket,
};
use self::places::Held;
pub(crate) use self::places::with_probes;
pub(crate) use self::tuning::Tuning;
pub(crate) use self::waiters::Look;
use self::waiters::Waiters;
use crate::fault::{self, Point};

/// Connections beyond the cap that a fresh dial may add: a probe must not be starved by a cap full of
/// stuck connections.
pub(crate) const FRESH_EXTRA: usize = 1;

/// The part of `age_max` that is drawn at random, so that connections opened together do not all
/// reconnect together.
const AGE_JITTER_SHARE: f64 = 0.2;

/// Rings outstanding beyond which the next one comes early, after half the time: those that follow are mostly
/// covered by it, so that a cell has asked for these and one per halving of a deadline, some twenty at most.
const RINGS_EXACT_MAX: usize = 4;

/// A ring that comes sooner than this anyway comes when it should.
const RING_EARLY_MIN: Duration = Duration::from_millis(2);

/// Where the number of a cell's life begins in the generations of keys. A life of 2^40 connections or callers is
/// longer than any process; 2^24 panics are more than one survives.
const LIFE_SHIFT: u32 = 40;

/// How late a ring may be before it is taken for lost.
pub(crate) const RING_LATE_MAX: Duration = Duration::from_secs(1);

/// From here on a deadline that is noticed late was noticed by a busy process, which may not have noticed the answer
/// either. A fraction of callers' usual deadlines, and more than a calm loop is ever late.
pub(crate) const LATE_MIN: Duration = Duration::from_millis(50);

/// The generation after which keys of this life begin.
fn first_generation(life: u32) -> u64 {
    u64::from(life) << LIFE_SHIFT
}

/// See the module's documentation. What each wait changes, or has to look at, comes first: where two processors work on one
/// cell, a request costs as much time as cache lines go back and forth.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct CellState<C, W, E> {
    /// In line for any connection.
    line: Waiters<W, Answer<C, E>>,
    /// The places that those in line take in the partition.
    places: Held,
    permits: usize,
    /// No newcomers.
    draining: Option<Intake>,
    tuning: Arc<Tuning>,
    /// Rings that were asked for and have not come, the earliest last. All of them are remembered: a later
    /// one does its work when it comes, and is not asked for twice.
    rings: SmallVec<[Instant; 1]>,
    conns: Conns<C>,
    /// In line for a connection dialled for them. Few origins ever have such callers.
    fresh_line: Option<Box<Waiters<W, Answer<C, E>>>>,
    /// Counts the fresh starts after a panic; wraps. See [`CellState::renew`].
    life: u32,
    breaker: Breaker<E>,
    dialling: usize,
    dialling_fresh: usize,
    /// Dials under way of which no caller has been told first hand: ordinary and fresh ones.
    untold: usize,
    untold_fresh: usize,
    /// Dials allowed at once: 1 until one worked, then doubling.
    dial_window: usize,
    /// The last dial worked.
    proven: bool,
    /// A request has timed out since the last answer: the host may have vanished, whatever its last dial did.
    silent: bool,
    /// In the scheduler's line for ordinary dials, and for fresh ones.
    queued: bool,
    queued_fresh: bool,
    /// A connection expires sooner than `rings` knows.
    look_again: bool,
    /// Callers who gave up and are not counted yet.
    gave_up: u64,
    estimates: Estimates,
    /// Since when there has always been somebody in line.
    line_since: Option<Instant>,
    /// When a dial last worked.
    opened_at: Option<Instant>,
    /// Whether the origin speaks HTTP/2, as the last dial found.
    h2: Option<bool>,
}

// === impl CellState ===

impl<C: Channel, W, E: Clone> CellState<C, W, E> {
    pub(crate) fn new(tuning: Arc<Tuning>) -> Self {
        Self::of_life(0, tuning)
    }

    fn of_life(life: u32, tuning: Arc<Tuning>) -> Self {
        let generation = first_generation(life);
        Self {
            life,
            conns: Conns::new(generation),
            line: Waiters::new(generation),
            fresh_line: None,
            places: Held::new(Arc::clone(&tuning)),
            breaker: Breaker::new(),
            permits: 0,
            dialling: 0,
            dialling_fresh: 0,
            untold: 0,
            untold_fresh: 0,
            dial_window: 1,
            proven: false,
            silent: false,
            queued: false,
            queued_fresh: false,
            draining: None,
            rings: SmallVec::new(),
            look_again: false,
            gave_up: 0,
            estimates: Estimates::default(),
            line_since: None,
            opened_at: None,
            h2: None,
            tuning,
        }
    }

    /// Begins a new life and returns what is left of the old one, to be dropped outside the lock, after those in
    /// line were woken ([`CellState::into_waiters`]). No key, ticket or dial of the old life fits anything in the
    /// new one: who waited is unknown, what comes back is closed, and what ends has ended.
    pub(crate) fn renew(&mut self) -> Self {
        let mut renewed = Self::of_life(self.life.wrapping_add(1), Arc::clone(&self.tuning));
        renewed.draining = self.draining;
        renewed.gave_up = self.gave_up;
        std::mem::replace(self, renewed)
    }

    /// What wakes those in line.
    pub(crate) fn into_waiters(self) -> impl Iterator<Item = W> {
        let fresh_line = self.fresh_line.map(|line| *line);
        self.line.into_waiters().chain(fresh_line.into_iter().flat_map(Waiters::into_waiters))
    }

    /// Applies one event. What it adds to `out` must be executed, in order, after the lock is released: wakers,
    /// handles and errors are other people's code when they are dropped. (For the same reason the event is taken, and
    /// nothing returned: in a panic no more of it is dropped under the lock than what was just being moved.)
    pub(crate) fn apply(&mut self, event: &mut Option<Event<C, E>>, now: Instant, out: &mut Actions<C, W, E>) {
        fault::point(Point::StepBegins);
        let Some(event) = event.take() else { return };
        match event {
            Event::Slot { life, .. } if life != self.life => out.push(Action::SlotUnused),
            Event::Slot { fresh, .. } => self.slot(fresh, now, out),
            Event::Connected { epoch, channel, .. } if epoch.life != self.life => out.push(Action::Close(channel)),
            Event::Connected { fresh, channel, shared, took, jitter, .. } => {
                self.estimates.dial.learn(took);
                self.estimates.slot.learn(took);
                self.connected(fresh, channel, shared, jitter, now, out);
            }
            Event::DialFailed { dial, .. } if dial.epoch.life != self.life => out.push(Action::Discard(dial.error)),
            Event::DialFailed { dial, took } => {
                self.estimates.slot.learn(took);
                self.dial_failed(dial, now, out);
            }
            Event::Return { key, channel, verdict, keep_alive, held } => {
                self.given_back(key, channel, verdict, keep_alive, held, now, out);
            }
            Event::Returning(key) => self.conns.set_returning(key, true),
            Event::Heard | Event::Settle => {}
            Event::Retune => self.shrink(out),
            Event::Closed(key) => {
                if let Some((channel, reason)) = self.conns.remove(key) {
                    self.permits -= 1;
                    out.push(Action::Ended(reason));
                    out.extend(channel.map(Action::Close));
                }
            }
            Event::EvictIdle => out.extend(self.conns.retire_oldest_idle(CloseReason::Spilled).map(Action::Evict)),
            Event::Tick { at } => self.tick(at, now, out),
            Event::Drain(intake) => self.drain(intake, out),
        }
        fault::point(Point::StepHalf);
        self.settle(now, out);
        fault::point(Point::StepEnds);
    }

    fn slot(&mut self, fresh: bool, now: Instant, out: &mut Actions<C, W, E>) {
        *(if fresh { &mut self.queued_fresh } else { &mut self.queued }) = false;
        let wanted = if fresh { self.wanted_fresh() } else { self.wanted_normal(now) };
        if wanted == 0 {
            return out.push(Action::SlotUnused);
        }
        self.permits += 1;
        self.dialling += 1;
        self.dialling_fresh += usize::from(fresh);
        *(if fresh { &mut self.untold_fresh } else { &mut self.untold }) += 1;
        let epoch = Epoch { life: self.life, breaker: self.breaker.epoch() };
        out.push(Action::Dial { fresh, epoch });
    }

    fn connected(
        &mut self,
        fresh: bool,
        channel: C,
        shared: bool,
        jitter: f64,
        now: Instant,
        out: &mut Actions<C, W, E>,
    ) {
        self.dial_over(fresh);
        out.extend(self.breaker.succeed().map(Action::Discard));
        self.proven = true;
        self.silent = false;
        self.opened_at = Some(now);
        self.dial_window = self.dial_window.saturating_mul(2).min(self.tuning.dials_max());
        self.h2 = Some(shared);
        let age = self.tuning.age_max.get().mul_f64(1.0 - AGE_JITTER_SHARE * jitter.clamp(0.0, 1.0));
        let key = self.conns.insert(channel, shared, now + age, now, &self.tuning);
        out.push(Action::Opened(key));
        if fresh
            && let Some(first) = self.fresh_front()
            && let Some(taken) = self.conns.take_key(key, &self.tuning)
        {
            self.tell(true, first, Answer::Given(taken), out);
        }
        self.keep_to_cap(key, out);
    }

    /// A connection beyond the cap, which a probe added or a smaller cap left over, goes when nobody uses it, and is
    /// not given to the line: the next probe needs its room.
    fn keep_to_cap(&mut self, key: ConnKey, out: &mut Actions<C, W, E>) {
        if self.conns.usable() > self.tuning.connections_max() {
            out.extend(self.conns.retire_unused(key, CloseReason::Surplus).map(Action::Close));
        }
    }

    /// The cap may have been lowered: what is idle beyond it goes now, what is in use when it comes back.
    fn shrink(&mut self, out: &mut Actions<C, W, E>) {
        while self.conns.usable() > self.tuning.connections_max()
            && let Some(channel) = self.conns.retire_oldest_idle(CloseReason::Surplus)
        {
            out.push(Action::Close(channel));
        }
    }

    /// One dial fewer. Returns whether nobody has been told of it first hand.
    fn dial_over(&mut self, fresh: bool) -> bool {
        let before = if fresh { self.dialling_fresh } else { self.dialling - self.dialling_fresh };
        self.dialling -= 1;
        self.dialling_fresh -= usize::from(fresh);
        let untold = if fresh { &mut self.untold_fresh } else { &mut self.untold };
        // When some have been told of, this is taken to be one of those.
        let news = *untold == before;
        *untold -= usize::from(news);
        news
    }

    fn dial_failed(&mut self, failed: FailedDial<E>, now: Instant, out: &mut Actions<C, W, E>) {
        let FailedDial { fresh, epoch, error, blame, jitter } = failed;
        self.permits -= 1;
        let news = self.dial_over(fresh);
        if blame == Blame::Haste {
            return out.push(Action::Discard(error));
        }
        if blame == Blame::Host {
            let counted = self.breaker.fail(epoch.breaker, error.clone(), jitter, self.tuning.backoff(), now);
            if counted.is_ok() {
                self.proven = false;
                self.dial_window = 1;
            }
            out.extend(counted.unwrap_or_else(Some).map(Action::Discard));
        }
        // Exactly one caller learns of the failure first hand.
        let owner = if fresh {
            self.fresh_front()
        } else if news && (self.hopeless(now).is_some() || blame == Blame::Us && self.deserted()) {
            self.line.front()
        } else {
            None
        };
        match owner {
            Some(owner) => self.tell(fresh, owner, Answer::Refused(Refusal::Dial(error)), out),
            None => out.push(Action::Discard(error)),
        }
    }

    /// No connection, and none coming.
    fn deserted(&self) -> bool {
        self.dialling == 0 && self.conns.usable() == 0
    }

    fn tick(&mut self, at: Instant, now: Instant, out: &mut Actions<C, W, E>) {
        self.rings.retain(|ring| *ring != at);
        self.conns.retire_idle(None, now, &mut |channel| out.push(Action::Close(channel)));
        // One that is idle may have counted on this ring, and expire before the next.
        self.look_again = true;
        self.expire(now, out);
    }

    /// Tells those whose deadline has come what they waited for. A dial is evidence for one of them: the
    /// others would report the same silence once more. If we are not punctual, the dial may have had an answer
    /// for long that nobody has looked at, and it is evidence for none.
    fn expire(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        let first = self.next_deadline();
        let punctual = first.is_none_or(|first| now < first + LATE_MIN);
        let ours = if self.queued || self.queued_fresh || !punctual { Awaited::Slot } else { Awaited::Turn };
        // With connections in use the dial under way is not what these waited for.
        let dialling = punctual && self.dialling > self.dialling_fresh && self.conns.usable() == 0;
        while let Some(waiter) = self.line.expired(now) {
            let awaited = match (dialling, self.untold > 0) {
                (false, _) => ours,
                (true, true) => Awaited::Dial,
                (true, false) => Awaited::SharedDial,
            };
            self.untold -= usize::from(awaited == Awaited::Dial);
            self.tell(false, waiter, Answer::Refused(Refusal::Expired(awaited)), out);
        }
        while let Some(waiter) = self.fresh_line.as_mut().and_then(|line| line.expired(now)) {
            let awaited = if punctual && self.untold_fresh > 0 { Awaited::Dial } else { ours };
            self.untold_fresh -= usize::from(awaited == Awaited::Dial);
            self.tell(true, waiter, Answer::Refused(Refusal::Expired(awaited)), out);
        }
    }

    fn drain(&mut self, intake: Intake, out: &mut Actions<C, W, E>) {
        self.draining = Some(intake);
        if intake == Intake::ServeLine {
            return;
        }
        for fresh in [false, true] {
            while let Some(first) = self.line_mut(fresh).front() {
                self.tell(fresh, first, Answer::Refused(Refusal::Draining), out);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    fn given_back(
        &mut self,
        key: ConnKey,
        channel: Option<C>,
        verdict: Verdict,
        keep_alive: Option<Duration>,
        held: Option<Duration>,
        now: Instant,
        out: &mut Actions<C, W, E>,
    ) {
        if let Some(keep_alive) = keep_alive {
            self.conns.set_idle_timeout(key, keep_alive.min(self.tuning.idle_timeout.get()));
        }
        // If it falls idle now, a ring must come before it expires.
        let rung_by = |at: Instant| self.rings.last().is_some_and(|ring| (now..=at).contains(ring));
        self.look_again |= self.conns.idle_timeout(key).is_some_and(|idle| !rung_by(now + idle));
        match verdict {
            Verdict::Answered => self.silent = false,
            Verdict::TimedOut => self.silent = true,
            Verdict::Unused | Verdict::Abandoned => {}
        }
        if let Some(held) = held
            && matches!(verdict, Verdict::Answered | Verdict::TimedOut)
        {
            self.estimates.hold.learn(held.min(self.tuning.request_timeout.get()));
        }
        out.extend(self.conns.give_back(key, channel, verdict, now).map(Action::Close));
        self.keep_to_cap(key, out);
    }

    /// What must hold after every event: nobody waits beside a free connection or without hope, demand
    /// is known to the scheduler, and the timer is set.
    fn settle(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        while let Some(first) = self.line.front() {
            let Some(taken) = self.conns.take(&self.tuning, &mut |channel| out.push(Action::Close(channel))) else {
                break;
            };
            self.tell(false, first, Answer::Given(taken.sampled()), out);
        }
        if !self.line.is_empty()
            && let Some(why) = self.hopeless(now)
        {
            while let Some(first) = self.line.front() {
                self.tell(false, first, Answer::Refused(why.clone()), out);
            }
        }
        if self.draining.is_some() && self.callers() == 0 {
            let why = Some(CloseReason::Drained);
            self.conns.retire_idle(why, now, &mut |channel| out.push(Action::Close(channel)));
        }
        self.places.fit(self.callers());
        self.ask(now, out);
        self.arm(now, out);
    }

    /// Whether something was to be done by `then` that waits for a ring.
    pub(crate) fn is_overdue(&mut self, then: Instant) -> bool {
        self.next_deadline().into_iter().chain(self.rings.last().copied()).any(|at| at <= then)
    }

    fn arm(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        let mut next = self.next_deadline();
        if !self.line.is_empty()
            && let Some(until) = self.breaker.until(now)
        {
            next = Some(next.map_or(until, |next| next.min(until)));
        }
        if self.permits < self.tuning.connections_max()
            && let Some(at) = self.look_at(now)
        {
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        // A connection that falls idle now expires after `idle_timeout` at the earliest: with a ring before
        // that, looking is left to the tick.
        // A ring that is due is on its way: it must not be asked for with every event until it comes. In the end it was
        // lost.
        self.rings.retain(|ring| now < *ring + RING_LATE_MAX);
        let armed = self.rings.last().copied();
        let look_again = self.look_again;
        if look_again {
            self.look_again = false;
        }
        if (look_again || armed.is_none_or(|armed| armed > now + self.tuning.idle_timeout.get()))
            && let Some(expiry) = self.conns.next_expiry()
        {
            next = Some(next.map_or(expiry, |next| next.min(expiry)));
        }
        let Some(next) = next else { return };
        if armed.is_none_or(|armed| next < armed) {
            let left = next.saturating_duration_since(now);
            // Callers who come with ever earlier deadlines must not cost a ring each.
            let early = self.rings.len() >= RINGS_EXACT_MAX && left > RING_EARLY_MIN;
            let at = if early { now + left / 2 } else { next };
            self.rings.push(at);
            out.push(Action::Arm(at));
        }
    }
}
