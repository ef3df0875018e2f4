//! The lane for discovery and leases: small, on a thread of its own, and not built on our cell.
//!
//! In the incident this is built against, lease renewal shared a pool with the storm and stalled past its
//! TTL. So this lane shares nothing with any other: not the runtime, not a partition, and not even the
//! code of the cell, so that a bug there cannot take discovery down. deadpool manages the connections;
//! because its waiters are unbounded, a bound in front of it sheds.
//!
//! Work that must not be delayed by the rest of the process (lease renewal) runs *on* the lane's thread:
//! [`RegistryLane::spawn`]. Keep big parses off it.

mod members;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use deadpool::managed::Object;
use http::{Request, Response};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::members::{Counted, Member, Members, unpooled};
use crate::body::{Body, Held, ResponseBody};
use crate::conn::{Failure, Link, fit};
use crate::debug::{LaneDebug, busiest};
use crate::dial::connect::Connector;
use crate::dial::gate::HandshakeGate;
use crate::dial::{Dialer, Handshakes};
use crate::error::{Error, Kind, Stage};
use crate::lane::{DrainReport, LaneSnapshot};
use crate::metrics::{Gauged, Metrics, PartitionMetrics};
use crate::origin::Origin;
use crate::partition::{ABORT_WAIT, PartitionSnapshot, Spawner};
use crate::tls::LaneTls;

#[cfg(test)]
mod tests;

/// Registry members a lane talks to. etcd clusters have 3 to 7; the rest is room for replaced members.
const ORIGINS_MAX: usize = 32;

/// Requests that wait or run at once. Beyond this something is wrong, and queueing would hide it.
const REQUESTS_MAX: usize = 256;

/// Of those, to one member: one that is silent leaves room for the others.
const REQUESTS_PER_ORIGIN_MAX: usize = REQUESTS_MAX / 2;

/// How often a drain looks whether all requests are over.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Names looked up at once, each on a thread: the members of a cluster.
const LOOKUPS_MAX: usize = 8;

/// What a caller is told when the lane is full.
const SATURATED_RETRY_AFTER: Duration = Duration::from_millis(500);

/// How often a request that came back unsent is tried on another connection.
const REPLAYS_MAX: u32 = 3;

/// The lane of the registry. Cheap to clone; the last handle to go ends its thread.
#[derive(Debug, Clone)]
pub struct RegistryLane {
    inner: Arc<Inner>,
}

struct Inner {
    name: Arc<str>,
    dialer: Arc<Dialer>,
    spawner: Spawner,
    metrics: Arc<PartitionMetrics>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    members: Mutex<HashMap<Origin, Member>>,
    draining: AtomicBool,
    /// Dropped with the lane: the thread's runtime ends.
    _alive: oneshot::Sender<()>,
}

/// What a response body holds.
struct Hold {
    _connection: Object<Members>,
    _places: [Counted; 2],
}

// === impl RegistryLane ===

