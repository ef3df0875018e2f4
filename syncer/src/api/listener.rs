//! The accept loop and what a connection may cost.
//!
//! `axum::serve` keeps a silent or half-finished client for ever, so the loop is our own: every
//! wait has a limit, connections are capped before they are accepted, and running out of file
//! descriptors slows accepting down instead of spinning. HTTP/1.1 and HTTP/2 share the port: ALPN
//! decides over TLS, the first bytes decide in plain text.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use futures_util::TryFutureExt as _;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::clock::{HeadClock, Held, Watched};
use super::{HEADERS_MAX, HttpMetrics};

/// A TLS handshake is two round trips; 5 s is a slow one on another continent.
const TLS_MAX: Duration = Duration::from_secs(5);
/// A head is one packet.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// How often a connection is looked at for a head that takes too long.
const HEAD_LOOK: Duration = Duration::from_millis(2_500);
/// An idle HTTP/1.1 connection is closed after this: later than the 45 s of our own pool and the
/// 60 s of common proxies, so that the client's end is the one that decides.
const IDLE_MAX: Duration = Duration::from_secs(75);
/// A connection on which no request ever came is closed after this, whatever its protocol.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(10);
/// Connections at once: 4,096 gateways with two each, and operators.
const CONNECTIONS_MAX: usize = 10_000;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// Header list of a request, in bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Buffer of an HTTP/1.1 connection; the head must fit.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Streams that a client may have reset and we not yet forgotten ("rapid reset").
const RESETS_MAX: usize = 32;
/// A PING after this much silence, and the time its answer may take.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);
/// Age at which a connection is asked to leave, plus up to as much again: clients spread anew over
/// syncers that were added.
const AGE: Duration = Duration::from_secs(30 * 60);
/// Pause when the process is out of file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What the accept loop needs.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    tcp: Arc<TcpListener>,
    connections: Arc<Semaphore>,
    serving: Serving,
}

/// What a connection needs: not the socket that it came from, which closes when accepting ends.
#[derive(Clone, Debug)]
struct Serving {
    /// Looked at for each connection: a renewed certificate serves those to come, and cuts none.
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    router: Router,
    metrics: HttpMetrics,
    tracker: TaskTracker,
    /// No new connections and requests; those under way may end.
    stop: CancellationToken,
}

/// Spawns what hyper needs on the tracker that a drain waits for.
#[derive(Clone, Debug)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send + 'static> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

// === impl Listener ===

impl Listener {
    pub(crate) fn new(
        tcp: TcpListener,
        tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
        router: Router,
        metrics: HttpMetrics,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { tcp: Arc::new(tcp), connections, serving: Serving { tls, router, metrics, tracker, stop } }
    }

    /// Accepts until stopped.
    pub(crate) async fn run(self) {
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = self.serving.stop.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection = self.serving.clone().serve(stream, permit);
                    self.serving.tracker.spawn(connection);
                }
                Err(e) if of_one_connection(&e) => self.serving.metrics.refused("accept"),
                Err(error) => {
                    self.serving.metrics.refused("exhausted");
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

// === impl Serving ===

impl Serving {
    async fn serve(self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        self.metrics.connections.inc();
        let gauge = self.metrics.connections.clone();
        let _open = Open(gauge, permit);
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let keep_alive = socket2::TcpKeepalive::new().with_time(PING_AFTER);
        if socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive).is_err() {
            return;
        }
        match &self.tls {
            None => self.http(stream).await,
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.load_full());
                match timeout(TLS_MAX, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.http(stream).await,
                    Ok(Err(_)) => self.metrics.refused("tls"),
                    Err(_) => self.metrics.refused("tls_timeout"),
                }
            }
        }
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) {
        let clock = HeadClock::new(Instant::now());
        let service = {
            let (clock, router) = (Arc::clone(&clock), self.router.clone());
            hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let under_way = clock.request(request.version());
                let answer = router.clone().oneshot(request.map(Body::new));
                answer.map_ok(move |response| response.map(|body| Held::new(body, under_way)))
            })
        };
        let stream = Watched::new(stream, Arc::clone(&clock));
        let builder = builder(Tracked(self.tracker.clone()));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let age = AGE + AGE.mul_f64(rand::rng().random::<f64>());
        let mut old = pin!(sleep(age));
        let mut first = pin!(sleep(FIRST_REQUEST_MAX));
        let mut look = interval(HEAD_LOOK);
        let (mut leaving, mut waiting) = (false, true);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::trace!(%error, "connection ended");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut old, if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut first, if waiting => {
                    waiting = false;
                    if !clock.asked() {
                        return self.metrics.refused("silent");
                    }
                }
                now = look.tick() => {
                    if clock.head_age(now).is_some_and(|age| age > HEAD_MAX) {
                        return self.metrics.refused("slow_head");
                    }
                }
            }
        }
    }
}

fn builder(executor: Tracked) -> auto::Builder<Tracked> {
    let mut builder = auto::Builder::new(executor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_MAX);
    builder
}

/// Counts a connection while it lives.
struct Open(
    prometheus_client::metrics::gauge::Gauge,
    #[allow(dead_code, reason = "held, not read")] OwnedSemaphorePermit,
);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Errors that say something of one connection and nothing of the listener.
fn of_one_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
