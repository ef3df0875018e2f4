//! What a cell has learnt about time: how long a request holds a connection, how long a dial takes.
//!
//! Exponentially weighted means. They decide whether a waiter is better served by waiting or by a dial,
//! and whether a newcomer can make its deadline at all, so a wrong value must not be for ever: the
//! decisions that use them have an escape that does not (see [`super::demand`]).

use std::time::Duration;

/// Weight of a new sample: the last dozen or so count.
const WEIGHT: f64 = 0.125;

/// Samples before a mean is trusted to send somebody away. One cold request must not.
const SAMPLES_TRUSTED: u32 = 8;

/// How many dials' time a line may take to drain; see [`Estimates::pace`].
const PATIENCE_DIALS: u32 = 12;

/// What a line may take beyond one dial at most. Far hosts' dials are long for no fault of the processors'.
const PATIENCE_MAX: Duration = Duration::from_millis(230);

/// The same where a connection carries many requests at once. Whoever has to wait behind a hundred is one of a crowd, and
/// what a crowd waits for is more often processors than the host.
const PATIENCE_SHARED_DIALS: u32 = 24;
const PATIENCE_SHARED_MAX: Duration = Duration::from_millis(600);

/// Round trips of a dial at most: a name, TCP, TLS.
const DIAL_TRIPS: u32 = 3;

/// Least hold time assumed: a handler that answers from memory. Keeps the quotient finite.
const HOLD_MIN: Duration = Duration::from_micros(10);

/// A mean that follows its samples.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mean {
    seconds: f32,
    samples: u32,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Estimates {
    pub(crate) hold: Mean,
    /// Of dials that worked: a refusal takes no time, and a silent host says nothing about one that speaks.
    pub(crate) dial: Mean,
    /// How long any dial kept its slot.
    pub(crate) slot: Mean,
}

/// See [`Estimates::pace`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Requests that one connection (or stream) serves within the horizon.
    turns: f64,
    /// The time within which the line should have drained.
    pub(crate) horizon: Duration,
}

// === impl Mean ===

impl Mean {
    #[expect(clippy::cast_possible_truncation, reason = "seven digits of a duration are plenty")]
    pub(crate) fn learn(&mut self, sample: Duration) {
        let (old, new) = (f64::from(self.seconds), sample.as_secs_f64());
        self.seconds = if self.samples == 0 { new } else { old + WEIGHT * (new - old) } as f32;
        self.samples = self.samples.saturating_add(1);
    }

    /// The mean, if there is a sample at all.
    pub(crate) fn get(self) -> Option<Duration> {
        (self.samples > 0).then(|| Duration::from_secs_f32(self.seconds.max(0.0)))
    }

    /// The mean, if enough is known to act on it against a caller.
    pub(crate) fn trusted(self) -> Option<Duration> {
        self.get().filter(|_| self.samples >= SAMPLES_TRUSTED)
    }
}

// === impl Estimates ===

impl Estimates {
    /// How a line drains over what there is.
    ///
    /// A connection costs as much as it does whether one request uses it or twenty, and while a crowd is dialled for,
    /// it is the processors that everybody waits for. So a line may take the time of some dials, but no longer than
    /// callers would hardly notice. Where requests are slower than that, the line is dialled for.
    /// (Measured: 100 hosts, HTTP/1.1, 20 requests of 5 ms each, all at once; one dial's time made 7 connections
    /// per host, and most of the storm's time was handshakes.)
    /// `shared` if a connection carries several at once.
    pub(crate) fn pace(&self, shared: bool) -> Option<Pace> {
        self.pace_of(self.hold.get()?, shared)
    }

    /// The pace of requests that take no longer than the way to the host and back, which is all that is known when a
    /// dial has worked.
    pub(crate) fn far(&self, shared: bool) -> Option<Pace> {
        self.pace_of(self.dial.get()? / DIAL_TRIPS, shared)
    }

    /// The pace of requests that take as long as a dial.
    pub(crate) fn slow(&self, shared: bool) -> Option<Pace> {
        self.pace_of(self.dial.get()?, shared)
    }

    fn pace_of(&self, hold: Duration, shared: bool) -> Option<Pace> {
        let dial = self.dial.get()?;
        let (dials, most) =
            if shared { (PATIENCE_SHARED_DIALS, PATIENCE_SHARED_MAX) } else { (PATIENCE_DIALS, PATIENCE_MAX) };
        let horizon = (dial * dials).min(dial + most);
        Some(Pace { turns: horizon.div_duration_f64(hold.max(HOLD_MIN)), horizon })
    }
}

// === impl Pace ===

impl Pace {
    /// How many requests so many connections (or streams) serve within the horizon.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a count")]
    pub(crate) fn served(self, capacity: usize) -> usize {
        (capacity as f64 * self.turns) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_starts_at_the_first_sample_and_follows() {
        let mut mean = Mean::default();
        assert_eq!(mean.get(), None);
        mean.learn(Duration::from_millis(100));
        assert!(mean.get().expect("one sample").abs_diff(Duration::from_millis(100)) < Duration::from_micros(1));
        (0..40).for_each(|_| mean.learn(Duration::from_millis(10)));
        assert!(mean.trusted().expect("many samples") < Duration::from_millis(12));
    }

    #[test]
    fn quick_requests_and_slow_dials_mean_waiting() {
        let mut estimates = Estimates::default();
        assert!(estimates.pace(false).is_none());
        estimates.hold.learn(Duration::from_millis(5));
        estimates.dial.learn(Duration::from_millis(10));
        let pace = estimates.pace(false).expect("both are known");
        assert!(pace.horizon.abs_diff(Duration::from_millis(120)) < Duration::from_micros(1), "{pace:?}");
        assert!((95..=96).contains(&pace.served(4)), "{pace:?}");
    }

    #[test]
    fn slow_requests_and_quick_dials_mean_a_dial_each() {
        let mut estimates = Estimates::default();
        estimates.hold.learn(Duration::from_millis(250));
        estimates.dial.learn(Duration::from_millis(20));
        let pace = estimates.pace(false).expect("both are known");
        assert_eq!(pace.served(1), 0);
    }

    #[test]
    fn far_hosts_try_no_one_s_patience() {
        let mut estimates = Estimates::default();
        estimates.hold.learn(Duration::from_millis(105));
        estimates.dial.learn(Duration::from_millis(300));
        let pace = estimates.pace(false).expect("both are known");
        assert!(pace.horizon.abs_diff(Duration::from_millis(530)) < Duration::from_micros(1), "{pace:?}");
        let crowd = estimates.pace(true).expect("both are known");
        assert!(crowd.horizon.abs_diff(Duration::from_millis(900)) < Duration::from_micros(1), "{crowd:?}");
    }
}
