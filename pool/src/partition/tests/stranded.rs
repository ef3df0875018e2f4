//! Nobody waits for ever in a cell that the partition's machinery has lost sight of.

use super::*;
use crate::Waiting;

type Told = Result<Result<(), crate::Error>, tokio::task::JoinError>;

/// A lane whose only dial slot is taken by a dial that never ends, and a caller of `a` in line for it.
async fn in_line(deadline: Instant) -> (Lane, tokio::task::JoinHandle<Result<(), crate::Error>>) {
    let lane = lane(Alpn::Http2);
    lane.set_limits(LaneLimits { dials_max: 1, ..lane.limits() }).expect("limits");
    drop(stuck_caller(&lane, deadline));
    sleep(Duration::from_millis(20)).await;
    let sfu = lane.origin(&origin("a"));
    let waits = TaskTracker::new().spawn(async move { sfu.send(get(), deadline).await.map(drop) });
    sleep(Duration::from_millis(20)).await;
    assert_eq!(lane.snapshot().dial_queue, 1, "not in line");
    (lane, waits)
}

fn aborted(told: Told) {
    let told = told.expect("no panic").expect_err("rebuilt");
    assert!(told.is_retry_safe() && told.cause() == "aborted", "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn r03_a_caller_in_a_cell_that_a_rebuild_could_not_lock_is_told_once_it_can() {
    let (lane, waits) = in_line(Instant::now() + 4 * PATIENCE).await;
    let partition = partition(&lane);
    let cell = partition.cell(&origin("a"));
    {
        let _for_a_moment = cell.state.lock();
        partition.rebuild("test");
        partition.rebuild("test");
        assert_eq!(partition.leaving_cells().len(), 1);
    }
    aborted(timeout(PATIENCE, waits).await.expect("told soon"));
    assert!(partition.leaving_cells().is_empty(), "it is looked at for ever");
}

#[tokio::test(start_paused = true)]
async fn r04_connections_of_a_cell_that_a_rebuild_could_not_lock_are_not_kept() {
    let lane = lane(Alpn::Http2);
    once(&lane.origin(&origin("idle")), 2).await.expect("answered");
    let held = lane.origin(&origin("busy")).hold(Instant::now() + PATIENCE).await.expect("a connection");
    let partition = partition(&lane);
    let cells = ["idle", "busy"].map(|name| partition.cell(&origin(name)));
    {
        let _for_a_moment = (cells[0].state.lock(), cells[1].state.lock());
        partition.rebuild("test");
    }
    sleep(Duration::from_secs(3)).await;
    assert_eq!(partition.connections(), 1, "only what is in use");
    drop(held);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(partition.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cell_in_the_place_of_one_that_was_draining_takes_no_newcomers() {
    let lane = lane(Alpn::Http2);
    let sfu = lane.origin(&origin("a"));
    let partition = partition(&lane);
    partition.begin_drain(Intake::ServeLine);
    let cell = partition.cell(&origin("a"));
    {
        let _for_a_moment = cell.state.lock();
        partition.rebuild("test");
        assert_eq!(sfu.ended(), 0, "the handle asks the new cell");
        assert_eq!(sfu.breaker(), crate::BreakerState::Closed, "and not the lock of the old one");
    }
    assert!(once(&sfu, 2).await.expect_err("draining").is_draining());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_cell_that_a_rebuild_could_not_lock_stays_forgotten() {
    let (lane, waits) = in_line(Instant::now() + 4 * PATIENCE).await;
    let partition = partition(&lane);
    let sfu = lane.origin(&origin("a"));
    let cell = partition.cell(&origin("a"));
    lane.forget(&origin("a"));
    assert!(waits.await.expect("no panic").expect_err("forgotten").is_draining());
    {
        let _for_a_moment = cell.state.lock();
        partition.rebuild("test");
    }
    assert!(once(&sfu, 2).await.expect_err("forgotten").is_draining());
    assert_eq!(lane.snapshot().origins, 1, "the handle has made the origin anew");
}

#[tokio::test(start_paused = true)]
async fn r03_who_is_still_in_line_when_an_origin_is_drained_is_told_though_its_ring_is_lost() {
    let deadline = Instant::now() + PATIENCE;
    let (lane, waits) = in_line(deadline).await;
    let drained = origin("a");
    let drain = lane.drain_origin(&drained, Waiting::Serve, deadline + PATIENCE);
    assert!(timeout(Duration::from_millis(10), drain).await.is_err(), "nobody is in line");
    drop(partition(&lane).timers.clear());
    let told = timeout(2 * PATIENCE, waits).await.expect("told").expect("no panic");
    assert_eq!(told.expect_err("late").cause(), "timeout");
    sleep(Duration::from_secs(2)).await;
    assert!(partition(&lane).leaving_cells().is_empty(), "it is looked at for ever");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_outlives_its_lane_keeps_no_cell_alive() {
    let lane = lane(Alpn::Http1);
    let sfu = lane.origin(&origin("a"));
    let cell = Arc::downgrade(&partition(&lane).cell(&origin("a")));
    let response = sfu.send(get(), Instant::now() + PATIENCE).await.expect("answered");
    drop(timeout(Duration::ZERO, lane.drain_origin(&origin("a"), Waiting::Serve, Instant::now() + PATIENCE)).await);
    assert!(!partition(&lane).evict_one(), "it is in use"); // From now on it is listed again when it falls idle.
    drop((lane, sfu));
    drop(response.into_body().bytes(64).await);
    sleep(PATIENCE).await;
    assert_eq!(cell.strong_count(), 0);
}
