//! Callers that give up at every moment, against peers that answer, fail, dawdle or say nothing.
//!
//! Duplex pipes under paused time: a run is a few milliseconds and always the same.

mod common;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use common::{Callers, after, get, settled, soon};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pool::{Alpn, BoxError, Connected, Lane, LaneLimits, Origin};
use tokio::io::duplex;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;

const SLOW: Duration = Duration::from_millis(40);

/// How a peer behaves at one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Ok,
    Error,
    Slow,
    Never,
}

/// At which stage it behaves so; everything else goes well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Connect,
    Head,
    Body,
}

/// A network of duplex pipes with one kind of server.
#[derive(Clone)]
struct Pipes {
    alpn: Alpn,
    at: At,
    manner: Manner,
    /// Everything is fine again.
    healed: Arc<AtomicBool>,
    dials: Arc<AtomicUsize>,
    servers: TaskTracker,
}

impl Pipes {
    fn new(alpn: Alpn, at: At, manner: Manner) -> Self {
        let (healed, dials) = (Arc::default(), Arc::default());
        Self { alpn, at, manner, healed, dials, servers: TaskTracker::new() }
    }

    fn lane(&self) -> Lane {
        let limits = LaneLimits {
            dial_timeout: Duration::from_millis(200),
            backoff_base: Duration::from_millis(10),
            backoff_max: Duration::from_millis(20),
            ..LaneLimits::default()
        };
        Lane::builder("pipes").limits(limits).connector(self.clone()).build().expect("lane")
    }

    /// Behaves as told at its stage. `Err` means that it should fail.
    async fn behave(&self, at: At) -> Result<(), io::Error> {
        if self.at != at || self.healed.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.manner {
            Manner::Ok => Ok(()),
            Manner::Error => Err(io::ErrorKind::ConnectionRefused.into()),
            Manner::Slow => {
                sleep(SLOW).await;
                Ok(())
            }
            Manner::Never => std::future::pending().await,
        }
    }

    async fn serve(self, io: tokio::io::DuplexStream) {
        let service = service_fn(move |_: http::Request<Incoming>| {
            let this = self.clone();
            async move {
                this.behave(At::Head).await?;
                let frames = futures_util::stream::unfold(0, move |sent| {
                    let this = this.clone();
                    async move {
                        if sent == 1
                            && let Err(error) = this.behave(At::Body).await
                        {
                            return Some((Err(error), 3));
                        }
                        (sent < 3).then(|| (Ok(Frame::data(Bytes::from_static(b"part"))), sent + 1))
                    }
                });
                Ok::<_, io::Error>(http::Response::new(StreamBody::new(Box::pin(frames))))
            }
        });
        drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await);
    }
}

impl tower::Service<Origin> for Pipes {
    type Response = Connected;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Connected, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _origin: Origin) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            this.dials.fetch_add(1, Ordering::SeqCst);
            this.behave(At::Connect).await?;
            let (client, server) = duplex(64 * 1024);
            let alpn = this.alpn;
            this.servers.clone().spawn(this.serve(server));
            Ok(Connected::ready(client, alpn))
        })
    }
}

fn origin(n: usize) -> Origin {
    Origin::parse(&format!("https://sfu-{n}.test")).expect("origin")
}

