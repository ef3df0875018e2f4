//! What the API counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Bounds of the time to an answer's head, in seconds: joins are served from memory.
const SECONDS: [f64; 10] = [0.000_25, 0.001, 0.002_5, 0.01, 0.025, 0.1, 0.25, 1.0, 3.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    why: &'static str,
}

/// Counters of the API. Routes are patterns, so labels are bounded.
#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Histogram,
    refused: Family<RefusedLabels, Counter>,
    /// Connections now.
    pub(crate) connections: Gauge,
    /// Handlers that panicked.
    pub(crate) panics: Counter,
    /// Critical tasks that were started again.
    pub(crate) restarts: Counter,
    /// Files that could not be used when they were read again.
    pub(crate) bad_files: Counter,
    /// Reports of failed media that were taken.
    pub(crate) media_reports: Counter,
    /// Invariants of the pool found broken.
    pub(crate) pool_violations: Counter,
    /// File descriptors of the process: open, the most it may have, and the most that the limits add up to.
    pub(crate) descriptors: [Gauge; 3],
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Histogram::new(SECONDS),
            refused: Family::default(),
            connections: Gauge::default(),
            panics: Counter::default(),
            restarts: Counter::default(),
            bad_files: Counter::default(),
            media_reports: Counter::default(),
            pool_violations: Counter::default(),
            descriptors: Default::default(),
        }
    }
}

// === impl HttpMetrics ===

impl HttpMetrics {
    /// A request was answered.
    pub(crate) fn answered(&self, route: &str, method: &http::Method, status: u16, took: Duration) {
        // A method of the client's invention is no label.
        let method = match method.as_str() {
            m @ ("GET" | "HEAD" | "PUT" | "POST" | "PATCH" | "DELETE") => m,
            _ => "other",
        };
        let labels = RequestLabels { route: route.to_owned(), method: method.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// A connection was closed for cause.
    pub(crate) fn refused(&self, why: &'static str) {
        self.refused.get_or_create(&RefusedLabels { why }).inc();
    }

    /// Connections closed for this cause.
    #[cfg(test)]
    pub(crate) fn refusals(&self, why: &'static str) -> u64 {
        self.refused.get_or_create(&RefusedLabels { why }).get()
    }

    /// Names them in `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("http_requests", "Requests answered", self.requests.clone());
        registry.register_with_unit(
            "http_request",
            "Time to the head of an answer",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("http_connections_refused", "Connections closed for cause", self.refused.clone());
        registry.register("http_connections", "Connections open", self.connections.clone());
        registry.register("http_panics", "Handlers that panicked", self.panics.clone());
        registry.register("critical_task_restarts", "Critical tasks started again", self.restarts.clone());
        registry.register("media_reports", "Reports of failed media; they move nothing", self.media_reports.clone());
        registry.register("pool_violations", "Invariants of the pool found broken", self.pool_violations.clone());
        let [open, max, needed] = self.descriptors.clone();
        registry.register("file_descriptors_open", "File descriptors that the process has open", open);
        registry.register("file_descriptors_max", "File descriptors that the process may have (soft limit)", max);
        registry.register(
            "file_descriptors_needed",
            "File descriptors that the limits on connections add up to",
            needed,
        );
        registry.register("bad_files", "Files that could not be used when read again", self.bad_files.clone());
    }
}
