//! What a cell shows of itself: for snapshots, metrics, and whoever asks whether it is still needed.

use std::time::Duration;

use tokio::time::Instant;

use super::CellState;
use super::breaker::BreakerState;
use super::conns::Channel;
use super::event::{CellCounts, CellLearnt};

impl<C: Channel, W, E: Clone> CellState<C, W, E> {
    pub(crate) fn breaker(&self, now: Instant) -> BreakerState {
        self.breaker.state(now)
    }

    pub(crate) fn counts(&self) -> CellCounts {
        CellCounts {
            waiters: self.callers(),
            dialling: self.dialling,
            live: self.conns.live(),
            idle: self.conns.idle(),
            streams: self.conns.streams(),
            permits: self.permits,
        }
    }

    /// Whether nothing is lost with it but what can be learnt again.
    pub(crate) fn is_blank(&self, now: Instant) -> bool {
        self.permits + self.callers() == 0 && self.breaker.until(now).is_none()
    }

    /// In line, for whatever connection.
    pub(super) fn callers(&self) -> usize {
        self.line.len() + self.fresh_len()
    }

    /// How long the first in line has waited.
    pub(crate) fn oldest_wait(&self, now: Instant) -> Duration {
        let fresh = self.fresh_line.as_ref().and_then(|line| line.front_joined());
        let joined = self.line.front_joined().into_iter().chain(fresh).min();
        joined.map_or(Duration::ZERO, |joined| now.saturating_duration_since(joined))
    }

    pub(crate) fn learnt(&self) -> CellLearnt {
        CellLearnt {
            hold: self.estimates.hold.get(),
            dial: self.estimates.dial.get(),
            h2: self.h2,
            proven: self.proven,
            draining: self.draining.is_some(),
        }
    }
}
