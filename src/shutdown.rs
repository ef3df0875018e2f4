//! SIGTERM and Ctrl-C: the first asks for a drain, the second stops at once.
//!
//! One wish may arrive twice: `timeout` signals its child and then the group that the child is in,
//! a terminal and a supervisor may both tell. So a signal right behind the first one is its echo.

use std::pin::pin;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, Failure};

/// A signal this soon after the first is the same wish told twice: programs signal within
/// milliseconds of each other, a person who insists takes longer.
const ECHO_WITHIN: Duration = Duration::from_millis(250);

/// Cancels `stop` on the first signal and returns on the second.
///
/// # Cancel safety
///
/// Safe: whoever is done first drops this.
pub(crate) async fn on_signals(stop: &CancellationToken) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| Failure::of(Exit::Failed, error))?;
    obey(async || signals.next().await, async || sleep(ECHO_WITHIN).await, stop).await;
    Err(Failure::new(Exit::Deadline, "stopped before the drain ended"))
}

/// Returns when a second wish has come: a signal, by what `next` waits for, after `echo_over`.
async fn obey(mut next: impl AsyncFnMut(), echo_over: impl AsyncFnOnce(), stop: &CancellationToken) {
    next().await;
    tracing::info!("stopping; a second signal stops at once");
    stop.cancel();
    let mut echo_over = pin!(echo_over());
    loop {
        tokio::select! {
            biased;
            () = next() => {}
            () = &mut echo_over => break,
        }
    }
    next().await;
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

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    async fn is_done(obeying: Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::select! {
            biased;
            () = obeying => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn an_echo_of_the_first_signal_does_not_skip_the_drain_and_a_later_one_does() {
        let (signals, mut received) = mpsc::channel(4);
        let (over, echo_over) = oneshot::channel();
        let stop = CancellationToken::new();
        let next = async || received.recv().await.expect("the sender lives");
        let mut obeying = pin!(obey(next, async || echo_over.await.expect("sent"), &stop));
        assert!(!is_done(obeying.as_mut()).await && !stop.is_cancelled(), "nobody has signalled");
        for _ in 0..3 {
            signals.send(()).await.expect("received");
            assert!(!is_done(obeying.as_mut()).await && stop.is_cancelled(), "one wish, told several times");
        }
        over.send(()).expect("awaited");
        assert!(!is_done(obeying.as_mut()).await, "the drain goes on");
        signals.send(()).await.expect("received");
        assert!(is_done(obeying.as_mut()).await, "a second wish is one");
    }
}
