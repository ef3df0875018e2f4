//! Metrics of all lanes of a process.
//!
//! Counters and histograms are kept per partition, so that partitions do not write to the same cache
//! line. Gauges are read from the lanes when they are scraped. Labels are bounded: lane, partition and
//! fixed words, never an origin.

mod known;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use self::known::Known;
use crate::cell::CloseReason;
use crate::dial::Dialled;
use crate::error::{Error, Kind, Stage};
use crate::partition::PartitionSnapshot;

/// From a checkout without waiting to the longest dial, doubling.
const BUCKETS_SECONDS: [f64; 12] = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 3.0];

/// The metrics of the pool. Cheap to clone; make one per process and give it to every lane.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    families: Arc<Families>,
}

#[derive(Debug)]
struct Families {
    requests: Family<RequestLabels, Counter>,
    dials: Family<OutcomeLabels, Counter>,
    tls: Family<TlsLabels, Counter>,
    shed: Family<OutcomeLabels, Counter>,
    failed_fast: Family<Labels, Counter>,
    elided: Family<Labels, Counter>,
    spilled: Family<Labels, Counter>,
    replayed: Family<Labels, Counter>,
    closed: Family<OutcomeLabels, Counter>,
    cancelled: Family<OutcomeLabels, Counter>,
    restarts: Family<Labels, Counter>,
    rebuilds: Family<Labels, Counter>,
    cell_panics: Family<Labels, Counter>,
    stage: Family<OutcomeLabels, Histogram>,
    wait: Family<Labels, Histogram>,
    dial: Family<Labels, Histogram>,
    head: Family<Labels, Histogram>,
    body: Family<Labels, Histogram>,
    dial_slot: Family<Labels, Histogram>,
    lanes: Lanes,
}

/// Where gauges are read, for as long as it lives.
type Lanes = Arc<Mutex<Vec<Weak<dyn Gauged>>>>;

/// A lane, as its gauges are read.
pub(crate) trait Gauged: fmt::Debug + Send + Sync {
    fn name(&self) -> &Arc<str>;

    fn partition_snapshots(&self) -> Vec<PartitionSnapshot>;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    lane: Arc<str>,
    partition: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    lane: Arc<str>,
    partition: u32,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    lane: Arc<str>,
    partition: u32,
    connection: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TlsLabels {
    lane: Arc<str>,
    partition: u32,
    handshake: &'static str,
}

/// One partition's counters: the common ones, and of the others those that it has used.
pub(crate) struct PartitionMetrics {
    families: Arc<Families>,
    labels: Labels,
    shed: Known<Counter>,
    closed: Known<Counter>,
    dials: Known<Counter>,
    tls: Known<Counter>,
    failed_new: Known<Counter>,
    failed_reused: Known<Counter>,
    stage: Known<Histogram>,
    pub(crate) failed_fast: Counter,
    pub(crate) elided: Counter,
    pub(crate) spilled: Counter,
    pub(crate) replayed: Counter,
    pub(crate) restarts: Counter,
    pub(crate) rebuilds: Counter,
    pub(crate) cell_panics: Counter,
    /// Callers that went away from the line.
    pub(crate) gave_up: Counter,
    /// Callers that went away from their request.
    pub(crate) abandoned: Counter,
    answered_reused: Counter,
    answered_new: Counter,
    /// Callers that went away from a response's body.
    pub(crate) left: Counter,
    wait: Histogram,
    dial: Histogram,
    head: Histogram,
    body: Histogram,
    dial_slot: Histogram,
}

/// Reads the lanes' gauges at scrape time.
#[derive(Debug)]
struct Gauges {
    lanes: Lanes,
}

// === impl Metrics ===

impl Metrics {
    /// Adds the pool's metrics to a registry. Their names start with `pool_`; a registry with a prefix
    /// goes before that.
    pub fn register(&self, registry: &mut Registry) {
        let families = &self.families;
        let registry = registry.sub_registry_with_prefix("pool");
        registry.register("requests", "Requests by connection (new, reused) and outcome", families.requests.clone());
        registry.register("dials", "Finished dials by outcome", families.dials.clone());
        registry.register("tls_handshakes", "Finished TLS handshakes, full or resumed", families.tls.clone());
        registry.register("shed", "Callers sent away without a connection, by reason", families.shed.clone());
        registry.register("failed_fast", "Callers that got a shared dial error at once", families.failed_fast.clone());
        registry.register("dials_elided", "Dial slots that nobody needed any more", families.elided.clone());
        registry.register("spilled", "Idle connections closed to make room", families.spilled.clone());
        registry.register("cancelled", "Callers that went away, by what they were doing", families.cancelled.clone());
        registry.register("restarts", "Tasks that died and were started again", families.restarts.clone());
        registry.register("rebuilds", "Partitions rebuilt after panics or a hang", families.rebuilds.clone());
        registry.register("cell_panics", "Panics that began a cell's life anew", families.cell_panics.clone());
        registry.register_with_unit(
            "dial_stage",
            "Duration of the stages of dials",
            Unit::Seconds,
            families.stage.clone(),
        );
        registry.register("closed", "Connections that ended, by reason", families.closed.clone());
        registry.register("replayed", "Requests that came back unsent and were sent again", families.replayed.clone());
        registry.register_with_unit(
            "wait",
            "Time in line for a connection, of one caller in eight",
            Unit::Seconds,
            families.wait.clone(),
        );
        registry.register_with_unit(
            "dial_slot",
            "Time in line for a dial slot",
            Unit::Seconds,
            families.dial_slot.clone(),
        );
        registry.register_with_unit("dial", "Duration of whole dials", Unit::Seconds, families.dial.clone());
        registry.register_with_unit("head", "Time from send to response head", Unit::Seconds, families.head.clone());
        let help = "Time from the head of a response to the end of its body, event streams apart";
        registry.register_with_unit("body", help, Unit::Seconds, families.body.clone());
        registry.register_collector(Box::new(Gauges { lanes: Arc::clone(&families.lanes) }));
    }

