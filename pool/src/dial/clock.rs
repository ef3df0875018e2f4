//! How much of its time-out a dial has used up.
//!
//! A time-out is evidence against a host only if it was the host that we waited for. Some waits are our own:
//! those for a turn to compute or to look a name up, and the one for this process to run at all. While fifty thousand tasks
//! start, an answer that came in a millisecond is looked at a second later, and by the clock on the wall every
//! host of the fleet is dead.
//!
//! So a dial's time is counted in steps, and a step that ends late counts for what it was meant to be: the
//! timer that ends it is woken by the same loop as the socket, hence as late. What is excused is bounded too. A dial
//! that used up its excuses is given up as *ours*: it says nothing about the host, and the next one is made.

use std::time::Duration;

use tokio::time::Instant;

/// Steps of a dial's time-out. A dial takes some six turns of the event loop (TCP, two for TLS, HTTP), so that even
/// one in which every turn is late by a whole step ends in time.
const STEPS: u32 = 20;

/// What a dial may be excused, in time-outs. Its slot is held for three time-outs at most.
const EXCUSED_MAX: u32 = 2;

/// From here on a step that ends late counts as late, however short the steps are: timers are exact to a few
/// milliseconds on a calm machine.
const LATE_MIN: Duration = Duration::from_millis(10);

/// What of our own doing a peer may have lost its patience over. Servers give a handshake seconds, and a dial that we
/// kept from going on for this long may be closed by the peer for no fault of the peer's.
const PATIENCE: Duration = Duration::from_secs(1);

/// Least time until a dial is looked at again.
const STEP_MIN: Duration = Duration::from_millis(1);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct DialClock {
    limit: Duration,
    counted: Duration,
    excused: Duration,
    /// The wait in our own queues, as of `looked_at`.
    queued: Duration,
    looked_at: Instant,
    look_at: Instant,
}

/// What a look at the clock finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// There is time left. Somebody else was waited for if `late`.
    GoOn { late: bool },
    /// The host has had its time.
    TimedOut,
    /// We have had ours.
    Overloaded,
}

// === impl DialClock ===

impl DialClock {
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        let zero = Duration::ZERO;
        let mut this = Self { limit, counted: zero, excused: zero, queued: zero, looked_at: now, look_at: now };
        this.look_at = now + this.step();
        this
    }

    /// When to look again.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// A step is over. `queued` is all the time that was spent in our own queues so far.
    pub(super) fn look(&mut self, now: Instant, queued: Duration) -> Look {
        let late = now.saturating_duration_since(self.look_at);
        let passed = now.saturating_duration_since(self.looked_at);
        let counts = passed.saturating_sub(late).saturating_sub(queued.saturating_sub(self.queued));
        self.counted += counts;
        self.excused += passed.saturating_sub(counts);
        self.queued = queued;
        self.looked_at = now;
        self.look_at = now + self.step();
        if self.excused >= self.limit * EXCUSED_MAX {
            Look::Overloaded
        } else if self.counted >= self.limit {
            Look::TimedOut
        } else {
            Look::GoOn { late: late >= (self.limit / STEPS).max(LATE_MIN) }
        }
    }

    /// Whether the peer was made to wait so long by us that its hanging up says nothing about it.
    pub(super) fn tried_patience(&mut self, now: Instant, queued: Duration) -> bool {
        self.look(now, queued);
        self.excused >= PATIENCE.min(self.limit)
    }

    fn step(&self) -> Duration {
        (self.limit / STEPS).min(self.limit.saturating_sub(self.counted)).max(STEP_MIN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// Runs a dial that never ends, with steps that end so late and gates that take so long, in milliseconds.
    fn run(mut late_ms: impl FnMut() -> (u64, u64)) -> (Look, Duration) {
        let began = Instant::now();
        let (mut clock, mut gated, mut now) = (DialClock::new(LIMIT, began), Duration::ZERO, began);
        loop {
            let (late, gate) = late_ms();
            let next = clock.look_at() + Duration::from_millis(late);
            gated += Duration::from_millis(gate).min(next.saturating_duration_since(now));
            now = next;
            let look = clock.look(now, gated);
            if !matches!(look, Look::GoOn { .. }) {
                return (look, now.saturating_duration_since(began));
            }
        }
    }

    #[test]
    fn r01_a_punctual_clock_times_out_in_time() {
        assert_eq!(run(|| (0, 0)), (Look::TimedOut, LIMIT));
    }

    #[test]
    fn r01_a_process_that_cannot_look_blames_itself() {
        let (look, took) = run(|| (500, 0));
        assert!(look == Look::Overloaded && took <= LIMIT * 3, "{look:?} after {took:?}");
        let (look, _) = run(|| (0, 1_000));
        assert_eq!(look, Look::Overloaded, "a dial that never got its turn to compute");
    }

    #[test]
    fn r01_short_steps_are_not_late_for_a_timer_s_rounding() {
        let began = Instant::now();
        let mut clock = DialClock::new(Duration::from_millis(20), began);
        let rounded = clock.look_at() + Duration::from_millis(1);
        assert_eq!(clock.look(rounded, Duration::ZERO), Look::GoOn { late: false });
        let asleep = clock.look_at() + LATE_MIN;
        assert_eq!(clock.look(asleep, Duration::ZERO), Look::GoOn { late: true });
    }

    proptest! {
        #[test]
        fn r01_a_host_is_blamed_only_for_time_in_which_we_looked(
            steps in prop::collection::vec((0..400_u64, 0..60_u64), 400),
        ) {
            let mut late = Duration::ZERO;
            let mut told = steps.iter().cycle();
            let (look, took) = run(|| {
                let (late_ms, gate_ms) = *told.next().expect("endless");
                late += Duration::from_millis(late_ms);
                (late_ms, gate_ms)
            });
            prop_assert!(took <= LIMIT * 3 + Duration::from_millis(450), "a dial of {took:?}");
            if look == Look::TimedOut {
                prop_assert!(took.saturating_sub(late) >= LIMIT, "{took:?}, of which {late:?} late");
            }
        }
    }
}
