//! Class admission: which classes may come in now, decided by what the earlier work goes through (R10).
//!
//! Three signals, each of the thing that runs out:
//!
//! - **The queue of calls that want a place.** A window says how many may wait at once. By Little's law a
//!   queue that drains at the pace of placements and shall not be older than `queue_age_max` holds `pace ×
//!   queue_age_max` calls, so that is the most the window grows to, and a new pace (R9) moves it at once. What
//!   the pace promises an ailing fleet may not keep; so the age of the oldest work that was let in has the
//!   last word: too old, and the window is cut by a factor; young, and it grows back by a step (AIMD). A cut
//!   shows only after a queue's length of time, so there is one for each. Classes see different parts of the
//!   window (trunk reservation), so the bottom is shed first.
//! - **A long repair is no reason to let nobody in.** Repairs are never let in, they are there, and they may
//!   take minutes at the pace an operator chose. But new calls and streams have turns of their own beside them,
//!   so a class may come in too while its own line is short enough for its own turns. Without this, whatever
//!   takes longer than `queue_age_max` to repair would shed all new calls although they would be placed at
//!   once. The line of streams counts new calls as well, so that streams are still shed first.
//! - **Lag**, how late the process's own timer fires: work waits for the CPU before any of our code sees it.
//!   An *openness* from 4 to 0 closes one class after another from the bottom, a fraction at a time, by the
//!   same law (the admission level of DAGOR: Zhou et al., SoCC 2018).
//! - **Resident memory** as a share of its limit, in steps: memory does not come back by itself, so nothing
//!   is let through by chance (R4).
//!
//! Nothing starves for ever. Within the set of waiting calls age raises rank; at the door, a class that is shed
//! for the queue or for lag still gets a trickle, and a join a chance.

use std::time::Duration;

use rate_limit::{Bucket, Quota};
use tokio::time::Instant;

use super::{Class, Reason};
use crate::state::{Class as Placement, Turns};

/// Smallest window: a syncer whose share of the pace is tiny still takes a call at all.
const WINDOW_MIN: f64 = 16.0;

/// What is kept of a window or an openness on overload, as in `rate_limit::Window`.
const CUT_FACTOR: f64 = 0.7;

/// Openness with everything open: a unit for each class that may be shed.
const OPEN: f64 = 4.0;

/// Openness regained in a second: everything is open again 4 s after the last sign of lag.
const OPENING_PER_S: f64 = 1.0;

/// Least chance of a join, however late the process is: sixteen tries on average.
const JOIN_CHANCE_MIN: f64 = 1.0 / 16.0;

/// Part of the pace that each shed class trickles in at. Three of them take a tenth of the pace from repairs.
const TRICKLE_SHARE: f64 = 1.0 / 32.0;

/// Least trickle of a class, per second.
const TRICKLE_PER_S_MIN: f64 = 0.2;

/// Longest time between two ticks that counts as such: after a longer one the window has grown whole anyway.
const TICK_MAX: Duration = Duration::from_secs(5);

/// Calls that want a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// All that are ready or being placed, repairs too.
    pub all: u64,
    /// New calls that are ready.
    pub new_calls: u64,
    /// New streams that are ready.
    pub streams: u64,
}

/// What is felt between two ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signals {
    /// Age of the oldest new call or stream that is ready to be placed.
    pub oldest: Duration,
    /// Calls that want a place.
    pub waiting: Waiting,
    /// How late the process's timer was.
    pub lag: Duration,
    /// Resident memory as a share of its limit.
    pub memory: f64,
}

/// What the gate goes by; all of it levers or derived from levers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Age at which ready work is too old.
    pub queue_age_max: Duration,
    /// Lag at which the process is too late.
    pub lag_max: Duration,
    /// This syncer's share of the pace of placements, per second.
    pub pace_per_s: f64,
    /// How the classes share that.
    pub turns: Turns,
}

/// The gate. Pure: signals and time are arguments.
#[derive(Debug)]
pub struct Gate {
    turns: Turns,
    window: f64,
    window_max: f64,
    window_cut: Option<Instant>,
    openness: f64,
    openness_cut: Option<Instant>,
    memory: f64,
    ticked: Instant,
    trickles: [Bucket; 3],
}

