//! Limits that are reached, and limits that are changed while they are used.
//!
//! Duplex pipes under paused time.

mod common;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Callers, after, get, settled, soon, until};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pool::{Alpn, Connected, Lane, LaneLimits, Origin, Pool, Waiting};
use rate_limit::Levers;
use tokio::io::duplex;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

/// A network in which every host answers `/` at once and `/{ms}` after that time.
#[derive(Clone, Default)]
struct Network {
    dials: Arc<AtomicUsize>,
    servers: TaskTracker,
}

impl Network {
    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    fn lane(&self, alpn: Alpn, limits: LaneLimits) -> Lane {
        let this = self.clone();
        let connector = tower::service_fn(move |_: Origin| this.connect(alpn));
        Lane::builder("net").limits(limits).connector(connector).build().expect("lane")
    }

    fn connect(&self, alpn: Alpn) -> Ready<Result<Connected, Infallible>> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let (client, server) = duplex(16 * 1024);
        self.servers.spawn(async move {
            let service = service_fn(|request: http::Request<Incoming>| async move {
                let ms = request.uri().path().trim_start_matches('/').parse().unwrap_or(0);
                if ms > 0 {
                    sleep(Duration::from_millis(ms)).await;
                }
                Ok::<_, Infallible>(http::Response::new(http_body_util::Full::new(Bytes::from_static(b"ok"))))
            });
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service).await);
        });
        ready(Ok(Connected::ready(client, alpn)))
    }
}

fn origin(n: usize) -> Origin {
    Origin::parse(&format!("https://sfu-{n}.test")).expect("origin")
}

async fn ask(lane: &Lane, n: usize, path: &str) -> Result<Bytes, pool::Error> {
    lane.origin(&origin(n)).send(get(path), soon()).await?.into_body().bytes(64).await
}

#[tokio::test(start_paused = true)]
async fn i09_25_000_origins_work_through_10_000_connections() {
    let network = Network::default();
    let connections_max = 10_000;
    let lane = network.lane(Alpn::Http1, LaneLimits { connections_max, ..LaneLimits::default() });
    for round in 1..=2 {
        let callers = Callers::new();
        for first in 0..100 {
            let lane = lane.clone();
            callers.spawn(async move {
                for n in (first..25_000).step_by(100) {
                    assert_eq!(ask(&lane, n, "/").await.expect("answered"), "ok");
                }
            });
        }
        callers.close();
        while tokio::time::timeout(Duration::from_millis(20), callers.wait()).await.is_err() {
            let now = lane.snapshot();
            assert!(now.live + now.dialling <= connections_max, "{} connections", now.live + now.dialling);
        }
        let now = lane.snapshot();
        assert_eq!((now.origins, now.waiters, now.permits_off), (25_000, 0, 0), "round {round}");
        assert!(now.live <= connections_max, "{} connections", now.live);
    }
    let text = metrics(&lane);
    let spilled = sum(&text, "pool_spilled_total");
    assert!(spilled >= 15_000, "{spilled} spilled");
    assert!(network.dials() < 50_000, "some connections of the first round were still there in the second");
}

