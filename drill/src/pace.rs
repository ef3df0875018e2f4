//! When to try again: full jitter, `Retry-After`, and which syncer to turn to.

use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use rand::{Rng, RngExt};

/// First back-off step: a few round trips.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// Longest back-off: a returning server is found within seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Bounds of a `Retry-After`: below, it is no wait; above, it is a mistake or an attack.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// What a `Retry-After` that cannot be read (a date, garbage) counts as.
const RETRY_AFTER_UNREADABLE: Duration = Duration::from_secs(1);

/// A wait before attempt `attempt` + 1, anywhere from nothing to the doubled-up bound.
pub(crate) fn full_jitter(attempt: u32, rng: &mut impl Rng) -> Duration {
    let bound = BACKOFF_BASE.saturating_mul(1 << attempt.min(10)).min(BACKOFF_MAX);
    bound.mul_f64(rng.random_range(0.0..=1.0))
}

pub(crate) fn clamp_retry_after(wait: Duration) -> Duration {
    wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
}

/// The wait that an answer's headers ask for.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().unwrap_or("").trim();
    let wait = match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() => {
            Duration::from_secs_f64(seconds.clamp(0.0, RETRY_AFTER_MAX.as_secs_f64()))
        }
        _ => RETRY_AFTER_UNREADABLE,
    };
    Some(clamp_retry_after(wait))
}

/// Which syncer a gateway talks to, and which it turns to when that one fails.
#[derive(Debug)]
pub(crate) struct Rotation {
    urls: Vec<String>,
    at: usize,
    failures: u32,
}

// === impl Rotation ===

impl Rotation {
    /// Begins at the `start`-th syncer, so that gateways spread.
    pub(crate) fn new(urls: &[String], start: usize) -> Self {
        Self { urls: urls.to_vec(), at: start % urls.len().max(1), failures: 0 }
    }

    pub(crate) fn url(&self) -> &str {
        &self.urls[self.at]
    }

    /// This syncer failed: the next one, after the returned wait.
    pub(crate) fn fail(&mut self, rng: &mut impl Rng) -> Duration {
        self.at = (self.at + 1) % self.urls.len();
        self.failures = self.failures.saturating_add(1);
        // The first turn of the ring is quick: others may well be alive.
        let turns = self.failures.saturating_sub(1) / u32::try_from(self.urls.len()).unwrap_or(1).max(1);
        full_jitter(turns, rng)
    }

    /// This syncer answered.
    pub(crate) fn succeed(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn header(value: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_clamped_whatever_it_says() {
        assert_eq!(header("2"), Some(Duration::from_secs(2)));
        assert_eq!(header("-5"), Some(RETRY_AFTER_MIN));
        assert_eq!(header("1e300"), Some(RETRY_AFTER_MAX));
        assert_eq!(header("NaN"), Some(RETRY_AFTER_UNREADABLE));
        assert_eq!(header("Wed, 21 Oct 2026 07:28:00 GMT"), Some(RETRY_AFTER_UNREADABLE));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn jitter_grows_and_stays_within_its_bound() {
        let mut rng = StdRng::seed_from_u64(1);
        for attempt in 0..64 {
            assert!(full_jitter(attempt, &mut rng) <= BACKOFF_MAX);
        }
        assert!(full_jitter(0, &mut rng) <= BACKOFF_BASE);
    }

    #[test]
    fn a_failing_syncer_is_left_for_the_next() {
        let mut rng = StdRng::seed_from_u64(1);
        let urls = ["a", "b", "c"].map(String::from);
        let mut rotation = Rotation::new(&urls, 4);
        assert_eq!(rotation.url(), "b");
        assert!(rotation.fail(&mut rng) <= BACKOFF_BASE);
        assert_eq!(rotation.url(), "c");
        rotation.fail(&mut rng);
        assert_eq!(rotation.url(), "a");
    }
}
