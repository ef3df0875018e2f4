//! Who gets a dial slot, when nobody does, and how long those are left alone that failed.
//!
//! Duplex pipes under paused time.

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Callers, after, get, serve, settled, soon, until};
use parking_lot::Mutex;
use pool::{Alpn, BoxError, Connected, Error, Lane, LaneLimits, Origin, OriginHandle};
use tokio::io::duplex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

/// What `connect` says when the process may open no more files.
const EMFILE: i32 = 24;

/// How long a partition's dials pause after one failed for want of something that all need.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection to a host that answers at once, and `/never` not at all.
fn answering(servers: &TaskTracker, alpn: Alpn) -> Connected {
    let (client, server) = duplex(16 * 1024);
    servers.spawn(serve(server, Arc::default(), Arc::default()));
    Connected::ready(client, alpn)
}

/// A lane of one partition; `dial` says what becomes of each dial.
fn lane<F>(limits: &LaneLimits, dial: impl Fn(Origin) -> F + Clone + Send + Sync + 'static) -> Lane
where
    F: Future<Output = Result<Connected, BoxError>> + Send + 'static,
{
    let limits = LaneLimits { partitions: 1, ..limits.clone() };
    Lane::builder("net").limits(limits).connector(tower::service_fn(dial)).build().expect("lane")
}

fn host(lane: &Lane, name: &str) -> OriginHandle {
    lane.origin(&Origin::parse(&format!("https://{name}.test")).expect("origin"))
}

async fn ask(sfu: &OriginHandle) -> Result<(), Error> {
    sfu.send(get("/"), soon()).await?.into_body().bytes(64).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn r01_hosts_that_fail_at_once_are_tried_again_at_different_times() {
    let base = Duration::from_secs(10);
    let limits = LaneLimits { backoff_base: base, backoff_max: base, ..LaneLimits::default() };
    let lane = lane(&limits, async |_| Err(BoxError::from(io::Error::from(io::ErrorKind::ConnectionRefused))));
    let (dead, many) = (Callers::new(), 200);
    for n in 0..many {
        let sfu = host(&lane, &format!("dead-{n}"));
        dead.spawn(async move { ask(&sfu).await.expect_err("refused") });
    }
    dead.close();
    dead.wait().await;
    let left =
        lane.debug(many).top.into_iter().map(|row| Duration::from_millis(row.backoff_left_ms.expect("it waits")));
    let early = left.filter(|left| *left < base / 2).count();
    // A hundred, give or take seven.
    assert!((many / 5..=many * 4 / 5).contains(&early), "{early} of {many} wait for less than half of the bound");
}

#[tokio::test(start_paused = true)]
async fn connections_opened_at_once_do_not_all_end_at_once() {
    let age_max = Duration::from_secs(100);
    let limits = LaneLimits { age_max, idle_timeout: 10 * age_max, ..LaneLimits::default() };
    let servers = TaskTracker::new();
    let lane = lane(&limits, move |_| {
        let connected = answering(&servers, Alpn::Http1);
        async { Ok(connected) }
    });
    let many = 200;
    for n in 0..many {
        ask(&host(&lane, &format!("sfu-{n}"))).await.expect("answered");
    }
    sleep(age_max * 79 / 100).await;
    assert_eq!(lane.snapshot().live, many, "four fifths of their age are theirs");
    sleep(age_max * 11 / 100).await;
    let live = lane.snapshot().live;
    // Half of what is drawn: a hundred, give or take seven.
    assert!((many / 5..=many * 4 / 5).contains(&live), "{live} of {many} are left");
    until("all have gone", || lane.snapshot().live == 0).await;
    settled(&lane).await;
}

/// Two short of files, the third dial works. Of five hosts each has an idle connection.
#[tokio::test(start_paused = true)]
async fn r04_a_shortage_of_descriptors_closes_an_idle_connection_and_stops_all_dials_for_a_moment() {
    let (servers, short, dials) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (left, times) = (Arc::clone(&short), Arc::clone(&dials));
    let lane = lane(&LaneLimits::default(), move |_| {
        times.lock().push(Instant::now());
        let runs_out = left.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let connected = answering(&servers, Alpn::Http1);
        async move { if runs_out { Err(io::Error::from_raw_os_error(EMFILE).into()) } else { Ok(connected) } }
    });
    let healthy: Vec<_> = (0..5).map(|n| host(&lane, &format!("sfu-{n}"))).collect();
    for sfu in &healthy {
        ask(sfu).await.expect("answered");
    }
    until("all are back", || lane.snapshot().idle == 5).await;
    dials.lock().clear();

    short.store(2, Ordering::SeqCst);
    let (new, other) = (host(&lane, "new"), host(&lane, "other"));
    for failed in 1..=2 {
        let error = ask(&new).await.expect_err("no file");
        assert!(error.is_local() && !error.is_fail_fast(), "{error:?}");
        until("an idle connection makes room", || lane.snapshot().live == 5 - failed).await;
    }
    let callers = Callers::new();
    for sfu in [new.clone(), other.clone()] {
        callers.spawn(async move { ask(&sfu).await.expect("served when there are files again") });
    }
    callers.close();
    callers.wait().await;
    let dials = dials.lock().clone();
    assert_eq!((dials.len(), lane.snapshot().live), (4, 5));
    let pauses: Vec<_> = dials.windows(2).map(|two| two[1].saturating_duration_since(two[0])).collect();
    assert!(pauses[0] >= PAUSE && pauses[1] >= PAUSE && pauses[2] < PAUSE, "{pauses:?}");
    for sfu in healthy.iter().chain([&new, &other]) {
        assert_eq!(sfu.breaker(), pool::BreakerState::Closed, "{}: it has not failed", sfu.origin());
    }
    settled(&lane).await;
}

/// Hosts of which `sfu`'s dials are done one by one, once they are slow, and those of others never.
#[tokio::test(start_paused = true)]
async fn r01_one_origin_dials_on_most_slots_while_it_is_alone_and_on_a_quarter_while_others_wait() {
    let (servers, slow, done) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(0)));
    let (is_slow, may_end) = (Arc::clone(&slow), Arc::clone(&done));
    let limits = LaneLimits {
        dials_max: 16,
        connections_per_origin_max: 1_000,
        dial_timeout: Duration::from_hours(1),
        ..LaneLimits::default()
    };
    let lane = lane(&limits, move |origin| {
        let (servers, slow, done) = (servers.clone(), is_slow.load(Ordering::SeqCst), Arc::clone(&may_end));
        async move {
            if !origin.host().starts_with("sfu") {
                std::future::pending::<()>().await;
            }
            if slow {
                done.acquire().await?.forget();
            }
            Ok(answering(&servers, Alpn::Http1))
        }
    });
    let (sfu, callers, late) = (host(&lane, "sfu"), Callers::new(), after(Duration::from_hours(2)));
    let hold = |name: &str| {
        let sfu = host(&lane, name);
        callers.spawn(async move {
            let held = sfu.hold(late).await;
            std::future::pending::<()>().await;
            drop(held);
        });
    };
    for _ in 0..16 {
        sfu.probe_dial(soon()).await.expect("dialled"); // Proven, and may double its connections.
    }
    slow.store(true, Ordering::SeqCst);
    (0..500).for_each(|_| hold("sfu"));
    let dialling = |name: &str| {
        let rows = lane.debug(usize::MAX).top.into_iter();
        rows.filter(|row| row.origin.contains(name)).map(|row| row.dialling).sum::<usize>()
    };
    until("it has three quarters", || dialling("sfu") == 12).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(dialling("sfu"), 12, "the last quarter is for whoever comes");

    (0..30).for_each(|n| hold(&format!("hole-{n}")));
    until("the last quarter is taken, and others wait", || dialling("hole") == 4).await;
    for ended in 1..=8 {
        done.add_permits(1);
        until("the others get what it gives back", || dialling("hole") == 4 + ended).await;
        assert_eq!(dialling("sfu"), 12 - ended);
    }
    // The last quarter is its own.
    for _ in 0..8 {
        let live = lane.snapshot().live;
        done.add_permits(1);
        until("one more works", || lane.snapshot().live == live + 1 && dialling("sfu") == 4).await;
    }
    assert_eq!((dialling("hole"), lane.snapshot().dial_queue > 0), (12, true));
}

#[tokio::test(start_paused = true)]
async fn r03_requests_that_never_end_get_as_many_shared_connections_as_they_need() {
    let servers = TaskTracker::new();
    let lane = lane(&LaneLimits { h2_streams_max: 2, ..LaneLimits::default() }, move |_| {
        let connected = answering(&servers, Alpn::Http2);
        async { Ok(connected) }
    });
    let callers = Callers::new();
    for _ in 0..6 {
        let sfu = host(&lane, "sfu");
        callers.spawn(async move { drop(sfu.send(get("/never"), after(Duration::from_hours(1))).await) });
    }
    until("all are under way", || lane.snapshot().in_use == 6).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!((lane.snapshot().live, lane.snapshot().idle), (3, 0));
}
