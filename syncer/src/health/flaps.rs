//! An SFU that falls and gets up again and again.
//!
//! Each return draws calls back, and each fall throws them out: the second fall within a while costs
//! more than doing without the SFU for a moment, the tenth far more. So the first return is free, and
//! from the second on the SFU is kept out of selection for a time that doubles. A quiet stretch takes
//! one fall back.

use std::time::Duration;

use tokio::time::Instant;

/// How long a return is held back.
#[derive(Clone, Copy, Debug)]
pub struct FlapRules {
    /// After the second fall; it doubles with each further one. Zero: never.
    pub hold: Duration,
    /// At most.
    pub hold_max: Duration,
    /// A stretch without a fall that takes one back.
    pub forget: Duration,
}

/// The falls of one SFU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flaps {
    falls: u32,
    last: Option<Instant>,
    held_until: Option<Instant>,
}

// === impl Flaps ===

impl Flaps {
    /// It fell.
    pub fn fell(&mut self, rules: &FlapRules, now: Instant) {
        if let Some(last) = self.last {
            let quiet = now.saturating_duration_since(last).as_nanos() / rules.forget.as_nanos().max(1);
            self.falls = self.falls.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX));
        }
        self.falls = self.falls.saturating_add(1);
        self.last = Some(now);
    }

    /// It is back.
    pub fn rose(&mut self, rules: &FlapRules, now: Instant) {
        // The tenth doubling of a second is a quarter of an hour; 2^16 seconds is most of a day.
        let doublings = self.falls.saturating_sub(2).min(16);
        let hold = rules.hold.saturating_mul(1 << doublings).min(rules.hold_max);
        if self.falls >= 2 && !hold.is_zero() {
            self.held_until = Some(now + hold);
        }
    }

    /// Until when it is kept out of selection.
    #[must_use]
    pub const fn held_until(&self) -> Option<Instant> {
        self.held_until
    }
}

impl Default for FlapRules {
    fn default() -> Self {
        Self { hold: Duration::from_secs(5), hold_max: Duration::from_secs(600), forget: Duration::from_secs(600) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn r17_the_first_return_is_free_and_the_next_ones_cost_twice_as_much_each() {
        let (rules, mut flaps, mut now) = (FlapRules::default(), Flaps::default(), Instant::now());
        for held in [None, Some(S(5)), Some(S(10)), Some(S(20)), Some(S(40))] {
            flaps.fell(&rules, now);
            flaps.rose(&rules, now);
            assert_eq!(flaps.held_until().map(|until| until - now), held);
            now += S(60);
        }
    }

    #[test]
    fn a_quiet_stretch_takes_a_fall_back() {
        let (rules, mut flaps, mut now) = (FlapRules::default(), Flaps::default(), Instant::now());
        for _ in 0..10 {
            flaps.fell(&rules, now);
            flaps.rose(&rules, now);
            assert_eq!(flaps.held_until(), None, "once in a while is no flapping");
            now += S(601);
        }
    }

    proptest! {
        /// It is never held longer than the rules allow, however often it falls.
        #[test]
        fn r17_no_hold_is_longer_than_the_limit(gaps in prop::collection::vec(0u64..1_000, 0..100)) {
            let (rules, mut flaps, mut now) = (FlapRules::default(), Flaps::default(), Instant::now());
            for gap in gaps {
                now += S(gap);
                flaps.fell(&rules, now);
                flaps.rose(&rules, now);
                prop_assert!(flaps.held_until().is_none_or(|until| until <= now + rules.hold_max));
            }
        }
    }
}
