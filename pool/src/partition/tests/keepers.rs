//! Tasks of a whole lane that panic and do their work all the same.

use rate_limit::Levers;
use serde_json::json;

use super::*;

#[tokio::test(start_paused = true)]
async fn r19_a_hang_is_noticed_by_a_watchdog_that_panicked() {
    let lane = lane(Alpn::Http1);
    fault::arm(Point::Watchdog, 2, 1);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(fault::armed(), 0, "it has panicked");
    let waits = stuck_caller(&lane, Instant::now() + 4 * PATIENCE);
    sleep(Duration::from_millis(1)).await;
    partition(&lane).timer.lock().cancel(); // It will never beat again,
    sleep(Duration::from_millis(1)).await;
    partition(&lane).ringing.store(true, Ordering::SeqCst); // and was in the middle of something.
    let told = timeout(PATIENCE, waits).await.expect("told soon").expect("no panic").expect_err("rebuilt");
    assert!(told.is_retry_safe(), "{told:?}");
    assert_eq!(lane.snapshot().partitions[0].rebuilds, 1, "it was noticed");
}

#[tokio::test(start_paused = true)]
async fn r19_r20_a_lever_is_followed_by_a_task_that_panicked() {
    let (lane, levers) = (lane(Alpn::Http1), Levers::new());
    lane.register_levers(&levers, "pool.net");
    sleep(Duration::from_secs(1)).await;
    fault::arm(Point::Levers, 0, 1);
    levers.set("pool.net.dials_max", &json!(32), "test", None, 0).expect("in range");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((fault::armed(), lane.limits().dials_max), (0, 32), "it came back and looked");
    levers.set("pool.net.dials_max", &json!(48), "test", None, 0).expect("in range");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(lane.limits().dials_max, 48, "and follows");
}
