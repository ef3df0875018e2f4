//! What one start costs the supervisor while others are queued.

use std::time::Duration;

/// Measured on the real thing (gun 2.1 on OTP 25): queued messages, microseconds per start.
const MEASURED: [(f64, f64); 5] =
    [(1_000.0, 13.0), (10_000.0, 170.0), (100_000.0, 1_500.0), (500_000.0, 26_000.0), (1_000_000.0, 52_000.0)];

/// The figure published after the incident: 1 ms per 100,000 queued. The optimistic floor.
const PUBLISHED_US_PER_QUEUED: f64 = 0.01;

/// How the cost of a start grows with the queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScanCost {
    curve: Curve,
    factor: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Curve {
    Measured,
    Published,
}

// === impl ScanCost ===

impl ScanCost {
    /// The cost measured on the real library. The default of every report.
    #[must_use]
    pub fn measured() -> Self {
        Self { curve: Curve::Measured, factor: 1.0 }
    }

    /// The published floor, five times cheaper at a million queued.
    #[must_use]
    pub fn published() -> Self {
        Self { curve: Curve::Published, factor: 1.0 }
    }

    /// Every queued message counts as `factor`, for a simulated population that is smaller than the
    /// real one by that much.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self { factor: factor.max(0.0), ..self }
    }

    /// What one start costs with `queued` messages in the mailbox.
    #[must_use]
    pub fn of(&self, queued: usize) -> Duration {
        let queued = u32::try_from(queued).map_or(f64::from(u32::MAX), f64::from) * self.factor;
        let micros = match self.curve {
            Curve::Published => queued * PUBLISHED_US_PER_QUEUED,
            Curve::Measured => interpolate(queued),
        };
        Duration::from_secs_f64(micros / 1e6)
    }
}

/// Straight lines between the measured points and the origin; beyond the last one, its slope goes on.
fn interpolate(queued: f64) -> f64 {
    let (mut x0, mut y0) = (0.0, 0.0);
    for (x1, y1) in MEASURED {
        if queued <= x1 {
            return y0 + (y1 - y0) * (queued - x0) / (x1 - x0);
        }
        (x0, y0) = (x1, y1);
    }
    y0 * queued / x0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_points_are_met_and_nothing_is_free_of_the_queue() {
        let cost = ScanCost::measured();
        for (queued, micros) in MEASURED {
            let got = cost.of(queued as usize).as_secs_f64() * 1e6;
            assert!((got - micros).abs() < 0.01 * micros, "{queued}: {got}");
        }
        assert_eq!(cost.of(0), Duration::ZERO);
        assert!(cost.of(2_000_000) > cost.of(1_000_000) * 19 / 10);
    }

    #[test]
    fn the_published_floor_is_one_millisecond_per_hundred_thousand() {
        assert_eq!(ScanCost::published().of(100_000), Duration::from_millis(1));
        assert_eq!(ScanCost::published().scaled(10.0).of(10_000), Duration::from_millis(1));
    }
}
