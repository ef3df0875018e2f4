//! Notices a partition whose timer hangs, and acts.
//!
//! One task per lane, so that lanes share nothing and a lane of one partition is watched too; partitions that
//! watch one another would leave that one alone. It is kept as the timers are, so a panic in it is no end. That
//! it hangs itself is left to whoever reads the heartbeat's age: it takes no lock that anybody holds for long.
//!
//! A starved machine must not look like a hang. So it is not time that counts but *looks*: the watchdog, a task
//! like the timer, came to its turn in time [`LOOKS_MAX`] times in a row, and the timer not once. Even then it may only
//! be next on a thread that some other task blocks: unless it is in the middle of its work, it gets a successor and
//! nothing else happens ([`Partition::revive`]).

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Partition;
use crate::fault::{self, Point};

/// Time between two looks: that between two beats of a timer.
const LOOK: Duration = Duration::from_secs(1);

/// A look that comes later than this says that the runtime is starved.
const LATE_MAX: Duration = Duration::from_millis(250);

/// Looks without a beat after which a timer is given up. The longest that a timer does at one go, ringing every one of
/// 25,000 cells, takes a tenth of a second.
const LOOKS_MAX: u32 = 5;

/// What was seen of one partition.
#[derive(Debug, Default)]
struct Seen {
    beat: u64,
    looks: u32,
}

// === impl Seen ===

impl Seen {
    /// Takes a look; `true` when the timer is to be given up.
    fn look(&mut self, beat: u64, punctual: bool) -> bool {
        if beat != self.beat || !punctual {
            *self = Self { beat, looks: 0 };
            return false;
        }
        self.looks += 1;
        let hangs = self.looks >= LOOKS_MAX;
        if hangs {
            self.looks = 0;
        }
        hangs
    }
}

/// Watches partitions until they are gone.
pub(crate) async fn watch(partitions: Vec<Weak<Partition>>) {
    let mut watched: Vec<_> = partitions.into_iter().map(|partition| (partition, Seen::default())).collect();
    loop {
        let due = Instant::now() + LOOK;
        sleep_until(due).await;
        let punctual = Instant::now().saturating_duration_since(due) <= LATE_MAX;
        fault::point(Point::Watchdog);
        for (partition, seen) in &mut watched {
            let Some(partition) = partition.upgrade() else { return };
            if seen.look(partition.last_beat_ms(), punctual) {
                partition.revive();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r19_only_looks_in_time_count_against_a_timer() {
        let mut seen = Seen::default();
        seen.look(7, true);
        let looks = |seen: &mut Seen, punctual| (0..LOOKS_MAX - 1).any(|_| seen.look(7, punctual));
        assert!(!looks(&mut seen, true));
        assert!(!seen.look(7, false), "the machine is starved");
        assert!(!looks(&mut seen, true));
        assert!(!seen.look(8, true), "it is alive");
        assert!((0..LOOKS_MAX).any(|_| seen.look(8, true)));
        assert!(!looks(&mut seen, true), "a new timer has its time");
    }
}