#[tokio::test(start_paused = true)]
async fn i09_beyond_origins_max_handles_say_saturated_and_forgetting_makes_room() {
    let limits = LaneLimits { partitions: 1, origins_max: 4, ..LaneLimits::default() };
    let lane = Network::default().lane(Alpn::Http2, limits);
    for n in 0..6 {
        ask(&lane, n, "/").await.expect("answered"); // Six: a partition may have half as many again.
    }
    let early = lane.origin(&origin(6));
    let error = ask(&lane, 6, "/").await.expect_err("one too many");
    assert!(error.is_saturated() && !error.is_draining() && error.is_retry_safe(), "{error:?}");
    assert!(error.retry_after().is_some());
    lane.forget(&origin(0));
    early.send(get("/"), soon()).await.expect("a handle that was surplus finds the room");
    ask(&lane, 6, "/").await.expect("there is room now");
    assert_eq!(lane.snapshot().origins, 6);
    for n in 10..10_000 {
        lane.forget(&origin(6));
        ask(&lane, 6, "/").await.expect("answered");
        drop(lane.origin(&origin(n)));
        lane.forget(&origin(n));
    }
    until("forgotten connections are closed", || lane.snapshot().live <= 6).await;
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn i09_origins_that_nobody_uses_make_room_for_new_ones_and_dead_ones_stay_known() {
    let network = Network::default();
    let (count, dead) = (network.clone(), origin(1_000));
    let connector = tower::service_fn(move |host: Origin| {
        let refuses = host == dead;
        let connected = count.connect(Alpn::Http2).into_inner().expect("a pipe");
        ready(if refuses { Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)) } else { Ok(connected) })
    });
    let hour = Duration::from_secs(3_600);
    let idle_timeout = Duration::from_secs(1);
    let limits = LaneLimits { partitions: 1, origins_max: 4, idle_timeout, ..LaneLimits::default() };
    let limits = LaneLimits { backoff_base: hour, backoff_max: hour, ..limits };
    let lane = Lane::builder("web").limits(limits).connector(connector).build().expect("lane");
    let kept = lane.origin(&origin(0));
    assert!(!ask(&lane, 1_000, "/").await.expect_err("dead").is_fail_fast());
    let mut new = 1..;
    for _ in 0..10 {
        for n in new.by_ref().take(4) {
            ask(&lane, n, "/").await.expect("one that nobody uses goes");
        }
        let refused = ask(&lane, 2_000, "/").await.expect_err("each has a connection, a handle or a back-off");
        assert!(refused.is_saturated(), "{refused:?}");
        until("the connections are too old", || lane.snapshot().live == 0).await;
        assert_eq!(lane.snapshot().origins, 6);
    }
    assert!(ask(&lane, 1_000, "/").await.expect_err("dead").is_fail_fast(), "its back-off was forgotten");
    kept.send(get("/"), soon()).await.expect("a handle stays good");
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn r20_dials_and_lines_follow_their_levers_at_once_and_what_is_wrong_is_refused() {
    let network = Network::default();
    let limits = LaneLimits { partitions: 1, ..LaneLimits::default() };
    let lane = network.lane(Alpn::Http1, limits);
    let levers = Levers::new();
    lane.register_levers(&levers, "pool.net");
    let set = |name: &str, value: serde_json::Value| {
        levers.set(name, &value, "ops", Some("drill"), 0).unwrap_or_else(|error| panic!("{error}"));
    };
    // No dials at all: whoever comes waits.
    set("pool.net.dial_burst", 0.into());
    until("the lever is applied", || lane.limits().dial_burst == 0).await;
    let callers = Callers::new();
    let handle = lane.clone();
    callers.spawn(async move { ask(&handle, 0, "/").await.expect("answered after the lever was opened") });
    sleep(Duration::from_secs(5)).await;
    assert_eq!((network.dials(), lane.snapshot().waiters, lane.snapshot().dial_queue), (0, 1, 1));
    assert!(lane.snapshot().partitions[0].waiters_oldest_ms >= 4_900);
    let opened = Instant::now();
    set("pool.net.dial_burst", 10.into());
    callers.close();
    callers.wait().await;
    assert!(Instant::now().saturating_duration_since(opened) < Duration::from_millis(100));
    // Slower: the wait follows the new rate, not the old pause.
    set("pool.net.dial_rate", 10.into());
    set("pool.net.dial_burst", 1.into());
    until("the levers are applied", || lane.limits().dial_burst == 1).await;
    let slowed = Instant::now();
    for n in 1..=4 {
        ask(&lane, n, "/").await.expect("answered");
    }
    let took = Instant::now().saturating_duration_since(slowed);
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(2), "{took:?}");
    // Fewer than the default is allowed.
    set("pool.net.dials_max", 1.into());
    until("the lever is applied", || lane.limits().dials_max == 1).await;
    // A line of one.
    set("pool.net.waiters_per_origin_max", 1.into());
    set("pool.net.connections_per_origin_max", 1.into());
    until("the levers are applied", || lane.limits().connections_per_origin_max == 1).await;
    let sfu = lane.origin(&origin(0));
    let held = sfu.hold(soon()).await.expect("the only connection");
    let other = sfu.clone();
    let waiter = TaskTracker::new();
    waiter.spawn(async move { other.hold(soon()).await.map(drop) });
    until("one waits", || lane.snapshot().waiters == 1).await;
    assert!(sfu.hold(soon()).await.expect_err("the line is full").is_saturated());
    drop(held);
    // What is wrong is refused and changes nothing.
    assert!(levers.set("pool.net.dials_max", &0.into(), "ops", None, 0).is_err());
    let mut wrong = lane.limits();
    wrong.partitions = 2;
    assert!(lane.set_limits(wrong).is_err());
    assert_eq!(lane.limits().partitions, 1);
}

