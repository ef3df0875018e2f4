//! Critical tasks: one that fails or returns early is logged, counted and started again (R19).

use std::future::Future;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pause before a task is started again: a broken one costs two starts a second and no more.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// Runs critical tasks until it is stopped.
#[derive(Clone, Debug)]
pub(super) struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
    restarts: Counter,
}

// === impl Supervisor ===

impl Supervisor {
    pub(super) fn new(tracker: TaskTracker, stop: CancellationToken, restarts: Counter) -> Self {
        Self { tracker, stop, restarts }
    }

    /// Runs what `make` makes, again and again.
    pub(super) fn run<F>(&self, name: &'static str, make: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        self.tracker.spawn(async move {
            loop {
                let task = this.tracker.spawn(make());
                let abort = task.abort_handle();
                let ended = tokio::select! {
                    ended = task => ended,
                    () = this.stop.cancelled() => {
                        // Tasks that hold something of value watch the token themselves.
                        abort.abort();
                        return;
                    }
                };
                if this.stop.is_cancelled() {
                    return;
                }
                match ended {
                    Ok(()) => tracing::error!(task = name, "critical task ended, starting it again"),
                    Err(error) => tracing::error!(task = name, %error, "critical task failed, starting it again"),
                }
                this.restarts.inc();
                sleep(RESTART_AFTER).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn r19_a_task_that_panics_is_started_again() {
        let (tracker, stop, restarts) = (TaskTracker::new(), CancellationToken::new(), Counter::default());
        let supervisor = Supervisor::new(tracker.clone(), stop.clone(), restarts.clone());
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        supervisor.run("test", move || {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(run >= 2, "the first two runs panic");
                std::future::pending::<()>().await;
            }
        });
        while runs.load(Ordering::SeqCst) < 3 {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(restarts.get(), 2);
        stop.cancel();
        tracker.close();
        tracker.wait().await;
    }
}
