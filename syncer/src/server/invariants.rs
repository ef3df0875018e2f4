//! Watches the pool's own invariants from inside: no permit leaks (I8), no queue outgrows its limit
//! (I9). What it finds is counted with the engine's violations.

use std::sync::Arc;
use std::time::Duration;

use pool::LaneSnapshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::App;

/// How often the lanes are looked at. A look walks all origins: a few milliseconds for 25,000.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Looks in a row at which permits are off before they are lost. Should one look in a thousand of a storm find one whose
/// thread is off the processor, three in a row are one false alarm in thirty years of it.
const OFF_LOOKS: u32 = 3;

/// What was seen of one lane so far.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Looks in a row at which permits were off.
    off_looks: u32,
    /// Waiters that may be left from before the limit was lowered.
    left_over: usize,
}

/// Looks at the lanes once a second.
pub(super) async fn watch(app: Arc<App>) {
    let lanes = [&app.sfu_lane, app.peers.lane()];
    let mut watched = [Watched::default(); 2];
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for (lane, watched) in lanes.iter().zip(&mut watched) {
            let now = lane.snapshot();
            for what in watched.look(&now, lane.limits().waiters_bound()) {
                let (permits_off, waiters) = (now.permits_off, now.waiters);
                tracing::error!(lane = lane.name(), what, permits_off, waiters, "invariant of the pool violated");
                app.http.pool_violations.inc();
            }
        }
    }
}

// === impl Watched ===

impl Watched {
    /// What is violated now. A permit may be on its way from the budget to its dial, or back, for a moment, and its
    /// thread off the processor: only being off at [`OFF_LOOKS`] in a row counts. A limit that is lowered lets those who wait finish: above it
    /// the line may only shrink.
    fn look(&mut self, now: &LaneSnapshot, waiters_bound: usize) -> impl Iterator<Item = &'static str> + use<> {
        self.off_looks = if now.permits_off == 0 { 0 } else { self.off_looks.saturating_add(1) };
        let leaked = self.off_looks >= OFF_LOOKS;
        let allowed = waiters_bound.max(self.left_over);
        let crowded = now.waiters > allowed;
        self.left_over = allowed.min(now.waiters);
        let found = [leaked.then_some("i08_permits"), crowded.then_some("i09_queue")];
        found.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use pool::LaneLimits;

    use super::*;

    fn look(watched: &mut Watched, permits_off: i64, waiters: usize) -> Vec<&'static str> {
        watched.look(&LaneSnapshot { permits_off, waiters, ..LaneSnapshot::default() }, 10).collect()
    }

    #[test]
    fn i08_permits_that_are_off_three_times_in_a_row_are_a_violation() {
        let mut watched = Watched::default();
        let looks = [1, 0, -1, 1, 0, 1, 1, 1, 1, 0].map(|off| look(&mut watched, off, 0).len());
        assert_eq!(looks, [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]);
    }

    #[test]
    fn i09_a_queue_over_its_limit_is_a_violation_at_once() {
        let mut watched = Watched::default();
        assert!(look(&mut watched, 0, 10).is_empty(), "the limit itself is allowed");
        assert_eq!(look(&mut watched, 0, 11), ["i09_queue"]);
    }

    #[test]
    fn i09_a_full_line_and_a_probe_are_no_violation() {
        let limits = LaneLimits { partitions: 4, waiters_max: 40, ..LaneLimits::default() };
        let look = |waiters| {
            let now = LaneSnapshot { waiters, ..LaneSnapshot::default() };
            Watched::default().look(&now, limits.waiters_bound()).count()
        };
        assert_eq!([40, 41, 52, 53].map(look), [0, 0, 0, 1], "three probes beside ten callers in each partition");
    }

    #[test]
    fn i09_a_lowered_limit_lets_the_line_shrink_and_not_grow() {
        let mut watched = Watched::default();
        let mut look = |waiters, waiters_max| {
            let now = LaneSnapshot { waiters, ..LaneSnapshot::default() };
            watched.look(&now, waiters_max).count()
        };
        let looks = [(9, 10), (9, 5), (7, 5), (7, 5), (8, 5), (5, 5), (6, 5)].map(|(now, max)| look(now, max));
        assert_eq!(looks, [0, 0, 0, 0, 1, 0, 1]);
    }
}
