//! What an operator sees of a lane: for `GET /debug/pool`.

use std::cmp::Reverse;
use std::time::Duration;

use serde::Serialize;

use crate::cell::BreakerState;
use crate::lane::LaneSnapshot;

/// A lane with its busiest origins. Times are in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct LaneDebug {
    /// The lane's name.
    pub lane: String,
    /// Sums over the partitions, and each of them.
    pub totals: LaneSnapshot,
    /// Handshakes that compute now.
    pub handshakes: u32,
    /// Handshakes that may compute now, as learnt from the lag of the event loop.
    pub handshakes_limit: u32,
    /// The origins with most waiters, then most dials, then most requests.
    pub top: Vec<OriginDebug>,
}

/// One origin.
#[derive(Debug, Clone, Serialize)]
pub struct OriginDebug {
    /// Scheme, host and port.
    pub origin: String,
    /// The partition that owns it.
    pub partition: usize,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// Time left of the back-off.
    pub backoff_left_ms: Option<u64>,
    /// The last dial worked.
    pub proven: bool,
    /// No newcomers are taken.
    pub draining: bool,
    /// `h2` or `http/1.1`, if known.
    pub protocol: Option<&'static str>,
    /// Callers waiting.
    pub waiters: usize,
    /// Dials in flight.
    pub dialling: usize,
    /// Open connections.
    pub live: usize,
    /// Open connections without a request.
    pub idle: usize,
    /// Requests on connections.
    pub in_use: usize,
    /// Connections that have ended.
    pub ended: u64,
    /// Mean time a request holds a connection or stream.
    pub hold_ms: Option<f64>,
    /// Mean duration of a dial.
    pub dial_ms: Option<f64>,
}

// === impl OriginDebug ===

impl OriginDebug {
    /// Busiest first.
    pub(crate) fn rank(&self) -> Reverse<(usize, usize, usize, usize)> {
        Reverse((self.waiters, self.dialling, self.in_use, self.live))
    }
}

/// The `k` busiest of many origins, without sorting them all.
pub(crate) fn busiest(mut origins: Vec<OriginDebug>, k: usize) -> Vec<OriginDebug> {
    if k < origins.len() {
        origins.select_nth_unstable_by_key(k, OriginDebug::rank);
        origins.truncate(k);
    }
    origins.sort_by_key(OriginDebug::rank);
    origins
}

pub(crate) fn word(breaker: BreakerState) -> &'static str {
    match breaker {
        BreakerState::Closed => "closed",
        BreakerState::Open { .. } => "open",
        BreakerState::HalfOpen => "half_open",
    }
}

pub(crate) fn ms(span: Option<Duration>) -> Option<f64> {
    span.map(|span| span.as_secs_f64() * 1_000.0)
}
