//! What one partition or one lane suffers, the others do not feel.

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Ca, Callers, PATIENCE, Server, after, get, soon, until};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pool::{Alpn, BoxError, Connected, Lane, LaneLimits, Origin, OriginHandle};
use tokio::io::duplex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

/// How long a dial and a request take in the quiet network.
const DIAL: Duration = Duration::from_millis(2);
const WORK: Duration = Duration::from_millis(5);

/// Every host answers but those called `hole-…`, which take no connection.
fn network(servers: TaskTracker, limits: LaneLimits) -> Lane {
    let connector = tower::service_fn(move |origin: Origin| {
        let servers = servers.clone();
        async move {
            if origin.host().starts_with("hole") {
                std::future::pending::<()>().await;
            }
            sleep(DIAL).await;
            let (client, server) = duplex(16 * 1024);
            servers.spawn(async move {
                let service = service_fn(|_: Request<Incoming>| async {
                    sleep(WORK).await;
                    Ok::<_, Infallible>(Response::new(String::from("ok")))
                });
                drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service).await);
            });
            Ok::<_, BoxError>(Connected::ready(client, Alpn::Http2))
        }
    });
    Lane::builder("sfu").limits(limits).connector(connector).build().expect("lane")
}

/// Origins of this name that live in partition `at`, or in any other.
fn origins(lane: &Lane, name: &str, many: usize, at: usize, inside: bool) -> Vec<Origin> {
    let names = (0..many).map(|n| Origin::parse(&format!("https://{name}-{n}.test")).expect("origin"));
    names.for_each(|origin| drop(lane.origin(&origin)));
    let rows = lane.debug(usize::MAX).top.into_iter();
    let here = rows.filter(|row| (row.partition == at) == inside && row.origin.contains(&format!("//{name}-")));
    here.map(|row| Origin::parse(&row.origin).expect("origin")).collect()
}

/// A dial and three requests to each, a millisecond apart. The latency that one in a hundred exceeds.
async fn p99(lane: &Lane, origins: &[Origin]) -> Duration {
    let mut requests = JoinSet::new();
    for origin in origins {
        let sfu = lane.origin(origin);
        requests.spawn(async move {
            let mut latencies = Vec::new();
            for _ in 0..3 {
                let began = Instant::now();
                sfu.send(get("/"), soon()).await.expect("answered").into_body().bytes(64).await.expect("body");
                latencies.push(Instant::now().saturating_duration_since(began));
            }
            latencies
        });
        sleep(Duration::from_millis(1)).await;
    }
    let mut latencies: Vec<_> = requests.join_all().await.into_iter().flatten().collect();
    latencies.sort();
    latencies[latencies.len() * 99 / 100]
}

/// Under paused time only waiting counts, so the figures are exact: what is shared shows, the machine does not.
#[tokio::test(start_paused = true)]
async fn r01_a_hundred_thousand_requests_to_a_black_holed_partition_leave_the_others_as_they_were() {
    let waiters_max = 4_000;
    let limits = LaneLimits { partitions: 4, dials_max: 32, waiters_max, ..LaneLimits::default() };
    let lane = network(TaskTracker::new(), limits);
    let holes = origins(&lane, "hole", 200, 0, true);
    let quiet = p99(&lane, &origins(&lane, "early", 400, 0, false)).await;
    assert!(quiet >= WORK, "{quiet:?}");

    let storm = Callers::new();
    let failed = Arc::new(AtomicUsize::new(0));
    for n in 0..100_000_usize {
        let (sfu, failed) = (lane.origin(&holes[n % holes.len()]), Arc::clone(&failed));
        storm.spawn(async move {
            sleep(Duration::from_micros(10 * n as u64)).await;
            let outcome = sfu.send(get("/"), after(Duration::from_secs(1))).await;
            failed.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed);
        });
    }
    sleep(Duration::from_millis(100)).await;
    let full = waiters_max / 4;
    assert_eq!(lane.snapshot().partitions[0].waiters, full, "the storm has filled its partition");
    let stormy = p99(&lane, &origins(&lane, "late", 400, 0, false)).await;
    assert!(lane.snapshot().partitions[0].waiters > 0, "the storm was over too soon");
    assert!(stormy <= quiet * 2, "{stormy:?} in the storm, {quiet:?} before");
    storm.close();
    storm.wait().await;
    assert_eq!(failed.load(Ordering::Relaxed), 100_000);
}

