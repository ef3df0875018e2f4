//! What the drill knows of every call: placed or awaiting, since when, and how long it took.
//!
//! "Awaiting endpoint" is the service level this system is judged by, so it is timed here per
//! call: from the first join sent, or from the news that the endpoint went away, until any of the
//! call's gateways knows an endpoint. Calls that still wait when the drill ends count with the
//! time they have waited so far.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::checker::{Change, Checker, News};
use crate::population::{CallIx, Wave};

/// Longest time the histograms tell apart, in microseconds: an hour. Longer ones count as an hour.
const MICROS_MAX: u64 = 3_600_000_000;

/// Percentiles of a duration, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Longest.
    pub max: f64,
    /// How many were measured.
    pub count: u64,
}

#[derive(Clone, Copy, Debug)]
enum Clock {
    /// Not joined yet.
    Idle,
    Awaiting {
        since: Instant,
        lost: bool,
    },
    Placed,
}

/// State and times of every call.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The invariants.
    pub(crate) checker: Checker,
    clocks: Vec<Clock>,
    calls: u64,
    placed: u64,
    awaiting: u64,
    all: Histogram<u64>,
    recovery: Histogram<u64>,
    outage: Histogram<u64>,
    phase_all: Histogram<u64>,
    phase_recovery: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    // Three digits: a millisecond is told from its neighbour up to a second.
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("constant bounds are valid")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(MICROS_MAX).max(1)
}

// === impl Spread ===

impl Spread {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| (micros / 100) as f64 / 10.0;
        Self {
            p50: ms(histogram.value_at_quantile(0.5)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
            count: histogram.len(),
        }
    }
}

// === impl Ledger ===

impl Ledger {
    /// A ledger of `calls` calls seen by `watchers` gateways.
    #[must_use]
    pub(crate) fn new(calls: u32, watchers: u16) -> Self {
        Self {
            checker: Checker::new(calls, watchers),
            clocks: vec![Clock::Idle; calls as usize],
            calls: 0,
            placed: 0,
            awaiting: 0,
            all: histogram(),
            recovery: histogram(),
            outage: histogram(),
            phase_all: histogram(),
            phase_recovery: histogram(),
        }
    }

    /// A wave of calls is due: they should exist from now on.
    pub(crate) fn due(&mut self, wave: &Wave) {
        self.calls += u64::from(wave.calls.end - wave.calls.start);
    }

    /// A join of this call was sent.
    pub(crate) fn join_sent(&mut self, call: CallIx, now: Instant) {
        let clock = &mut self.clocks[call as usize];
        if matches!(clock, Clock::Idle) {
            *clock = Clock::Awaiting { since: now, lost: false };
            self.awaiting += 1;
        }
    }

    /// A join of this watcher was answered with the call's state.
    pub(crate) fn answer(&mut self, watcher: u16, news: News<'_>, now: Instant) {
        let change = self.checker.answer(watcher, news, now);
        self.apply(news.call, change, now);
    }

    /// An event came on a stream of this watcher.
    pub(crate) fn event(&mut self, watcher: u16, stream: u32, news: News<'_>, now: Instant) {
        let change = self.checker.event(watcher, stream, news, now);
        self.apply(news.call, change, now);
    }

    fn apply(&mut self, call: CallIx, change: Change, now: Instant) {
        let before = self.clocks[call as usize];
        let after = match change {
            Change::None => return,
            Change::Lost if matches!(before, Clock::Awaiting { .. }) => return,
            Change::Lost => Clock::Awaiting { since: now, lost: true },
            Change::Placed { outage, .. } => {
                if let Some(outage) = outage {
                    self.outage.saturating_record(micros(outage));
                }
                Clock::Placed
            }
        };
        match before {
            Clock::Idle => {}
            Clock::Placed => self.placed -= 1,
            Clock::Awaiting { since, lost } => {
                self.awaiting -= 1;
                self.record(since, lost, now);
            }
        }
        match after {
            Clock::Placed => self.placed += 1,
            _ => self.awaiting += 1,
        }
        self.clocks[call as usize] = after;
    }

