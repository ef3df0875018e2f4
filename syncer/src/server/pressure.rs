//! Tells the engine when this process is short of something that only it can see: dials.

use std::sync::Arc;
use std::time::Duration;

use pool::LaneSnapshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::App;
use crate::engine::Shortage;

/// How often the pool is looked at. A look walks all origins: a few milliseconds for 25,000.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// An origin that waits so long for its turn to dial waits for us and not for its SFU.
const WAIT_MAX_MS: u64 = 20;

/// Looks at the lane to the SFUs.
pub(super) async fn watch(app: Arc<App>) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await;
        if is_short_of_dials(&app.sfu_lane.snapshot()) {
            app.engine.press(Shortage::PoolWait, now);
        }
    }
}

fn is_short_of_dials(lane: &LaneSnapshot) -> bool {
    lane.partitions.iter().any(|partition| partition.dial_queue_oldest_ms > WAIT_MAX_MS)
}

#[cfg(test)]
mod tests {
    use pool::PartitionSnapshot;

    use super::*;

    #[test]
    fn a_long_line_for_dials_is_ours_and_a_short_one_is_none() {
        let lane = |waits: &[u64]| LaneSnapshot {
            partitions: waits
                .iter()
                .map(|ms| PartitionSnapshot { dial_queue_oldest_ms: *ms, ..PartitionSnapshot::default() })
                .collect(),
            ..LaneSnapshot::default()
        };
        assert!(!is_short_of_dials(&lane(&[0, WAIT_MAX_MS])));
        assert!(is_short_of_dials(&lane(&[0, WAIT_MAX_MS + 1])), "one partition is enough");
    }
}
