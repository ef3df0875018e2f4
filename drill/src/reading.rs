//! What a metric's value is at one moment, and what a phase added to it.

use crate::ledger::Spread;
use crate::observe::Counts;
use crate::plan::Metric;
use crate::syncers::ratio;

/// Everything measured at one moment. Absent values were not measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) counts: Counts,
    pub(crate) awaiting: Spread,
    pub(crate) recovery: Spread,
    /// Placement attempts, and first attempts among them.
    pub(crate) attempts: (u64, u64),
    pub(crate) rooms_orphaned: Option<u64>,
    pub(crate) rooms_missing: Option<u64>,
    pub(crate) watchers_behind: Option<u64>,
    /// Whether the SFUs can be seen: without, nothing is known of breaks.
    pub(crate) fleet_visible: bool,
    /// Whether sessions connect to their endpoints.
    pub(crate) media_on: bool,
}

// === impl Reading ===

impl Reading {
    /// The value of a metric.
    pub(crate) fn value(&self, metric: Metric) -> Option<f64> {
        let counts = &self.counts;
        let count = |n: u64| Some(ratio(n, 1));
        let seen = |n: u64| if self.fleet_visible { count(n) } else { None };
        match metric {
            Metric::Calls => count(counts.calls),
            Metric::Placed => count(counts.placed),
            // A call that nobody could even ask for is waiting as well.
            Metric::Awaiting => count(counts.calls.saturating_sub(counts.placed)),
            Metric::Moved => count(counts.calls_moved),
            Metric::Replaced => count(counts.calls_replaced),
            Metric::Affected => seen(counts.calls_affected),
            Metric::Recovered => seen(counts.calls_recovered),
            Metric::SfusKilled => seen(counts.sfus_killed),
            Metric::SfusHit => seen(counts.sfus_hit),
            Metric::NewOnHit => seen(counts.calls_new_on_hit),
            Metric::Overdrawn => counts.buckets_overdrawn.and_then(count),
            Metric::Violations => count(counts.invariant_violations),
            Metric::Errors => count(counts.errors),
            Metric::Refused => count(counts.refused),
            Metric::MediaMissing if self.media_on => count(counts.media_missing),
            Metric::MediaMissing => None,
            Metric::AwaitingP50 => Some(self.awaiting.p50),
            Metric::AwaitingP99 => Some(self.awaiting.p99),
            Metric::AwaitingMax => Some(self.awaiting.max),
            Metric::RecoveryP99 => Some(self.recovery.p99),
            Metric::RecoveryMax => Some(self.recovery.max),
            Metric::AttemptsPerFirst => self.attempts_per_first(),
            Metric::RoomsOrphaned => self.rooms_orphaned.and_then(count),
            Metric::RoomsMissing => self.rooms_missing.and_then(count),
            Metric::WatchersBehind => self.watchers_behind.and_then(count),
        }
    }

    /// Placement attempts for each first attempt.
    pub(crate) fn attempts_per_first(&self) -> Option<f64> {
        let (attempts, first) = self.attempts;
        (first > 0).then(|| ratio(attempts, first))
    }

    /// Whether the drill was held without what measures this: no control ports, no media.
    pub(crate) fn is_out_of_view(&self, metric: Metric) -> bool {
        match metric {
            Metric::Affected
            | Metric::Recovered
            | Metric::SfusKilled
            | Metric::SfusHit
            | Metric::NewOnHit
            | Metric::Overdrawn
            | Metric::RoomsOrphaned
            | Metric::RoomsMissing => !self.fleet_visible,
            Metric::MediaMissing => !self.media_on,
            // Every call was placed from before: nothing to divide.
            Metric::AttemptsPerFirst => self.attempts == (0, 0),
            _ => false,
        }
    }

    /// As [`Self::value`], of a phase that began with `start`: counters are what it added, gauges
    /// are how it ended, times are its own already.
    pub(crate) fn value_since(&self, start: &Self, metric: Metric) -> Option<f64> {
        let now = self.value(metric)?;
        match metric {
            Metric::Moved
            | Metric::Replaced
            | Metric::Affected
            | Metric::Recovered
            | Metric::SfusKilled
            | Metric::SfusHit
            | Metric::NewOnHit
            | Metric::Overdrawn
            | Metric::Violations
            | Metric::Errors
            | Metric::Refused => Some(now - start.value(metric)?),
            _ => Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_judged_by_what_it_added() {
        let reading = |calls_moved, placed| Reading {
            counts: Counts { calls_moved, placed, calls: 10, ..Counts::default() },
            fleet_visible: true,
            ..Reading::default()
        };
        let (start, end) = (reading(3, 4), reading(5, 9));
        assert_eq!(end.value_since(&start, Metric::Moved), Some(2.0));
        assert_eq!(end.value_since(&start, Metric::Placed), Some(9.0));
        assert_eq!(end.value_since(&start, Metric::Awaiting), Some(1.0));
        assert_eq!(end.value_since(&start, Metric::Overdrawn), None, "no mock counted");
    }
}