    fn record(&mut self, since: Instant, lost: bool, now: Instant) {
        let micros = micros(now.saturating_duration_since(since));
        self.all.saturating_record(micros);
        self.phase_all.saturating_record(micros);
        if lost {
            self.recovery.saturating_record(micros);
            self.phase_recovery.saturating_record(micros);
        }
    }

    /// Counts what still waits with the time it has waited; for the end of a drill.
    pub(crate) fn close(&mut self, now: Instant) {
        for ix in 0..self.clocks.len() {
            if let Clock::Awaiting { since, lost } = self.clocks[ix] {
                self.record(since, lost, now);
            }
        }
    }

    /// A phase begins: its own times start empty.
    pub(crate) fn begin_phase(&mut self) {
        self.phase_all.reset();
        self.phase_recovery.reset();
    }

    /// Calls that should exist, calls placed, calls awaiting an endpoint.
    #[must_use]
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.calls, self.placed, self.awaiting)
    }

    /// Times awaiting an endpoint: all, and those from a lost endpoint to the next.
    #[must_use]
    pub(crate) fn times(&self) -> (Spread, Spread) {
        (Spread::of(&self.all), Spread::of(&self.recovery))
    }

    /// Times from the break of a call's SFU to the call's next endpoint.
    #[must_use]
    pub(crate) fn outages(&self) -> Spread {
        Spread::of(&self.outage)
    }

    /// As [`Self::times`], of this phase.
    #[must_use]
    pub(crate) fn phase_times(&self) -> (Spread, Spread) {
        (Spread::of(&self.phase_all), Spread::of(&self.phase_recovery))
    }

    /// Up to `max` calls that await an endpoint.
    #[must_use]
    pub(crate) fn awaiting(&self, max: usize) -> Vec<CallIx> {
        let waiting = (0..).zip(&self.clocks).filter(|(_, clock)| matches!(clock, Clock::Awaiting { .. }));
        waiting.map(|(call, _)| call).take(max).collect()
    }
}

#[cfg(test)]
mod tests {
    use sfu_api::Epoch;

    use super::*;

    fn news(call: CallIx, n: u64, phase: u8, endpoint: Option<&str>) -> News<'_> {
        News { call, epoch: Epoch { n, ..Epoch::default() }, phase, endpoint }
    }

    #[test]
    fn awaiting_is_timed_from_join_and_from_loss() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut ledger = Ledger::new(2, 1);
        ledger.join_sent(0, at(0));
        ledger.join_sent(0, at(50));
        assert_eq!(ledger.counts(), (0, 0, 1));
        ledger.event(0, 0, news(0, 1, 1, Some("https://a:1/r")), at(100));
        assert_eq!(ledger.counts(), (0, 1, 0));
        ledger.event(0, 0, news(0, 1, 2, None), at(1_000));
        assert_eq!(ledger.counts(), (0, 0, 1));
        ledger.event(0, 0, news(0, 2, 1, Some("https://b:1/r")), at(3_000));
        let (all, recovery) = ledger.times();
        assert_eq!((all.count, recovery.count), (2, 1));
        assert!((1_999.0..2_003.0).contains(&recovery.max), "{recovery:?}");
        assert!((99.0..101.0).contains(&all.p50), "{all:?}");
    }

    #[test]
    fn a_move_without_a_null_is_not_awaiting() {
        let now = Instant::now();
        let mut ledger = Ledger::new(1, 1);
        ledger.join_sent(0, now);
        ledger.answer(0, news(0, 1, 1, Some("https://a:1/r")), now);
        ledger.event(0, 0, news(0, 2, 1, Some("https://b:1/r")), now);
        assert_eq!(ledger.counts(), (0, 1, 0));
        assert_eq!(ledger.times().0.count, 1);
    }

    #[test]
    fn what_still_waits_at_the_end_counts_with_its_age() {
        let start = Instant::now();
        let mut ledger = Ledger::new(1, 1);
        ledger.join_sent(0, start);
        ledger.close(start + Duration::from_secs(9));
        assert!(ledger.times().0.max >= 8_999.0);
        assert_eq!(ledger.awaiting(5), [0]);
    }
}
