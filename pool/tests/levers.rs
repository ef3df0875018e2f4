//! Levers of a lane that are turned while it is used, each where it acts.
//!
//! Duplex pipes under paused time.

mod common;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::{Callers, after, get, serve, settled, soon, until};
use pool::{Alpn, BoxError, Connected, Lane, LaneLimits, Origin, OriginHandle};
use rate_limit::Levers;
use tokio::io::duplex;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};

/// Far below every default, and far above what a step of a test takes.
const SHORT: &str = "100ms";

/// Longer than anything that a short lever bounds, shorter than any default.
const BITTEN: Duration = Duration::from_secs(1);

/// A lane of one partition and its levers.
struct Rig {
    lane: Lane,
    levers: Levers,
}

// === impl Rig ===

impl Rig {
    /// Hosts answer at once, and `/never` not at all. Those called `hole-…` take no connection, `dead-…` refuse it, and
    /// `mute-…` say nothing on it.
    fn new(limits: &LaneLimits) -> Self {
        let servers = TaskTracker::new();
        let connector = tower::service_fn(move |origin: Origin| {
            let servers = servers.clone();
            async move {
                let (client, server) = duplex(16 * 1024);
                match origin.host().split('-').next() {
                    Some("hole") => std::future::pending::<()>().await,
                    Some("dead") => return Err(BoxError::from(io::Error::from(io::ErrorKind::ConnectionRefused))),
                    Some("mute") => drop(servers.spawn(async move {
                        std::future::pending::<()>().await;
                        drop(server);
                    })),
                    _ => drop(servers.spawn(serve(server, Arc::default(), Arc::default()))),
                }
                Ok(Connected::ready(client, Alpn::Http2))
            }
        });
        let limits = LaneLimits { partitions: 1, ..limits.clone() };
        let lane = Lane::builder("net").limits(limits).connector(connector).build().expect("lane");
        let levers = Levers::new();
        lane.register_levers(&levers, "pool.net");
        Self { lane, levers }
    }

    fn host(&self, name: &str) -> OriginHandle {
        self.lane.origin(&Origin::parse(&format!("https://{name}.test")).expect("origin"))
    }

    async fn turn(&self, limit: &str, value: impl Into<serde_json::Value>) {
        let before = self.lane.limits();
        let name = format!("pool.net.{limit}");
        self.levers.set(&name, &value.into(), "ops", None, 0).unwrap_or_else(|error| panic!("{error}"));
        until(&format!("{limit} is applied"), || self.lane.limits() != before).await;
    }

    /// A caller of this host, who never gets an answer.
    fn call(&self, callers: &Callers, name: &str) {
        let sfu = self.host(name);
        callers.spawn(async move { drop(sfu.send(get("/never"), soon()).await) });
    }
}

fn since(began: Instant) -> Duration {
    Instant::now().saturating_duration_since(began)
}

#[tokio::test(start_paused = true)]
async fn r20_fewer_requests_share_a_connection_from_now_on() {
    let (rig, callers) = (Rig::new(&LaneLimits::default()), Callers::new());
    let carried = |requests: usize, connections: usize| {
        let lane = rig.lane.clone();
        async move {
            until(&format!("{requests} requests are under way"), || lane.snapshot().in_use == requests).await;
            assert_eq!(lane.snapshot().live, connections, "for {requests} requests");
        }
    };
    (0..4).for_each(|_| rig.call(&callers, "sfu"));
    carried(4, 1).await;
    rig.turn("h2_streams_max", 2).await;
    (0..2).for_each(|_| rig.call(&callers, "sfu"));
    carried(6, 2).await;
    rig.call(&callers, "sfu");
    carried(7, 3).await;
}