impl RegistryLane {
    /// Starts the lane's thread. Without `tls` only `http://` origins can be reached. The name is its label in `metrics`.
    ///
    /// # Errors
    ///
    /// When the thread or its runtime cannot be started.
    pub fn start(name: &str, tls: Option<&ClientConfig>, metrics: &Metrics) -> Result<Self, Error> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Error::config)?;
        let spawner = Spawner::new(runtime.handle().clone());
        let (alive, gone) = oneshot::channel::<()>();
        let ending = spawner.clone();
        thread::Builder::new()
            .name(format!("lane-{name}"))
            .spawn(move || {
                // An error means that the last handle was dropped.
                let _gone = runtime.block_on(gone);
                ending.cancel();
            })
            .map_err(Error::config)?;
        let dialer = Arc::new(Dialer {
            connector: Connector::default().apart(LOOKUPS_MAX),
            handshakes: Arc::new(Handshakes { tls: LaneTls::new(tls, ORIGINS_MAX), gate: HandshakeGate::new(1) }),
        });
        let name = Arc::from(name);
        let inner = Arc::new(Inner {
            metrics: Arc::new(metrics.partition(&name, 0)),
            name,
            dialer,
            spawner,
            requests: Arc::default(),
            connections: Arc::default(),
            members: Mutex::default(),
            draining: AtomicBool::new(false),
            _alive: alive,
        });
        let gauged: Arc<dyn Gauged> = Arc::<Inner>::clone(&inner);
        metrics.attach(&gauged);
        Ok(Self { inner })
    }

    /// Changes certificate, key or trusted authorities. Other than by [`Lane::set_tls`](crate::Lane::set_tls), idle
    /// connections are closed, and those in use when their requests are over: here they have no age at which to go.
    pub fn set_tls(&self, config: &ClientConfig) {
        self.inner.dialer.handshakes.tls.set(config);
        self.inner.let_go();
    }

    /// Runs a task on the lane's thread until it ends or the lane does. One that panics is not started again: who has to
    /// renew leases whatever comes watches over that.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.spawner.spawn(task);
    }

    /// Requests that wait or run.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// Open connections. One that ended, whoever ended it, is not counted and not used again.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::Relaxed)
    }

    /// Sends a request and waits, until `deadline`, for the head of the response.
    ///
    /// # Errors
    ///
    /// As [`OriginHandle::send`](crate::OriginHandle::send); every error is first-hand.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the wait or closes the connection in use.
    pub async fn send(
        &self,
        origin: &Origin,
        request: Request<Body>,
        deadline: Instant,
    ) -> Result<Response<ResponseBody>, Error> {
        let began = Instant::now();
        let sent = self.inner.send(origin, request, deadline).await;
        match &sent {
            Ok((_, reused)) => self.inner.metrics.answered(*reused, Instant::now().saturating_duration_since(began)),
            Err(error) => self.inner.metrics.failed(error),
        }
        sent.map(|(response, _)| response)
    }

    /// What the lane holds now.
    #[must_use]
    pub fn snapshot(&self) -> LaneSnapshot {
        LaneSnapshot::of(self.inner.partition_snapshots())
    }

    /// The lane with its `top` busiest members, for whoever looks after it. It has no breakers.
    #[must_use]
    pub fn debug(&self, top: usize) -> LaneDebug {
        let rows = self.inner.members().into_iter().map(|(origin, member)| {
            let row = member.debug(&origin);
            ((row.waiters, row.dialling, row.in_use, row.live), row)
        });
        let (handshakes, handshakes_limit) = self.inner.dialer.handshakes.gate.usage();
        LaneDebug {
            lane: self.inner.name.to_string(),
            totals: self.snapshot(),
            handshakes,
            handshakes_limit,
            top: busiest(rows, top).into_iter().map(|(_, row)| row).collect(),
        }
    }

    /// Refuses new requests and waits until those under way are over, or for `deadline`, at which the rest is cut together
    /// with all that was given to [`RegistryLane::spawn`]. Idle connections close.
    ///
    /// # Cancel safety
    ///
    /// A dropped drain leaves the lane closed for new requests; calling it again goes on.
    pub async fn drain(&self, deadline: Instant) -> DrainReport {
        self.inner.draining.store(true, Ordering::Release);
        let over = async |count: &AtomicUsize| {
            while count.load(Ordering::Acquire) > 0 {
                sleep(DRAIN_LOOK).await;
            }
        };
        let mut report = DrainReport::default();
        if timeout_at(deadline, over(&self.inner.requests)).await.is_err() {
            let left = self.snapshot();
            report = DrainReport { waiters_refused: left.waiters, connections_aborted: left.in_use + left.dialling };
            self.inner.spawner.cancel();
        }
        self.inner.let_go();
        let _late = timeout(ABORT_WAIT, over(&self.inner.connections)).await;
        report
    }
}

/// A connection while its request is under way: dropped now, it is not used again.
struct Sending {
    connection: Option<Object<Members>>,
}

// === impl Sending ===

impl Sending {
    fn link(&mut self) -> Result<&mut Link, Error> {
        self.connection.as_deref_mut().ok_or_else(|| Error::new(Kind::Aborted, Stage::Send))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let link = Object::take(connection);
            link.cut();
        }
    }
}

// === impl Inner ===

