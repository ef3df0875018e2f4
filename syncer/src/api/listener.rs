//! The accept loop: how many connections there may be, and who makes room.
//!
//! `axum::serve` keeps a silent or half-finished client for ever, so the loop is our own: connections
//! are counted before they are accepted, every wait has a limit (see [`super::connection`]), and
//! running out of file descriptors slows accepting down instead of spinning. At the cap the oldest
//! *newcomer*, a connection on which no request ever came, makes room for the next: a flood of silent
//! clients displaces itself, and whoever asks at once is served.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::connection::Serving;

/// Pause when the process is out of file descriptors: ten tries a second cost nothing, and a
/// connection that ends is noticed soon enough.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What the accept loop needs.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    tcp: Arc<TcpListener>,
    connections: Arc<Semaphore>,
    newcomers: Arc<Newcomers>,
    serving: Serving,
}

/// Connections on which no request came yet, the oldest first. Bounded by the cap.
#[derive(Debug, Default)]
struct Newcomers(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

/// A connection's place under the cap, given back when it ends.
#[derive(Debug)]
pub(super) struct Place {
    newcomers: Arc<Newcomers>,
    id: u64,
    leave: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

// === impl Listener ===

impl Listener {
    /// Serves at most `connections_max` connections at once.
    pub(crate) fn new(tcp: TcpListener, connections_max: usize, serving: Serving) -> Self {
        let connections = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
        Self { tcp: Arc::new(tcp), connections, newcomers: Arc::default(), serving }
    }

    /// Accepts until stopped.
    pub(crate) async fn run(self) {
        loop {
            let accepted = tokio::select! {
                () = self.serving.stop.cancelled() => return,
                accepted = self.next() => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    let connection = self.serving.clone().serve(stream, place);
                    self.serving.tracker.spawn(connection);
                }
                Err(e) if of_one_connection(&e) => self.serving.metrics.refused("accept"),
                Err(error) => {
                    self.serving.metrics.refused("exhausted");
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    /// The next connection, once there is room for it.
    async fn next(&self) -> io::Result<(tokio::net::TcpStream, Place)> {
        let permit = match Arc::clone(&self.connections).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                if self.newcomers.crowd_out() {
                    self.serving.metrics.refused("crowded_out");
                }
                Arc::clone(&self.connections).acquire_owned().await.map_err(io::Error::other)?
            }
        };
        let (stream, _) = self.tcp.accept().await?;
        Ok((stream, self.newcomers.enter(permit)))
    }
}

// === impl Newcomers ===

impl Newcomers {
    fn enter(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place {
        let leave = CancellationToken::new();
        let mut waiting = self.0.lock();
        let id = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(id, leave.clone());
        drop(waiting);
        Place { newcomers: Arc::clone(self), id, leave, _permit: permit }
    }

    /// Asks the oldest to leave; whether there was any.
    fn crowd_out(&self) -> bool {
        let oldest = self.0.lock().connections.pop_first();
        // Outside of the lock: this wakes its task.
        oldest.inspect(|(_, leave)| leave.cancel()).is_some()
    }
}

// === impl Place ===

impl Place {
    /// A request came: no newcomer any more, and safe.
    pub(super) fn settle(&self) {
        self.newcomers.0.lock().connections.remove(&self.id);
    }

    /// Cancelled when another newcomer takes the place.
    pub(super) fn leave(&self) -> &CancellationToken {
        &self.leave
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Errors that say something of one connection and nothing of the listener.
fn of_one_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
impl Place {
    /// A place for a test.
    pub(super) fn alone() -> Self {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one");
        Arc::<Newcomers>::default().enter(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_newcomer_makes_room_and_settled_ones_stay() {
        let (newcomers, permits) = (Arc::<Newcomers>::default(), Arc::new(Semaphore::new(3)));
        let enter = || newcomers.enter(Arc::clone(&permits).try_acquire_owned().expect("a permit"));
        let (first, second, third) = (enter(), enter(), enter());
        first.settle();
        assert!(newcomers.crowd_out());
        assert!(second.leave().is_cancelled() && !first.leave().is_cancelled() && !third.leave().is_cancelled());
        drop(third);
        assert!(!newcomers.crowd_out(), "the first has asked, the others are gone");
        drop(second);
        assert_eq!(permits.available_permits(), 2, "places are given back");
        drop(first);
    }
}
