//! The token bucket.
//!
//! It is the generic cell rate algorithm in its leaky-bucket form (ITU-T I.371, annex A, gives both
//! forms and that they decide alike). What is kept is the *debt*: tokens taken and not yet earned
//! back. Debt suits live limits better than the other form's arrival time: it survives a change of
//! rate as it is, so a smaller quota bites at once and a larger one forgives nothing it should not.
//!
//! A refusal changes nothing, so asking often neither costs a caller its turn nor wears the number
//! down by rounding. A clock reading older than the last one (threads race) counts as no time passed.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Highest rate: a token every 100 ns. Beyond that a limit is no limit, and rounding would show.
pub const RATE_PER_S_MAX: f64 = 1e7;

/// Longest wait that [`NotYet::ready_at`] asks for. Quotas change while callers wait, so whoever
/// would wait for ever (a closed bucket, more tokens than the burst) looks again after this long.
pub const RECHECK_MAX: Duration = Duration::from_secs(60);

/// Rounding allowed when debt is compared with the burst, in tokens. It never adds up: it widens the
/// comparison, not the account.
const ROUNDING_TOKENS: f64 = 1e-6;

/// How often: a steady rate and the burst that may go at once.
///
/// In any window, a bucket admits at most `burst + rate_per_s × window` tokens. A rate or burst of
/// zero is [closed](Quota::CLOSED).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Quota {
    /// Tokens earned per second; 0 to [`RATE_PER_S_MAX`].
    pub rate_per_s: f64,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// The rate is not a number from 0 to [`RATE_PER_S_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the rate must be from 0 to {RATE_PER_S_MAX} per second, got {0}")]
pub struct QuotaError(f64);

/// Not enough tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotYet {
    /// When the tokens will be there, if nobody else takes them first; at most [`RECHECK_MAX`] away.
    pub ready_at: Instant,
}

/// A token bucket. One short critical section per decision, no allocation.
#[derive(Debug)]
pub struct Bucket {
    state: Mutex<(Quota, Meter)>,
}

/// The account of one bucket: `debt` tokens were owed at `at`. What a quota means for it is decided
/// by the caller, so that thousands of meters can share one quota.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    debt: f64,
    /// What a cut of the limit let go and time has not earned since.
    forgiven: f64,
    at: Instant,
}

// === impl Quota ===

impl Quota {
    /// Admits nothing.
    pub const CLOSED: Self = Self { rate_per_s: 0.0, burst: 0 };

    /// A checked quota.
    ///
    /// # Errors
    ///
    /// When the rate is negative, not a number, or above [`RATE_PER_S_MAX`].
    pub fn new(rate_per_s: f64, burst: u32) -> Result<Self, QuotaError> {
        if (0.0..=RATE_PER_S_MAX).contains(&rate_per_s) {
            Ok(Self { rate_per_s, burst })
        } else {
            Err(QuotaError(rate_per_s))
        }
    }

    /// Whether this quota admits nothing, however long one waits.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.rate_per_s <= 0.0 || self.burst == 0
    }

    /// One `parts`-th of this quota, at least one token of burst: how a fleet's limit is shared out.
    #[must_use]
    pub fn share(&self, parts: u32) -> Self {
        let parts = parts.max(1);
        Self { rate_per_s: self.rate_per_s / f64::from(parts), burst: (self.burst / parts).max(self.burst.min(1)) }
    }
}

