//! A request is sent again only when it provably never left.

mod common;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::{Callers, settled, soon, until};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use pool::{Alpn, Body, BoxError, Connected, Error, Lane, LaneLimits, Origin, OriginHandle, Sent};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a host works for a request. Timers know only whole milliseconds.
const WORK: Duration = Duration::from_millis(3);

/// A stream that is at its end from one moment to the next, without a bell.
struct Cuttable {
    io: DuplexStream,
    cut: CancellationToken,
}

/// A host whose connections end when its owner likes.
#[derive(Clone)]
struct Host {
    /// How often each request was seen.
    seen: Arc<Mutex<HashMap<String, u32>>>,
    /// Ends every connection.
    cut: Arc<Mutex<CancellationToken>>,
    /// How long connections live; for ever when nobody rolls.
    dice: Option<Arc<Mutex<StdRng>>>,
    servers: TaskTracker,
}

// === impl Cuttable ===

impl AsyncRead for Cuttable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === impl Host ===

impl Host {
    fn new(dice: Option<StdRng>) -> Self {
        let dice = dice.map(|dice| Arc::new(Mutex::new(dice)));
        Self { seen: Arc::default(), cut: Arc::default(), dice, servers: TaskTracker::new() }
    }

    fn lane(&self, alpn: Alpn) -> Lane {
        let this = self.clone();
        let connector = tower::service_fn(move |_: Origin| {
            let (client, server) = duplex(4 * 1024);
            let (host, cut) = (this.clone(), this.cut.lock().clone());
            let life = this.dice.as_ref().map(|dice| Duration::from_millis(dice.lock().random_range(1..40)));
            let client = Cuttable { io: client, cut: cut.clone() };
            this.servers.spawn(async move {
                let serving = host.serve(server);
                let life = life.unwrap_or(Duration::from_secs(3_600));
                drop(timeout(life, cut.run_until_cancelled(serving)).await);
            });
            std::future::ready(Ok::<_, BoxError>(Connected::ready(client, alpn)))
        });
        let limits = LaneLimits { connections_per_origin_max: 8, ..LaneLimits::default() };
        Lane::builder("replay").limits(limits).connector(connector).build().expect("lane")
    }

    /// Notes a request when its head has come, reads the rest and takes its time.
    async fn serve(self, io: DuplexStream) {
        let service = service_fn(move |request: Request<Incoming>| {
            *self.seen.lock().entry(request.uri().path().to_owned()).or_default() += 1;
            async move {
                drop(request.into_body().collect().await);
                sleep(WORK).await;
                Ok::<_, Infallible>(Response::new(String::from("ok")))
            }
        });
        drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await);
    }

    fn times(&self, path: &str) -> u32 {
        self.seen.lock().get(path).copied().unwrap_or(0)
    }

    /// Ends every connection. Their owners find out when they next look.
    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock()).cancel();
    }
}

async fn post(sfu: &OriginHandle, path: &str) -> Result<(), Error> {
    let request = Request::post(path).body(Body::from(vec![7_u8; 3_000])).expect("request");
    sfu.send(request, soon()).await?.into_body().bytes(64).await.map(drop)
}

fn origin() -> Origin {
    Origin::parse("https://sfu.test").expect("origin")
}

fn replayed(lane: &Lane) -> u64 {
    let mut registry = prometheus_client::registry::Registry::default();
    lane.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    let lines = text.lines().filter(|line| line.starts_with("pool_replayed_total"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(start_paused = true)]
async fn r14_what_met_a_closed_connection_unsent_is_sent_once_on_another() {
    // HTTP/2 requests are never handed back here: they are on their way into the connection at once.
    let host = Host::new(None);
    let lane = host.lane(Alpn::Http1);
    let sfu = lane.origin(&origin());
    post(&sfu, "/first").await.expect("answered");
    until("the connection is back", || lane.snapshot().idle == 1).await;
    host.cut();
    post(&sfu, "/second").await.expect("answered by another connection");
    assert_eq!((host.times("/first"), host.times("/second"), replayed(&lane)), (1, 1, 1));
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn r14_what_may_have_been_seen_is_never_sent_again() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let host = Host::new(None);
        let lane = host.lane(alpn);
        let sfu = lane.origin(&origin());
        post(&sfu, "/first").await.expect("answered");
        let (watched, cutter) = (host.clone(), Callers::new());
        cutter.spawn(async move {
            until("the host has seen it", || watched.times("/second") == 1).await;
            watched.cut();
        });
        let error = post(&sfu, "/second").await.expect_err("cut in the middle");
        cutter.close();
        cutter.wait().await;
        assert!(error.sent() == Sent::Maybe && !error.is_retry_safe(), "{alpn:?} {error:?}");
        sleep(Duration::from_secs(60)).await;
        assert_eq!((host.times("/second"), replayed(&lane)), (1, 0), "{alpn:?}");
        settled(&lane).await;
    }
}

/// Connections die at any moment of an exchange. Paused time and fixed dice: always the same moments.
#[tokio::test(start_paused = true)]
async fn r14_no_request_is_seen_twice_and_none_at_all_that_is_called_unsent() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let host = Host::new(Some(StdRng::seed_from_u64(14)));
        let lane = host.lane(alpn);
        let mut callers = JoinSet::new();
        for caller in 0..16 {
            let sfu = lane.origin(&origin());
            callers.spawn(async move {
                let mut outcomes = Vec::new();
                for n in 0..400 {
                    let path = format!("/{caller}/{n}");
                    let outcome = post(&sfu, &path).await;
                    outcomes.push((path, outcome.map_err(|error| error.sent())));
                    sleep(Duration::from_micros(150 * (caller + n % 7))).await;
                }
                outcomes
            });
        }
        let outcomes: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
        let count = |wanted| outcomes.iter().filter(|(_, outcome)| *outcome == wanted).count();
        let (answered, maybe) = (count(Ok(())), count(Err(Sent::Maybe)));
        assert!(
            answered > 1_000 && maybe > 50 && replayed(&lane) > 10,
            "{alpn:?}: {answered} {maybe} {}",
            replayed(&lane)
        );
        for (path, outcome) in &outcomes {
            let seen = host.times(path);
            let allowed = match outcome {
                Ok(()) => seen == 1,
                Err(Sent::Maybe) => seen <= 1,
                Err(Sent::No) => seen == 0,
            };
            assert!(allowed, "{alpn:?} {path}: {outcome:?} and seen {seen} times");
        }
        settled(&lane).await;
    }
}
