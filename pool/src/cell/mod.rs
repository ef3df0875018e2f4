//! One origin's state: connections, waiters, dial demand, breaker.
//!
//! A cell is a state machine without I/O: [`CellState::step`] takes an event and the time, changes state
//! and says what to do. The shell ([`crate::partition`]) holds one mutex around it and does the doing
//! after it let go: nothing wakes, dials, drops a connection, logs or calls back under the lock. The
//! alternatives were measured: an actor per origin costs 18 µs a checkout where this costs 77 ns.
//!
//! Dial demand is a *number* computed from who waits and what is under way ([`CellState::wanted`]), read
//! again when a dial slot is free. It is never a list of requested dials, so a thousand callers who came
//! and gave up leave nothing behind.
//!
//! Invariant I8: `permits = live + dialling`. Invariant I9: no line is longer than its cap.

mod breaker;
mod conns;
mod waiters;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rate_limit::Backoff;
use smallvec::SmallVec;
use tokio::time::Instant;

use self::breaker::Breaker;
pub use self::breaker::BreakerState;
use self::conns::Conns;
pub(crate) use self::conns::{Channel, ConnKey, Taken, Verdict};
use self::waiters::{WaiterKey, Waiters};

/// Connections beyond the cap that a fresh dial may add: a probe must not be starved by a cap full of
/// stuck connections.
pub(crate) const FRESH_EXTRA: usize = 1;

/// The part of `age_max` that is drawn at random, so that connections opened together do not all
/// reconnect together.
const AGE_JITTER_SHARE: f64 = 0.2;

/// What bounds a cell.
#[derive(Debug, Clone)]
pub(crate) struct CellLimits {
    pub(crate) connections_max: usize,
    pub(crate) waiters_max: usize,
    /// Dials of this origin at once when it is proven: its share of the partition's slots.
    pub(crate) dials_max: usize,
    pub(crate) streams_max: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) age_max: Duration,
    pub(crate) backoff: Backoff,
}

/// Names one waiter; given out when it joins the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    fresh: bool,
    key: WaiterKey,
}

/// What happens to a cell.
#[derive(Debug)]
pub(crate) enum Event<C, W, E> {
    /// A caller wants a connection; a fresh one wants a *new* one, past any back-off.
    Wait { waiter: W, deadline: Instant, fresh: bool },
    /// A caller gave up.
    Cancel(Ticket),
    /// The scheduler has a dial slot for this cell.
    Slot,
    /// A dial worked. `jitter` is drawn evenly from 0 to 1.
    Connected { fresh: bool, channel: C, shared: bool, jitter: f64 },
    /// A dial failed. `jitter` is drawn evenly from 0 to 1.
    DialFailed { fresh: bool, error: E, jitter: f64 },
    /// A request is done with its connection.
    Return { key: ConnKey, channel: Option<C>, verdict: Verdict, keep_alive: Option<Duration> },
    /// The exchange on an HTTP/1.1 connection is over; its return follows at once, or its end.
    Returning(ConnKey),
    /// The connection is closed and its task has ended.
    Closed(ConnKey),
    /// The partition needs room: close the connection that has been idle longest.
    EvictIdle,
    /// The timer rang that was armed for this time.
    Tick { at: Instant },
    /// No more requests; close what is idle.
    Drain,
}

/// Why a waiter gets no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal<E> {
    /// Its deadline came. Whether a dial was under way, or at least waited for a slot.
    Expired { dialling: bool, queued: bool },
    /// The line is full.
    Saturated,
    /// The cell is being drained.
    Draining,
    /// The dial that was made for it failed.
    Dial(E),
    /// A dial failed that was made for somebody else.
    Shared { error: E, retry_after: Duration },
}

