//! What one connection may cost.
//!
//! Every wait has a limit ([`super::limits`]): the TLS handshake, the first request, each head, each answer, idling, and
//! the connection itself. HTTP/1.1 and HTTP/2 share the port: ALPN decides over TLS, the first bytes
//! decide in plain text.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use futures_util::{FutureExt as _, TryFutureExt as _};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::HttpMetrics;
use super::auth::{Connected, names};
use super::clock::{Clock, Held, Overdue, Watched};
use super::head::{HEADER_BYTES_MAX, HEADERS_MAX, TwoLengths};
use super::limits::{ConnectionLimits, HttpLevers};
use super::place::Place;

/// Bytes of a request's body that may wait here to be read: twice what the bulk road takes at once, so that the next
/// part is on its way while one is done. More would wait just as long, in memory that is farther away.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Buffer of an HTTP/1.1 connection: a head of [`HEADER_BYTES_MAX`] with its line and separators must
/// fit, so that it is answered rather than cut.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Streams that a client may have reset and we not yet forgotten ("rapid reset").
const RESETS_MAX: usize = 32;
/// A PING after this much silence, and the time its answer may take.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);

/// What a connection needs: not the socket that it came from, which closes when accepting ends.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    /// Looked at for each connection: a renewed certificate serves those to come, and cuts none.
    pub(crate) tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    pub(crate) router: Router,
    /// Read for each connection.
    pub(crate) limits: Arc<HttpLevers>,
    /// Whether operators are served here.
    pub(crate) operators: bool,
    pub(crate) metrics: HttpMetrics,
    pub(crate) tracker: TaskTracker,
    /// No new connections and requests; those under way may end.
    pub(crate) stop: CancellationToken,
}

/// Spawns what hyper needs on the tracker that a drain waits for.
#[derive(Clone, Debug)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send + 'static> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

// === impl Serving ===