// === impl Gate ===

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new(rules: &Rules, now: Instant) -> Self {
        let window_max = window_max(rules);
        let trickle = || Bucket::new(trickle(rules), now);
        Self {
            turns: rules.turns,
            window: window_max,
            window_max,
            window_cut: None,
            openness: OPEN,
            openness_cut: None,
            memory: 0.0,
            ticked: now,
            trickles: [trickle(), trickle(), trickle()],
        }
    }

    /// Takes the signals of the time since the last tick.
    pub fn tick(&mut self, signals: &Signals, rules: &Rules, now: Instant) {
        let since = now.saturating_duration_since(self.ticked).min(TICK_MAX).as_secs_f64();
        self.ticked = now;
        self.memory = signals.memory;
        self.turns = rules.turns;
        self.set_pace(rules, now);
        self.follow_age(signals, rules, since, now);
        self.follow_lag(signals.lag, rules.lag_max, since, now);
    }

    fn set_pace(&mut self, rules: &Rules, now: Instant) {
        let max = window_max(rules);
        if (max - self.window_max).abs() > f64::EPSILON {
            // What was learnt is kept as a share.
            self.window = (self.window * max / self.window_max).clamp(WINDOW_MIN, max);
            self.window_max = max;
            for bucket in &self.trickles {
                bucket.set_quota(trickle(rules), now);
            }
        }
    }

    fn follow_age(&mut self, signals: &Signals, rules: &Rules, since_s: f64, now: Instant) {
        let Waiting { all, new_calls, streams } = signals.waiting;
        let fills_half = |calls: u64, share: f64| calls as f64 * 2.0 >= self.window * share;
        let half_used = fills_half(all, 1.0) && fills_half(new_calls + streams, share_of(self.turns, Class::NewCall));
        if signals.oldest > rules.queue_age_max {
            // Few calls that are old wait for something else than their turn: a smaller window is no help.
            if half_used && is_due(self.window_cut, rules.queue_age_max, now) {
                self.window_cut = Some(now);
                self.window = (self.window * CUT_FACTOR).max(WINDOW_MIN);
            }
        } else {
            let whole_s = rules.queue_age_max.as_secs_f64().max(1.0);
            self.window = (self.window + self.window_max * since_s / whole_s).min(self.window_max);
        }
    }

    fn follow_lag(&mut self, lag: Duration, max: Duration, since_s: f64, now: Instant) {
        if lag <= max {
            self.openness = (self.openness + OPENING_PER_S * since_s).min(OPEN);
        } else if is_due(self.openness_cut, max, now) {
            self.openness_cut = Some(now);
            self.openness *= CUT_FACTOR;
        }
    }

    /// Whether work of `class` may come in while these calls want a place. `draw` is from 0 to 1.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn admit(
        &self,
        class: Class,
        waiting: &Waiting,
        now: Instant,
        draw: impl FnOnce() -> f64,
    ) -> Result<(), Reason> {
        if self.memory >= memory_max(class) {
            return Err(Reason::Memory);
        }
        let reason = if !self.has_room(class, waiting) {
            Reason::Queue
        } else {
            let chance = self.chance(class);
            if chance >= 1.0 || draw() < chance {
                return Ok(());
            }
            Reason::Lag
        };
        let trickle = trickle_of(class).map(|i| self.trickles[i].try_take(1, now));
        if trickle.is_some_and(|taken| taken.is_ok()) { Ok(()) } else { Err(reason) }
    }

    /// Whether the queue is short enough for one more of `class`: all of it, or the line that has its turns.
    fn has_room(&self, class: Class, waiting: &Waiting) -> bool {
        let fits = |calls: u64, share: f64| (calls as f64) < self.window * share;
        let new_calls = || fits(waiting.new_calls, share_of(self.turns, Class::NewCall));
        let streams = || fits(waiting.new_calls + waiting.streams, share_of(self.turns, Class::Stream));
        let own_line = || match class {
            Class::NewCall => new_calls(),
            Class::Stream => new_calls() && streams(), // whichever has more turns
            Class::Lease | Class::Leave | Class::Repair | Class::Join | Class::Sweep => false,
        };
        fits(waiting.all, window_share(class)) || own_line()
    }

    /// Whether every join may come in.
    #[must_use]
    pub fn is_open_to_joins(&self) -> bool {
        self.memory < memory_max(Class::Join) && self.chance(Class::Join) >= 1.0
    }

    /// Calls that may wait at once.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window as u64 // truncates; not negative
    }

    /// The chance of `class` to come in, as far as lag decides.
    #[must_use]
    pub fn chance(&self, class: Class) -> f64 {
        match class {
            Class::Lease | Class::Leave | Class::Repair => 1.0,
            Class::Join => self.openness.clamp(JOIN_CHANCE_MIN, 1.0),
            Class::NewCall => (self.openness - 1.0).clamp(0.0, 1.0),
            Class::Stream => (self.openness - 2.0).clamp(0.0, 1.0),
            Class::Sweep => (self.openness - 3.0).clamp(0.0, 1.0),
        }
    }
}

/// Part of the window that `class` may fill. A join adds no call; repairs are waiting already.
const fn window_share(class: Class) -> f64 {
    match class {
        Class::Lease | Class::Leave | Class::Repair | Class::Join => f64::INFINITY,
        Class::NewCall => 1.0,
        Class::Stream => 0.5,
        Class::Sweep => 0.25,
    }
}

/// Part of the pace that `class` has whatever waits before it.
fn share_of(turns: Turns, class: Class) -> f64 {
    match class {
        Class::NewCall => turns.share(Placement::New),
        Class::Stream => turns.share(Placement::Stream),
        Class::Lease | Class::Leave | Class::Repair | Class::Join | Class::Sweep => 0.0,
    }
}

/// Share of the memory limit from which `class` is shed: streams and sweeps first, so that repairs have room
/// to work in until the last.
const fn memory_max(class: Class) -> f64 {
    match class {
        Class::Lease | Class::Leave | Class::Repair => f64::INFINITY,
        Class::Join => 1.0,
        Class::NewCall => 0.95,
        Class::Stream | Class::Sweep => 0.9,
    }
}

const fn trickle_of(class: Class) -> Option<usize> {
    match class {
        Class::Lease | Class::Leave | Class::Repair | Class::Join => None,
        Class::NewCall => Some(0),
        Class::Stream => Some(1),
        Class::Sweep => Some(2),
    }
}

fn window_max(rules: &Rules) -> f64 {
    (rules.pace_per_s * rules.queue_age_max.as_secs_f64()).max(WINDOW_MIN)
}

fn trickle(rules: &Rules) -> Quota {
    Quota::new((rules.pace_per_s * TRICKLE_SHARE).max(TRICKLE_PER_S_MIN), 1).unwrap_or(Quota::CLOSED)
}

fn is_due(last: Option<Instant>, every: Duration, now: Instant) -> bool {
    last.is_none_or(|at| now.saturating_duration_since(at) >= every)
}