/// What the shell has to do after it released the lock.
#[derive(Debug)]
pub(crate) enum Action<C, W, E> {
    /// The waiter is in line under this ticket.
    Queued(Ticket),
    Give {
        waiter: W,
        taken: Taken<C>,
    },
    Refuse {
        waiter: W,
        why: Refusal<E>,
    },
    /// A waiter that gave up; handed out so that its destructor runs outside the lock.
    Left(W),
    /// Answer to [`Event::Slot`]: dial.
    Dial {
        fresh: bool,
    },
    /// Answer to [`Event::Slot`]: nobody needs it any more.
    SlotUnused,
    /// Answer to [`Event::Connected`]: the new connection's name.
    Opened(ConnKey),
    /// Put the cell in line for dial slots.
    WantSlot {
        proven: bool,
    },
    /// Drop this handle to a connection.
    Close(C),
    /// Ring at this time.
    Arm(Instant),
}

pub(crate) type Actions<C, W, E> = SmallVec<[Action<C, W, E>; 4]>;

/// Numbers for snapshots and checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CellCounts {
    pub(crate) waiters: usize,
    pub(crate) dialling: usize,
    pub(crate) live: usize,
    pub(crate) idle: usize,
    pub(crate) streams: usize,
    pub(crate) permits: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct CellState<C, W, E> {
    limits: CellLimits,
    conns: Conns<C>,
    /// In line for any connection.
    line: Waiters<W>,
    /// In line for a connection dialled for them.
    fresh_line: Waiters<W>,
    breaker: Breaker<E>,
    permits: usize,
    dialling: usize,
    dialling_fresh: usize,
    /// Dials allowed at once: 1 until one worked, then doubling.
    dial_window: usize,
    /// The last dial worked.
    proven: bool,
    /// Requests one new connection is expected to carry: 1 until HTTP/2 is known to be spoken.
    carries: usize,
    /// In the scheduler's line.
    queued: bool,
    draining: bool,
    armed: Option<Instant>,
}

// === impl CellState ===

impl<C: Channel, W, E: Clone> CellState<C, W, E> {
    pub(crate) fn new(limits: CellLimits) -> Self {
        Self {
            conns: Conns::new(limits.streams_max, limits.idle_timeout),
            line: Waiters::new(),
            fresh_line: Waiters::new(),
            breaker: Breaker::new(limits.backoff),
            permits: 0,
            dialling: 0,
            dialling_fresh: 0,
            dial_window: 1,
            proven: false,
            carries: 1,
            queued: false,
            draining: false,
            armed: None,
            limits,
        }
    }

    /// The fast path: a connection at once, unless others wait for one.
    pub(crate) fn checkout(&mut self, now: Instant, closed: &mut impl FnMut(C)) -> Option<Taken<C>> {
        if self.draining || !self.line.is_empty() {
            return None;
        }
        self.conns.take(now, closed)
    }

    /// Applies one event. What it returns must be executed, in order, after the lock is released.
    pub(crate) fn step(&mut self, event: Event<C, W, E>, now: Instant) -> Actions<C, W, E> {
        let mut out = Actions::new();
        match event {
            Event::Wait { waiter, deadline, fresh } => self.wait(waiter, deadline, fresh, now, &mut out),
            Event::Cancel(ticket) => {
                let line = if ticket.fresh { &mut self.fresh_line } else { &mut self.line };
                out.extend(line.remove(ticket.key).map(Action::Left));
            }
            Event::Slot => self.slot(now, &mut out),
            Event::Connected { fresh, channel, shared, jitter } => {
                self.connected(fresh, channel, shared, jitter, now, &mut out);
            }
            Event::DialFailed { fresh, error, jitter } => self.dial_failed(fresh, error, jitter, now, &mut out),
            Event::Return { key, channel, verdict, keep_alive } => {
                if let Some(keep_alive) = keep_alive {
                    self.conns.set_idle_timeout(key, keep_alive);
                    self.armed = self.armed.filter(|armed| *armed <= now + keep_alive);
                }
                out.extend(self.conns.give_back(key, channel, verdict, now).map(Action::Close));
            }
            Event::Returning(key) => self.conns.set_returning(key, true),
            Event::Closed(key) => {
                if let Some(channel) = self.conns.remove(key) {
                    self.permits -= 1;
                    out.extend(channel.map(Action::Close));
                }
            }
            Event::EvictIdle => out.extend(self.conns.retire_oldest_idle().map(Action::Close)),
            Event::Tick { at } => self.tick(at, now, &mut out),
            Event::Drain => self.drain(&mut out),
        }
        self.settle(now, &mut out);
        out
    }

