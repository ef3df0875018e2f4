//! What waits costs those who come and go nothing, and does not add up.
//!
//! Counted, not timed: allocations (an allocator that counts), and wakers called. The one clock is there to catch a
//! walk through all who wait, which neither count would show: it would take a hundred times as long.

mod common;

use std::alloc::System;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
#[expect(clippy::disallowed_types, reason = "the cost of an operation is not virtual")]
use std::time::Instant as Clock;

use common::{after, settled, soon};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pool::{Alpn, Body, BoxError, Connected, Error, HeldConnection, Lane, LaneLimits, Origin, OriginHandle};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::io::duplex;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts are the process's, so these tests take turns, and each begins when all other threads sleep: those of the
/// harness and of the test that waits for its turn allocate as they start, which on a busy machine may be late.
#[expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "other threads know no virtual time")]
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let alone = ALONE.lock().await;
    let (began, mut quiet) = (Clock::now(), 0);
    // Who ends may have woken another just after that one was looked at: a few looks have to agree.
    while quiet < 3 {
        assert!(began.elapsed() < Duration::from_secs(120), "{} threads do not come to rest", awake());
        std::thread::sleep(Duration::from_millis(1));
        quiet = if awake() == 1 { quiet + 1 } else { 0 };
    }
    alone
}

/// Threads of this process that do not sleep, this one among them.
fn awake() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux tells of threads").flatten();
    let stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    stats.filter(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" S"))).count()
}

fn allocations() -> usize {
    ALLOCATOR.stats().allocations
}

fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A network with one connection for everybody. Requests take `work` and are judged by the deadline they carry.
fn network(servers: TaskTracker, work: Duration, late: &Arc<AtomicUsize>, limits: &LaneLimits) -> Lane {
    let late = Arc::clone(late);
    let connector = tower::service_fn(move |_: Origin| {
        let ((client, server), late) = (duplex(16 * 1024), Arc::clone(&late));
        servers.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let began = request.uri().path().trim_start_matches('/').parse::<u64>().unwrap_or(u64::MAX);
                late.fetch_add(usize::from(millis() > began), Ordering::Relaxed);
                async move {
                    sleep(work).await;
                    Ok::<_, Infallible>(Response::new(String::from("ok")))
                }
            });
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service).await);
        });
        std::future::ready(Ok::<_, BoxError>(Connected::ready(client, Alpn::Http1)))
    });
    let limits = LaneLimits { partitions: 1, connections_per_origin_max: 1, ..limits.clone() };
    Lane::builder("flat").limits(limits).connector(connector).build().expect("lane")
}

/// Virtual time since the first call.
fn millis() -> u64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let now = after(Duration::ZERO);
    u64::try_from(now.saturating_duration_since(*BEGAN.get_or_init(|| now)).as_millis()).unwrap_or(u64::MAX)
}

type Parked<'a> = Pin<Box<dyn Future<Output = Result<HeldConnection, Error>> + 'a>>;

fn park<'a>(sfu: &'a OriginHandle, many: usize, waker: &Waker) -> Vec<Option<Parked<'a>>> {
    let deadline = after(Duration::from_secs(3_600));
    let one = |_| {
        let mut caller: Parked<'a> = Box::pin(sfu.hold(deadline));
        assert!(caller.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        Some(caller)
    };
    (0..many).map(one).collect()
}

/// What a thousand callers cost who leave from among this many.
#[derive(Debug)]
struct Cost {
    allocations: usize,
    wakes: usize,
    took: Duration,
}

const LEAVERS: usize = 1_000;

