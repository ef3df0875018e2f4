//! The verdict of a drill, and everything it was drawn from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::MockStats;
use crate::ledger::Spread;
use crate::observe::Counts;
use crate::plan::Check;
use crate::reading::Reading;
use crate::wire::SyncerStatus;

/// Samples of the time series; when it is full, every other one is dropped.
const SERIES_MAX: usize = 3_600;

/// What a drill found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Name of the plan.
    pub plan: String,
    /// Its seed.
    pub seed: u64,
    /// Whether every check passed and every phase began.
    pub passed: bool,
    /// Whether it was ended from outside.
    pub cancelled: bool,
    /// Start, in Unix milliseconds.
    pub started_at: u64,
    /// From the start to the verdict, in milliseconds.
    pub duration_ms: u64,
    /// Calls that should exist.
    pub calls: u64,
    /// Sessions that joined.
    pub participants: u64,
    /// Calls whose endpoint is known.
    pub placed: u64,
    /// Calls whose endpoint is not known.
    pub calls_awaiting: u64,
    /// Calls whose endpoint went to another SFU.
    pub calls_moved: u64,
    /// Calls placed anew on the same SFU.
    pub calls_replaced: u64,
    /// Calls that were on an SFU when it was broken.
    pub calls_affected: u64,
    /// Of these: calls placed anew since, wherever.
    pub calls_recovered: u64,
    /// SFUs broken.
    pub sfus_hit: u64,
    /// SFUs killed.
    pub sfus_killed: u64,
    /// Time awaiting an endpoint, for each call and each time it waited.
    pub awaiting_ms: Spread,
    /// Of these: from a lost endpoint to the next.
    pub recovery_ms: Spread,
    /// Time from the break of a call's SFU to its next endpoint: detection, pace and placement.
    pub outage_ms: Spread,
    /// Placement attempts for each first attempt, as the syncers count them.
    pub attempts_per_first: Option<f64>,
    /// Room creations over budget, counted at the mocks.
    pub buckets_overdrawn: Option<u64>,
    /// Invariants seen broken: from outside (see `violations`) and by the syncers themselves.
    pub invariant_violations: u64,
    /// Violations seen from outside, by rule.
    pub violations: BTreeMap<String, u64>,
    /// Violations that the syncers found themselves.
    pub violations_inside: u64,
    /// What was wrong, in words: violations, rooms, calls without an endpoint. Not all of it.
    pub findings: Vec<String>,
    /// Rooms that no placed call claims, at the end.
    pub rooms_orphaned: Option<u64>,
    /// Placed calls whose room is absent from a live SFU, at the end.
    pub rooms_missing: Option<u64>,
    /// Watchers that were not told a call's last state.
    pub watchers_behind: u64,
    /// Repeated events, which a gateway drops.
    pub repeats: u64,
    /// Times a watch was opened again.
    pub reconnects: u64,
    /// Times a gateway had to re-read.
    pub resyncs: u64,
    /// Events received.
    pub events: u64,
    /// Errors by kind.
    pub errors: BTreeMap<String, u64>,
    /// The phases that began.
    pub phases: Vec<PhaseReport>,
    /// The checks.
    pub checks: Vec<CheckReport>,
    /// The numbers at the end.
    pub end: Counts,
    /// What the mocks counted.
    pub mocks: Option<MockStats>,
    /// What each syncer said last.
    pub syncers: Vec<SyncerStatus>,
    /// The numbers over time, about one a second.
    pub series: Vec<Counts>,
}

/// A phase that began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Its name.
    pub name: String,
    /// Milliseconds from the start of the drill to its own.
    pub began_ms: u64,
    /// Milliseconds from the start of the drill to its end.
    pub ended_ms: u64,
    /// Times awaiting an endpoint that ended in this phase.
    pub awaiting_ms: Spread,
    /// Calls moved in this phase.
    pub calls_moved: u64,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not.
    Failed,
    /// What it names should have been measured and was not; that is no pass.
    NotMeasured,
    /// The drill was held without what measures it (no control ports, no media).
    Skipped,
}

/// A check and how it came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// What must hold.
    pub expect: String,
    /// The phase it was judged in; absent: the whole drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub during: Option<String>,
    /// How it came out.
    pub outcome: Outcome,
    /// The left side's value.
    pub value: Option<f64>,
}

/// A phase's readings.
#[derive(Clone, Debug)]
pub(crate) struct PhaseReading {
    pub(crate) name: String,
    pub(crate) start: Reading,
    pub(crate) end: Reading,
}

