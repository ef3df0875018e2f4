//! A fault that goes on costs a partition some service, and not all of it over and over.

use super::*;

#[tokio::test(start_paused = true)]
async fn r19_a_timer_that_always_panics_does_not_have_its_partition_rebuilt_all_the_time() {
    let lane = lane(Alpn::Http2);
    fault::arm(Point::TimerBegins, 0, u32::MAX);
    sleep(Duration::from_secs(120)).await;
    let rebuilds = lane.snapshot().partitions[0].rebuilds;
    assert!((2..=8).contains(&rebuilds), "{rebuilds} rebuilds in two minutes");
    fault::disarm();
    recovered(&lane, "a timer that panicked for long").await;
}

#[tokio::test(start_paused = true)]
async fn r19_a_line_that_always_panics_does_so_at_its_own_pace_and_not_at_that_of_requests() {
    let lane = lane(Alpn::Http2);
    fault::arm(Point::Scheduler, 0, 10_000);
    for n in 0..1_000 {
        let sfu = lane.origin(&origin(&format!("{n}")));
        drop(timeout(Duration::from_millis(1), once(&sfu, 2)).await);
    }
    let panics = 10_000 - fault::armed();
    assert!((5..=30).contains(&panics), "{panics} panics in a second or two");
    assert!(lane.snapshot().partitions[0].rebuilds <= 2, "{:?}", lane.snapshot());
    fault::disarm();
    recovered(&lane, "a line that panicked for long").await;
}

#[tokio::test(start_paused = true)]
async fn r19_a_rebuild_that_panics_takes_nobody_along() {
    let lane = lane(Alpn::Http2);
    let partition = partition(&lane);
    fault::arm(Point::Rebuild, 0, 1);
    (0..6).for_each(|_| partition.panicked("test", "on purpose"));
    assert_eq!(fault::armed(), 0, "it was not rebuilt");
    recovered(&lane, "a rebuild that panicked").await;
}

#[tokio::test(start_paused = true)]
async fn r19_a_timer_that_does_not_come_to_its_turn_gets_a_successor_and_nobody_is_told_anything() {
    let lane = lane(Alpn::Http2);
    let idle = lane.origin(&origin("a"));
    once(&idle, 2).await.expect("answered");
    let waits = stuck_caller(&lane, Instant::now() + PATIENCE);
    // To the watchdog it looks so when the timer is next on a thread that another task blocks.
    partition(&lane).timer.lock().cancel();
    let told = timeout(2 * PATIENCE, waits).await.expect("told in time").expect("no panic").expect_err("late");
    assert_eq!(told.cause(), "timeout");
    let now = lane.snapshot().partitions[0];
    assert!(now.rebuilds == 0 && now.live == 1 && now.heartbeat_age_ms <= 1_000, "{now:?}");
}

#[tokio::test(start_paused = true)]
async fn r04_who_panics_while_joining_a_line_leaves_no_ghost_in_it() {
    let lane = lane(Alpn::Http1);
    lane.set_limits(LaneLimits { connections_per_origin_max: 1, ..lane.limits() }).expect("limits");
    let sfu = lane.origin(&origin("a"));
    let held = sfu.hold(Instant::now() + PATIENCE).await.expect("a connection");
    fault::arm(Point::Executes, 0, 1);
    let panicking = sfu.clone();
    let joins = TaskTracker::new().spawn(async move { once(&panicking, 2).await });
    assert!(joins.await.expect_err("it panicked").is_panic());
    let next = TaskTracker::new().spawn(async move { once(&sfu, 2).await });
    sleep(Duration::from_millis(10)).await;
    assert_eq!(lane.snapshot().waiters, 1, "somebody waits who is not there");
    drop(held);
    timeout(PATIENCE / 2, next).await.expect("its turn").expect("no panic").expect("answered");
}