#[expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "the cost of an operation is not virtual")]
fn leave(parked: &mut [Option<Parked<'_>>], wakes: &Wakes) -> Cost {
    let step = parked.len() / LEAVERS;
    let leavers: Vec<_> = parked.iter_mut().step_by(step).take(LEAVERS).map(Option::take).collect();
    let (allocations_before, wakes_before) = (allocations(), wakes.0.load(Ordering::SeqCst));
    let began = Clock::now();
    drop(leavers);
    let took = began.elapsed();
    let wakes = wakes.0.load(Ordering::SeqCst) - wakes_before;
    Cost { allocations: allocations() - allocations_before, wakes, took }
}

#[tokio::test(start_paused = true)]
async fn r03_leaving_and_being_served_cost_the_same_among_a_thousand_and_a_hundred_thousand() {
    let _alone = alone().await;
    let most = 1_000_000;
    let limits = LaneLimits { waiters_max: most, waiters_per_origin_max: most, ..LaneLimits::default() };
    let lane = network(TaskTracker::new(), Duration::ZERO, &Arc::default(), &limits);
    let sfu = lane.origin(&Origin::parse("https://sfu.test").expect("origin"));
    let cost = async |many: usize| {
        let held = sfu.hold(soon()).await.expect("the only connection");
        let wakes = Arc::new(Wakes::default());
        let mut parked = park(&sfu, many, &Waker::from(Arc::clone(&wakes)));
        let cost = leave(&mut parked, &wakes);
        assert_eq!(lane.snapshot().waiters, many - LEAVERS);
        let told = wakes.0.load(Ordering::SeqCst);
        // The connection goes from hand to hand; each time one caller is woken, and it is the first in line.
        let mut held = Some(held);
        for (served, caller) in parked.iter_mut().flatten().take(500).enumerate() {
            yield_now().await; // Else tokio makes a task wait that does so much at once.
            let before = allocations();
            drop(held.take());
            let Poll::Ready(next) = caller.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                panic!("the first in line is served");
            };
            assert_eq!(wakes.0.load(Ordering::SeqCst) - told, served + 1, "one is woken for one connection");
            assert!(allocations() - before <= 8, "{} allocations to hand a connection on", allocations() - before);
            held = Some(next.expect("a connection"));
        }
        drop((parked, held));
        settled(&lane).await;
        cost
    };
    for round in 0.. {
        let (few, many) = (cost(2_000).await, cost(100_000).await);
        assert!(few.wakes <= LEAVERS && many.wakes <= LEAVERS, "who leaves wakes nobody else: {few:?} {many:?}");
        assert!(many.allocations <= few.allocations + 8, "{few:?} {many:?}");
        // A walk would cost fifty times as much; caches and a busy machine cost a few times.
        if many.took < few.took * 20 {
            break;
        }
        assert!(round < 5, "{few:?} {many:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r04_ten_times_too_much_for_a_minute_stays_within_its_line_and_its_memory() {
    let _alone = alone().await;
    let (work, waiters_max, late) = (Duration::from_millis(10), 30, Arc::new(AtomicUsize::new(0)));
    let limits = LaneLimits { waiters_per_origin_max: waiters_max, ..LaneLimits::default() };
    let lane = network(TaskTracker::new(), work, &late, &limits);
    let sfu = lane.origin(&Origin::parse("https://sfu.test").expect("origin"));
    let (callers, answered) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
    let (mut after_20_s, mut longest) = (0, 0);
    for ms in 0..60_000_u64 {
        let (sfu, answered) = (sfu.clone(), Arc::clone(&answered));
        callers.spawn(async move {
            let request = Request::get(format!("/{}", millis() + 250)).body(Body::empty()).expect("request");
            if let Ok(answer) = sfu.send(request, after(Duration::from_millis(250))).await
                && answer.into_body().bytes(64).await.is_ok()
            {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        sleep(Duration::from_millis(1)).await;
        longest = lane.snapshot().waiters.max(longest);
        if ms == 20_000 {
            after_20_s = allocated();
        }
    }
    let grown = allocated().saturating_sub(after_20_s);
    callers.close();
    callers.wait().await;
    let answered = answered.load(Ordering::Relaxed);
    assert!((1..=waiters_max).contains(&longest), "{longest} waited");
    assert_eq!(late.load(Ordering::Relaxed), 0, "a request started after its deadline");
    assert!(answered > 2_000, "{answered} of at most 6,000 were answered");
    assert!(grown < 64 * 1024, "{grown} bytes more after 40 s of the same");
    settled(&lane).await;
}