    pub(crate) fn breaker(&self, now: Instant) -> BreakerState {
        self.breaker.state(now)
    }

    pub(crate) fn counts(&self) -> CellCounts {
        CellCounts {
            waiters: self.line.len() + self.fresh_line.len(),
            dialling: self.dialling,
            live: self.conns.live(),
            idle: self.conns.idle(),
            streams: self.conns.streams(),
            permits: self.permits,
        }
    }

    /// How many more dials the cell would start now.
    pub(crate) fn wanted(&self, now: Instant) -> usize {
        self.wanted_fresh() + self.wanted_normal(now)
    }

    fn wanted_fresh(&self) -> usize {
        if self.draining {
            return 0;
        }
        let uncovered = self.fresh_line.len().saturating_sub(self.dialling_fresh);
        let room = (self.limits.connections_max + FRESH_EXTRA).saturating_sub(self.permits);
        uncovered.min(room).min(self.dial_window.saturating_sub(self.dialling_fresh))
    }

    fn wanted_normal(&self, now: Instant) -> usize {
        if self.draining || self.line.is_empty() || self.breaker.blocks(now).is_some() {
            return 0;
        }
        let dialling = self.dialling - self.dialling_fresh;
        let waiting = self.line.len().saturating_sub(self.conns.returning());
        let uncovered = waiting.div_ceil(self.carries).saturating_sub(dialling);
        let room = self.limits.connections_max.saturating_sub(self.permits);
        uncovered.min(room).min(self.dial_window.saturating_sub(dialling))
    }

    fn wait(&mut self, waiter: W, deadline: Instant, fresh: bool, now: Instant, out: &mut Actions<C, W, E>) {
        let refuse = |waiter, why| Action::Refuse { waiter, why };
        if self.draining {
            return out.push(refuse(waiter, Refusal::Draining));
        }
        if deadline <= now {
            return out.push(refuse(waiter, Refusal::Expired { dialling: false, queued: false }));
        }
        if !fresh {
            if let Some(taken) = self.checkout(now, &mut |channel| out.push(Action::Close(channel))) {
                return out.push(Action::Give { waiter, taken });
            }
            if let Some(why) = self.hopeless(now) {
                return out.push(refuse(waiter, why));
            }
        }
        if self.line.len() + self.fresh_line.len() >= self.limits.waiters_max {
            return out.push(refuse(waiter, Refusal::Saturated));
        }
        let line = if fresh { &mut self.fresh_line } else { &mut self.line };
        let key = line.push_back(waiter, deadline);
        out.push(Action::Queued(Ticket { fresh, key }));
    }

    /// The reason to fail at once: no connection, none coming, and a back-off to wait for.
    fn hopeless(&self, now: Instant) -> Option<Refusal<E>> {
        if self.dialling > 0 || self.conns.has_usable() {
            return None;
        }
        let (error, retry_after) = self.breaker.blocks(now)?;
        Some(Refusal::Shared { error: error.clone(), retry_after })
    }

    fn slot(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        self.queued = false;
        let fresh = self.wanted_fresh() > 0;
        if !fresh && self.wanted_normal(now) == 0 {
            return out.push(Action::SlotUnused);
        }
        self.permits += 1;
        self.dialling += 1;
        self.dialling_fresh += usize::from(fresh);
        out.push(Action::Dial { fresh });
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
        self.dialling -= 1;
        self.dialling_fresh -= usize::from(fresh);
        self.breaker.succeed();
        self.proven = true;
        self.dial_window = (self.dial_window * 2).min(self.limits.dials_max.max(1));
        self.carries = if shared { self.limits.streams_max.min(channel.streams_max()).max(1) } else { 1 };
        let age = self.limits.age_max.mul_f64(1.0 - AGE_JITTER_SHARE * jitter.clamp(0.0, 1.0));
        let key = self.conns.insert(channel, shared, now + age, now);
        out.push(Action::Opened(key));
        if self.draining {
            out.extend(self.conns.retire(key).map(Action::Close));
            return;
        }
        if fresh
            && !self.fresh_line.is_empty()
            && let Some(taken) = self.conns.take_key(key)
            && let Some(waiter) = self.fresh_line.pop_front()
        {
            out.push(Action::Give { waiter, taken });
        }
    }