#[tokio::test(start_paused = true)]
async fn r20_a_smaller_budget_closes_what_is_beyond_it_idle_now_and_in_use_when_it_is_done() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let lane = Network::default().lane(alpn, LaneLimits { partitions: 1, ..LaneLimits::default() });
        for n in 0..20 {
            ask(&lane, n, "/").await.expect("answered");
        }
        let (sfu, callers) = (lane.origin(&origin(20)), Callers::new());
        for _ in 0..6 {
            sfu.probe_dial(soon()).await.expect("dialled");
        }
        for n in 0..6 {
            let lane = lane.clone();
            callers.spawn(async move { ask(&lane, n, "/5000").await.expect("nobody is cut off") });
        }
        until("six are in use", || lane.snapshot().in_use == 6).await;
        let started = Instant::now();
        lane.set_limits(LaneLimits { connections_per_origin_max: 2, ..lane.limits() }).expect("limits");
        until("an origin keeps to its cap", || lane.snapshot().live == 22).await;
        lane.set_limits(LaneLimits { connections_max: 3, ..lane.limits() }).expect("limits");
        until("what is idle is closed", || lane.snapshot().live == 6).await;
        assert!(Instant::now().saturating_duration_since(started) < Duration::from_secs(4), "nobody had to ask");
        callers.close();
        callers.wait().await;
        until("and the rest after its request", || lane.snapshot().live == 3).await;
        assert!(sum(&metrics(&lane), "pool_closed_total{lane=\"net\",partition=\"0\",outcome=\"surplus\"") >= 4);
        ask(&lane, 30, "/").await.expect("there is still room for one more in turn");
        assert!(lane.snapshot().live <= 3);
        settled(&lane).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r04_dials_keep_to_their_rate() {
    let network = Network::default();
    let limits = LaneLimits { partitions: 1, dial_rate_per_s: 100.0, dial_burst: 10, ..LaneLimits::default() };
    let lane = network.lane(Alpn::Http2, limits);
    let callers = Callers::new();
    for n in 0..110 {
        let lane = lane.clone();
        callers.spawn(async move { ask(&lane, n, "/").await.expect("answered") });
    }
    callers.close();
    for tenths in 0..9_usize {
        assert!(network.dials() <= 10 + tenths * 10 + 1, "{} dials after {tenths} tenths", network.dials());
        sleep(Duration::from_millis(100)).await;
    }
    callers.wait().await;
    assert_eq!(network.dials(), 110);
}

#[tokio::test(start_paused = true)]
async fn r04_a_line_too_long_for_a_deadline_refuses_at_once() {
    let limits = LaneLimits { connections_per_origin_max: 2, ..LaneLimits::default() };
    let lane = Network::default().lane(Alpn::Http1, limits);
    let sfu = lane.origin(&origin(0));
    let callers = Callers::new();
    for _ in 0..100 {
        let lane = lane.clone();
        callers.spawn(async move { drop(ask(&lane, 0, "/100").await) });
    }
    sleep(Duration::from_secs(2)).await;
    let waiting = lane.snapshot().waiters;
    assert!(waiting > 40, "{waiting} wait");
    let began = Instant::now();
    let error = sfu.send(get("/"), after(Duration::from_millis(500))).await.expect_err("two seconds are before it");
    assert!(error.is_wont_make_deadline() && error.is_saturated() && error.is_retry_safe(), "{error:?}");
    assert!(error.retry_after().is_some_and(|wait| wait > Duration::from_millis(500)), "{error:?}");
    assert_eq!(Instant::now(), began);
    sfu.send(get("/"), soon()).await.expect("who has time is served");
    callers.close();
    callers.wait().await;
}

