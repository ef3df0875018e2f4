//! Making connections.
//!
//! Callers never dial. A cell says that it wants connections; the partition's [`scheduler`] decides whose
//! turn it is; the dial runs as a task of the partition, outlives the caller that caused it, and its
//! result goes to the first waiter.
//!
//! Two gates, because a dial is mostly waiting and a handshake is CPU: dials *in flight* are counted by
//! the scheduler, *computing* handshakes by [`gate::HandshakeGate`].

pub(crate) mod connect;
pub(crate) mod gate;
pub(crate) mod scheduler;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::ClientConfig;
use smallvec::SmallVec;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tower::{Service, ServiceExt};

use self::connect::{Alpn, BoxIo, Connected, Connector};
use self::gate::HandshakeGate;
use crate::conn::{self, ConnSettings, Driver, Link, TaskExecutor};
use crate::error::{Error, Kind, Stage};
use crate::origin::{Origin, Scheme};

/// How far a dial is. The newest dial of an origin also tells its cell, which reads it when a waiter's
/// deadline comes.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stage: AtomicU8,
    newest: Option<Arc<Self>>,
    /// When each stage of this dial began.
    marks: Mutex<Vec<(Stage, Instant)>>,
    /// Time spent in front of the handshake gate: whole waits, and since when in the one that lasts.
    gate: Mutex<(Duration, Option<Instant>)>,
}

const STAGES: [Stage; 5] = [Stage::DialSlot, Stage::Dns, Stage::Tcp, Stage::Tls, Stage::Handshake];

/// What a dial is told that got no turn to compute: about the time in which a burst of handshakes drains.
const GATE_RETRY_AFTER: Duration = Duration::from_millis(500);

/// Least time until a dial that waits for its turn is looked at again.
const GATE_LOOK: Duration = Duration::from_millis(10);

/// What every dial of a lane needs.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) connector: Connector,
    pub(crate) tls: ArcSwapOption<ClientConfig>,
    pub(crate) gate: HandshakeGate,
}

/// A dial's result: what requests are handed to, and the future that moves their bytes.
pub(crate) struct Dialled {
    pub(crate) link: Link,
    pub(crate) driver: Driver,
    pub(crate) tls_resumed: Option<bool>,
}

// === impl Progress ===

impl Progress {
    /// A dial's own progress, which is also written to its cell's.
    pub(crate) fn of_dial(newest: Arc<Self>) -> Self {
        Self { stage: AtomicU8::new(0), newest: Some(newest), ..Self::default() }
    }

    pub(crate) fn set(&self, stage: Stage) {
        let at = STAGES.iter().position(|known| *known == stage).unwrap_or(0);
        self.stage.store(u8::try_from(at).unwrap_or(0), Ordering::Relaxed);
        if let Some(newest) = &self.newest {
            newest.stage.store(u8::try_from(at).unwrap_or(0), Ordering::Relaxed);
            self.marks.lock().push((stage, Instant::now()));
        }
    }

    /// Begins or ends a wait in front of the handshake gate. It is our own queue, and no sign of the host.
    fn gated(&self, waits: bool) {
        let now = Instant::now();
        {
            let (whole, since) = &mut *self.gate.lock();
            *whole += since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            *since = waits.then_some(now);
        }
        self.set(if waits { Stage::DialSlot } else { Stage::Tls });
    }

    /// The time spent in front of the handshake gate so far, and whether it waits there now.
    fn waited(&self, now: Instant) -> (Duration, bool) {
        let (whole, since) = *self.gate.lock();
        (whole + since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)), since.is_some())
    }

    /// The name was resolved after so long; what followed was TCP.
    fn resolved(&self, after: Duration) {
        let mut marks = self.marks.lock();
        if let Some((Stage::Dns, began)) = marks.last().copied() {
            marks.push((Stage::Tcp, began + after));
        }
    }

    /// How long each stage took, as of now.
    pub(crate) fn stages(&self, now: Instant) -> SmallVec<[(Stage, Duration); 4]> {
        let marks = self.marks.lock();
        let ends = marks.iter().skip(1).map(|(_, at)| *at).chain([now]);
        marks.iter().zip(ends).map(|((stage, began), end)| (*stage, end.saturating_duration_since(*began))).collect()
    }

    pub(crate) fn stage(&self) -> Stage {
        STAGES.get(usize::from(self.stage.load(Ordering::Relaxed))).copied().unwrap_or(Stage::DialSlot)
    }
}

// === impl Dialer ===

