//! Panics at every place where the pool runs, one at a time: nobody hangs, no permit is lost, others are served.
//!
//! Duplex pipes under paused time, one thread per test, and with it its own faults.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::duplex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::*;
use crate::fault::{self, Point};
use crate::{Alpn, BoxError, Connected, Lane, LaneLimits};

mod drains;
mod keepers;
mod names;
mod orphans;
mod permits;
mod probes;
mod repeated;
mod stranded;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn r04_an_origin_without_connections_costs_little_memory() {
    // Its share of the index and of the list comes on top: 56 bytes.
    let bytes = size_of::<Cell>() + align_of::<Cell>(); // The counts of an `Arc` have a cache line of their own.
    assert!(bytes <= 640, "{bytes} bytes per origin");
}

/// A lane of one partition whose every origin answers after 5 ms, and dials take as long; but those of `hole`
/// never end.
fn lane(alpn: Alpn) -> Lane {
    let servers = TaskTracker::new();
    let connector = tower::service_fn(move |origin: Origin| {
        let servers = servers.clone();
        async move {
            if origin.host().starts_with("hole") {
                std::future::pending::<()>().await;
            }
            sleep(Duration::from_millis(5)).await;
            let (client, server) = duplex(64 * 1024);
            let answer = |_: Request<Incoming>| async {
                sleep(Duration::from_millis(5)).await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            };
            servers.spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(server), service_fn(answer)).await);
            });
            Ok::<_, BoxError>(Connected::ready(client, alpn))
        }
    });
    let limits = LaneLimits {
        partitions: 1,
        dial_timeout: PATIENCE,
        backoff_base: Duration::from_millis(10),
        ..LaneLimits::default()
    };
    Lane::builder("faulty").limits(limits).connector(connector).build().expect("lane")
}

fn origin(name: &str) -> Origin {
    Origin::parse(&format!("https://{name}.test")).expect("origin")
}

fn partition(lane: &Lane) -> Arc<Partition> {
    let probe = lane.origin(&origin("probe"));
    let partition = Arc::clone(probe.partition());
    lane.forget(&origin("probe"));
    partition
}

/// A request with a body that comes in pieces, so that hyper needs a task for it.
fn post() -> Request<crate::Body> {
    let pieces = futures_util::stream::unfold(0, |sent| async move {
        sleep(Duration::from_millis(1)).await;
        (sent < 3).then(|| (Ok::<_, Infallible>(http_body::Frame::data(Bytes::from_static(b"piece"))), sent + 1))
    });
    let body = http_body_util::StreamBody::new(Box::pin(pieces));
    Request::post("/").body(crate::Body::wrap(body)).expect("request")
}

fn get() -> Request<crate::Body> {
    Request::get("/").body(crate::Body::empty()).expect("request")
}

async fn once(sfu: &crate::OriginHandle, n: usize) -> Result<(), crate::Error> {
    let deadline = Instant::now() + PATIENCE;
    let sent = match n % 4 {
        0 => sfu.fresh(get(), deadline).await,
        1 => sfu.send(post(), deadline).await,
        _ => sfu.send(get(), deadline).await,
    };
    sent?.into_body().bytes(64).await.map(drop)
}

/// Sends eight requests each to two origins. Returns how many failed, by origin.
async fn crowd(lane: &Lane) -> [usize; 2] {
    let failed: [Arc<AtomicUsize>; 2] = std::array::from_fn(|_| Arc::default());
    let mut callers = JoinSet::new();
    for n in 0..16 {
        let (sfu, failed) = (lane.origin(&origin(["a", "b"][n % 2])), Arc::clone(&failed[n % 2]));
        callers.spawn(async move {
            sleep(Duration::from_millis(n as u64)).await;
            match timeout(PATIENCE / 2, once(&sfu, n / 2)).await {
                Err(_) => panic!("a caller hangs"),
                Ok(Ok(())) => {}
                Ok(Err(_)) => drop(failed.fetch_add(1, Ordering::SeqCst)),
            }
        });
    }
    // Somebody gives up in each line.
    for name in ["a", "b"] {
        let sfu = lane.origin(&origin(name));
        callers.spawn(async move { drop(timeout(Duration::from_millis(3), once(&sfu, 2)).await) });
    }
    // A panic of one of them is the test's.
    callers.join_all().await;
    assert_eq!(lane.snapshot().waiters, 0, "a place in line outlived its caller");
    assert_eq!(partition(lane).tuning().places.taken(), 0, "a place in the partition outlived its caller");
    failed.map(|failed| failed.load(Ordering::SeqCst))
}

