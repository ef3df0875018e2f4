//! What the door has to know of the house: how long work waits, how late we are, what memory is left.
//!
//! One small loop. It looks ten times a second, because a crowd fills a queue within that, and hands what
//! it felt to [`Admission`](crate::admission::Admission), which decides.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::admission::{Signals, Waiting, memory_limit, memory_resident};
use crate::context::{Context, Shortage};

/// How often the pressure is felt.
const PERIOD: Duration = Duration::from_millis(100);

/// How often memory is: reading it makes the kernel add up, ~30 µs.
const MEMORY_EVERY: Duration = Duration::from_secs(1);

/// A loop that is woken so late is short of CPU, and more attempts at once would only make answers late
/// too: a few of the scheduler's time slices.
const LAG_MAX: Duration = Duration::from_millis(50);

/// Part of the memory from which on every attempt's few KiB count.
const MEMORY_MAX: f64 = 0.9;

/// The loop.
#[derive(Debug)]
pub(super) struct Pressure {
    ctx: Arc<Context>,
    /// What the machine allows, in bytes.
    machine: u64,
    memory_at: Option<Instant>,
    memory: f64,
}

// === impl Pressure ===

impl Pressure {
    pub(super) fn new(ctx: Arc<Context>) -> Self {
        // Where the machine does not tell, nothing is ever near the limit.
        Self { ctx, machine: memory_limit().unwrap_or(u64::MAX), memory_at: None, memory: 0.0 }
    }

    /// Runs until the context stops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the door as it is.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.ctx.stop.cancelled() => return,
                due = ticks.tick() => self.feel(due, Instant::now()),
            }
        }
    }

    fn feel(&mut self, due: Instant, now: Instant) {
        let ctx = self.ctx.clone();
        let (mut ready, mut since) = ([0; 3], [None; 3]);
        for shard in &ctx.shards {
            let (of_shard, oldest) = shard.lock().backlog();
            for (all, n) in ready.iter_mut().zip(of_shard) {
                *all += n as u64;
            }
            for (a, b) in since.iter_mut().zip(oldest) {
                *a = [*a, b].into_iter().flatten().min();
            }
        }
        let ages = since.map(|at| at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)));
        let lag = now.saturating_duration_since(due);
        let felt = &ctx.admission.felt;
        felt.set_ages(ages);
        felt.set_lag(lag);
        let [repairs, new_calls, streams] = ready;
        let [_, of_new_calls, of_streams] = ages;
        let signals = Signals {
            oldest: of_new_calls.max(of_streams),
            waiting: Waiting {
                all: repairs + new_calls + streams + u64::from(ctx.window.in_flight()),
                new_calls,
                streams,
            },
            lag,
            memory: self.memory(now),
        };
        // What is under way at once is ours to lessen, whoever is let in.
        if lag > LAG_MAX {
            ctx.press(Shortage::LoopLag, now);
        }
        if signals.memory > MEMORY_MAX {
            ctx.press(Shortage::Memory, now);
        }
        ctx.apply_admission(now);
        ctx.admission.tick(&signals, now);
    }

    /// Resident memory as a share of its limit.
    fn memory(&mut self, now: Instant) -> f64 {
        if self.memory_at.is_none_or(|at| now.saturating_duration_since(at) >= MEMORY_EVERY) {
            self.memory_at = Some(now);
            let max = match self.ctx.levers.memory_max.get() {
                0 => self.machine,
                bytes => bytes,
            };
            let bytes = memory_resident().unwrap_or(0);
            self.ctx.admission.felt.set_memory(bytes, max);
            self.memory = bytes as f64 / max.max(1) as f64;
        }
        self.memory
    }
}

#[cfg(test)]
mod tests {
    use rate_limit::Levers;
    use serde_json::json;
    use sfu_api::SyncerId;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::context::{Announcement, Announcer};

    #[derive(Debug)]
    struct Deaf;

    impl Announcer for Deaf {
        fn announce(&self, _: &Announcement) {}
    }

    /// One that has all the memory it could want.
    fn pressure(now: Instant) -> Pressure {
        let id = SyncerId::new("s").expect("valid");
        let ctx = Context::new(id, Levers::new(), Arc::new(Deaf), 7, CancellationToken::new(), now);
        let pressure = Pressure::new(Arc::new(ctx));
        allow(&pressure, 1 << 50);
        pressure
    }

    fn allow(pressure: &Pressure, bytes: u64) {
        pressure.ctx.registry.set("admission.memory_max", &json!(bytes), "test", None, 0).expect("valid");
    }

    #[test]
    fn r14_a_loop_that_comes_late_narrows_the_window() {
        let due = Instant::now();
        let mut pressure = pressure(due);
        pressure.feel(due, due + LAG_MAX);
        assert_eq!(pressure.ctx.window.limit(), 64, "late by what is allowed");
        pressure.feel(due, due + LAG_MAX + Duration::from_millis(1));
        assert_eq!(pressure.ctx.window.limit(), 44);
        let due = due + Duration::from_secs(1);
        pressure.feel(due, due);
        assert_eq!(pressure.ctx.window.limit(), 44, "in time");
    }

    #[test]
    fn r14_short_memory_narrows_the_window_until_it_no_longer_is() {
        let start = Instant::now();
        let mut pressure = pressure(start);
        let mut feel = |bytes, after| {
            allow(&pressure, bytes);
            pressure.feel(start + after, start + after);
            pressure.ctx.window.limit()
        };
        assert_eq!(feel(1 << 50, Duration::ZERO), 64);
        assert_eq!(feel(1, MEMORY_EVERY), 44, "more is used than there may be");
        assert_eq!(feel(1 << 50, MEMORY_EVERY + PERIOD * 2), 31, "it is looked at once a second");
        assert_eq!(feel(1 << 50, MEMORY_EVERY * 2), 31);
    }
}
