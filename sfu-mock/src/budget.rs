//! Did the callers keep their promise? Counted here, where the requests arrive.
//!
//! The promise: in every window of length `w` that ends now, at most `burst + rate · (w + slack)`
//! rooms are created. Looking at every window needs every timestamp; this does not. Let `L` be the
//! largest excess over all windows ending now, `max_w (creations(w) − rate · w)`. Every window that
//! ends at the next creation is one that ended at the last one, `dt` longer and with one creation
//! more, or is the new creation alone. So `L' = max(L − rate · dt, 0) + 1`: one number, a leaky
//! bucket, that overflows exactly when some window breaks the promise. Unlike a bucket that limits,
//! it also counts what overflowed, because the promise is about all creations.
//!
//! All arithmetic is in whole nano-creations (milli-creations per second × microseconds), so the
//! equivalence is exact and tested against a counter of all windows.

use serde::{Deserialize, Serialize};

use crate::Error;

/// One creation, in the unit of a [`Gauge`].
const CREATION: u128 = 1_000_000_000;
/// Highest rate: beyond it a budget means nothing, and the arithmetic stays far from overflow.
const RATE_MAX: f64 = 1e9;
/// Longest slack, a day.
const SLACK_MS_MAX: u64 = 86_400_000;

/// A promise about room creations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Creations per second, up to 10⁹.
    pub rate: f64,
    /// Creations on top, at once.
    pub burst: u32,
}

/// Promises per SFU, per region and for the whole cluster. A level without one is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// For each SFU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sfu: Option<Budget>,
    /// For each region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Budget>,
    /// For all SFUs together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overall: Option<Budget>,
    /// Lengthens every window, in milliseconds: what was sent in time may arrive bunched.
    #[serde(default)]
    pub slack_ms: u64,
}

/// Creations that broke a promise, by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdrawn {
    /// Beyond the budget of their SFU.
    pub sfu: u64,
    /// Beyond the budget of their region.
    pub region: u64,
    /// Beyond the overall budget.
    pub overall: u64,
}

/// Watches one stream of creations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gauge {
    level: u128,
    at_us: u64,
}

// === impl Budgets ===

impl Budgets {
    /// Checks the values.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for (level, budget) in [("sfu", self.sfu), ("region", self.region), ("overall", self.overall)] {
            let Some(Budget { rate, .. }) = budget else { continue };
            if !(0.0..=RATE_MAX).contains(&rate) {
                return Err(Error::request(format!("{level}.rate must be 0 to {RATE_MAX}, got {rate}")));
            }
        }
        if self.slack_ms > SLACK_MS_MAX {
            return Err(Error::request(format!("slack_ms must be at most {SLACK_MS_MAX}, got {}", self.slack_ms)));
        }
        Ok(())
    }
}

// === impl Budget ===

impl Budget {
    /// Milli-creations per second, rounded up: rounding must not accuse anyone.
    fn rate_milli(self) -> u128 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "validated: 0 to 10^9")]
        let milli = (self.rate * 1000.0).ceil() as u64;
        u128::from(milli)
    }

    fn size(self, slack_ms: u64) -> u128 {
        u128::from(self.burst) * CREATION + self.rate_milli() * u128::from(slack_ms) * 1000
    }
}

// === impl Gauge ===

impl Gauge {
    /// Counts a creation at `now_us` (never before the last one) and says whether it overdraws.
    pub(crate) fn create(&mut self, budget: Budget, slack_ms: u64, now_us: u64) -> bool {
        let drained = budget.rate_milli() * u128::from(now_us.saturating_sub(self.at_us));
        self.level = self.level.saturating_sub(drained) + CREATION;
        self.at_us = self.at_us.max(now_us);
        self.level > budget.size(slack_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Looks at every window that ends at each creation, keeping every timestamp.
    fn overdrawn_by_windows(budget: Budget, slack_ms: u64, at_us: &[u64]) -> Vec<bool> {
        let windows = |last: usize| {
            (0..=last).any(|first| {
                let count = u128::try_from(last - first + 1).expect("small");
                let window_us = u128::from(at_us[last] - at_us[first]);
                let earned = budget.rate_milli() * (window_us + u128::from(slack_ms) * 1000);
                count * CREATION > u128::from(budget.burst) * CREATION + earned
            })
        };
        (0..at_us.len()).map(windows).collect()
    }

    fn overdrawn_by_gauge(budget: Budget, slack_ms: u64, at_us: &[u64]) -> Vec<bool> {
        let mut gauge = Gauge::default();
        at_us.iter().map(|&at| gauge.create(budget, slack_ms, at)).collect()
    }

    /// Gaps that are often zero, often near a multiple of the budget's period, sometimes anything.
    fn gaps() -> impl Strategy<Value = Vec<u64>> {
        let gap = prop_oneof![3 => Just(0u64), 3 => 0..200_000u64, 2 => Just(50_000u64), 1 => 0..20_000_000u64];
        prop::collection::vec(gap, 1..120)
    }

    proptest! {
        #[test]
        fn i04_one_number_sees_what_all_windows_see(
            start in 0..10_000_000u64,
            gaps in gaps(),
            rate in prop_oneof![Just(0.0), Just(20.0), 0.0..100.0f64],
            burst in 0..30u32,
            slack_ms in prop_oneof![Just(0u64), 0..2000u64],
        ) {
            let budget = Budget { rate, burst };
            let mut at = start;
            let at_us: Vec<u64> = gaps.iter().map(|gap| { at += gap; at }).collect();
            prop_assert_eq!(
                overdrawn_by_gauge(budget, slack_ms, &at_us),
                overdrawn_by_windows(budget, slack_ms, &at_us)
            );
        }

        #[test]
        fn i04_a_caller_that_keeps_its_bucket_is_never_accused(
            burst in 1..50u32,
            rate in 1..200u32,
            wishes in prop::collection::vec(0..100_000u64, 1..300),
        ) {
            // A plain token bucket on the caller's side, in the same units.
            let (mut tokens, mut last, mut at) = (u128::from(burst) * CREATION, 0, 0);
            let mut sent = vec![];
            for gap in wishes {
                at += gap;
                let earned = u128::from(rate) * 1000 * u128::from(at - last);
                tokens = (tokens + earned).min(u128::from(burst) * CREATION);
                last = at;
                if tokens >= CREATION {
                    tokens -= CREATION;
                    sent.push(at);
                }
            }
            let accused = overdrawn_by_gauge(Budget { rate: f64::from(rate), burst }, 0, &sent);
            prop_assert!(accused.iter().all(|overdrawn| !overdrawn));
        }
    }

    #[test]
    fn i04_each_excess_creation_counts_once() {
        let accused = overdrawn_by_gauge(Budget { rate: 10.0, burst: 5 }, 0, &[0; 8]);
        assert_eq!(accused, [false, false, false, false, false, true, true, true]);
    }

    #[test]
    fn nonsense_is_refused() {
        for rate in [-1.0, f64::NAN, f64::INFINITY, 1e10] {
            let budgets = Budgets { region: Some(Budget { rate, burst: 1 }), ..Budgets::default() };
            assert!(budgets.validate().is_err(), "{rate}");
        }
        assert!(Budgets { slack_ms: u64::MAX, ..Budgets::default() }.validate().is_err());
    }
}