// === impl PhaseReading ===

impl PhaseReading {
    pub(crate) fn report(&self) -> PhaseReport {
        PhaseReport {
            name: self.name.clone(),
            began_ms: self.start.counts.at_ms,
            ended_ms: self.end.counts.at_ms,
            awaiting_ms: self.end.awaiting,
            calls_moved: self.end.counts.calls_moved.saturating_sub(self.start.counts.calls_moved),
        }
    }
}

/// Judges a check.
pub(crate) fn judge(check: &Check, end: &Reading, phases: &[PhaseReading]) -> CheckReport {
    let phase = check.during.as_ref().map(|name| phases.iter().find(|phase| phase.name == *name));
    let value = |metric| match phase {
        None => end.value(metric),
        Some(Some(phase)) => phase.end.value_since(&phase.start, metric),
        Some(None) => None,
    };
    let outcome = match check.expect.holds(value) {
        Some(true) => Outcome::Passed,
        Some(false) => Outcome::Failed,
        None if check.expect.metrics().any(|metric| end.is_out_of_view(metric)) => Outcome::Skipped,
        None => Outcome::NotMeasured,
    };
    let expect = check.expect.to_string();
    CheckReport { expect, during: check.during.clone(), outcome, value: value(check.expect.metric) }
}

/// Whether a drill with these checks passed. One that was ended from outside is not blamed for what
/// it could not measure any more.
pub(crate) fn passed(checks: &[CheckReport], cancelled: bool) -> bool {
    checks.iter().all(|check| match check.outcome {
        Outcome::Passed | Outcome::Skipped => true,
        Outcome::Failed => false,
        Outcome::NotMeasured => cancelled,
    })
}

/// Appends a sample; the series stays bounded.
pub(crate) fn sample(series: &mut Vec<Counts>, counts: &Counts) {
    if series.len() >= SERIES_MAX {
        let mut keep = false;
        series.retain(|_| {
            keep = !keep;
            keep
        });
    }
    series.push(counts.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, during: Option<&str>) -> Check {
        Check { expect: text.parse().expect("parses"), during: during.map(str::to_owned) }
    }

    fn reading(calls_moved: u64) -> Reading {
        Reading { counts: Counts { calls_moved, ..Counts::default() }, ..Reading::default() }
    }

    #[test]
    fn a_failed_or_unmeasured_check_fails_the_drill() {
        // Attempts without a first one: a syncer that does not count.
        let end = Reading { attempts: (3, 0), ..reading(2) };
        let outcome = |text| judge(&check(text, None), &end, &[]);
        assert_eq!(outcome("calls_moved == 2").outcome, Outcome::Passed);
        assert_eq!(outcome("calls_moved == 0").outcome, Outcome::Failed);
        assert_eq!(outcome("attempts_per_first <= 1").outcome, Outcome::NotMeasured);
        assert_eq!(outcome("buckets_overdrawn == 0").outcome, Outcome::Skipped, "held without control ports");
        assert!(passed(&[outcome("calls_moved == 2")], false));
        assert!(!passed(&[outcome("calls_moved == 2"), outcome("calls_moved == 0")], false));
        assert!(!passed(&[outcome("calls_moved == 0")], true));
        assert!(!passed(&[outcome("attempts_per_first <= 1")], false));
        assert!(passed(&[outcome("attempts_per_first <= 1")], true));
        assert!(passed(&[outcome("buckets_overdrawn == 0")], false));
    }

    #[test]
    fn a_check_of_a_phase_sees_only_that_phase() {
        let phase = PhaseReading { name: "hang".into(), start: reading(5), end: reading(5) };
        let report = judge(&check("calls_moved == 0", Some("hang")), &reading(9), std::slice::from_ref(&phase));
        assert_eq!((report.outcome, report.value), (Outcome::Passed, Some(0.0)));
        let report = judge(&check("calls_moved == 0", Some("never")), &reading(0), &[phase]);
        assert_eq!(report.outcome, Outcome::NotMeasured);
    }

    #[test]
    fn the_series_is_bounded_and_keeps_its_span() {
        let mut series = Vec::new();
        for at_ms in 0..20_000 {
            sample(&mut series, &Counts { at_ms, ..Counts::default() });
        }
        assert!(series.len() <= SERIES_MAX);
        assert_eq!(series[0].at_ms, 0);
        assert_eq!(series.last().map(|c| c.at_ms), Some(19_999));
    }
}
