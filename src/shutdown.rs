//! SIGTERM and Ctrl-C: the first asks for a drain, the second stops at once.

use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// Cancels `stop` on the first signal and returns on the second.
///
/// # Cancel safety
///
/// Safe: whoever is done first drops this.
pub(crate) async fn on_signals(stop: &CancellationToken) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::of(Exit::Failed, error))?;
    signals.next().await;
    tracing::info!("stopping; a second signal stops at once");
    stop.cancel();
    signals.next().await;
    Err(Failure::new(Exit::Deadline, "stopped before the drain ended"))
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
