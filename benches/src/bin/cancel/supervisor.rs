//! What a start costs the single supervisor with others queued.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use anyhow::Result;
use drill::legacy::{Connection, ScanCost, Supervisor};
use futures_util::future::join_all;
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

struct Dummy;

impl Connection for Dummy {
    fn is_open(&self) -> bool {
        true
    }
}

/// Microseconds per start, over the first starts made with `waiting` in the mailbox. Only the first
/// ones: draining a million would take seven hours.
pub(crate) fn us_per_start(waiting: usize) -> Result<f64> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = TaskTracker::new();
        let supervisor = Supervisor::start(&tasks, ScanCost::measured(), |_: &usize| async { Ok(Dummy) });
        let mut asking = pin!(join_all((0..waiting).map(|key| supervisor.checkout(key))));
        let asked = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        debug_assert!(asked.is_pending(), "the supervisor has not run yet");
        let began = Instant::now();
        while supervisor.starts() == 0 {
            yield_now().await; // The supervisor starts as many as it is given at a time, then yields.
        }
        let took = Instant::now().saturating_duration_since(began);
        #[allow(clippy::cast_precision_loss)]
        Ok(took.as_secs_f64() * 1e6 / supervisor.starts() as f64)
    })
}
