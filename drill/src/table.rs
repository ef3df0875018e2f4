//! What a human sees: one line a second, and a table at the end.

use std::fmt::Display;

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use crate::ledger::Spread;
use crate::observe::Counts;
use crate::plan::BUILT_IN;
use crate::plan::Plan;
use crate::report::{Outcome, Report};

/// Findings shown; the JSON report holds more.
const FINDINGS_SHOWN: usize = 10;

/// The line of one second.
#[must_use]
pub fn progress(counts: &Counts) -> String {
    let Counts { calls, placed, calls_moved, errors, .. } = counts;
    let seconds = counts.at_ms / 1000;
    let phase = if counts.phase.is_empty() { "ramp" } else { &counts.phase };
    let awaiting = counts.calls_awaiting;
    let (hit, violations) = (counts.sfus_hit, counts.invariant_violations);
    format!(
        "{seconds:>4}s  placed {placed}/{calls}  awaiting {awaiting}  moved {calls_moved}  sfus hit {hit}  \
         errors {errors}  violations {violations}  [{phase}]"
    )
}

fn spread(spread: &Spread) -> String {
    let Spread { p50, p99, max, count } = spread;
    if *count == 0 {
        return "never".to_owned();
    }
    format!("p50 {p50:.0} ms, p99 {p99:.0} ms, max {max:.0} ms ({count} times)")
}

fn measured<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "not measured".to_owned(), |value| value.to_string())
}

/// The summary and the checks.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut numbers = Table::new();
    numbers.load_style(NOTHING);
    numbers.set_header([report.plan.as_str(), if report.passed { "PASSED" } else { "FAILED" }]);
    let rows = [
        ("calls placed", format!("{} of {}", report.placed, report.calls)),
        ("calls affected / recovered", format!("{} / {}", report.calls_affected, report.calls_recovered)),
        ("calls moved", report.calls_moved.to_string()),
        ("calls placed again in place", report.calls_replaced.to_string()),
        ("SFUs killed / broken", format!("{} / {}", report.sfus_killed, report.sfus_hit)),
        ("awaiting endpoint", spread(&report.awaiting_ms)),
        ("of these, after a loss", spread(&report.recovery_ms)),
        ("from break to endpoint", spread(&report.outage_ms)),
        ("attempts per first attempt", measured(report.attempts_per_first.map(|ratio| format!("{ratio:.3}")))),
        ("creations over budget", measured(report.buckets_overdrawn)),
        ("invariant violations", report.invariant_violations.to_string()),
    ];
    for (name, value) in rows {
        numbers.add_row([name, value.as_str()]);
    }
    let mut checks = Table::new();
    checks.load_style(NOTHING);
    checks.set_header(["check", "during", "value", ""]);
    for check in &report.checks {
        let outcome = match check.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::NotMeasured => "NOT MEASURED",
            Outcome::Skipped => "not in view",
        };
        let value = check.value.map_or_else(String::new, |value| format!("{value}"));
        checks.add_row([&check.expect, check.during.as_deref().unwrap_or("all"), &value, outcome]);
    }
    let mut text = format!("\n{}\n", numbers.trim_fmt());
    if !report.checks.is_empty() {
        text.push_str(&format!("\n{}\n", checks.trim_fmt()));
    }
    for finding in report.findings.iter().take(FINDINGS_SHOWN) {
        text.push_str(&format!("  {finding}\n"));
    }
    if !report.errors.is_empty() {
        text.push_str(&format!("  errors by kind: {:?}\n", report.errors));
    }
    text
}

/// The compiled-in plans.
#[must_use]
pub(crate) fn list() -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["plan", "what it does"]);
    for plan in BUILT_IN {
        let about = Plan::parse(plan.text, plan.name).map(|plan| plan.about).unwrap_or_default();
        table.add_row([plan.name, about.as_str()]);
    }
    format!("{}\n", table.trim_fmt())
}