// === impl Bucket ===

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(quota: Quota, now: Instant) -> Self {
        Self { state: Mutex::new((quota, Meter::full(now))) }
    }

    /// Takes `n` tokens, all or none.
    ///
    /// # Errors
    ///
    /// [`NotYet`] when fewer than `n` are there; the bucket is unchanged.
    pub fn try_take(&self, n: u32, now: Instant) -> Result<(), NotYet> {
        let (quota, meter) = &mut *self.state.lock();
        meter.try_take(quota, n, now)
    }

    /// Returns `n` tokens that were taken just now and not used. Never fills beyond the burst.
    pub fn give_back(&self, n: u32, now: Instant) {
        self.give_back_late(n, now, now);
    }

    /// Returns what is left of `n` tokens that were taken at `taken` and not used. What was earned since may
    /// have been for these, and was used by others: given back whole, tokens of a quiet time would be spent twice.
    pub fn give_back_late(&self, n: u32, taken: Instant, now: Instant) {
        let (quota, meter) = &mut *self.state.lock();
        let earned = quota.rate_per_s * now.saturating_duration_since(taken).as_secs_f64();
        meter.give_back(quota, (f64::from(n) - earned).max(0.0), now);
    }

    /// Changes the quota and keeps the debt: what was taken stays taken, so a smaller quota bites at once.
    pub fn set_quota(&self, quota: Quota, now: Instant) {
        let (old, meter) = &mut *self.state.lock();
        meter.settle(old, now);
        *old = quota;
    }

    /// As [`Self::set_quota`], for a limit that was decided anew: what is owed beyond the new burst is let go, so that
    /// the bucket is empty at most. Where a large burst was just used, a cut would otherwise admit nothing at all
    /// until a debt of the old size is paid at the new rate. A limit that grows again owes it again, so that nobody
    /// gains by turning it up and down. Do not use it for shares that shrink with a view: whoever takes the other part
    /// counts on the debt.
    pub fn set_limit(&self, quota: Quota, now: Instant) {
        let (old, meter) = &mut *self.state.lock();
        meter.settle(old, now);
        meter.forgive(&quota);
        *old = quota;
    }

    /// Whole tokens that could be taken now.
    #[must_use]
    pub fn available(&self, now: Instant) -> u32 {
        let (quota, meter) = &*self.state.lock();
        meter.available(quota, now)
    }

    /// Takes `n` tokens if more than half of the burst could be taken now; says whether it did.
    #[must_use]
    pub fn try_take_spare(&self, n: u32, now: Instant) -> bool {
        let (quota, meter) = &mut *self.state.lock();
        u64::from(meter.available(quota, now)) * 2 > u64::from(quota.burst) && meter.try_take(quota, n, now).is_ok()
    }

    /// When the next token is there, as [`NotYet::ready_at`]; `now` if there is one already. Takes nothing.
    #[must_use]
    pub fn ready_at(&self, now: Instant) -> Instant {
        let (quota, meter) = &*self.state.lock();
        let mut trial = *meter;
        trial.try_take(quota, 1, now).map_or_else(|not_yet| not_yet.ready_at, |()| now)
    }

    /// The quota in force.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.state.lock().0
    }
}

// === impl Meter ===

impl Meter {
    pub(crate) fn full(now: Instant) -> Self {
        Self { debt: 0.0, forgiven: 0.0, at: now }
    }

    pub(crate) fn debt(&self, quota: &Quota, now: Instant) -> f64 {
        self.settled(quota, now).debt
    }

    /// The account at `now`: what was earned pays the debt first, and then what was let go.
    fn settled(&self, quota: &Quota, now: Instant) -> Self {
        let earned = quota.rate_per_s * now.saturating_duration_since(self.at).as_secs_f64();
        let left = (earned - self.debt).max(0.0);
        Self { debt: (self.debt - earned).max(0.0), forgiven: (self.forgiven - left).max(0.0), at: now.max(self.at) }
    }

    pub(crate) fn try_take(&mut self, quota: &Quota, n: u32, now: Instant) -> Result<(), NotYet> {
        let settled = self.settled(quota, now);
        let owed = settled.debt + f64::from(n);
        let excess = owed - f64::from(quota.burst);
        if !quota.is_closed() && excess <= ROUNDING_TOKENS {
            *self = Self { debt: owed, ..settled };
            return Ok(());
        }
        let possible = !quota.is_closed() && n <= quota.burst;
        let wait_s = if possible { excess / quota.rate_per_s } else { f64::INFINITY };
        let wait = Duration::try_from_secs_f64(wait_s).unwrap_or(RECHECK_MAX);
        let wait = wait.saturating_add(Duration::from_nanos(1)); // the conversion rounds, and too early is a lie
        Err(NotYet { ready_at: now.max(self.at) + wait.min(RECHECK_MAX) })
    }

    pub(crate) fn give_back(&mut self, quota: &Quota, tokens: f64, now: Instant) {
        self.settle(quota, now);
        self.debt = (self.debt - tokens).max(0.0);
    }

    pub(crate) fn settle(&mut self, quota: &Quota, now: Instant) {
        *self = self.settled(quota, now);
    }

    /// Lets go what is owed beyond the burst, and owes again what was let go and is within it. A closed quota has no
    /// burst: what is owed then stays until it is opened.
    pub(crate) fn forgive(&mut self, quota: &Quota) {
        if !quota.is_closed() {
            let all = self.debt + self.forgiven;
            self.debt = all.min(f64::from(quota.burst));
            self.forgiven = all - self.debt;
        }
    }

    pub(crate) fn available(&self, quota: &Quota, now: Instant) -> u32 {
        if quota.is_closed() {
            return 0;
        }
        let left = f64::from(quota.burst) - self.debt(quota, now) + ROUNDING_TOKENS;
        left.max(0.0) as u32 // truncates, and cannot exceed the burst
    }

    pub(crate) fn is_full(&self, quota: &Quota, now: Instant) -> bool {
        self.debt(quota, now) <= ROUNDING_TOKENS
    }
}

#[cfg(test)]
mod tests;
