//! A lane lives on the runtime it was built on; its callers may live on another, and outlive that one.

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::*;

/// Half of what a worker gets otherwise, so that what piles up shows.
const STACK_BYTES: usize = 1024 * 1024;

fn runtimes() -> (Runtime, Runtime) {
    let lanes = Builder::new_multi_thread().worker_threads(1).thread_stack_size(STACK_BYTES).enable_all().build();
    let callers = Builder::new_current_thread().enable_all().build();
    (lanes.expect("runtime"), callers.expect("runtime"))
}

fn lane_on(runtime: &Runtime, limits: impl FnOnce(&mut LaneLimits)) -> Lane {
    let _within = runtime.enter();
    let lane = lane(Alpn::Http2);
    let mut changed = lane.limits();
    limits(&mut changed);
    lane.set_limits(changed).expect("limits");
    lane
}

/// So many callers of an origin whose dial does not end.
async fn crowd_at(lane: &Lane, name: &str, many: usize) -> JoinSet<Result<(), crate::Error>> {
    let (before, mut callers) = (lane.snapshot().waiters, JoinSet::new());
    for _ in 0..many {
        let sfu = lane.origin(&origin(name));
        callers.spawn(async move { sfu.send(get(), Instant::now() + 20 * PATIENCE).await.map(drop) });
    }
    let in_line = async {
        while lane.snapshot().waiters < before + many {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, in_line).await.expect("in line");
    callers
}

async fn all_told(mut callers: JoinSet<Result<(), crate::Error>>) {
    while let Some(told) = timeout(PATIENCE, callers.join_next()).await.expect("told soon") {
        let told = told.expect("no panic").expect_err("the lane is gone");
        assert!(told.is_retry_safe(), "{told:?}");
    }
}

#[test]
fn r04_dials_that_end_with_their_runtime_answer_a_long_line_without_a_deep_stack() {
    let (lanes, here) = runtimes();
    let lane = lane_on(&lanes, |limits| limits.dial_burst = 100_000);
    here.block_on(async {
        let callers = crowd_at(&lane, "hole", 4_000).await;
        // Its timer has gone before, and answers nobody.
        partition(&lane).timer.lock().cancel();
        lanes.shutdown_background();
        all_told(callers).await;
    });
}

#[test]
fn r03_callers_whose_lane_has_lost_its_runtime_are_told_to_go_elsewhere() {
    let (lanes, here) = runtimes();
    let lane = lane_on(&lanes, |limits| (limits.dial_rate_per_s, limits.dial_burst) = (0.001, 1));
    here.block_on(async {
        let dialled = crowd_at(&lane, "hole", 1).await;
        let paced = crowd_at(&lane, "a", 3).await;
        lanes.shutdown_background();
        all_told(paced).await;
        all_told(dialled).await;
        let newcomer = lane.origin(&origin("b"));
        let told = timeout(PATIENCE, once(&newcomer, 2)).await.expect("told soon").expect_err("the lane is gone");
        assert!(told.is_draining(), "{told:?}");
    });
}