/// Nothing is under way, every permit is accounted for, and both origins work at the first try.
async fn recovered(lane: &Lane, case: &str) {
    let partition = partition(lane);
    let settled = async {
        loop {
            let now = lane.snapshot();
            let quiet = now.waiters + now.dialling + now.in_use == 0 && now.permits_off == 0;
            if quiet && partition.connections() == now.live && partition.scheduler.lock().in_flight() == 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, settled).await.is_ok(), "{case}: {:?} {}", lane.snapshot(), partition.connections());
    sleep(Duration::from_millis(150)).await; // Longer than a back-off or the pause of a keeper.
    for name in ["a", "b", "c"] {
        let sfu = lane.origin(&origin(name));
        once(&sfu, 2).await.unwrap_or_else(|error| panic!("{case}: {name}: {error:?}"));
        once(&sfu, 0).await.unwrap_or_else(|error| panic!("{case}: {name}: {error:?}"));
    }
    for name in ["a", "b", "c"] {
        lane.forget(&origin(name));
    }
    let emptied = async {
        while partition.connections() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, emptied).await.is_ok(), "{case}: {} permits are lost", partition.connections());
}

#[tokio::test(start_paused = true)]
async fn r19_a_panic_anywhere_costs_one_origin_a_moment_and_no_permit() {
    use Point::{
        Checkout, DialBegins, DialConnected, DialOpened, DriverBegins, DriverEnds, HyperTaskBegins, HyperTaskEnds,
        Leave, Look, PutBack, Scheduler, SlotTaken, StepBegins, StepEnds, StepHalf, TimerBegins, TimerEnds,
    };
    let everywhere = [
        Checkout,
        PutBack,
        Look,
        Leave,
        StepBegins,
        StepHalf,
        StepEnds,
        DialBegins,
        DialConnected,
        DialOpened,
        DriverBegins,
        DriverEnds,
        HyperTaskBegins,
        HyperTaskEnds,
        TimerBegins,
        TimerEnds,
        Scheduler,
        SlotTaken,
    ];
    for alpn in [Alpn::Http1, Alpn::Http2] {
        for point in everywhere {
            let mut panics = 0;
            for skip in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
                let lane = lane(alpn);
                fault::arm(point, skip, 1);
                let failed = crowd(&lane).await;
                assert!(failed.contains(&0), "{alpn:?} {point:?} {skip}: {failed:?} failed");
                lane.forget(&origin("b")); // For what happens when a connection ends.
                sleep(Duration::from_secs(2)).await;
                panics += 1 - fault::armed();
                fault::disarm();
                recovered(&lane, &format!("{alpn:?} {point:?} {skip}")).await;
            }
            let hyper_task = matches!(point, HyperTaskBegins | HyperTaskEnds);
            assert!(panics > 0 || alpn == Alpn::Http1 && hyper_task, "{point:?} was never reached");
        }
    }
}

/// A caller in line behind a dial that never ends.
fn stuck_caller(lane: &Lane, deadline: Instant) -> tokio::task::JoinHandle<Result<(), crate::Error>> {
    let hole = lane.origin(&origin("hole"));
    TaskTracker::new().spawn(async move { hole.send(get(), deadline).await.map(drop) })
}

#[tokio::test(start_paused = true)]
async fn r19_a_timer_that_keeps_panicking_has_its_partition_rebuilt() {
    let lane = lane(Alpn::Http2);
    let held = lane.origin(&origin("a")).hold(Instant::now() + PATIENCE).await.expect("a connection");
    let waits = stuck_caller(&lane, Instant::now() + 4 * PATIENCE);
    sleep(Duration::from_millis(20)).await;
    fault::arm(Point::TimerBegins, 0, 6);
    let told = timeout(PATIENCE, waits).await.expect("told soon").expect("no panic").expect_err("rebuilt");
    assert!(told.is_retry_safe() && told.cause() == "aborted", "{told:?}");
    assert_eq!((lane.snapshot().partitions[0].rebuilds, fault::armed()), (1, 0));
    assert_eq!(lane.snapshot().live, 0, "a new life knows nothing of old connections");
    assert_eq!(partition(&lane).connections(), 2, "but they count until they end");
    drop(held);
    recovered(&lane, "rebuilt").await;
}

