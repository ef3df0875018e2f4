//! The table at the end, and the line that counts.

use std::time::Duration;
#[expect(clippy::disallowed_types, reason = "there is no runtime here whose time could be paused")]
use std::time::Instant;

use crate::process::Outcome;
use crate::stages::Stage;

/// One stage and what it came to.
pub(crate) struct Row {
    name: String,
    outcome: Outcome,
    took: Duration,
}

// === impl Row ===

impl Row {
    /// Runs the stage. A stage that cannot run has failed.
    #[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "no runtime, no paused time")]
    pub(crate) fn of(stage: Stage) -> Self {
        let start = Instant::now();
        let outcome = (stage.work)().unwrap_or_else(|error| Outcome::fail(vec![format!("{error:#}")]));
        for note in &outcome.notes {
            eprintln!("{}: {note}", stage.name);
        }
        Self { name: stage.name, outcome, took: Instant::now() - start }
    }
}

/// Prints the table, what failed, and `N passed, N failed` as the last line. Returns whether nothing failed.
pub(crate) fn print(rows: &[Row]) -> bool {
    println!("\n{:<14} {:>7} {:>7} {:>9}", "stage", "passed", "failed", "time");
    for Row { name, outcome, took } in rows {
        println!("{name:<14} {:>7} {:>7} {:>8.1}s", outcome.passed, outcome.failed, took.as_secs_f64());
    }
    for Row { name, outcome, .. } in rows.iter().filter(|row| row.outcome.failed > 0) {
        for note in &outcome.notes {
            println!("{name}: {note}");
        }
    }
    let (passed, failed) = total(rows);
    println!("{passed} passed, {failed} failed");
    failed == 0
}

fn total(rows: &[Row]) -> (u64, u64) {
    rows.iter().fold((0, 0), |(passed, failed), row| (passed + row.outcome.passed, failed + row.outcome.failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_stage_fails_the_run_and_the_others_still_count() {
        let stage = |work: fn() -> anyhow::Result<Outcome>| Stage {
            name: "s".to_owned(),
            what: String::new(),
            work: Box::new(work),
        };
        let broken = Row::of(stage(|| anyhow::bail!("no cargo")));
        let fine = Row::of(stage(|| Ok(Outcome { passed: 7, ..Outcome::default() })));
        assert_eq!(total(&[broken, fine]), (7, 1));
        assert!(print(&[Row::of(stage(|| Ok(Outcome::pass())))]));
        assert!(!print(&[Row::of(stage(|| Ok(Outcome::fail(Vec::new()))))]));
    }
}