#[tokio::test(start_paused = true)]
async fn r03_callers_who_leave_cause_no_pile_of_idle_connections() {
    let network = Network::default();
    let lane = network.lane(Alpn::Http1, LaneLimits { dial_rate_per_s: 10.0, dial_burst: 1, ..LaneLimits::default() });
    let callers = Callers::new();
    for _ in 0..1_000 {
        let sfu = lane.origin(&origin(0));
        callers.spawn(async move { drop(sfu.send(get("/1000"), after(Duration::from_millis(50))).await) });
    }
    callers.close();
    callers.wait().await;
    sleep(Duration::from_secs(5)).await;
    assert!(network.dials() <= 2, "{} dials for callers who are gone", network.dials());
    assert!(sum(&metrics(&lane), "pool_dials_elided_total") >= 1);
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn an_origin_a_partition_and_a_pool_can_be_drained_with_or_without_their_line() {
    let limits = LaneLimits { partitions: 2, connections_per_origin_max: 1, ..LaneLimits::default() };
    for (waiting, served) in [(Waiting::Serve, 2), (Waiting::Refuse, 1)] {
        for what in ["origin", "partition", "pool"] {
            let lane = Network::default().lane(Alpn::Http1, limits.clone());
            let callers = Callers::new();
            let answered = Arc::new(AtomicUsize::new(0));
            for _ in 0..2 {
                let (lane, answered) = (lane.clone(), Arc::clone(&answered));
                callers.spawn(async move {
                    match ask(&lane, 0, "/300").await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => assert!(error.is_draining(), "{error:?}"),
                    }
                });
            }
            until("one is served and one waits", || lane.snapshot().waiters == 1 && lane.snapshot().in_use == 1).await;
            let at = lane.snapshot().partitions.iter().position(|part| part.in_use == 1).expect("one");
            let report = match what {
                "origin" => lane.drain_origin(&origin(0), waiting, soon()).await,
                "partition" => lane.drain_partition(at, waiting, soon()).await.expect("there is such a one"),
                _ => Pool::new().with(lane.clone()).drain(waiting, soon()).await,
            };
            callers.close();
            callers.wait().await;
            assert_eq!(answered.load(Ordering::SeqCst), served, "{what} {waiting:?}");
            assert_eq!((report.waiters_refused, report.connections_aborted), (2 - served, 0), "{what} {waiting:?}");
            assert_eq!(lane.snapshot().live, 0, "{what} {waiting:?}");
            assert_eq!(ask(&lane, 0, "/").await.is_ok(), what == "origin", "{what} {waiting:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_an_origin_cuts_what_is_left_at_its_deadline_and_nothing_else() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let lane = Network::default().lane(alpn, LaneLimits { partitions: 1, ..LaneLimits::default() });
        let callers = Callers::new();
        for n in 0..2 {
            let lane = lane.clone();
            callers.spawn(async move { assert_eq!(ask(&lane, n, "/2000").await.is_ok(), n == 1) });
        }
        until("both are served", || lane.snapshot().in_use == 2).await;
        let report = lane.drain_origin(&origin(0), Waiting::Serve, after(Duration::from_millis(100))).await;
        assert_eq!((report.waiters_refused, report.connections_aborted), (0, 1));
        callers.close();
        callers.wait().await;
        settled(&lane).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r02_the_end_of_one_partition_closes_its_connections_and_no_others() {
    let lane = Network::default().lane(Alpn::Http2, LaneLimits { partitions: 4, ..LaneLimits::default() });
    for n in 0..100 {
        ask(&lane, n, "/").await.expect("answered");
    }
    let before = lane.snapshot();
    assert_eq!(before.live, 100);
    let report = lane.drain_partition(2, Waiting::Refuse, after(Duration::ZERO)).await.expect("there is one");
    assert!(report.connections_aborted <= before.partitions[2].live);
    until("its connections are closed", || lane.snapshot().partitions[2].live == 0).await;
    let now = lane.snapshot();
    for n in [0, 1, 3] {
        assert_eq!(now.partitions[n].live, before.partitions[n].live, "partition {n}");
    }
    let mut refused = 0;
    for n in 0..100 {
        refused += usize::from(ask(&lane, n, "/").await.is_err());
    }
    assert_eq!((refused, lane.snapshot().live), (before.partitions[2].live, 100 - refused));
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn r14_a_dead_host_costs_one_dial_per_back_off_step_whoever_asks() {
    let dials = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dials);
    let connector = tower::service_fn(move |_: Origin| {
        count.fetch_add(1, Ordering::SeqCst);
        ready(Err::<Connected, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)))
    });
    let limits = LaneLimits {
        backoff_base: Duration::from_secs(1),
        backoff_max: Duration::from_secs(4),
        ..LaneLimits::default()
    };
    let lane = Lane::builder("dead").limits(limits).connector(connector).build().expect("lane");
    let sfu = lane.origin(&origin(0));
    let (mut first_hand, mut shared) = (0, 0);
    for _ in 0..6_000 {
        let error = sfu.send(get("/"), soon()).await.expect_err("dead");
        assert!(error.is_refused() && error.is_retry_safe(), "{error:?}");
        if error.is_fail_fast() {
            shared += 1
        } else {
            first_hand += 1
        }
        sleep(Duration::from_millis(10)).await;
    }
    let dials = dials.load(Ordering::SeqCst);
    assert_eq!((first_hand, first_hand + shared), (dials, 6_000), "every dial is told first hand once");
    // The least wait is an eighth of the base; the mean of all but the first is two seconds.
    assert!((10..=120).contains(&dials), "{dials} dials in a minute");
    settled(&lane).await;
}

#[tokio::test(start_paused = true)]
async fn r21_the_debug_snapshot_names_the_busiest_and_is_json() {
    let limits = LaneLimits { connections_per_origin_max: 1, ..LaneLimits::default() };
    let lane = Network::default().lane(Alpn::Http1, limits);
    let callers = Callers::new();
    for n in 0..50 {
        for _ in 0..if n == 7 { 9 } else { 2 } {
            let lane = lane.clone();
            callers.spawn(async move { drop(ask(&lane, n, "/500").await) });
        }
    }
    until("all are in line", || lane.snapshot().waiters == 57).await;
    let debug = Pool::new().with(lane.clone()).debug(3).remove(0);
    assert_eq!((debug.top.len(), debug.top[0].origin.as_str()), (3, "https://sfu-7.test:443"));
    assert_eq!((debug.top[0].waiters, debug.top[0].live, debug.top[0].breaker), (8, 1, "closed"));
    let json = serde_json::to_value(&debug).expect("json");
    assert_eq!(json["top"][0]["protocol"], "http/1.1");
    assert_eq!(json["totals"]["permits_off"], 0);
    assert_eq!(json["totals"]["partitions"].as_array().map(Vec::len), Some(8));
    let text = metrics(&lane);
    for name in
        ["waiters", "waiters_oldest_seconds", "dial_queue", "dial_queue_oldest_seconds", "dialling", "live", "idle"]
    {
        assert!(text.contains(&format!("pool_{name}{{lane=\"net\"")), "{name}: {text}");
    }
    for name in
        ["in_use", "heartbeat_age_seconds", "permits_off", "spilled_total", "restarts_total", "dial_slot_seconds"]
    {
        assert!(text.contains(&format!("pool_{name}")), "{name}: {text}");
    }
    callers.close();
    callers.wait().await;
}

fn metrics(lane: &Lane) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    lane.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    text
}

fn sum(text: &str, name: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(start_paused = true)]
async fn r19_a_lane_works_with_every_count_at_its_most() {
    let limits = LaneLimits {
        partitions: 1,
        origins_max: 10_000_000,
        connections_per_origin_max: 65_536,
        connections_max: 1_000_000,
        dials_max: 1_000_000,
        waiters_per_origin_max: 10_000_000,
        waiters_max: 10_000_000,
        h2_streams_max: 100_000,
        ..LaneLimits::default()
    };
    for alpn in [Alpn::Http1, Alpn::Http2] {
        let lane = Network::default().lane(alpn, limits.clone());
        for _ in 0..70 {
            // Each dial that works doubles how many there may be.
            lane.origin(&origin(0)).probe_dial(soon()).await.expect("dialled");
        }
        assert_eq!(ask(&lane, 0, "/").await.expect("answered"), "ok");
        assert!(lane.snapshot().partitions.iter().all(|part| part.cell_panics == 0));
    }
}

/// As `connect` says on a machine without IPv6, or when all ports towards one address are in use.
#[tokio::test(start_paused = true)]
async fn r01_an_origin_that_no_address_of_ours_reaches_backs_off_alone() {
    let network = Network::default();
    let connector = tower::service_fn(move |host: Origin| {
        let refused = host == origin(0);
        let connected = network.connect(Alpn::Http1).into_inner().expect("a pipe");
        ready(if refused { Err(std::io::Error::from(std::io::ErrorKind::AddrNotAvailable)) } else { Ok(connected) })
    });
    let limits = LaneLimits { partitions: 1, ..LaneLimits::default() };
    let lane = Lane::builder("no address").limits(limits).connector(connector).build().expect("lane");
    assert_eq!(ask(&lane, 1, "/").await.expect("answered"), "ok");
    let began = Instant::now();
    let error = ask(&lane, 0, "/").await.expect_err("no way there");
    assert!(error.is_local() && !error.is_unreachable() && !error.is_fail_fast(), "{error:?}");
    assert!(ask(&lane, 0, "/").await.expect_err("it backs off").is_fail_fast());
    assert_eq!(lane.snapshot().idle, 1, "a healthy origin lost its connection");
    assert_eq!(ask(&lane, 2, "/").await.expect("answered"), "ok");
    assert_eq!(Instant::now(), began, "others had to wait");
}