#[tokio::test(start_paused = true)]
async fn i08_giving_up_at_any_moment_loses_no_permit_and_blocks_nobody() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        for at in [At::Connect, At::Head, At::Body] {
            for manner in [Manner::Ok, Manner::Error, Manner::Slow, Manner::Never] {
                for give_up_ms in [0, 1, 20, 39, 40, 41, 100, 199, 201] {
                    let pipes = Pipes::new(alpn, at, manner);
                    let lane = pipes.lane();
                    let sfu = lane.origin(&origin(0));
                    let callers = Callers::new();
                    for n in 0..4 {
                        let sfu = sfu.clone();
                        callers.spawn(async move {
                            let whole = async {
                                let sent = if n == 3 {
                                    sfu.fresh(get("/"), soon()).await
                                } else {
                                    sfu.send(get("/"), soon()).await
                                };
                                sent?.into_body().bytes(64).await
                            };
                            drop(timeout_at(after(Duration::from_millis(give_up_ms)), whole).await);
                        });
                    }
                    callers.close();
                    callers.wait().await;
                    assert_eq!(lane.snapshot().waiters, 0, "a place in line outlived its caller");
                    settled(&lane).await;
                    let case = format!("{alpn:?} {at:?} {manner:?} {give_up_ms}");
                    pipes.healed.store(true, Ordering::SeqCst);
                    sleep(Duration::from_millis(250)).await; // Longer than any dial or back-off still under way.
                    let body = sfu.send(get("/"), soon()).await.unwrap_or_else(|error| panic!("{case}: {error:?}"));
                    assert_eq!(body.into_body().bytes(64).await.expect("body"), "partpartpart", "{case}");
                    settled(&lane).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r04_one_failed_dial_answers_a_thousand_callers_and_one_of_them_first_hand() {
    let pipes = Pipes::new(Alpn::Http2, At::Connect, Manner::Never);
    let lane = pipes.lane();
    let sfu = lane.origin(&origin(0));
    let callers = Callers::new();
    let (own, shared) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..1_000 {
        let (sfu, own, shared) = (sfu.clone(), Arc::clone(&own), Arc::clone(&shared));
        callers.spawn(async move {
            let error = sfu.send(get("/"), soon()).await.expect_err("black hole");
            assert!(error.is_timeout() && error.is_retry_safe());
            let count = if error.is_fail_fast() { shared } else { own };
            count.fetch_add(1, Ordering::SeqCst);
        });
    }
    callers.close();
    callers.wait().await;
    let seen = (own.load(Ordering::SeqCst), shared.load(Ordering::SeqCst), pipes.dials.load(Ordering::SeqCst));
    assert_eq!(seen, (1, 999, 1), "first hand, shared, dials");
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn r04_no_wait_outlasts_its_deadline_and_lines_are_bounded() {
    let limits = LaneLimits {
        partitions: 1,
        waiters_per_origin_max: 10,
        waiters_max: 15,
        dial_timeout: Duration::from_secs(3_600),
        ..LaneLimits::default()
    };
    let pipes = Pipes::new(Alpn::Http1, At::Connect, Manner::Never);
    let lane = Lane::builder("pipes").limits(limits).connector(pipes.clone()).build().expect("lane");
    let callers = Callers::new();
    let (late, shed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for n in 0..40 {
        let (sfu, late, shed) = (lane.origin(&origin(n % 2)), Arc::clone(&late), Arc::clone(&shed));
        callers.spawn(async move {
            let began = Instant::now();
            let patience = Duration::from_millis(100 + 10 * (n as u64));
            let error = sfu.send(get("/"), began + patience).await.expect_err("black hole");
            let waited = Instant::now().saturating_duration_since(began);
            if error.is_saturated() {
                assert!(error.retry_after().is_some() && waited < Duration::from_millis(5));
                shed.fetch_add(1, Ordering::SeqCst);
            } else {
                assert!(error.is_timeout() && error.is_retry_safe());
                assert!(
                    waited >= patience && waited < patience + Duration::from_millis(5),
                    "{waited:?} of {patience:?}"
                );
                late.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    callers.close();
    callers.wait().await;
    assert_eq!((late.load(Ordering::SeqCst), shed.load(Ordering::SeqCst)), (15, 25));
    assert_eq!(lane.snapshot().waiters, 0);
}

#[tokio::test(start_paused = true)]
async fn r01_a_lane_full_of_black_holes_does_not_delay_another_origin() {
    let pipes = Pipes::new(Alpn::Http2, At::Connect, Manner::Ok);
    let holes = Pipes::new(Alpn::Http2, At::Connect, Manner::Never);
    let limits =
        LaneLimits { partitions: 1, dials_max: 16, dial_timeout: Duration::from_secs(60), ..LaneLimits::default() };
    let (good, bad) = (pipes.clone(), holes.clone());
    let connector = tower::service_fn(move |origin: Origin| {
        let mut network = if origin.host().starts_with("good") { good.clone() } else { bad.clone() };
        tower::Service::call(&mut network, origin)
    });
    let lane = Lane::builder("mixed").limits(limits).connector(connector).build().expect("lane");
    let good = lane.origin(&Origin::parse("https://good.test").expect("origin"));
    good.send(get("/"), soon()).await.expect("proves itself").into_body().bytes(64).await.expect("body");
    let callers = Callers::new();
    for n in 0..100 {
        let sfu = lane.origin(&origin(n));
        callers.spawn(async move { drop(sfu.send(get("/"), after(Duration::from_secs(50))).await) });
    }
    common::until("the black holes took what they can get", || lane.snapshot().dialling == 12).await;
    let began = Instant::now();
    good.fresh(get("/"), soon()).await.expect("a slot is left for it");
    good.send(get("/"), soon()).await.expect("answered");
    assert!(Instant::now().saturating_duration_since(began) < Duration::from_millis(50));
    callers.close();
    callers.wait().await;
}

#[tokio::test(start_paused = true)]
async fn r19_a_connector_that_panics_costs_one_dial() {
    let pipes = Pipes::new(Alpn::Http2, At::Connect, Manner::Ok);
    let (panics, network) = (Arc::new(AtomicBool::new(true)), pipes.clone());
    let poison = Arc::clone(&panics);
    let connector = tower::service_fn(move |origin: Origin| {
        let mut network = network.clone();
        let poison = Arc::clone(&poison);
        async move {
            assert!(!poison.load(Ordering::SeqCst), "poison");
            tower::Service::call(&mut network, origin).await
        }
    });
    let limits = LaneLimits { backoff_base: Duration::from_millis(10), ..LaneLimits::default() };
    let lane = Lane::builder("poisoned").limits(limits).connector(connector).build().expect("lane");
    let sfu = lane.origin(&origin(0));
    let error = sfu.send(get("/"), soon()).await.expect_err("the dial panicked");
    assert!(error.is_retry_safe(), "{error:?}");
    settled(&lane).await;
    panics.store(false, Ordering::SeqCst);
    sleep(Duration::from_millis(50)).await;
    sfu.send(get("/"), soon()).await.expect("the partition lives on");
}

#[tokio::test(start_paused = true)]
async fn i09_at_the_connection_budget_idle_connections_make_room() {
    let pipes = Pipes::new(Alpn::Http2, At::Connect, Manner::Ok);
    let limits = LaneLimits { partitions: 1, connections_max: 8, ..LaneLimits::default() };
    let lane = Lane::builder("small").limits(limits).connector(pipes.clone()).build().expect("lane");
    for n in 0..200 {
        lane.origin(&origin(n))
            .send(get("/"), soon())
            .await
            .expect("answered")
            .into_body()
            .bytes(64)
            .await
            .expect("body");
        let now = lane.snapshot();
        assert!(now.live + now.dialling <= 8, "{now:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r01_a_full_partition_and_a_full_lane_take_nothing_from_the_others() {
    let holes = Pipes::new(Alpn::Http2, At::Connect, Manner::Never);
    let good = Pipes::new(Alpn::Http2, At::Connect, Manner::Ok);
    let limits = LaneLimits {
        partitions: 2,
        dials_max: 8,
        waiters_max: 20,
        dial_timeout: Duration::from_secs(60),
        ..LaneLimits::default()
    };
    let (living, dead) = (good.clone(), holes.clone());
    let connector = tower::service_fn(move |origin: Origin| {
        let mut network = if origin.host().starts_with("good") { living.clone() } else { dead.clone() };
        tower::Service::call(&mut network, origin)
    });
    let build = || Lane::builder("sfu").limits(limits.clone()).connector(connector.clone()).build().expect("lane");
    let (lane, other) = (build(), build());
    // Every black hole lives in the partition of the first one.
    let partition_of = |origin: &Origin| {
        let probe = build();
        drop(probe.origin(origin));
        probe.snapshot().partitions.iter().position(|partition| partition.origins == 1).expect("one has it")
    };
    let full = partition_of(&origin(0));
    let callers = Callers::new();
    for hole in (0..100).map(origin).filter(|origin| partition_of(origin) == full) {
        let sfu = lane.origin(&hole);
        callers.spawn(async move { drop(sfu.send(get("/"), after(Duration::from_secs(50))).await) });
    }
    common::until("the partition is full", || lane.snapshot().partitions[full].waiters == 10).await;
    let refused = lane.origin(&origin(0)).send(get("/"), soon()).await.expect_err("its line is full");
    assert!(refused.is_saturated(), "{refused:?}");
    let names = (0..100).map(|n| Origin::parse(&format!("https://good-{n}.test")).expect("origin"));
    let began = Instant::now();
    for origin in names.filter(|origin| partition_of(origin) != full) {
        lane.origin(&origin).send(get("/"), soon()).await.expect("the other partition is free");
    }
    other.origin(&Origin::parse("https://good.test").expect("origin")).send(get("/"), soon()).await.expect("answered");
    assert!(Instant::now().saturating_duration_since(began) < Duration::from_millis(50));
    callers.close();
    callers.wait().await;
}