    pub(crate) fn attach(&self, lane: &Arc<dyn Gauged>) {
        let mut lanes = self.families.lanes.lock();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(lane));
    }

    /// Restarts of tasks that belong to a whole lane count for its first partition.
    pub(crate) fn restarts(&self, lane: &Arc<str>) -> Counter {
        let labels = Labels { lane: Arc::clone(lane), partition: 0 };
        self.families.restarts.get_or_create_owned(&labels)
    }

    pub(crate) fn partition(&self, lane: &Arc<str>, partition: usize) -> PartitionMetrics {
        let families = Arc::clone(&self.families);
        let labels = Labels { lane: Arc::clone(lane), partition: u32::try_from(partition).unwrap_or(u32::MAX) };
        PartitionMetrics {
            failed_fast: families.failed_fast.get_or_create_owned(&labels),
            elided: families.elided.get_or_create_owned(&labels),
            spilled: families.spilled.get_or_create_owned(&labels),
            replayed: families.replayed.get_or_create_owned(&labels),
            restarts: families.restarts.get_or_create_owned(&labels),
            rebuilds: families.rebuilds.get_or_create_owned(&labels),
            cell_panics: families.cell_panics.get_or_create_owned(&labels),
            gave_up: families.cancelled.get_or_create_owned(&labels.outcome("queue")),
            abandoned: families.cancelled.get_or_create_owned(&labels.outcome("sent")),
            answered_reused: families.requests.get_or_create_owned(&labels.request("reused", "answered")),
            answered_new: families.requests.get_or_create_owned(&labels.request("new", "answered")),
            wait: families.wait.get_or_create_owned(&labels),
            dial: families.dial.get_or_create_owned(&labels),
            head: families.head.get_or_create_owned(&labels),
            body: families.body.get_or_create_owned(&labels),
            left: families.cancelled.get_or_create_owned(&labels.outcome("body")),
            dial_slot: families.dial_slot.get_or_create_owned(&labels),
            shed: Known::default(),
            closed: Known::default(),
            dials: Known::default(),
            tls: Known::default(),
            failed_new: Known::default(),
            failed_reused: Known::default(),
            stage: Known::default(),
            families,
            labels,
        }
    }
}

// === impl Families ===

impl Default for Families {
    fn default() -> Self {
        fn histogram() -> Histogram {
            Histogram::new(BUCKETS_SECONDS)
        }
        Self {
            requests: Family::default(),
            dials: Family::default(),
            tls: Family::default(),
            shed: Family::default(),
            failed_fast: Family::default(),
            elided: Family::default(),
            spilled: Family::default(),
            closed: Family::default(),
            cancelled: Family::default(),
            restarts: Family::default(),
            rebuilds: Family::default(),
            cell_panics: Family::default(),
            stage: Family::new_with_constructor(histogram),
            replayed: Family::default(),
            wait: Family::new_with_constructor(histogram),
            dial: Family::new_with_constructor(histogram),
            head: Family::new_with_constructor(histogram),
            body: Family::new_with_constructor(histogram),
            dial_slot: Family::new_with_constructor(histogram),
            lanes: Arc::default(),
        }
    }
}

// === impl Labels ===

impl Labels {
    fn request(&self, connection: &'static str, outcome: &'static str) -> RequestLabels {
        RequestLabels { lane: Arc::clone(&self.lane), partition: self.partition, connection, outcome }
    }

    fn outcome(&self, outcome: &'static str) -> OutcomeLabels {
        OutcomeLabels { lane: Arc::clone(&self.lane), partition: self.partition, outcome }
    }
}

// === impl PartitionMetrics ===

impl PartitionMetrics {
    fn count(&self, known: &Known<Counter>, family: &Family<OutcomeLabels, Counter>, word: &'static str) {
        known.with(word, || family.get_or_create_owned(&self.labels.outcome(word)), Counter::inc);
    }

    /// Lane and number of the partition.
    pub(crate) fn labels(&self) -> (&str, u32) {
        (&self.labels.lane, self.labels.partition)
    }

