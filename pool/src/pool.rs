//! All lanes of a process, for what concerns them together: numbers and the end.
//!
//! It is not on the way of any request and owns no task: a lane works the same without it.

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::debug::LaneDebug;
use crate::lane::{DrainReport, Lane, Waiting};

/// The lanes of a process.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    lanes: Vec<Lane>,
}

// === impl Pool ===

impl Pool {
    /// No lanes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a lane.
    #[must_use]
    pub fn with(mut self, lane: Lane) -> Self {
        self.lanes.push(lane);
        self
    }

    /// The lanes, in the order in which they were added.
    #[must_use]
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The lane of this name.
    #[must_use]
    pub fn lane(&self, name: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.name() == name)
    }

    /// Every lane with its `top` busiest origins.
    #[must_use]
    pub fn debug(&self, top: usize) -> Vec<LaneDebug> {
        self.lanes.iter().map(|lane| lane.debug(top)).collect()
    }

    /// Drains all lanes at the same time; as [`Lane::drain_with`]. Returns the sums.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the lanes closed for new requests; calling it again goes on.
    pub async fn drain(&self, waiting: Waiting, deadline: Instant) -> DrainReport {
        let reports = join_all(self.lanes.iter().map(|lane| lane.drain_with(waiting, deadline))).await;
        reports.into_iter().fold(DrainReport::default(), |sum, report| DrainReport {
            waiters_refused: sum.waiters_refused + report.waiters_refused,
            connections_aborted: sum.connections_aborted + report.connections_aborted,
        })
    }
}
