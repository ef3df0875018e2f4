//! Every task of a lane has an owner: a tracker that a drain can wait for and a token that ends it.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::lazy;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::future::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::contain::message;

/// Pause before a keeper that panicked is started again: a fault that repeats must not spin.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Starts tasks on a lane's runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    handle: Handle,
    /// Dials and connections: what a drain waits for.
    connections: TaskTracker,
    /// Timers: what lives as long as the lane.
    keepers: TaskTracker,
    token: CancellationToken,
}

// === impl Spawner ===

impl Spawner {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, connections: TaskTracker::new(), keepers: TaskTracker::new(), token: CancellationToken::new() }
    }

    /// Runs a dial, a connection or a part of one until it ends or the lane does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_under(&self.token, task);
    }

    /// As [`Spawner::spawn`], and until this token (which descends from the lane's) is cancelled.
    ///
    /// By combinators, for an async block keeps what it is given twice, as captured and as awaited: a task in three of
    /// them is eight times as large, and every connection is two tasks.
    pub(crate) fn spawn_under(&self, token: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
        let token = token.clone();
        // `None` means that the lane ended first; the task's destructors have run, and not where it was spawned.
        let task = lazy(|_| task.with_cancellation_token_owned(token)).flatten().map(|_ended: Option<()>| ());
        self.connections.spawn_on(task, &self.handle);
    }

    /// Keeps a task alive: started again after it panicked and `panicked` was told, until it returns or its token
    /// (which descends from the lane's) is cancelled.
    pub(crate) fn keep<F>(
        &self,
        token: CancellationToken,
        panicked: impl Fn(&str) + Send + Sync + 'static,
        start: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        let kept_under = token.clone();
        let keeper = async move {
            let kept = || kept_under.clone().run_until_cancelled_owned(start());
            while let Err(error) = this.keepers.spawn_on(kept(), &this.handle).await {
                let Ok(panic) = error.try_into_panic() else { return };
                panicked(message(&*panic));
                sleep(RESTART_PAUSE).await;
            }
        };
        let keeper = async move {
            let _ended: Option<()> = token.run_until_cancelled_owned(keeper).await;
        };
        self.keepers.spawn_on(keeper, &self.handle);
    }

    /// A token that ends with the lane, or before.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// Waits until every dial and connection has ended.
    pub(crate) async fn connections_ended(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    /// Ends every task.
    pub(crate) fn cancel(&self) {
        self.token.cancel();
    }
}