    pub(crate) fn waited(&self, wait: Duration) {
        self.wait.observe(wait.as_secs_f64());
    }

    /// An origin got a dial slot after so long in line.
    pub(crate) fn slot_given(&self, waited: Duration) {
        self.dial_slot.observe(waited.as_secs_f64());
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        self.count(&self.closed, &self.families.closed, reason.as_str());
    }

    pub(crate) fn shed(&self, kind: &Kind) {
        self.count(&self.shed, &self.families.shed, kind.as_str());
    }

    pub(crate) fn dialled(&self, took: Duration, stages: &[(Stage, Duration)], result: &Result<Dialled, Error>) {
        self.dial.observe(took.as_secs_f64());
        for (stage, took) in stages {
            let find = || self.families.stage.get_or_create_owned(&self.labels.outcome(stage.as_str()));
            self.stage.with(stage.as_str(), find, |histogram| histogram.observe(took.as_secs_f64()));
        }
        let outcome = match result {
            Ok(_) => "connected",
            Err(error) => error.cause(),
        };
        self.count(&self.dials, &self.families.dials, outcome);
        if let Ok(Dialled { tls_resumed: Some(resumed), .. }) = result {
            let handshake = if *resumed { "resumed" } else { "full" };
            let lane = || Arc::clone(&self.labels.lane);
            let labels = || TlsLabels { lane: lane(), partition: self.labels.partition, handshake };
            self.tls.with(handshake, || self.families.tls.get_or_create_owned(&labels()), Counter::inc);
        }
    }

    pub(crate) fn answered(&self, reused: bool, took: Duration) {
        let counter = if reused { &self.answered_reused } else { &self.answered_new };
        counter.inc();
        self.head.observe(took.as_secs_f64());
    }

    /// A body is over whose head came then.
    pub(crate) fn read(&self, headed: Instant) {
        self.body.observe(Instant::now().saturating_duration_since(headed).as_secs_f64());
    }

    pub(crate) fn lane(&self) -> &str {
        &self.labels.lane
    }

    pub(crate) fn failed(&self, error: &Error) {
        let (known, connection) =
            if error.reused() { (&self.failed_reused, "reused") } else { (&self.failed_new, "new") };
        let find = || self.families.requests.get_or_create_owned(&self.labels.request(connection, error.cause()));
        known.with(error.cause(), find, Counter::inc);
    }
}

impl fmt::Debug for PartitionMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionMetrics").field("labels", &self.labels).finish_non_exhaustive()
    }
}

// === impl Gauges ===

/// Reads one number of a snapshot.
type Read = fn(&PartitionSnapshot) -> i64;

/// Every gauge: name, help, and how to read it.
const GAUGES: [(&str, &str, Read); 9] = [
    ("origins", "Origins with state", |p| count(p.origins)),
    ("waiters", "Callers in line", |p| count(p.waiters)),
    ("dial_queue", "Origins in line for a dial slot", |p| count(p.dial_queue)),
    ("dialling", "Dials in flight", |p| count(p.dialling)),
    ("live", "Open connections", |p| count(p.live)),
    ("idle", "Open connections without a request", |p| count(p.idle)),
    ("in_use", "Requests on connections", |p| count(p.in_use)),
    ("connections", "Connections and dials that count against the budget", |p| count(p.connections)),
    ("permits_off", "Permits and dial slots without a connection or dial; must be 0 but for a moment", |p| {
        p.permits_off
    }),
];

/// Reads one age of a snapshot, in milliseconds.
type ReadMs = fn(&PartitionSnapshot) -> u64;

/// Ages of what waits, shown in seconds.
const AGES: [(&str, &str, ReadMs); 3] = [
    ("waiters_oldest", "Time in line of the caller who waits longest", |p| p.waiters_oldest_ms),
    ("dial_queue_oldest", "Time in line for a dial slot of the origin that waits longest", |p| p.dial_queue_oldest_ms),
    ("heartbeat_age", "Time since the partition's timer was seen alive", |p| p.heartbeat_age_ms),
];

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let lanes: Vec<_> = self.lanes.lock().iter().filter_map(Weak::upgrade).collect();
        let mut rows = Vec::new();
        for lane in &lanes {
            for (partition, snapshot) in lane.partition_snapshots().into_iter().enumerate() {
                let partition = u32::try_from(partition).unwrap_or(u32::MAX);
                rows.push((Labels { lane: Arc::clone(lane.name()), partition }, snapshot));
            }
        }
        for (name, help, read) in GAUGES {
            let mut family =
                encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Gauge)?;
            for (labels, snapshot) in &rows {
                ConstGauge::new(read(snapshot)).encode(family.encode_family(labels)?)?;
            }
        }
        for (name, help, read) in AGES {
            let kind = prometheus_client::metrics::MetricType::Gauge;
            let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
            for (labels, snapshot) in &rows {
                let seconds = Duration::from_millis(read(snapshot)).as_secs_f64();
                ConstGauge::new(seconds).encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}
