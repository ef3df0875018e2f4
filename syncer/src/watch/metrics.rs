//! What the hub counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters of the news and their watchers.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    /// Announcements taken.
    pub announced: Counter,
    /// Announcements for a gateway beyond the bound.
    pub dropped: Counter,
    /// News held for watchers to come.
    pub held: Gauge,
    /// News let go before its time, for lack of room.
    pub overflowed: Counter,
    /// Logs of unwatched gateways dropped for others.
    pub logs_dropped: Counter,
    /// Events sent.
    pub sent: Counter,
    /// Watchers told to resync.
    pub resyncs: Counter,
    /// Watchers now.
    pub watchers: Gauge,
    /// Watches ended because their gateway opened more than it may have.
    pub replaced: Counter,
    /// Subscriptions at peers lost.
    pub peers_lost: Counter,
}

// === impl WatchMetrics ===

impl WatchMetrics {
    /// Names them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("watch_announced", "Announcements taken", self.announced.clone());
        registry.register("watch_dropped", "Announcements for gateways beyond the bound", self.dropped.clone());
        registry.register("watch_news_held", "News held for all gateways", self.held.clone());
        registry.register(
            "watch_news_overflowed",
            "News let go before its time for lack of room",
            self.overflowed.clone(),
        );
        registry.register("watch_logs_dropped", "Logs of unwatched gateways dropped", self.logs_dropped.clone());
        registry.register("watch_events_sent", "Events sent to watchers", self.sent.clone());
        registry.register("watch_resyncs", "Watchers told to resync", self.resyncs.clone());
        registry.register("watchers", "Watchers connected", self.watchers.clone());
        registry.register(
            "watch_replaced",
            "Watches ended because their gateway opened more than it may have",
            self.replaced.clone(),
        );
        registry.register("watch_peers_lost", "Subscriptions at peers that broke", self.peers_lost.clone());
    }
}
