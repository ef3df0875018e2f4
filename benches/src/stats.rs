//! Medians and percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Median, least and greatest over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// Latencies from a nanosecond to a minute, three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// The longest latency that is told apart.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

// === impl Summary ===

impl Summary {
    /// Of at least one value; `None` of none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        Some(Self { median, min, max })
    }
}

// === impl Latencies ===

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants"))
    }
}

impl Latencies {
    /// Records one.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Records one of a caller that comes back every `interval` when it is served fairly. A longer wait
    /// stands for the calls it kept from being made: without them, a closed loop hides who starves.
    pub fn record_corrected(&mut self, latency: Duration, interval: Duration) {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).clamp(1, LATENCY_NS_MAX);
        // Clamped to the bounds: this cannot fail.
        let _within = self.0.record_correct(ns(latency), ns(interval));
    }

    /// Takes in those of another.
    pub fn merge(&mut self, other: &Self) {
        // Same bounds on both sides: this cannot fail.
        let _same = self.0.add(&other.0);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A quantile (0 to 1) in nanoseconds; 0 of none.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn ns(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64
    }

    /// A quantile (0 to 1) in milliseconds; 0 of none.
    #[must_use]
    pub fn ms(&self, quantile: f64) -> f64 {
        self.ns(quantile) / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((summary.median, summary.min, summary.max), (2.5, 1.0, 4.0));
        assert_eq!(Summary::of(&[]), None);
    }
}