impl Serving {
    /// Serves one connection to its end.
    pub(super) async fn serve(self, stream: TcpStream, place: Place) {
        let _open = Open::new(&self.metrics.connections);
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let keep_alive = socket2::TcpKeepalive::new().with_time(PING_AFTER);
        if socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive).is_err() {
            return;
        }
        let Some(tls) = &self.tls else { return self.http(stream, Vec::new(), place).await };
        let handshake = timeout(self.limits.handshake_timeout.get(), TlsAcceptor::from(tls.load_full()).accept(stream));
        let done = tokio::select! {
            done = handshake => done,
            () = place.leave().cancelled() => return,
        };
        match done {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let names = shown.map(|leaf| names(leaf)).unwrap_or_default();
                self.http(stream, names, place).await;
            }
            Ok(Err(_)) => self.metrics.refused("tls"),
            Err(_) => self.metrics.refused("tls_timeout"),
        }
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        names: Vec<String>,
        place: Place,
    ) {
        let limits = self.limits.connection();
        let clock = Clock::new(limits, Instant::now());
        let stream = Watched::new(stream, Arc::clone(&clock));
        let service = {
            let (clock, seat, router) = (Arc::clone(&clock), place.seat(), self.router.clone());
            let connected =
                Arc::new(Connected { operators: self.operators, names: names.into(), seat: Arc::clone(&seat) });
            hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
                request.extensions_mut().insert(Arc::clone(&connected));
                if clock.two_lengths() {
                    request.extensions_mut().insert(TwoLengths);
                }
                let under_way = clock.request(request.version(), Instant::now());
                let (head, body) = request.into_parts();
                let (body, attended) = seat.request(body);
                let answer = router.clone().oneshot(http::Request::from_parts(head, Body::new(body)));
                answer.map_ok(move |response| response.map(|body| Held::new(body, under_way, attended)))
            })
        };
        let builder = builder(Tracked(self.tracker.clone()), &limits);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let began = Instant::now();
        let mut ends = began + limits.age + limits.age.mul_f64(rand::rng().random::<f64>());
        let mut look = interval(limits.look_every());
        let mut leaving = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        self.broken(&*error);
                    }
                    return;
                }
                () = self.stop.cancelled(), if !leaving => {
                    leaving = true;
                    ends = Instant::now() + limits.leave;
                    connection.as_mut().graceful_shutdown();
                }
                () = place.leave().cancelled() => {
                    // Over HTTP/2 this writes a GOAWAY. Nobody is waited for: somebody else needs the place.
                    connection.as_mut().graceful_shutdown();
                    let _ended = connection.as_mut().now_or_never();
                    return;
                }
                now = look.tick() => {
                    if !clock.asked() && now.saturating_duration_since(began) >= limits.first_request {
                        return self.metrics.refused("silent");
                    }
                    let overdue = clock.overdue(now);
                    if let Some(Overdue::Drop(why)) = overdue {
                        return self.metrics.refused(why);
                    }
                    let ended = now >= ends;
                    if ended && leaving {
                        return self.metrics.refused("too_old");
                    }
                    if (ended || overdue.is_some()) && !leaving {
                        leaving = true;
                        ends = now + limits.leave;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }

    /// Counts what a client did that is not HTTP; a connection that merely went away is nothing.
    fn broken(&self, error: &(dyn std::error::Error + 'static)) {
        tracing::trace!(error, "connection ended");
        let Some(error) = error.downcast_ref::<hyper::Error>() else { return };
        let io = std::error::Error::source(error).is_some_and(|e| e.is::<std::io::Error>());
        if error.is_parse() {
            self.metrics.refused("malformed");
        } else if !(io || error.is_timeout() || error.is_incomplete_message() || error.is_closed()) {
            self.metrics.refused("protocol");
        }
    }
}

fn builder(executor: Tracked, limits: &ConnectionLimits) -> auto::Builder<Tracked> {
    let mut builder = auto::Builder::new(executor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_MAX);
    builder
}

/// Counts a connection while it lives.
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    fn new(gauge: &prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod h2_tests;

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::time::sleep;

    use super::*;

    /// A connection to a small server, without a network so that time can be skipped.
    pub(super) fn connected(limits: HttpLevers) -> (DuplexStream, HttpMetrics, tokio::task::JoinHandle<()>) {
        let large = || async { Bytes::from(vec![b'x'; 1 << 20]) };
        let endless = || async {
            let words = futures_util::stream::unfold((), |()| async {
                sleep(Duration::from_secs(10)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from_static(b": alive\n\n")), ()))
            });
            Body::from_stream(words)
        };
        let slow = || async {
            sleep(Duration::from_secs(60)).await;
            "at last"
        };
        let router = Router::new()
            .route("/slow", get(slow))
            .route("/small", get(|| async { "hello" }))
            .route("/large", get(large))
            .route("/endless", get(endless));
        let metrics = HttpMetrics::default();
        let serving = Serving {
            tls: None,
            operators: true,
            router,
            limits: Arc::new(limits),
            metrics: metrics.clone(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let (ours, theirs) = tokio::io::duplex(1_024);
        let tracker = serving.tracker.clone();
        let task = tracker.spawn(async move { serving.http(theirs, Vec::new(), Place::alone()).await });
        (ours, metrics, task)
    }

    /// Levers and their values.
    pub(super) type Turned<'a> = &'a [(&'a str, &'a str)];

    pub(super) fn turned(values: Turned<'_>) -> HttpLevers {
        let levers = rate_limit::Levers::new();
        let limits = HttpLevers::register(&levers);
        for (name, value) in values {
            levers.set(name, &(*value).into(), "test", None, 0).expect("in range");
        }
        limits
    }

    /// How long the connection lives with these limits when the client sends this and reads, or does not.
    async fn lives(levers: Turned<'_>, sent: &str, reads: bool) -> (Duration, HttpMetrics) {
        let (mut stream, metrics, mut task) = connected(turned(levers));
        let began = Instant::now();
        stream.write_all(sent.as_bytes()).await.expect("written");
        let mut sink = [0; 4_096];
        loop {
            tokio::select! {
                ended = &mut task => {
                    ended.expect("no panic");
                    return (Instant::now().saturating_duration_since(began), metrics);
                }
                Ok(n) = stream.read(&mut sink), if reads => if n == 0 {
                    task.await.expect("no panic");
                    return (Instant::now().saturating_duration_since(began), metrics);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_way_to_keep_a_connection_has_an_end_and_a_name() {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        // What is sent, whether answers are read, seconds it may last, how it is counted.
        let cases = [
            (String::new(), true, 8..=13, Some("silent")),
            ("GET /small HT".into(), true, 5..=10, Some("slow_head")),
            (get("/small") + "GET", true, 5..=10, Some("slow_head")),
            (get("/small"), true, 75..=80, None), // hyper closes it by itself
            (get("/large"), false, 30..=35, Some("slow_reader")),
            (get("/endless"), false, 30..=1_300, Some("slow_reader")),
            (get("/endless"), true, 35 * 60..=66 * 60, Some("too_old")),
        ];
        for (sent, reads, wanted, why) in cases {
            let (lived, metrics) = lives(&[], &sent, reads).await;
            assert!(wanted.contains(&lived.as_secs()), "{sent:?}, reads: {reads}: lived {lived:?}");
            if let Some(why) = why {
                assert_eq!(metrics.refusals(why), 1, "{sent:?}, reads: {reads}: not {why}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn r20_every_limit_of_a_connection_is_a_lever() {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let cases: [(Turned<'_>, String, bool, _, _); 6] = [
            (&[("http.first_request_timeout", "1s")], String::new(), true, 1_000..=1_500, Some("silent")),
            (&[("http.head_timeout", "1s")], "GET /small HT".into(), true, 1_000..=1_500, Some("slow_head")),
            (&[("http.idle_timeout", "1s"), ("http.head_timeout", "1s")], get("/small"), true, 1_000..=1_500, None),
            (&[("http.write_timeout", "1s")], get("/large"), false, 1_000..=1_500, Some("slow_reader")),
            // Five seconds later than a request is given up, and found at the next look.
            (
                &[("http.answer_timeout", "1s"), ("http.request_timeout", "1s")],
                get("/large"),
                false,
                6_000..=8_500,
                Some("slow_reader"),
            ),
            (
                &[("http.age", "4s"), ("http.leave_timeout", "2s")],
                get("/endless"),
                true,
                6_000..=11_000,
                Some("too_old"),
            ),
        ];
        for (turned, sent, reads, wanted, why) in cases {
            let (lived, metrics) = lives(turned, &sent, reads).await;
            assert!(wanted.contains(&lived.as_millis()), "{turned:?}: lived {lived:?}");
            if let Some(why) = why {
                assert_eq!(metrics.refusals(why), 1, "{turned:?}: not {why}");
            }
        }
        // Until buffers are full, a stream that is not read is not told from one that is.
        let mut lived = Vec::new();
        for limit in ["15s", "75s"] {
            let turned = [
                ("http.stream_idle_timeout", limit),
                ("http.bulk_idle_timeout", "200ms"),
                ("http.write_timeout", "600s"),
            ];
            let (time, metrics) = lives(&turned, &get("/endless"), false).await;
            assert_eq!(metrics.refusals("unread_stream"), 1);
            lived.push(time.as_secs());
        }
        assert!((50..=70).contains(&(lived[1] - lived[0])), "{lived:?}");
    }
}
