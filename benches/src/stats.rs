//! Medians, ratios and percentiles.

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

/// What one contestant showed of one metric, round by round; or one value, that needs no rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure(Vec<f64>);

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

// === impl Figure ===

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

impl Figure {
    /// Of at least one round; `None` of none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() { None } else { Some(Self(values.to_vec())) }
    }

    /// The median over the rounds.
    #[must_use]
    pub fn median(&self) -> f64 {
        Summary::of(&self.0).map_or(f64::NAN, |summary| summary.median)
    }

    /// Every round's value, changed in the same way.
    #[must_use]
    pub fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        Self(self.0.iter().copied().map(change).collect())
    }

    /// The ratio to another figure of the same rounds: the median of each round's own ratio. What the machine did to a
    /// whole round, it did to both sides of it. Where the rounds are not as many, there is no pairing them, and it
    /// is the ratio of the medians.
    #[must_use]
    pub fn ratio(&self, theirs: &Self) -> f64 {
        if self.0.len() != theirs.0.len() {
            return quotient(self.median(), theirs.median());
        }
        let ratios = self.0.iter().zip(&theirs.0).map(|(ours, theirs)| quotient(*ours, *theirs));
        Self(ratios.collect()).median()
    }
}

/// Nothing to nothing is one, something to nothing is more than any bar.
fn quotient(ours: f64, theirs: f64) -> f64 {
    if theirs > 0.0 {
        ours / theirs
    } else if ours > 0.0 {
        f64::INFINITY
    } else {
        1.0
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

    fn figure(values: &[f64]) -> Figure {
        Figure::of(values).expect("values")
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_own() {
        // The machine is three times as slow in some rounds, for both: ours takes half of theirs in each of them.
        let (ours, theirs) = (figure(&[1.0, 3.0, 3.0, 1.0, 3.0]), figure(&[2.0, 6.0, 6.0, 2.0, 6.0]));
        assert_eq!((ours.ratio(&theirs), theirs.ratio(&ours)), (0.5, 2.0));
        // It is slow at different times for each of them, and the medians say how often: 3 to 2, where most rounds say 0.5.
        let (ours, theirs) = (figure(&[1.0, 3.0, 3.0, 1.0, 3.0]), figure(&[2.0, 6.0, 2.0, 2.0, 6.0]));
        assert_eq!((ours.median() / theirs.median(), ours.ratio(&theirs)), (1.5, 0.5));
        // Neither side is favoured: what is slower in most rounds is slower.
        let (ours, theirs) = (figure(&[1.2, 1.2, 0.1]), figure(&[1.0, 1.0, 9.0]));
        assert_eq!(ours.ratio(&theirs), 1.2);
    }

    #[test]
    fn what_has_no_rounds_in_common_is_compared_by_its_medians() {
        assert_eq!(figure(&[1.0, 9.0, 3.0]).ratio(&Figure::from(2.0)), 1.5);
        assert_eq!(figure(&[1.0, 9.0, 3.0]).ratio(&figure(&[1.0, 2.0])), 2.0);
        assert_eq!(Figure::of(&[]), None);
    }

    #[test]
    fn nothing_to_nothing_is_one_and_something_to_nothing_is_too_much() {
        assert_eq!(figure(&[0.0, 0.0, 1.0]).ratio(&figure(&[0.0, 0.0, 0.0])), 1.0);
        assert_eq!(figure(&[0.0, 2.0, 1.0]).ratio(&Figure::from(0.0)), f64::INFINITY);
        assert_eq!(figure(&[2.0, 1.0]).map(|value| value.max(1.5)), figure(&[2.0, 1.5]));
    }
}
