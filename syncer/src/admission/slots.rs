//! When a caller that was turned away shall come back: a slot of its own, not the same second for all.
//!
//! A fixed `Retry-After` sends everybody back in one second, and a random one only thins that out, blind to
//! what was promised before. So the seconds to come are counted: each caller gets one of those with the
//! fewest, within a span that holds all who are out at the rate at which they can be served. What comes back
//! is flat by construction (measured in the tests: no second gets more than 1.5 times the mean).

use std::time::Duration;

use tokio::time::Instant;

/// Farthest slot. Half a minute is what people wait at most, and what `rate_limit::clamp_retry_after` lets
/// through.
const SECONDS: usize = 30;

/// What is kept of a span that lies behind the farthest slot, in seconds.
const SPAN_KEPT_S: u64 = 4;

/// The seconds to come, and how many callers each was promised to.
#[derive(Debug)]
pub struct Slots {
    origin: Instant,
    /// The second that `promised` begins at, counted from `origin`.
    first: u64,
    promised: [u32; SECONDS + 1],
}

// === impl Slots ===

impl Slots {
    /// Nobody is out.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { origin: now, first: 0, promised: [0; SECONDS + 1] }
    }

    /// A slot not before `ready_at` for a caller that one of `rate_per_s` can serve; `draw`, from 0 to 1, places
    /// it within its second. Slots lie in a span of at least `span_min`, in whole seconds: a crowd that is turned away at
    /// one moment does not come back at one moment either. Answers how long to wait from `now`, up to half a minute.
    pub fn take(
        &mut self,
        ready_at: Instant,
        rate_per_s: f64,
        span_min: Duration,
        now: Instant,
        draw: f64,
    ) -> Duration {
        let elapsed = now.saturating_duration_since(self.origin);
        self.forget_until(elapsed.as_secs());
        let out: u32 = self.promised.iter().copied().fold(0, u32::saturating_add);
        let crowd_s = (f64::from(out) / rate_per_s.max(1.0)).min(SECONDS as f64) as u64; // at most 30
        let last = SECONDS as u64;
        let span_min_s = span_min.as_secs().clamp(1, last);
        let wait_s = ready_at.saturating_duration_since(now).as_secs();
        // A wide span ends with the last slot: it brings nobody back before his time.
        let from = (1 + wait_s).min(last + 1 - span_min_s.min(SPAN_KEPT_S));
        let to = (from + span_min_s.max(crowd_s + 1)).min(last + 1);
        let slot = (from..to).min_by_key(|s| self.promised[*s as usize]).unwrap_or(last);
        let count = &mut self.promised[slot as usize];
        *count = count.saturating_add(1);
        let at = Duration::from_secs(self.first + slot) + Duration::from_secs(1).mul_f64(draw.clamp(0.0, 1.0));
        at.saturating_sub(elapsed)
    }

    /// Callers that were promised a slot which is still to come.
    #[must_use]
    pub fn out(&self) -> u64 {
        self.promised.iter().map(|n| u64::from(*n)).sum()
    }

    fn forget_until(&mut self, second: u64) {
        let gone = usize::try_from(second.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.promised.len());
        self.promised.rotate_left(gone);
        let kept = self.promised.len() - gone;
        self.promised[kept..].fill(0);
        self.first = self.first.max(second);
    }
}
