//! A lane: an isolation class of the pool.
//!
//! Lanes share nothing: each has its own partitions, TLS sessions, budgets and tasks. A storm in one
//! cannot slow another. Within a lane, rendezvous hashing maps each origin to one partition.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use parking_lot::Mutex;
use rate_limit::Levers;
use rustc_hash::FxBuildHasher;
use rustls::ClientConfig;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::cell::Intake;
use crate::debug::{LaneDebug, busiest};
use crate::dial::connect::{Connected, Connector};
use crate::dial::gate::HandshakeGate;
use crate::dial::resolve::LOOKUPS_MAX;
use crate::dial::{Dialer, Handshakes};
#[cfg(test)]
use crate::dial::{connect::TcpConnector, resolve::Resolver};
use crate::error::{BoxError, Error};
use crate::levers;
use crate::limits::{LaneLimits, most};
use crate::metrics::{Gauged, Metrics};
use crate::origin::Origin;
use crate::partition::{ABORT_WAIT, Partition, PartitionSnapshot, Spawner, watch};
use crate::service::OriginHandle;
use crate::tls::LaneTls;

/// How often a drain that serves its waiters looks whether they are gone.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// An isolation class. Cheap to clone; the last handle to go closes its connections.
#[derive(Debug, Clone)]
pub struct Lane {
    inner: Arc<LaneInner>,
}

#[derive(Debug)]
pub(crate) struct LaneInner {
    name: Arc<str>,
    partitions: Box<[Arc<Partition>]>,
    handshakes: Arc<Handshakes>,
    spawner: Spawner,
    metrics: Metrics,
    /// As last set. See [`LaneInner::change`].
    limits: Mutex<LaneLimits>,
}

/// Builds a [`Lane`].
#[derive(Debug)]
pub struct LaneBuilder {
    name: Arc<str>,
    tls: Option<Arc<ClientConfig>>,
    limits: LaneLimits,
    connector: Connector,
    metrics: Metrics,
}

/// What a lane holds at one moment: the sum over its partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LaneSnapshot {
    /// Origins with state.
    pub origins: usize,
    /// Callers waiting.
    pub waiters: usize,
    /// Origins in line for a dial slot.
    pub dial_queue: usize,
    /// Dials in flight.
    pub dialling: usize,
    /// Open connections.
    pub live: usize,
    /// Open connections without a request.
    pub idle: usize,
    /// Connections and dials that count against the budget: also those of origins that were forgotten and still have
    /// requests.
    pub connections: usize,
    /// Requests on connections.
    pub in_use: usize,
    /// Permits and dial slots that the budget has given and no connection or dial has; must be 0. One that is just being
    /// given or returned may be counted: what stays from look to look is lost.
    pub permits_off: i64,
    /// The same numbers per partition.
    pub partitions: Vec<PartitionSnapshot>,
}

/// What becomes of callers in line when a drain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// They are told at once to go elsewhere.
    Refuse,
    /// They are served until the drain's deadline; only newcomers are refused.
    Serve,
}

/// What a drain found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DrainReport {
    /// Waiting callers that were told to go elsewhere.
    pub waiters_refused: usize,
    /// Connections and dials still there at the deadline, and cut.
    pub connections_aborted: usize,
}

// === impl Lane ===

impl Lane {
    /// Starts building a lane. The name is its label in metrics, so lanes that share [`Metrics`] need a name each.
    pub fn builder(name: impl Into<Arc<str>>) -> LaneBuilder {
        LaneBuilder {
            name: name.into(),
            tls: None,
            limits: LaneLimits::default(),
            connector: Connector::default(),
            metrics: Metrics::default(),
        }
    }

    /// The lane's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The lane's metrics, to be registered.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The handle of an origin. Keep it: this looks the origin up, the handle does not.
    #[must_use]
    pub fn origin(&self, origin: &Origin) -> OriginHandle {
        let cell = self.inner.partition(origin).cell(origin);
        OriginHandle::new(cell, self.clone())
    }

    /// Closes what is open to an origin and forgets it. Requests under way finish; new ones on old
    /// handles are refused.
    pub fn forget(&self, origin: &Origin) {
        self.inner.partition(origin).forget(origin);
    }

