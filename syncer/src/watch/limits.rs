//! How much news is kept, and for how long, as levers.

use std::time::Duration;

use crate::context::lever_set;

const S: fn(u64) -> Duration = Duration::from_secs;

lever_set! {
    /// The limits of what is kept for watchers. One that shrinks lets go of what is beyond it at the next news or sweep.
    pub struct WatchLevers {
        // A gateway whose connection broke is back within seconds, behind a proxy that restarts within a minute; one
        // that comes later reads everything anew, which costs it less than it has missed.
        /// How long news of endpoints is kept, so that a gateway whose watch broke goes on where it stopped. Later it
        /// reads the state of all its calls anew.
        resume_window: Duration = "watch.resume_window" ["duration"] S(120), super::SWEEP_EVERY => S(3_600);
        // A gateway of 100,000 sessions is in no more calls than that, and hears of two thirds of them when two zones
        // of three are lost at once.
        /// News kept for one gateway, one for each call; one that falls further behind reads the state of all its calls. If
        /// more news than this comes while it does, it has to begin again.
        events_per_gateway_max: u64 = "watch.events_per_gateway_max" ["events"] 65_536, 64 => 1 << 20;
        // The largest syncer has 1 M calls with sessions on 2 to 3 gateways each, and losing one zone of three at once
        // leaves about that much after coalescing. At ~100 bytes (the entry, its index, a share of the note) 100 MiB at
        // worst, 0.4 % of a 24 GiB machine.
        /// News kept for all gateways together, at ~100 bytes; beyond, the oldest goes.
        events_max: u64 = "watch.events_max" ["events"] 1 << 20, 64 => 1 << 26;
    }
}

// === impl WatchLevers ===

impl WatchLevers {
    pub(super) fn per_gateway(&self) -> usize {
        usize::try_from(self.events_per_gateway_max.get()).unwrap_or(usize::MAX)
    }

    pub(super) fn all(&self) -> usize {
        usize::try_from(self.events_max.get()).unwrap_or(usize::MAX)
    }
}
