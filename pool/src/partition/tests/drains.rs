//! The end of a partition is the end of all it holds, listed or not.

use super::*;
use crate::{DrainReport, Waiting};

const SECOND: Duration = Duration::from_secs(1);

/// Drains the only partition of a lane within a second.
async fn drained(lane: &Lane, waiting: Waiting) -> DrainReport {
    lane.drain_partition(0, waiting, Instant::now() + SECOND).await.expect("there is one")
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_partition_ends_the_line_and_the_dials_of_an_origin_that_was_drained_before() {
    for waiting in [Waiting::Refuse, Waiting::Serve] {
        let lane = lane(Alpn::Http1);
        let told = stuck_caller(&lane, Instant::now() + 2 * PATIENCE);
        sleep(Duration::from_millis(20)).await;
        let hole = origin("hole");
        let drain = lane.drain_origin(&hole, Waiting::Serve, Instant::now() + PATIENCE);
        assert!(timeout(Duration::from_millis(1), drain).await.is_err(), "somebody is in line");
        let report = drained(&lane, waiting).await;
        assert_eq!((report.waiters_refused, report.connections_aborted), (1, 1), "{waiting:?}");
        assert_eq!(partition(&lane).connections(), 0, "{waiting:?}: its dial goes on");
        let told = timeout(SECOND, told).await.expect("told").expect("no panic").expect_err("drained");
        assert!(told.is_draining(), "{waiting:?}: {told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_partition_waits_for_the_requests_of_forgotten_origins_and_cuts_them_at_its_deadline() {
    for alpn in [Alpn::Http1, Alpn::Http2] {
        for stays in [false, true] {
            let lane = lane(alpn);
            let held = lane.origin(&origin("a")).hold(Instant::now() + PATIENCE).await.expect("a connection");
            lane.forget(&origin("a"));
            let ends = Instant::now() + if stays { PATIENCE } else { SECOND / 2 };
            let request = TaskTracker::new().spawn(async move {
                tokio::time::sleep_until(ends).await;
                drop(held);
            });
            let report = drained(&lane, Waiting::Refuse).await;
            assert_eq!(report.connections_aborted, usize::from(stays), "{alpn:?}");
            assert_eq!(Instant::now() < ends, stays, "{alpn:?}: it waits for the request, and not beyond its deadline");
            assert_eq!(partition(&lane).connections(), 0, "{alpn:?}");
            request.await.expect("no panic");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_partition_cuts_the_connections_of_old_lives() {
    let lane = lane(Alpn::Http2);
    let held = lane.origin(&origin("a")).hold(Instant::now() + PATIENCE).await.expect("a connection");
    let partition = partition(&lane);
    partition.rebuild("test");
    assert_eq!((lane.snapshot().live, partition.connections()), (0, 1), "its cell does not know of it");
    assert_eq!(drained(&lane, Waiting::Serve).await.connections_aborted, 1);
    assert_eq!(partition.connections(), 0);
    drop(held);
}
