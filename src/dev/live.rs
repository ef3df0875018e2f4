//! What one sees while it runs: a table that is redrawn on a terminal, a line a second otherwise.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use drill::Counts;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::operator::Client;
use crate::output::Output;

/// How often it is drawn: often enough to see a recovery, seldom enough to read a number.
const PERIOD: Duration = Duration::from_secs(1);

/// The live view.
pub(super) struct Live<'a> {
    output: &'a Output,
    counts: watch::Receiver<Counts>,
    client: Client,
    before: Option<(Instant, u64)>,
    lines: usize,
}

/// What the syncers said, added up.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    placements: u64,
    pool: BTreeMap<String, u64>,
    /// Each SFU state as the syncer that sees the most of it does: one that has no calls on a dead
    /// SFU may not know yet.
    sfus: BTreeMap<String, u64>,
    not_answering: usize,
}

// === impl Live ===

impl<'a> Live<'a> {
    pub(super) fn new(output: &'a Output, counts: watch::Receiver<Counts>, client: Client) -> Self {
        Self { output, counts, client, before: None, lines: 0 }
    }

    /// Draws until dropped.
    pub(super) async fn run(mut self) -> Infallible {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut statuses = Vec::new();
            for base in self.client.bases() {
                statuses.push(self.client.ask(base, Method::GET, "/v1/status", None).await.ok());
            }
            self.draw(&statuses, Instant::now());
        }
    }

    fn draw(&mut self, statuses: &[Option<Value>], now: Instant) {
        let sums = Sums::of(statuses);
        let per_s = self.before.map_or(0.0, |(at, placements)| {
            let seconds = now.saturating_duration_since(at).as_secs_f64().max(f64::EPSILON);
            sums.placements.saturating_sub(placements) as f64 / seconds
        });
        self.before = Some((now, sums.placements));
        let counts = self.counts.borrow().clone();
        let text = if self.output.is_live() { block(&counts, &sums, per_s) } else { line(&counts, &sums, per_s) };
        self.output.redraw(&text, self.lines);
        self.lines = if self.output.is_live() { text.lines().count() } else { 0 };
    }
}

// === impl Sums ===

impl Sums {
    fn of(statuses: &[Option<Value>]) -> Self {
        let mut sums = Self::default();
        for status in statuses {
            let Some(status) = status else {
                sums.not_answering += 1;
                continue;
            };
            sums.placements += status["placements_total"].as_u64().unwrap_or(0);
            for (name, n) in numbers(&status["pool"]) {
                *sums.pool.entry(name).or_default() += n;
            }
            for (state, n) in numbers(&status["sfus"]) {
                let most = sums.sfus.entry(state).or_default();
                *most = n.max(*most);
            }
        }
        sums
    }

    fn pool(&self, name: &str) -> u64 {
        self.pool.get(name).copied().unwrap_or(0)
    }

    /// `40 healthy, 10 dead`; what nobody sees is left out.
    fn sfus(&self) -> String {
        let order = ["healthy", "slow", "suspect", "restarted", "dead", "cordoned"];
        let seen = order.iter().filter_map(|state| Some((state, self.sfus.get(*state).filter(|n| **n > 0)?)));
        seen.map(|(state, n)| format!("{n} {state}")).collect::<Vec<_>>().join(", ")
    }
}

fn numbers(value: &Value) -> impl Iterator<Item = (String, u64)> {
    value.as_object().into_iter().flatten().filter_map(|(name, n)| Some((name.clone(), n.as_u64()?)))
}

fn line(counts: &Counts, sums: &Sums, per_s: f64) -> String {
    let (waiters, sfus) = (sums.pool("waiters"), sums.sfus());
    format!("{}  placements/s {per_s:.0}  pool waiters {waiters}  sfus {sfus}", drill::progress(counts))
}

fn block(counts: &Counts, sums: &Sums, per_s: f64) -> String {
    let phase = if counts.phase.is_empty() { "starting" } else { &counts.phase };
    let seconds = counts.at_ms / 1_000;
    let overdrawn = counts.buckets_overdrawn.unwrap_or(0);
    let rows = [
        ("time", format!("{seconds} s, {phase}")),
        ("calls", format!("{} placed, {} awaiting, of {}", counts.placed, counts.calls_awaiting, counts.calls)),
        ("moved", format!("{} of {} that were on a broken SFU", counts.calls_moved, counts.calls_affected)),
        ("sfus", format!("{} ({} killed)", sums.sfus(), counts.sfus_killed)),
        ("placements", format!("{per_s:.0} /s")),
        (
            "pool",
            format!("{} waiting, {} dialling, {} live", sums.pool("waiters"), sums.pool("dialling"), sums.pool("live")),
        ),
        (
            "wrong",
            format!("{overdrawn} over budget, {} invariants, {} errors", counts.invariant_violations, counts.errors),
        ),
    ];
    let silent = (sums.not_answering > 0).then(|| ("syncers", format!("{} do not answer", sums.not_answering)));
    rows.into_iter().chain(silent).map(|(name, value)| format!("{name:<12} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn syncers_add_up_and_the_one_that_knows_most_of_a_state_counts() {
        let a = json!({"placements_total": 5, "pool": {"waiters": 1}, "sfus": {"healthy": 50, "dead": 0}});
        let b = json!({"placements_total": 7, "pool": {"waiters": 2}, "sfus": {"healthy": 40, "dead": 10}});
        let sums = Sums::of(&[Some(a), Some(b), None]);
        assert_eq!((sums.placements, sums.pool("waiters"), sums.not_answering), (12, 3, 1));
        assert_eq!(sums.sfus(), "50 healthy, 10 dead");
    }

    #[test]
    fn both_views_show_what_matters() {
        let counts = Counts { calls: 2_000, placed: 1_900, calls_awaiting: 100, sfus_killed: 10, ..Counts::default() };
        for text in [line(&counts, &Sums::default(), 80.4), block(&counts, &Sums::default(), 80.4)] {
            for part in ["1900", "2000", "100", "80"] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }
}
