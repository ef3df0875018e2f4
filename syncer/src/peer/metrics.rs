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
    /// Messages of peers about SFUs that counted.
    pub evidence_heard: Counter,
    /// Messages of peers about SFUs that could not be understood.
    pub evidence_ignored: Counter,
    /// Messages about SFUs that a peer did not take.
    pub evidence_refused: Counter,
}

// === impl PeerMetrics ===

impl PeerMetrics {
    /// Names them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("peer_requests_answered", "Requests that a peer answered", self.answered.clone());
        registry.register("peer_requests_failed", "Requests that no peer answered", self.failed.clone());
        let mut evidence = |name: &str, help: &str, c: &Counter| registry.register(name, help, c.clone());
        evidence("peer_evidence_heard", "Messages of peers about SFUs that counted", &self.evidence_heard);
        evidence("peer_evidence_ignored", "Messages of peers that could not be understood", &self.evidence_ignored);
        evidence("peer_evidence_refused", "Messages about SFUs that a peer did not take", &self.evidence_refused);
    }
}
