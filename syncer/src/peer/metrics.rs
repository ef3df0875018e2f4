//! What the lane to the other syncers counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of requests to peers.
#[derive(Clone, Debug, Default)]
pub struct PeerMetrics {
    /// Requests that a peer answered.
    pub answered: Counter,
    /// Requests without an answer.
    pub failed: Counter,
}

// === impl PeerMetrics ===

impl PeerMetrics {
    /// Names them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("peer_requests_answered", "Requests that a peer answered", self.answered.clone());
        registry.register("peer_requests_failed", "Requests that no peer answered", self.failed.clone());
    }
}