/// Names are resolved, and handshakes pass the gate, which all partitions share: whoever holds one for ever holds no place
/// in it.
#[tokio::test(flavor = "multi_thread")]
async fn r01_a_partition_full_of_held_handshakes_costs_another_one_no_name_no_handshake_and_no_request() {
    let ca = Ca::new();
    let limits = LaneLimits { partitions: 2, dials_max: 24, handshakes_max: Some(2), ..LaneLimits::default() };
    // No held dial ends within this test.
    let lane = ca.lane(LaneLimits { dial_timeout: 10 * PATIENCE, ..limits });
    let (mut held, mut served) = (Vec::new(), Vec::new());
    while held.len() < 12 || served.len() < 6 {
        let holds = Server::rude("https", |stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        });
        let (holds, serves) = (holds.await, Server::https(&ca, &["h2"]).await);
        held.extend(of_partition(&lane, holds, 0));
        served.extend(of_partition(&lane, serves, 1));
    }
    let storm = TaskTracker::new();
    for (_, sfu) in &held {
        for _ in 0..4 {
            let sfu = sfu.clone();
            storm.spawn(async move { drop(sfu.send(get("/ok"), after(10 * PATIENCE)).await) });
        }
    }
    // The last quarter of its twelve slots is for hosts that have proven themselves.
    let in_handshakes = || held.iter().map(|(holds, _)| holds.accepted()).sum::<usize>();
    until("every slot of the partition is held", || in_handshakes() == 9).await;
    assert_eq!(lane.snapshot().partitions[0].dialling, 9);

    let callers = Callers::new();
    for (_, sfu) in &served {
        for _ in 0..20 {
            let sfu = sfu.clone();
            callers.spawn(async move {
                // Each on a connection of its own.
                let answer = sfu.fresh(get("/ok"), soon()).await.expect("answered");
                assert_eq!(answer.into_body().bytes(64).await.expect("body"), "ok");
            });
        }
    }
    callers.close();
    callers.wait().await;
    assert_eq!(served.iter().map(|(serves, _)| serves.accepted()).sum::<usize>(), 20 * served.len());
    let now = lane.snapshot();
    assert_eq!((now.partitions[0].dialling, in_handshakes()), (9, 9), "the held ones were held all the time");
    assert!(now.partitions[0].dial_queue > 0 && now.partitions[1].dial_queue == 0);
}

/// A server and its handle by name, if that lives in partition `at`.
fn of_partition(lane: &Lane, server: Server, at: usize) -> Option<(Server, OriginHandle)> {
    let named = Origin::parse(&format!("https://localhost:{}", server.origin.port())).expect("origin");
    let sfu = lane.origin(&named);
    let rows = lane.debug(usize::MAX).top;
    let here = rows.iter().any(|row| row.origin == named.to_string() && row.partition == at);
    here.then_some((server, sfu))
}

/// Hosts of which those called `mortal-…` say nothing any more once they are `gone`, on old connections and on new ones.
fn mortals(gone: Arc<AtomicBool>, limits: LaneLimits) -> Lane {
    let servers = TaskTracker::new();
    let connector = tower::service_fn(move |origin: Origin| {
        let (servers, gone) = (servers.clone(), Arc::clone(&gone));
        let silent = Arc::new(move || origin.host().starts_with("mortal") && gone.load(Ordering::SeqCst));
        async move {
            sleep(DIAL).await;
            if silent() {
                std::future::pending::<()>().await;
            }
            let (client, server) = duplex(16 * 1024);
            servers.spawn(async move {
                let service = service_fn(move |_: Request<Incoming>| {
                    let silent = Arc::clone(&silent);
                    async move {
                        sleep(WORK).await;
                        if silent() {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, Infallible>(Response::new(String::from("ok")))
                    }
                });
                drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service).await);
            });
            Ok::<_, BoxError>(Connected::ready(client, Alpn::Http1))
        }
    });
    Lane::builder("sfu").limits(limits).connector(connector).build().expect("lane")
}

#[tokio::test(start_paused = true)]
async fn r01_hosts_that_vanish_leave_slots_to_those_that_answer_though_all_had_answered() {
    let gone = Arc::new(AtomicBool::new(false));
    let lane = mortals(Arc::clone(&gone), LaneLimits { partitions: 1, dials_max: 8, ..LaneLimits::default() });
    let named = |name: String| lane.origin(&Origin::parse(&format!("https://{name}.test")).expect("origin"));
    let (mortals, alive) = ((0..60).map(|n| named(format!("mortal-{n}"))), named("alive".to_owned()));
    let mortals: Vec<_> = mortals.collect();
    for sfu in mortals.iter().chain([&alive]) {
        sfu.send(get("/"), soon()).await.expect("answered").into_body().bytes(64).await.expect("body");
    }
    gone.store(true, Ordering::SeqCst);
    let storm = Callers::new();
    for sfu in mortals {
        storm.spawn(async move {
            for _ in 0..12 {
                drop(sfu.send(get("/"), after(Duration::from_millis(500))).await);
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    sleep(Duration::from_secs(2)).await;
    assert!(lane.snapshot().dialling >= 6, "the dead have what they can get");
    let (held, began) = (alive.hold(soon()).await.expect("its connection"), Instant::now());
    alive.send(get("/"), soon()).await.expect("on another one");
    let took = Instant::now().saturating_duration_since(began);
    assert!(took < Duration::from_millis(200), "{took:?} behind dead hosts");
    drop(held);
    storm.close();
    storm.wait().await;
}
