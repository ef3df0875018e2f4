//! All lanes of a process, for what concerns them together: numbers and the end.
//!
//! It is not on the way of any request and owns no task: a lane works the same without it.

use futures_util::future::{join, join_all};
use tokio::time::Instant;

use crate::debug::LaneDebug;
use crate::lane::{DrainReport, Lane, Waiting};
use crate::registry_lane::RegistryLane;

/// The lanes of a process.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    lanes: Vec<Lane>,
    registry: Option<RegistryLane>,
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

    /// Has the lane of the registry too.
    #[must_use]
    pub fn with_registry(mut self, lane: RegistryLane) -> Self {
        self.registry = Some(lane);
        self
    }

    /// The lanes but the registry's, in the order in which they were added.
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
        let registry = self.registry.iter().map(|lane| lane.debug(top));
        self.lanes.iter().map(|lane| lane.debug(top)).chain(registry).collect()
    }

    /// Drains all lanes at the same time; as [`Lane::drain_with`]; the registry's serves its line. Returns the
    /// sums.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the lanes closed for new requests; calling it again goes on.
    pub async fn drain(&self, waiting: Waiting, deadline: Instant) -> DrainReport {
        let lanes = join_all(self.lanes.iter().map(|lane| lane.drain_with(waiting, deadline)));
        let registry = join_all(self.registry.iter().map(|lane| lane.drain(deadline)));
        let (lanes, registry) = join(lanes, registry).await;
        lanes.into_iter().chain(registry).fold(DrainReport::default(), |sum, report| DrainReport {
            waiters_refused: sum.waiters_refused + report.waiters_refused,
            connections_aborted: sum.connections_aborted + report.connections_aborted,
        })
    }
}
