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
    /// `closed`, `open` or `half_open`; `none` in the registry's lane.
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

/// How busy an origin is: callers in line, then dials, then requests, then connections.
pub(crate) type Rank = (usize, usize, usize, usize);

/// The `k` busiest of many, busiest first. Never holds more than `2 k`, however many are shown to it.
pub(crate) fn busiest<T>(all: impl Iterator<Item = (Rank, T)>, k: usize) -> Vec<(Rank, T)> {
    let keep = |top: &mut Vec<(Rank, T)>| {
        top.sort_by_key(|(rank, _)| Reverse(*rank));
        top.truncate(k);
    };
    let mut top = Vec::new();
    for one in all {
        top.push(one);
        if top.len() >= k.saturating_mul(2) {
            keep(&mut top);
        }
    }
    keep(&mut top);
    top
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_of_many_are_found_and_no_more_are_held() {
        let drops = std::rc::Rc::new(());
        let mut held_max = 0;
        let all = (0..1_000_usize).map(|n| {
            held_max = std::rc::Rc::strong_count(&drops).max(held_max);
            ((n * 7_919 % 1_000, 0, 0, 0), std::rc::Rc::clone(&drops))
        });
        let top: Vec<_> = busiest(all, 3).into_iter().map(|(rank, _)| rank.0).collect();
        assert_eq!((top, held_max), (vec![999, 998, 997], 6));
        assert!(busiest([((1, 0, 0, 0), ())].into_iter(), 0).is_empty());
        assert_eq!(busiest([((1, 0, 0, 0), ())].into_iter(), usize::MAX).len(), 1);
    }
}