    /// What the lane holds now. Walks all origins.
    #[must_use]
    pub fn snapshot(&self) -> LaneSnapshot {
        LaneSnapshot::of(self.inner.partition_snapshots())
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> LaneLimits {
        self.inner.limits()
    }

    /// Changes any limit but the number of partitions. Takes effect at once: whoever waits is looked at
    /// again, what is beyond a smaller limit finishes. Ages, idle times and PING times count for connections
    /// opened from now on. Idle connections beyond a smaller budget or cap are closed. A larger `origins_max` makes
    /// room for more TLS sessions, which costs one full handshake with each host. A lane with levers
    /// ([`Lane::register_levers`]) is set to what they say whenever one of them changes.
    ///
    /// # Errors
    ///
    /// When the limits contradict each other, or the number of partitions differs; nothing changes then.
    pub fn set_limits(&self, limits: LaneLimits) -> Result<(), Error> {
        self.inner.change(|current| *current = limits)
    }

    /// Changes the lane's dials in flight, divided among the partitions (each keeps at least one).
    pub fn set_dials_max(&self, dials_max: usize) {
        let floor = self.inner.partitions.len();
        // Cannot fail: the only rules for it are those obeyed here.
        let _kept = self.inner.change(|limits| limits.dials_max = dials_max.clamp(floor, most::CONNECTIONS));
    }

    /// Changes how many TLS handshakes may ever compute at once.
    pub fn set_handshakes_max(&self, handshakes_max: u32) {
        let _kept = self.inner.change(|limits| limits.handshakes_max = Some(handshakes_max.max(1)));
    }

    /// Changes certificate, key or trusted authorities. Connections that are open stay open and retire at
    /// their age; dials from now on use the new settings and resume no session made under the old ones.
    pub fn set_tls(&self, config: &ClientConfig) {
        self.inner.handshakes.tls.set(config);
    }

    /// Turns every limit of the lane into a lever: `pool.sfu.dials_max` for the prefix `pool.sfu`. A change
    /// is in force within milliseconds. The values in force now are the levers' defaults.
    ///
    /// # Panics
    ///
    /// When a lever of one of these names exists: each lane is registered once.
    pub fn register_levers(&self, levers: &Levers, prefix: &str) {
        self.inner.keep("levers", levers::register(&self.inner, levers, prefix));
    }

    /// The lane for an operator's eyes, with its `top` busiest origins. Walks all origins, and writes out
    /// only those.
    #[must_use]
    pub fn debug(&self, top: usize) -> LaneDebug {
        let now = Instant::now();
        let of = |(n, partition): (usize, &Arc<Partition>)| {
            partition.busiest(top).into_iter().map(move |(rank, cell)| (rank, (n, cell)))
        };
        let found = busiest(self.inner.partitions.iter().enumerate().flat_map(of), top);
        let (handshakes, handshakes_limit) = self.inner.handshakes.gate.usage();
        LaneDebug {
            lane: self.name().to_owned(),
            totals: self.snapshot(),
            handshakes,
            handshakes_limit,
            top: found.into_iter().map(|(_, (n, cell))| cell.debug(n, now)).collect(),
        }
    }

    /// Drains one origin and forgets it: newcomers on old handles are refused, those in line are treated as
    /// told, idle connections close, those in use have until `deadline` and are then cut.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the origin forgotten; its connections close when their requests are over.
    pub async fn drain_origin(&self, origin: &Origin, waiting: Waiting, deadline: Instant) -> DrainReport {
        self.inner.partition(origin).drain_origin(origin, waiting.into(), deadline).await
    }

    /// Drains one partition, by its place in [`LaneSnapshot::partitions`]. Its origins are refused from
    /// then on. `None` when there is no such partition.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the partition closed for new requests; calling it again goes on.
    pub async fn drain_partition(&self, n: usize, waiting: Waiting, deadline: Instant) -> Option<DrainReport> {
        Some(self.inner.partitions.get(n)?.drain(waiting.into(), deadline).await)
    }

    /// Ends the lane: refuses new requests, answers waiters, closes idle connections, waits for those in
    /// use until `deadline` and cuts the rest.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the lane closed for new requests; calling it again goes on.
    pub async fn drain(&self, deadline: Instant) -> DrainReport {
        self.drain_with(Waiting::Refuse, deadline).await
    }

    /// As [`Lane::drain`], and says what becomes of those in line.
    ///
    /// # Cancel safety
    ///
    /// As [`Lane::drain`].
    pub async fn drain_with(&self, waiting: Waiting, deadline: Instant) -> DrainReport {
        let begin = |intake| self.inner.partitions.iter().map(|partition| partition.begin_drain(intake)).sum::<usize>();
        let waited = begin(waiting.into());
        let mut waiters_refused = if waiting == Waiting::Refuse { waited } else { 0 };
        let mut connections_aborted = 0;
        if timeout_at(deadline, self.inner.emptied()).await.is_err() {
            waiters_refused += begin(Intake::Refuse);
            connections_aborted = self.inner.partitions.iter().map(|partition| partition.connections()).sum();
            tracing::warn!(lane = %self.inner.name, connections_aborted, "drain deadline passed");
            self.inner.spawner.cancel();
            let _late = timeout(ABORT_WAIT, self.inner.spawner.connections_ended()).await;
        }
        DrainReport { waiters_refused, connections_aborted }
    }
}

// === impl LaneSnapshot ===

impl LaneSnapshot {
    pub(crate) fn of(partitions: Vec<PartitionSnapshot>) -> Self {
        let mut sum = Self::default();
        for part in &partitions {
            sum.origins += part.origins;
            sum.waiters += part.waiters;
            sum.dial_queue += part.dial_queue;
            sum.dialling += part.dialling;
            sum.live += part.live;
            sum.idle += part.idle;
            sum.connections += part.connections;
            sum.in_use += part.in_use;
            sum.permits_off += part.permits_off;
        }
        Self { partitions, ..sum }
    }
}

// === impl Waiting ===

impl From<Waiting> for Intake {
    fn from(waiting: Waiting) -> Self {
        match waiting {
            Waiting::Refuse => Self::Refuse,
            Waiting::Serve => Self::ServeLine,
        }
    }
}

// === impl LaneInner ===

impl Gauged for LaneInner {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn partition_snapshots(&self) -> Vec<PartitionSnapshot> {
        self.partitions.iter().map(|partition| partition.snapshot()).collect()
    }
}

impl LaneInner {
    pub(crate) fn limits(&self) -> LaneLimits {
        self.limits.lock().clone()
    }

