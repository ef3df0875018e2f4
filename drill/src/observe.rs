//! Numbers while the drill runs: for a console line, a live table, the time series.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The state of a drill at one moment. Counters count from the start of the drill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Milliseconds since the start.
    pub at_ms: u64,
    /// The phase that began last; empty before the first.
    pub phase: String,
    /// Calls that should exist by now.
    pub calls: u64,
    /// Calls whose endpoint is known.
    pub placed: u64,
    /// Calls with a join sent and no endpoint known.
    pub calls_awaiting: u64,
    /// Calls whose endpoint went to another SFU.
    pub calls_moved: u64,
    /// Calls placed anew on the same SFU.
    pub calls_replaced: u64,
    /// Calls that were on an SFU when it was broken.
    pub calls_affected: u64,
    /// Of these: calls placed anew since, wherever.
    pub calls_recovered: u64,
    /// Calls first placed on an SFU while it was broken.
    pub calls_new_on_hit: u64,
    /// SFUs broken so far.
    pub sfus_hit: u64,
    /// SFUs killed so far.
    pub sfus_killed: u64,
    /// Joins answered with success.
    pub joined: u64,
    /// Answers 429 and 503.
    pub throttled: u64,
    /// Operations tried again.
    pub retries: u64,
    /// Failed requests and streams.
    pub errors: u64,
    /// Sessions refused for good.
    pub refused: u64,
    /// Watches that are up.
    pub watches: u64,
    /// Sessions connected to their endpoint.
    pub media_attached: u64,
    /// Sessions with an endpoint they could not connect to (yet).
    pub media_missing: u64,
    /// Room creations over budget, counted at the mocks; absent without control ports.
    pub buckets_overdrawn: Option<u64>,
    /// Invariants seen broken, outside and inside.
    pub invariant_violations: u64,
}

/// Where a drill sends its numbers, several times a second.
#[derive(Debug, Default)]
pub struct Observer(Option<watch::Sender<Counts>>);

// === impl Observer ===

impl Observer {
    /// An observer and where to read the latest numbers.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Counts>) {
        let (sender, receiver) = watch::channel(Counts::default());
        (Self(Some(sender)), receiver)
    }

    /// An observer that nobody reads.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    pub(crate) fn tell(&self, counts: &Counts) {
        if let Some(sender) = &self.0 {
            sender.send_replace(counts.clone());
        }
    }
}