impl Dialer {
    /// Name, TCP, TLS and HTTP handshake within `limit`. Time in front of the handshake gate does not count, up
    /// to another `limit`; a dial that ends there says so and nothing about the host.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    pub(crate) async fn dial(
        &self,
        origin: &Origin,
        progress: &Progress,
        settings: &ConnSettings,
        executor: TaskExecutor,
        limit: Duration,
    ) -> Result<Dialled, Error> {
        let mut steps = pin!(self.steps(origin, progress, settings, executor));
        let end = Instant::now() + limit;
        let mut look = end;
        loop {
            if let Ok(result) = timeout_at(look, &mut steps).await {
                return result;
            }
            let now = Instant::now();
            let (waited, waits) = progress.waited(now);
            if waits && waited >= limit {
                return Err(Error::saturated(Stage::DialSlot, GATE_RETRY_AFTER));
            }
            look = end + waited.min(limit);
            if waits {
                look = look.max(now + GATE_LOOK);
            } else if look <= now {
                return Err(Error::new(Kind::Timeout, progress.stage()));
            }
        }
    }

    async fn steps(
        &self,
        origin: &Origin,
        progress: &Progress,
        settings: &ConnSettings,
        executor: TaskExecutor,
    ) -> Result<Dialled, Error> {
        let target = connect::Target::new(origin, progress);
        let mut connector = self.connector.clone();
        let connector = connector.ready().await.map_err(|error| Error::dial(Stage::Tcp, error))?;
        let connected = target.observe(connector.call(origin.clone())).await?;
        connected.resolved.into_iter().for_each(|after| progress.resolved(after));
        let (io, alpn, tls_resumed) = self.secure(origin, connected, progress).await?;
        progress.set(Stage::Handshake);
        let (link, driver) = conn::handshake(io, alpn, settings, executor).await?;
        Ok(Dialled { link, driver, tls_resumed })
    }

    async fn secure(
        &self,
        origin: &Origin,
        connected: Connected,
        progress: &Progress,
    ) -> Result<(BoxIo, Alpn, Option<bool>), Error> {
        if let Some(alpn) = connected.alpn {
            return Ok((connected.io, alpn, None));
        }
        if origin.scheme() == Scheme::Http {
            return Ok((connected.io, Alpn::Http1, None));
        }
        progress.set(Stage::Tls);
        let Some(tls) = self.tls.load_full() else {
            return Err(Error::config("the lane has no tls configuration"));
        };
        let name = origin.server_name().map_err(|error| Error::dial(Stage::Tls, error))?;
        let handshake = TlsConnector::from(tls).connect(name, connected.io);
        let stream = self
            .gate
            .run(handshake, |waits| progress.gated(waits))
            .await
            .map_err(|error| Error::dial(Stage::Tls, error))?;
        let session = stream.get_ref().1;
        let alpn = if session.alpn_protocol() == Some(b"h2") { Alpn::Http2 } else { Alpn::Http1 };
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        Ok((Box::new(stream), alpn, Some(resumed)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::runtime::Handle;
    use tower::util::BoxCloneSyncService;

    use super::*;
    use crate::partition::Spawner;

    #[tokio::test(start_paused = true)]
    async fn r01_a_dial_that_gets_no_turn_to_compute_says_nothing_about_the_host() {
        let ca = rcgen::generate_simple_self_signed(vec!["sfu".to_owned()]).expect("certificate");
        let tls = crate::tls::client_config(ca.cert.pem().as_bytes(), None).expect("tls");
        let connector =
            tower::service_fn(|_: Origin| async { Ok::<_, crate::error::BoxError>(Connected::bare(duplex(1_024).0)) });
        let gate = HandshakeGate::new(1);
        gate.set_max(Some(1));
        let dialer =
            Dialer { connector: BoxCloneSyncService::new(connector), tls: ArcSwapOption::new(Some(tls)), gate };
        let busy = dialer.gate.acquire(&drop).await;
        let origin = Origin::parse("https://sfu:1").expect("origin");
        let settings = ConnSettings { ping_interval: Duration::from_secs(10), ping_timeout: Duration::from_secs(5) };
        let spawner = Spawner::new(Handle::current());
        let executor = TaskExecutor::new(spawner.clone(), spawner.token(), Arc::new(()));
        let (progress, limit) = (Progress::of_dial(Arc::default()), Duration::from_secs(3));
        let failed = dialer.dial(&origin, &progress, &settings, executor, limit).await.err().expect("no turn");
        assert!(failed.is_saturated() && failed.is_ours() && failed.stage() == Stage::DialSlot, "{failed:?}");
        drop(busy);
    }
}