    /// Keeps a task of the lane alive.
    fn keep<F>(&self, task: &'static str, start: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (name, restarts) = (Arc::clone(&self.name), self.metrics.restarts(&self.name));
        let panicked = move |panic: &str| {
            restarts.inc();
            tracing::error!(lane = %name, task, panic, "lane task panicked and is started again");
        };
        self.spawner.keep(self.spawner.token(), panicked, start);
    }

    /// Waits until nobody is in line and every dial and connection has ended.
    async fn emptied(&self) {
        loop {
            self.spawner.connections_ended().await;
            if self.partition_snapshots().iter().all(|partition| partition.waiters == 0) {
                return;
            }
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }

    /// Validates and applies a change of limits. To apply it wakes callers and closes connections, and who is woken
    /// may ask for the limits or change them: so nothing is locked meanwhile. Who finds afterwards that another change
    /// came applies that one too, for it may have undone parts of it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut LaneLimits)) -> Result<(), Error> {
        let mut limits = {
            let mut current = self.limits.lock();
            let mut limits = current.clone();
            change(&mut limits);
            limits.validate()?;
            if limits.partitions != current.partitions {
                return Err(Error::config("the number of partitions cannot change while the lane runs"));
            }
            *current = limits.clone();
            limits
        };
        loop {
            self.handshakes.gate.set_max(limits.handshakes_max);
            self.handshakes.tls.make_room(limits.origins_max);
            self.partitions.iter().for_each(|partition| partition.set_limits(&limits));
            let latest = self.limits();
            if limits == latest {
                return Ok(());
            }
            limits = latest;
        }
    }