    fn dial_failed(&mut self, fresh: bool, error: E, jitter: f64, now: Instant, out: &mut Actions<C, W, E>) {
        self.permits -= 1;
        self.dialling -= 1;
        self.dialling_fresh -= usize::from(fresh);
        self.breaker.fail(error.clone(), jitter, now);
        self.proven = false;
        self.dial_window = 1;
        // Exactly one caller learns of the failure first hand.
        let owner = if fresh {
            self.fresh_line.pop_front()
        } else if self.hopeless(now).is_some() {
            self.line.pop_front()
        } else {
            None
        };
        out.extend(owner.map(|waiter| Action::Refuse { waiter, why: Refusal::Dial(error) }));
    }

    fn tick(&mut self, at: Instant, now: Instant, out: &mut Actions<C, W, E>) {
        if self.armed != Some(at) {
            return; // An earlier time was armed since; this ring is a leftover.
        }
        self.armed = None;
        self.conns.retire_idle(false, now, &mut |channel| out.push(Action::Close(channel)));
        let dialling = self.dialling > 0;
        let queued = self.queued;
        for line in [&mut self.line, &mut self.fresh_line] {
            while let Some(waiter) = line.pop_expired(now) {
                out.push(Action::Refuse { waiter, why: Refusal::Expired { dialling, queued } });
            }
        }
    }

    fn drain(&mut self, out: &mut Actions<C, W, E>) {
        self.draining = true;
        for line in [&mut self.line, &mut self.fresh_line] {
            while let Some(waiter) = line.pop_front() {
                out.push(Action::Refuse { waiter, why: Refusal::Draining });
            }
        }
    }

    /// What must hold after every event: nobody waits beside a free connection or without hope, demand
    /// is known to the scheduler, and the timer is set.
    fn settle(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        if self.draining {
            self.conns.retire_idle(true, now, &mut |channel| out.push(Action::Close(channel)));
        }
        while !self.line.is_empty() {
            let Some(taken) = self.conns.take(now, &mut |channel| out.push(Action::Close(channel))) else { break };
            if let Some(waiter) = self.line.pop_front() {
                out.push(Action::Give { waiter, taken });
            }
        }
        if !self.line.is_empty()
            && let Some(why) = self.hopeless(now)
        {
            while let Some(waiter) = self.line.pop_front() {
                out.push(Action::Refuse { waiter, why: why.clone() });
            }
        }
        if !self.queued && self.wanted(now) > 0 {
            self.queued = true;
            out.push(Action::WantSlot { proven: self.proven });
        }
        self.arm(now, out);
    }

    fn arm(&mut self, now: Instant, out: &mut Actions<C, W, E>) {
        let mut next = match (self.line.next_deadline(), self.fresh_line.next_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if !self.line.is_empty()
            && let Some(until) = self.breaker.until(now)
        {
            next = Some(next.map_or(until, |next| next.min(until)));
        }
        // A connection that falls idle now expires after `idle_timeout` at the earliest: with a ring before
        // that, looking is left to the tick.
        if self.armed.is_none_or(|armed| armed > now + self.limits.idle_timeout)
            && let Some(expiry) = self.conns.next_expiry()
        {
            next = Some(next.map_or(expiry, |next| next.min(expiry)));
        }
        let Some(next) = next else { return };
        if self.armed.is_none_or(|armed| next < armed) {
            self.armed = Some(next);
            out.push(Action::Arm(next));
        }
    }
}