impl Inner {
    async fn send(
        &self,
        origin: &Origin,
        mut request: Request<Body>,
        deadline: Instant,
    ) -> Result<(Response<ResponseBody>, bool), Error> {
        let member = self.member(origin)?;
        let places = self.enter(&member)?;
        for replay in 0.. {
            let connection = match timeout_at(deadline, member.pool.get()).await {
                Ok(connection) => connection.map_err(unpooled)?,
                Err(_) => return Err(Error::new(Kind::Timeout, Stage::Queue)),
            };
            let reused = Object::metrics(&connection).recycle_count > 0;
            if Instant::now() >= deadline {
                return Err(Error::too_late_to_send());
            }
            fit(&mut request, &connection, origin)?;
            let mut sending = Sending { connection: Some(connection) };
            let failure = match timeout_at(deadline, sending.link()?.try_send(request)).await {
                Ok(Ok(response)) => {
                    let Some(connection) = sending.connection.take() else { break };
                    let hold = Box::new(Hold { _connection: connection, _places: places });
                    return Ok((response.map(|body| ResponseBody::new(body, hold, deadline, reused)), reused));
                }
                Ok(Err(refused)) => Failure::refused(refused),
                Err(_) => Failure { error: Error::late(), unsent: None },
            };
            match failure.unsent {
                Some(unsent) if reused && replay < REPLAYS_MAX => request = unsent,
                _ => return Err(failure.error.with_reused(reused)),
            }
            self.metrics.replayed.inc();
        }
        Err(Error::new(Kind::Aborted, Stage::Send))
    }

    /// A place in the lane, and one of those for this member.
    fn enter(&self, member: &Member) -> Result<[Counted; 2], Error> {
        let (place, before) = Counted::one_of(&self.requests);
        let (of_member, before_it) = Counted::one_of(&member.requests);
        if before >= REQUESTS_MAX || before_it >= REQUESTS_PER_ORIGIN_MAX {
            return Err(self.saturated());
        }
        if self.draining.load(Ordering::Acquire) {
            self.metrics.shed(&Kind::Draining);
            return Err(Error::new(Kind::Draining, Stage::Queue));
        }
        Ok([place, of_member])
    }

    fn saturated(&self) -> Error {
        self.metrics.shed(&Kind::Saturated);
        Error::saturated(Stage::Queue, SATURATED_RETRY_AFTER)
    }

    fn member(&self, origin: &Origin) -> Result<Member, Error> {
        let (full, known) = {
            let members = self.members.lock();
            (members.len() >= ORIGINS_MAX, members.get(origin).cloned())
        };
        if let Some(member) = known {
            return Ok(member);
        }
        // Made, asked and dropped outside the lock: a pool has locks of its own, and links whose end wakes others.
        let made = Member::new(origin, &self.dialer, &self.spawner, &self.metrics, &self.connections)?;
        let unused = if full { self.unused() } else { None };
        let mut members = self.members.lock();
        if let Some(member) = members.get(origin) {
            return Ok(member.clone());
        }
        let replaced = unused.and_then(|unused| members.remove(&unused));
        if members.len() >= ORIGINS_MAX {
            drop(members);
            return Err(self.saturated());
        }
        members.insert(origin.clone(), made.clone());
        drop(members);
        drop(replaced);
        Ok(made)
    }

    /// A member that nobody uses, because it was replaced: its connections can close.
    fn unused(&self) -> Option<Origin> {
        let idle = |member: &Member| member.requests.load(Ordering::Acquire) == 0;
        self.members().into_iter().find(|(_, member)| idle(member)).map(|(origin, _)| origin)
    }

    fn members(&self) -> Vec<(Origin, Member)> {
        self.members.lock().iter().map(|(origin, member)| (origin.clone(), member.clone())).collect()
    }

    /// Forgets all members. Who still uses a connection keeps its pool until then.
    fn let_go(&self) {
        let before = std::mem::take(&mut *self.members.lock());
        drop(before); // Outside the lock.
    }
}

impl Gauged for Inner {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// As of a lane with one partition.
    fn partition_snapshots(&self) -> Vec<PartitionSnapshot> {
        let members = self.members();
        let live = self.connections.load(Ordering::Acquire);
        let mut sum = PartitionSnapshot { origins: members.len(), live, ..PartitionSnapshot::default() };
        for (origin, member) in &members {
            let row = member.debug(origin);
            sum.waiters += row.waiters;
            sum.dialling += row.dialling;
            sum.idle += row.idle;
        }
        sum.idle = sum.idle.min(live);
        sum.in_use = live - sum.idle;
        sum.connections = live + sum.dialling;
        vec![sum]
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryLane").field("name", &self.name).field("requests", &self.requests).finish()
    }
}

// === impl Hold ===

impl Held for Hold {}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}
