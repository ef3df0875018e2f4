//! When to try again.

use std::time::{Duration, SystemTime};

use rand::{Rng, RngExt};

/// Shortest wait that a `Retry-After` can ask for: less is a busy loop.
pub const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);

/// Longest wait that a `Retry-After` can ask for: a broken or hostile header must not park a call for hours.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Longest `Retry-After` read: a date takes 29 bytes.
const RETRY_AFTER_BYTES_MAX: usize = 64;

/// Exponential back-off with full jitter: each wait is drawn evenly from zero to the step's bound.
///
/// Full jitter, because the enemy is many callers in step; bounds without jitter keep them in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first wait; doubles with every attempt.
    pub base: Duration,
    /// Bound of every wait.
    pub max: Duration,
}

// === impl Backoff ===

impl Backoff {
    /// A wait after attempt number `attempt` (the first is 0) failed: from zero to [`bound`](Backoff::bound).
    #[must_use]
    pub fn full_jitter(&self, attempt: u32, rng: &mut impl Rng) -> Duration {
        self.bound(attempt).mul_f64(rng.random::<f64>())
    }

    /// `base × 2^attempt`, at most `max`.
    #[must_use]
    pub fn bound(&self, attempt: u32) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(attempt)).min(self.max)
    }
}

/// Reads a `Retry-After` header (seconds or an HTTP date) as a wait from [`RETRY_AFTER_MIN`] to
/// [`RETRY_AFTER_MAX`]. `None` when it is neither, and the caller falls back on its own [`Backoff`].
#[must_use]
pub fn clamp_retry_after(header: &str, wall_now: SystemTime) -> Option<Duration> {
    let text = header.trim();
    if text.is_empty() || text.len() > RETRY_AFTER_BYTES_MAX {
        return None;
    }
    let asked = if text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-' | b'+')) {
        let seconds = text.parse::<f64>().ok()?.max(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(RETRY_AFTER_MAX)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(wall_now).unwrap_or_default()
    };
    Some(asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests;
