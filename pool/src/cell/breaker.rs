//! Fail fast after a failed dial.
//!
//! Without it every caller of a dead host would pay the dial time-out, and its dials would take the
//! slots of the living. The breaker remembers the last dial error and hands it to everyone until the
//! back-off is over; then one dial, and only one, finds out.
//!
//! A host that dies under eight dials has failed once, not eight times: a failure counts only if no other
//! dial was decided since this one began (its *epoch*), and only when the back-off is over, so that probes
//! during the back-off do not prolong it.

use std::time::Duration;

use rate_limit::Backoff;
use tokio::time::Instant;

/// The least part of the back-off's base that is waited. Full jitter may draw zero, and a wait of zero
/// lets the next caller dial a dead host at once.
const WAIT_SHARE_MIN: f64 = 0.125;

/// Whether an origin takes ordinary requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// The last dial worked, or none was made yet.
    Closed,
    /// The last dial failed; requests get its error at once until `until`.
    Open {
        /// End of the back-off.
        until: Instant,
    },
    /// The back-off is over: the next request makes one dial that decides.
    HalfOpen,
}

#[derive(Debug)]
pub(crate) struct Breaker<E> {
    /// Counts what changed the breaker; wraps.
    epoch: u32,
    failures: u32,
    open: Option<(Instant, E)>,
}

// === impl Breaker ===

impl<E: Clone> Breaker<E> {
    pub(crate) fn new() -> Self {
        Self { epoch: 0, failures: 0, open: None }
    }

    /// What a dial that begins now must name when it fails.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// A dial worked. Returns the error that is over.
    pub(crate) fn succeed(&mut self) -> Option<E> {
        self.epoch = self.epoch.wrapping_add(1);
        self.failures = 0;
        self.open.take().map(|(_, error)| error)
    }

    /// A dial that began in `epoch` failed; `jitter` is drawn evenly from 0 to 1. Returns the error before this one,
    /// or this one if it does not count.
    pub(crate) fn fail(
        &mut self,
        epoch: u32,
        error: E,
        jitter: f64,
        backoff: Backoff,
        now: Instant,
    ) -> Result<Option<E>, E> {
        if epoch != self.epoch || self.blocks(now).is_some() {
            return Err(error);
        }
        self.epoch = self.epoch.wrapping_add(1);
        let floor = backoff.base.mul_f64(WAIT_SHARE_MIN);
        let wait = backoff.bound(self.failures).mul_f64(jitter.clamp(0.0, 1.0)).max(floor);
        self.failures = self.failures.saturating_add(1);
        let before = self.open.replace((now + wait, error));
        Ok(before.map(|(_, error)| error))
    }

    /// Whether ordinary dials must wait; with the error to tell and the time left.
    pub(crate) fn blocks(&self, now: Instant) -> Option<(&E, Duration)> {
        let (until, error) = self.open.as_ref()?;
        (now < *until).then(|| (error, until.saturating_duration_since(now)))
    }

    /// The last dial's error, until one works.
    pub(crate) fn last_error(&self) -> Option<&E> {
        self.open.as_ref().map(|(_, error)| error)
    }

    /// When the back-off ends, while it lasts.
    pub(crate) fn until(&self, now: Instant) -> Option<Instant> {
        self.open.as_ref().map(|(until, _)| *until).filter(|until| now < *until)
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match &self.open {
            None => BreakerState::Closed,
            Some((until, _)) if now < *until => BreakerState::Open { until: *until },
            Some(_) => BreakerState::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_back_off_doubles_and_a_success_forgets_it() {
        let mut now = Instant::now();
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_millis(350) };
        let mut breaker = Breaker::new();
        for bound_ms in [100, 200, 350, 350] {
            assert!(breaker.fail(breaker.epoch(), "refused", 1.0, backoff, now).is_ok());
            let until = now + Duration::from_millis(bound_ms);
            assert_eq!(breaker.state(now), BreakerState::Open { until });
            assert_eq!(breaker.state(until), BreakerState::HalfOpen);
            now = until;
        }
        assert_eq!(breaker.succeed(), Some("refused"));
        assert_eq!(breaker.state(now), BreakerState::Closed);
        assert_eq!(breaker.fail(breaker.epoch(), "refused", 0.0, backoff, now), Ok(None));
        assert!(breaker.blocks(now).is_some(), "a draw of zero must still wait");
    }

    #[tokio::test(start_paused = true)]
    async fn the_back_off_is_drawn_from_all_of_its_bound() {
        let (now, backoff) =
            (Instant::now(), Backoff { base: Duration::from_millis(100), max: Duration::from_secs(1) });
        for (jitter, wait_ms) in [(1.0, 100), (0.5, 50), (0.25, 25)] {
            let mut breaker = Breaker::new();
            assert!(breaker.fail(breaker.epoch(), "refused", jitter, backoff, now).is_ok());
            let until = now + Duration::from_millis(wait_ms);
            assert_eq!(breaker.state(now), BreakerState::Open { until }, "a draw of {jitter}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_episode_is_one_failure_and_old_news_is_none() {
        let now = Instant::now();
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(10) };
        let mut breaker = Breaker::new();
        let began = breaker.epoch();
        let counted = (0..8).filter(|_| breaker.fail(began, "refused", 1.0, backoff, now).is_ok()).count();
        let until = now + Duration::from_millis(100);
        assert_eq!((counted, breaker.state(now)), (1, BreakerState::Open { until }));
        assert!(breaker.fail(breaker.epoch(), "refused", 1.0, backoff, now).is_err(), "a probe prolonged the back-off");
        assert!(
            breaker.fail(began, "refused", 1.0, backoff, until).is_err(),
            "a straggler of the same episode counted"
        );
        let began = breaker.epoch();
        assert_eq!(breaker.succeed(), Some("refused"));
        assert!(breaker.fail(began, "timed out", 1.0, backoff, until).is_err());
        assert_eq!(breaker.state(until), BreakerState::Closed, "a dial older than a success opened the breaker");
    }
}