#[tokio::test(start_paused = true)]
async fn r20_more_dials_start_at_once_and_those_to_come_end_sooner() {
    let rig = Rig::new(&LaneLimits { dials_max: 8, dial_timeout: Duration::from_mins(10), ..LaneLimits::default() });
    let callers = Callers::new();
    (0..20).for_each(|n| rig.call(&callers, &format!("hole-{n}")));
    until("the unproven have their slots", || rig.lane.snapshot().dialling == 6).await;
    assert_eq!(rig.lane.snapshot().dial_queue, 14);
    rig.turn("dials_max", 16).await;
    until("they have those that came too", || rig.lane.snapshot().dialling == 12).await;
    assert_eq!(rig.lane.snapshot().dial_queue, 8);

    let rig = Rig::new(&LaneLimits::default());
    rig.turn("dial_timeout", SHORT).await;
    let began = Instant::now();
    let error = rig.host("hole-0").send(get("/"), soon()).await.expect_err("nobody is there");
    assert!(error.is_timeout() && since(began) < BITTEN, "{error:?} after {:?}", since(began));
}

#[tokio::test(start_paused = true)]
async fn r20_requests_without_a_deadline_get_the_lane_s_as_it_is_now() {
    let rig = Rig::new(&LaneLimits::default());
    rig.turn("request_timeout", SHORT).await;
    let (mut sfu, began) = (rig.host("sfu"), Instant::now());
    let error = sfu.ready().await.expect("ready").call(get("/never")).await.expect_err("no answer");
    assert!(error.is_timeout() && since(began) < BITTEN, "{error:?} after {:?}", since(began));
}

#[tokio::test(start_paused = true)]
async fn r20_connections_live_idle_and_stay_silent_as_long_as_their_levers_say() {
    for (host, levers) in
        [("sfu", &["idle_timeout"][..]), ("sfu", &["age_max"]), ("mute-0", &["ping_interval", "ping_timeout"])]
    {
        let rig = Rig::new(&LaneLimits::default());
        for lever in levers {
            rig.turn(lever, SHORT).await;
        }
        let began = Instant::now();
        rig.host(host).probe_dial(after(BITTEN / 2)).await.expect("connected");
        assert_eq!(rig.lane.snapshot().live, 1, "{levers:?}");
        until(&format!("the connection is closed by {levers:?}"), || rig.lane.snapshot().live == 0).await;
        assert!(since(began) < BITTEN, "{levers:?}: {:?}", since(began));
        settled(&rig.lane).await;
    }
}

#[tokio::test(start_paused = true)]
async fn r20_a_host_that_failed_is_left_alone_as_long_as_the_levers_say() {
    let rig = Rig::new(&LaneLimits { backoff_max: Duration::from_hours(1), ..LaneLimits::default() });
    let dead = rig.host("dead-0");
    let fails = async || {
        dead.send(get("/"), soon()).await.expect_err("refused");
        rig.lane.debug(1).top[0].backoff_left_ms.expect("it backs off")
    };
    rig.turn("backoff_max", "1s").await;
    for _ in 0..20 {
        let left = fails().await;
        assert!(left <= 1_000, "{left} ms left");
        sleep(Duration::from_millis(left + 1)).await;
    }
    // An eighth of it is the least.
    rig.turn("backoff_base", "600s").await;
    let left = fails().await;
    assert!(left >= 75_000, "{left} ms left");
}

#[tokio::test(start_paused = true)]
async fn r20_fewer_handshakes_callers_and_origins_are_let_in_at_once() {
    let rig = Rig::new(&LaneLimits::default());
    assert!(rig.lane.debug(0).handshakes_limit > 1);
    rig.turn("handshakes_max", 1).await;
    assert_eq!(rig.lane.debug(0).handshakes_limit, 1);

    let callers = Callers::new();
    (0..3).for_each(|n| rig.call(&callers, &format!("hole-{n}")));
    until("three wait", || rig.lane.snapshot().waiters == 3).await;
    rig.turn("waiters_max", 3).await;
    let refused = rig.host("hole-3").hold(soon()).await.map(drop).expect_err("the line is full");
    assert!(refused.is_saturated(), "{refused:?}");
    rig.turn("waiters_max", 4).await;
    rig.host("sfu").send(get("/"), soon()).await.expect("there is a place");

    // Four are in use, and a partition may have half as many again as its share.
    rig.turn("origins_max", 4).await;
    for n in 5..=6 {
        rig.host(&format!("sfu-{n}")).send(get("/"), soon()).await.expect("there is room");
    }
    let refused = rig.host("sfu-7").hold(soon()).await.map(drop).expect_err("one too many");
    assert!(refused.is_saturated(), "{refused:?}");
}
