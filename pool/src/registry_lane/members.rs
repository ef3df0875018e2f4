//! Connections to one member of the registry, by deadpool.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use deadpool::Status;
use deadpool::managed::{self, Metrics as ObjectMetrics, PoolError, RecycleError, RecycleResult};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use crate::cell::Channel;
use crate::conn::{ConnSettings, Link, TaskExecutor};
use crate::debug::OriginDebug;
use crate::dial::{Dialer, Progress};
use crate::error::{Error, Kind, Stage};
use crate::fault::{self, Point};
use crate::metrics::PartitionMetrics;
use crate::origin::Origin;
use crate::partition::Spawner;

/// Connections per member. Each request holds one to the end of its body, HTTP/2 or not: a few watches, a
/// lease stream, and some unary calls beside them.
const CONNECTIONS_PER_ORIGIN_MAX: usize = 16;

/// Bound of a whole dial; a third of the shortest lease TTL in use would be 5 s.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a returned HTTP/1.1 connection may take to get ready before it is thrown away.
const READY_WAIT: Duration = Duration::from_millis(100);

/// As in every lane: see `LaneLimits`.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What there is to one member.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) pool: managed::Pool<Members>,
    /// Those that wait or run.
    pub(super) requests: Arc<AtomicUsize>,
}

/// Makes and checks connections to one member.
pub(super) struct Members {
    origin: Origin,
    dialer: Arc<Dialer>,
    spawner: Spawner,
    metrics: Arc<PartitionMetrics>,
    connections: Arc<AtomicUsize>,
    /// Bounds the dials, which outlive their callers.
    dials: Arc<Semaphore>,
    unclaimed: Arc<Unclaimed>,
}

/// A connection whose caller left before the dial was over, for the next one: a member whose dials take longer than
/// its callers have time would never be reached otherwise.
#[derive(Default)]
struct Unclaimed(Mutex<Option<Link>>);

/// One of a number, for as long as it lives: of the requests, or of the connections.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

// === impl Member ===

impl Member {
    /// Each open connection counts as one of `connections`.
    pub(super) fn new(
        origin: &Origin,
        dialer: &Arc<Dialer>,
        spawner: &Spawner,
        metrics: &Arc<PartitionMetrics>,
        connections: &Arc<AtomicUsize>,
    ) -> Result<Self, Error> {
        let members = Members {
            origin: origin.clone(),
            dialer: Arc::clone(dialer),
            spawner: spawner.clone(),
            metrics: Arc::clone(metrics),
            connections: Arc::clone(connections),
            dials: Arc::new(Semaphore::new(CONNECTIONS_PER_ORIGIN_MAX)),
            unclaimed: Arc::default(),
        };
        let pool = managed::Pool::builder(members).max_size(CONNECTIONS_PER_ORIGIN_MAX).build();
        Ok(Self { pool: pool.map_err(Error::config)?, requests: Arc::default() })
    }

    pub(super) fn debug(&self, origin: &Origin) -> OriginDebug {
        let Status { size, available, waiting, .. } = self.pool.status();
        let dialling = CONNECTIONS_PER_ORIGIN_MAX - self.pool.manager().dials.available_permits();
        let live = size.saturating_sub(dialling);
        OriginDebug {
            origin: origin.to_string(),
            partition: 0,
            breaker: "none",
            backoff_left_ms: None,
            proven: available > 0,
            draining: false,
            protocol: None,
            waiters: waiting,
            dialling,
            live,
            idle: available,
            in_use: live.saturating_sub(available),
            ended: 0,
            hold_ms: None,
            dial_ms: None,
        }
    }
}

// === impl Counted ===

impl Counted {
    /// One more, and how many there were before.
    pub(super) fn one_of(count: &Arc<AtomicUsize>) -> (Self, usize) {
        let before = count.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(count)), before)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Members ===

impl managed::Manager for Members {
    type Type = Link;
    type Error = Error;

    async fn create(&self) -> Result<Link, Error> {
        if let Some(link) = self.unclaimed.take() {
            return Ok(link);
        }
        let dials = Arc::clone(&self.dials).acquire_owned().await;
        let permit = dials.map_err(|_closed| Error::new(Kind::Aborted, Stage::DialSlot))?;
        // A dial that ended meanwhile made room, and perhaps more.
        if let Some(link) = self.unclaimed.take() {
            return Ok(link);
        }
        let (done, result) = oneshot::channel();
        let unclaimed = Arc::clone(&self.unclaimed);
        let (origin, dialer, spawner) = (self.origin.clone(), Arc::clone(&self.dialer), self.spawner.clone());
        let (connections, metrics) = (Arc::clone(&self.connections), Arc::clone(&self.metrics));
        // On the lane's thread: the driver is the tail of the dial.
        self.spawner.spawn(async move {
            fault::point(Point::RegistryDial);
            let progress = Progress::default();
            let settings = ConnSettings { ping_interval: PING_INTERVAL, ping_timeout: PING_TIMEOUT };
            let began = Instant::now();
            let dial = dialer.dial(
                &origin,
                &progress,
                &settings,
                TaskExecutor::new(spawner.clone(), spawner.token(), Arc::new(())),
                DIAL_TIMEOUT,
            );
            let result = dial.await;
            let now = Instant::now();
            metrics.dialled(now.saturating_duration_since(began), &progress.stages(now), &result);
            match result {
                Ok(dialled) => {
                    let _open = Counted::one_of(&connections);
                    if let Err(Ok(link)) = done.send(Ok(dialled.link)) {
                        unclaimed.put(link);
                    }
                    drop((permit, unclaimed)); // Whose owner is the member: it must not live by its own connection.
                    fault::point(Point::RegistryDriver);
                    dialled.driver.await;
                }
                Err(error) => drop(done.send(Err(error))),
            }
        });
        result.await.unwrap_or_else(|_| Err(Error::new(Kind::Aborted, Stage::DialSlot)))
    }

    async fn recycle(&self, link: &mut Link, _metrics: &ObjectMetrics) -> RecycleResult<Error> {
        let ready = timeout(READY_WAIT, poll_fn(|cx| link.poll_ready(cx))).await;
        if matches!(ready, Ok(true)) && link.is_open() { Ok(()) } else { Err(RecycleError::message("closed")) }
    }
}

// === impl Unclaimed ===

impl Unclaimed {
    /// The newest is kept; the one before closes.
    fn put(&self, link: Link) {
        let before = self.0.lock().replace(link);
        drop(before);
    }

    fn take(&self) -> Option<Link> {
        let link = self.0.lock().take();
        link.filter(Channel::is_open)
    }
}

pub(super) fn unpooled(error: PoolError<Error>) -> Error {
    match error {
        PoolError::Backend(error) => error,
        PoolError::Timeout(_) => Error::new(Kind::Timeout, Stage::Queue),
        PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
            Error::new(Kind::Aborted, Stage::Queue)
        }
    }
}
