//! Making connections.
//!
//! Callers never dial. A cell says that it wants connections; the partition's [`scheduler`] decides whose
//! turn it is; the dial runs as a task of the partition, outlives the caller that caused it, and its
//! result goes to the first waiter.
//!
//! Two gates, because a dial is mostly waiting and a handshake is CPU: dials *in flight* are counted by
//! the scheduler, *computing* handshakes by [`gate::HandshakeGate`].

mod clock;
pub(crate) mod connect;
pub(crate) mod gate;
mod progress;
pub(crate) mod resolve;
pub(crate) mod scheduler;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use self::clock::{DialClock, Look};
use self::connect::{Alpn, BoxIo, Connected, Connector};
use self::gate::HandshakeGate;
pub(crate) use self::progress::Progress;
use crate::conn::{self, ConnSettings, Driver, Link, TaskExecutor};
use crate::error::{Error, Kind, Stage};
use crate::origin::{Origin, Scheme};
use crate::tls::LaneTls;

/// What a dial is told that this process was too busy for: about the time in which a burst of handshakes drains.
const BUSY_RETRY_AFTER: Duration = Duration::from_millis(500);

/// What every dial of a partition needs.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) connector: Connector,
    pub(crate) handshakes: Arc<Handshakes>,
}

/// What the dials of a lane share.
#[derive(Debug)]
pub(crate) struct Handshakes {
    pub(crate) tls: LaneTls,
    pub(crate) gate: HandshakeGate,
}

/// A dial's result: what requests are handed to, and the future that moves their bytes.
pub(crate) struct Dialled {
    pub(crate) link: Link,
    pub(crate) driver: Driver,
    pub(crate) tls_resumed: Option<bool>,
}

// === impl Dialer ===

impl Dialer {
    /// Name, TCP, TLS and HTTP handshake within `limit`, by the dial's own [clock](DialClock). A dial that could not
    /// be looked after says so and nothing about the host.
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
        let mut clock = DialClock::new(limit, Instant::now());
        loop {
            let ended = timeout_at(clock.look_at(), &mut steps).await;
            let now = Instant::now();
            let busy = || Error::saturated(Stage::DialSlot, BUSY_RETRY_AFTER);
            match ended {
                Ok(Err(error)) if is_hang_up(&error) && clock.tried_patience(now, progress.waited(now)) => {
                    return Err(busy());
                }
                Ok(result) => return result,
                Err(_) => {}
            }
            match clock.look(now, progress.waited(now)) {
                Look::GoOn { late } => progress.set_late(late),
                Look::TimedOut => return Err(Error::new(Kind::Timeout, progress.reached())),
                Look::Overloaded => return Err(busy()),
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
        let connected = self.connector.connect(origin, progress).await?;
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
        let Some(tls) = self.handshakes.tls.config() else {
            return Err(Error::config("the lane has no tls configuration"));
        };
        let name = origin.server_name().map_err(|error| Error::dial(Stage::Tls, error))?;
        let handshake = TlsConnector::from(tls).connect(name, connected.io);
        let stream = self
            .handshakes
            .gate
            .run(handshake, |waits| progress.queued(waits, Stage::Tls))
            .await
            .map_err(|error| Error::dial(Stage::Tls, error))?;
        let session = stream.get_ref().1;
        let alpn = if session.alpn_protocol() == Some(b"h2") { Alpn::Http2 } else { Alpn::Http1 };
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        Ok((Box::new(stream), alpn, Some(resumed)))
    }
}

/// Whether the peer let us connect and then did not wait for our part.
fn is_hang_up(error: &Error) -> bool {
    error.is_reset() && matches!(error.stage(), Stage::Tls | Stage::Handshake)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::runtime::Handle;
    use tokio::sync::Notify;
    use tokio::task::{JoinSet, yield_now};
    use tokio::time::advance;
    use tower::Service;
    use tower::util::BoxCloneSyncService;

    use super::connect::TcpConnector;
    use super::resolve::Resolver;
    use super::*;
    use crate::cell::Blame;
    use crate::error::BoxError;
    use crate::partition::Spawner;

    const LIMIT: Duration = Duration::from_secs(1);

    fn dialer<S>(connector: S) -> Arc<Dialer>
    where
        S: Service<Origin, Response = Connected, Error = BoxError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        dialer_by(Connector::Given(BoxCloneSyncService::new(connector)))
    }

    fn dialer_by(connector: Connector) -> Arc<Dialer> {
        let ca = rcgen::generate_simple_self_signed(vec!["sfu".to_owned()]).expect("certificate");
        let tls = crate::tls::client_config(ca.cert.pem().as_bytes(), None).expect("tls");
        let gate = HandshakeGate::new(1);
        gate.set_max(Some(1));
        Arc::new(Dialer { connector, handshakes: Arc::new(Handshakes { tls: LaneTls::new(Some(&tls), 1), gate }) })
    }

    async fn dial(dialer: &Dialer, to: &str) -> Result<Dialled, Error> {
        let origin = Origin::parse(to).expect("origin");
        let settings = ConnSettings { ping_interval: Duration::from_secs(10), ping_timeout: Duration::from_secs(5) };
        let spawner = Spawner::new(Handle::current());
        let executor = TaskExecutor::new(spawner.clone(), spawner.token(), Arc::new(()));
        let progress = Progress::of_dial(Arc::default());
        dialer.dial(&origin, &progress, &settings, executor, LIMIT).await
    }

    #[tokio::test(start_paused = true)]
    async fn r01_a_dial_that_gets_no_turn_to_compute_says_nothing_about_the_host() {
        let connector = tower::service_fn(|_: Origin| async { Ok(Connected::bare(duplex(1_024).0)) });
        let dialer = dialer(connector);
        let busy = dialer.handshakes.gate.acquire(&drop).await;
        let failed = dial(&dialer, "https://sfu:1").await.err().expect("no turn");
        assert!(failed.is_saturated() && failed.stage() == Stage::DialSlot, "{failed:?}");
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn r01_a_dial_that_gets_no_place_to_look_its_name_up_from_says_nothing_about_the_host() {
        let none = Resolver::new(0, |_| Ok(Vec::new()));
        let dialer = dialer_by(Connector::Tcp(TcpConnector::new(none)));
        let failed = dial(&dialer, "http://sfu.test:1").await.err().expect("no place");
        assert!(failed.is_saturated() && failed.stage() == Stage::DialSlot, "{failed:?}");
        assert_eq!(failed.blame(), Blame::Haste, "the next dial is made at once");
    }

    #[tokio::test(start_paused = true)]
    async fn r01_a_process_that_stood_still_does_not_blame_the_host() {
        let answered = Arc::new(Notify::new());
        let connected = Arc::clone(&answered);
        let connector = tower::service_fn(move |_: Origin| {
            let connected = Arc::clone(&connected);
            async move {
                connected.notified().await;
                Ok(Connected::bare(duplex(1_024).0))
            }
        });
        let dialer = dialer(connector);
        let mut dialling = JoinSet::new();
        dialling.spawn(async move { dial(&dialer, "http://sfu:1").await.map(drop) });
        yield_now().await; // The dial begins.
        // All of its time-out passes at once, and the loop comes to the timer before the socket.
        advance(LIMIT * 3 / 2).await;
        yield_now().await;
        answered.notify_one();
        let dialled = dialling.join_next().await.expect("one dial").expect("no panic");
        dialled.expect("the host answered as soon as anybody looked");
    }
}