#[tokio::test(start_paused = true)]
async fn r04_a_lost_ring_is_made_up_for() {
    let lane = lane(Alpn::Http1);
    let began = Instant::now();
    let waits = stuck_caller(&lane, began + Duration::from_secs(5));
    sleep(Duration::from_secs(1)).await;
    drop(partition(&lane).timers.clear());
    let told = timeout(PATIENCE, waits).await.expect("told soon").expect("no panic").expect_err("late");
    assert!(told.is_timeout() && told.is_retry_safe(), "{told:?}");
    let late = Instant::now().saturating_duration_since(began + Duration::from_secs(5));
    assert!(late <= 2 * crate::cell::RING_LATE_MAX, "{late:?} after its deadline");
}

#[tokio::test(start_paused = true)]
async fn r21_who_gave_up_is_counted_though_others_stay_in_line() {
    let lane = lane(Alpn::Http1);
    let callers: Vec<_> = (0..4).map(|_| stuck_caller(&lane, Instant::now() + PATIENCE)).collect();
    sleep(Duration::from_millis(20)).await;
    callers.iter().skip(1).for_each(tokio::task::JoinHandle::abort);
    sleep(Duration::from_secs(2)).await;
    assert_eq!((lane.snapshot().waiters, partition(&lane).metrics.gave_up.get()), (1, 3));
    callers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_the_lane_answers_the_line_of_an_origin_that_was_drained_before() {
    let lane = lane(Alpn::Http1);
    let told = stuck_caller(&lane, Instant::now() + 2 * PATIENCE);
    sleep(Duration::from_millis(20)).await;
    let deadline = Instant::now() + PATIENCE;
    let hole = origin("hole");
    let drain = lane.drain_origin(&hole, crate::Waiting::Serve, deadline);
    assert!(timeout(Duration::from_millis(1), drain).await.is_err(), "somebody is in line");
    let report = lane.drain(Instant::now() + Duration::from_secs(1)).await;
    let told = timeout(Duration::from_secs(2), told).await.expect("told").expect("no panic").expect_err("drained");
    assert!(told.is_draining() && report.waiters_refused == 1, "{told:?} {report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_dropped_leaves_no_memory_behind() {
    let lane = lane(Alpn::Http2);
    let cell = Arc::downgrade(&partition(&lane).cell(&origin("a")));
    once(&lane.origin(&origin("a")), 2).await.expect("answered");
    let held = lane.origin(&origin("a")).hold(Instant::now() + PATIENCE).await.expect("a connection");
    let name = origin("a");
    let drain = lane.drain_origin(&name, crate::Waiting::Refuse, Instant::now() + PATIENCE);
    assert!(timeout(Duration::from_millis(1), drain).await.is_err(), "one is in use");
    let now = lane.snapshot();
    assert_eq!((now.live, now.connections), (0, 1), "it is forgotten, and counts");
    drop(held);
    sleep(PATIENCE).await;
    assert_eq!(cell.strong_count(), 0, "something keeps it");
}

#[tokio::test(start_paused = true)]
async fn r19_a_timer_that_hangs_is_noticed_and_replaced() {
    let lane = lane(Alpn::Http1);
    let waits = stuck_caller(&lane, Instant::now() + 4 * PATIENCE);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(lane.snapshot().partitions[0].rebuilds, 0, "a timer that beats is left alone");
    partition(&lane).timer.lock().cancel(); // It will never beat again,
    sleep(Duration::from_millis(1)).await;
    partition(&lane).ringing.store(true, Ordering::SeqCst); // and was in the middle of something.
    let told = timeout(PATIENCE, waits).await.expect("told soon").expect("no panic").expect_err("rebuilt");
    assert!(told.is_retry_safe(), "{told:?}");
    sleep(Duration::from_secs(20)).await;
    let now = lane.snapshot().partitions[0];
    assert!(now.rebuilds == 1 && now.heartbeat_age_ms <= 1_000, "{now:?}");
    recovered(&lane, "revived").await;
}

#[tokio::test(start_paused = true)]
async fn r19_a_cell_whose_lock_never_comes_back_is_replaced_under_the_same_handle() {
    let lane = lane(Alpn::Http2);
    let sfu = lane.origin(&origin("a"));
    once(&sfu, 2).await.expect("answered");
    let partition = partition(&lane);
    let cell = partition.cell(&origin("a"));
    {
        let _never_back = cell.state.lock();
        partition.rebuild("test");
    }
    let other = partition.cell(&origin("a"));
    assert!(!Arc::ptr_eq(&cell, &other) && lane.snapshot().origins == 1);
    once(&sfu, 2).await.expect("the old handle leads to the new cell");
    assert_eq!(other.counts().live, 1);
}

/// A lane with a budget of so many connections, all of them open and idle.
async fn full(connections_max: usize) -> Lane {
    let lane = lane(Alpn::Http2);
    lane.set_limits(LaneLimits { connections_max, ..lane.limits() }).expect("limits");
    for n in 0..connections_max {
        once(&lane.origin(&origin(&format!("idle-{n}"))), 2).await.expect("answered");
    }
    assert_eq!(lane.snapshot().idle, connections_max);
    lane
}

#[tokio::test(start_paused = true)]
async fn i09_room_for_one_costs_one_connection_however_many_come_by() {
    let lane = full(50).await;
    let partition = partition(&lane);
    let others: Vec<_> = (0..50).map(|n| lane.origin(&origin(&format!("idle-{n}")))).collect();
    let mut newcomers = JoinSet::new();
    for n in 0..4 {
        let sfu = lane.origin(&origin(&format!("new-{n}")));
        newcomers.spawn(async move { once(&sfu, 2).await.expect("answered") });
        // Connections come and go meanwhile, each a chance to evict once more.
        for other in &others {
            drop(timeout(Duration::ZERO, other.hold(Instant::now() + PATIENCE)).await);
        }
    }
    newcomers.join_all().await;
    assert_eq!(partition.metrics.spilled.get(), 4);
    assert!(lane.snapshot().live <= 50 && partition.connections() <= 50);
}

#[tokio::test(start_paused = true)]
async fn i09_the_only_idle_connection_among_many_origins_is_found() {
    let lane = full(2).await;
    let busy = lane.origin(&origin("idle-0")).hold(Instant::now() + PATIENCE).await.expect("a connection");
    for n in 0..2_000 {
        drop(lane.origin(&origin(&format!("silent-{n}"))));
    }
    let began = Instant::now();
    once(&lane.origin(&origin("new")), 2).await.expect("answered");
    assert!(Instant::now() < began + Duration::from_millis(20), "it was searched for");
    drop(busy);
}

#[tokio::test(start_paused = true)]
async fn i09_who_finds_no_idle_connection_gets_the_next_one() {
    let lane = full(1).await;
    let busy = lane.origin(&origin("idle-0")).hold(Instant::now() + PATIENCE).await.expect("a connection");
    let sfu = lane.origin(&origin("new"));
    let waits = TaskTracker::new().spawn(async move { once(&sfu, 2).await });
    sleep(Duration::from_secs(1)).await;
    let freed = Instant::now();
    drop(busy);
    waits.await.expect("no panic").expect("answered");
    assert!(Instant::now() < freed + Duration::from_millis(20), "it was not told");
}

#[tokio::test(start_paused = true)]
async fn origins_that_are_forgotten_leave_no_memory_behind() {
    let lane = lane(Alpn::Http2);
    let cells: Vec<_> = ["a", "b"].map(|name| Arc::downgrade(&partition(&lane).cell(&origin(name)))).into();
    for name in ["a", "b"] {
        once(&lane.origin(&origin(name)), 2).await.expect("answered");
    }
    lane.forget(&origin("a"));
    sleep(PATIENCE).await;
    assert_eq!(cells[0].strong_count(), 0, "forgotten");
    drop(lane);
    sleep(PATIENCE).await;
    assert_eq!(cells[1].strong_count(), 0, "its lane is gone");
}