    fn partition(&self, origin: &Origin) -> &Arc<Partition> {
        &self.partitions[rendezvous(FxBuildHasher.hash_one(origin), self.partitions.len())]
    }
}

impl Drop for LaneInner {
    fn drop(&mut self) {
        self.spawner.cancel();
        self.partitions.iter().for_each(|partition| partition.shut_down());
    }
}

/// Highest weight wins: when the number of partitions changes, only the origins that must move do.
fn rendezvous(key: u64, partitions: usize) -> usize {
    let weight = |partition: &usize| {
        let mut hasher = FxBuildHasher.build_hasher();
        hasher.write_u64(key);
        hasher.write_usize(*partition);
        // The multiply-rotate hash is weak in its low bits; one finishing round evens it out.
        let hash = hasher.finish();
        (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    (0..partitions).max_by_key(weight).unwrap_or(0)
}

// === impl LaneBuilder ===

impl LaneBuilder {
    /// TLS settings; without them only `http://` origins can be reached. The lane replaces the session
    /// store by one of its own.
    #[must_use]
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Limits; [`LaneLimits::default`] otherwise.
    #[must_use]
    pub fn limits(mut self, limits: LaneLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Metrics shared with other lanes; the lane makes its own otherwise.
    #[must_use]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// How byte streams are made, instead of TCP: duplex pipes in tests, a simulated network.
    #[must_use]
    pub fn connector<S>(mut self, connector: S) -> Self
    where
        S: Service<Origin, Response = Connected> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        self.connector = Connector::Given(BoxCloneSyncService::new(connector.map_err(Into::into)));
        self
    }

    /// Who resolves names, instead of the operating system.
    #[cfg(test)]
    pub(crate) fn resolver(mut self, resolver: Resolver) -> Self {
        self.connector = Connector::Tcp(TcpConnector::new(resolver));
        self
    }

    /// Starts the lane on the current tokio runtime, which keeps the deadlines of its callers: while it is blocked,
    /// callers on other runtimes wait as long. When it ends, they are told to go elsewhere.
    ///
    /// # Errors
    ///
    /// When the limits contradict each other or no runtime is running.
    pub fn build(self) -> Result<Lane, Error> {
        self.limits.validate()?;
        let handle = Handle::try_current().map_err(Error::config)?;
        let limits = self.limits;
        let spawner = Spawner::new(handle);
        let handshakes = Arc::new(Handshakes {
            tls: LaneTls::new(self.tls.as_deref(), limits.origins_max),
            gate: HandshakeGate::new(available_parallelism().map_or(1, usize::from)),
        });
        handshakes.gate.set_max(limits.handshakes_max);
        let partitions = (0..limits.partitions)
            .map(|n| {
                let metrics = self.metrics.partition(&self.name, n);
                let connector = self.connector.apart(limits.share(LOOKUPS_MAX));
                let dialer = Arc::new(Dialer { connector, handshakes: Arc::clone(&handshakes) });
                Partition::new(&limits, dialer, spawner.clone(), metrics)
            })
            .collect();
        let metrics = self.metrics;
        let limits = Mutex::new(limits);
        let inner = Arc::new(LaneInner { name: self.name, partitions, handshakes, spawner, metrics, limits });
        let gauged: Arc<dyn Gauged> = Arc::<LaneInner>::clone(&inner);
        inner.metrics.attach(&gauged);
        let partitions: Vec<_> = inner.partitions.iter().map(Arc::downgrade).collect();
        inner.keep("watchdog", move || watch(partitions.clone()));
        Ok(Lane { inner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn r05_r20_more_origins_have_room_for_more_tls_sessions() {
        let ca = rcgen::generate_simple_self_signed(vec!["sfu".to_owned()]).expect("certificate");
        let config = crate::tls::client_config(ca.cert.pem().as_bytes(), None).expect("tls");
        let lane = Lane::builder("sessions").tls(config).build().expect("lane");
        let config = || lane.inner.handshakes.tls.config().expect("settings");
        let (before, limits) = (config(), lane.limits());
        lane.set_limits(LaneLimits { dials_max: 2 * limits.dials_max, ..lane.limits() }).expect("limits");
        assert!(Arc::ptr_eq(&before, &config()), "sessions are kept");
        lane.set_limits(LaneLimits { origins_max: 2 * limits.origins_max, ..limits }).expect("limits");
        assert!(!Arc::ptr_eq(&before, &config()), "there is a larger store");
    }

    #[test]
    fn origins_spread_evenly_over_partitions() {
        let mut counts = [0_u32; 8];
        for n in 0..8_000 {
            let origin = Origin::parse(&format!("https://127.1.{}.{}:7443", n / 250, n % 250)).expect("valid");
            counts[rendezvous(FxBuildHasher.hash_one(&origin), 8)] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }
}
