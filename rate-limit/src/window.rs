//! How much may be in flight at once, learnt from how it goes.
//!
//! Additive increase, multiplicative decrease: the law that lets many senders share a resource none
//! of them can see. Three details matter in a recovery:
//!
//! - A burst of failures is one signal. Requests that were already under way when the window shrank
//!   fail too, so it shrinks at most once per [`CUT_PERIOD`].
//! - A window that is not used learns nothing from success. It is frozen while less than half of it
//!   is in flight, otherwise an idle hour would license a flood.
//! - It never shrinks to zero: with the floor in flight, an answer can always open it again.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What is kept of the window on overload.
const CUT_FACTOR: f64 = 0.7;

/// Least time between two cuts: longer than a round trip to any SFU of a region, so that one episode counts once.
pub(crate) const CUT_PERIOD: Duration = Duration::from_millis(200);

/// Bounds of a [`Window`]. `floor` is at least one, and `floor ≤ start ≤ max` is enforced on use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Smallest window.
    pub floor: u32,
    /// Window before anything is known.
    pub start: u32,
    /// Largest window.
    pub max: u32,
}

/// How one piece of work ended, as far as the window is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was served.
    Success,
    /// Too much at once: 429, 503 or a time-out.
    Overload,
    /// Says nothing about load: cancelled, refused for another reason.
    Neutral,
}

/// An in-flight window.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: WindowLimits,
    limit: f64,
    in_flight: u32,
    cut_at: Option<Instant>,
}

// === impl WindowLimits ===

impl WindowLimits {
    fn ordered(self) -> Self {
        let floor = self.floor.max(1);
        let max = self.max.max(floor);
        Self { floor, start: self.start.clamp(floor, max), max }
    }
}

// === impl Window ===

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(limits: WindowLimits) -> Self {
        let limits = limits.ordered();
        Self { state: Mutex::new(State { limits, limit: f64::from(limits.start), in_flight: 0, cut_at: None }) }
    }

    /// Enters if there is room. Whoever entered must [leave](Window::leave).
    #[must_use]
    pub fn try_enter(&self) -> bool {
        let state = &mut *self.state.lock();
        let room = state.in_flight < state.whole();
        state.in_flight += u32::from(room);
        room
    }

    /// Enters whether there is room or not, for an owner that hands out places by itself.
    pub fn enter(&self) {
        self.state.lock().in_flight += 1;
    }

    /// Leaves, and lets the window learn from the outcome.
    pub fn leave(&self, outcome: Outcome, now: Instant) {
        let state = &mut *self.state.lock();
        let half_used = f64::from(state.in_flight) * 2.0 >= state.limit;
        state.in_flight = state.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Success if half_used => state.grow(),
            Outcome::Overload => state.cut(now),
            Outcome::Success | Outcome::Neutral => {}
        }
    }

    /// Takes a sign of overload that no piece of work brought: the one who works is short of something.
    pub fn press(&self, now: Instant) {
        self.state.lock().cut(now);
    }

    /// Changes the bounds; what was learnt is kept within them.
    pub fn set_limits(&self, limits: WindowLimits) {
        let state = &mut *self.state.lock();
        state.limits = limits.ordered();
        state.limit = state.limit.clamp(f64::from(state.limits.floor), f64::from(state.limits.max));
    }

    /// How many are inside. Above [`limit`](Window::limit) for a while after the window shrank.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.state.lock().in_flight
    }

    /// How many may be inside.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.state.lock().whole()
    }
}

// === impl State ===

impl State {
    fn whole(&self) -> u32 {
        self.limit as u32 // truncates; between floor and max
    }

    fn grow(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(f64::from(self.limits.max));
    }

    fn cut(&mut self, now: Instant) {
        if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < CUT_PERIOD) {
            return;
        }
        self.cut_at = Some(now);
        self.limit = (self.limit * CUT_FACTOR).max(f64::from(self.limits.floor));
    }
}

#[cfg(test)]
mod tests;
