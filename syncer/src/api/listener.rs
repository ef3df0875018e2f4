//! The accept loop: how many connections there may be at once.
//!
//! `axum::serve` keeps a silent or half-finished client for ever, so the loop is our own: every wait has
//! a limit (see [`super::connection`]), and running out of file descriptors slows accepting down
//! instead of spinning. A connection is served once it has a place; [`super::place`] says who makes room
//! for it. One more than there are places is accepted, and waits: whether somebody has to make room
//! is known only when somebody has come.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rate_limit::Lever;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

use super::connection::Serving;
use super::place::{Place, Places};

/// Pause when the process is out of file descriptors: ten tries a second cost nothing, and a
/// connection that ends is noticed soon enough.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What the accept loop needs.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    tcp: Arc<TcpListener>,
    places: Arc<Places>,
    /// Levers were turned.
    turned: watch::Receiver<u64>,
    serving: Serving,
}

// === impl Listener ===

impl Listener {
    /// Serves at most `connections_max` connections at once, which is looked at again when levers were `turned`.
    pub(crate) fn new(
        tcp: TcpListener,
        connections_max: Lever<u64>,
        turned: watch::Receiver<u64>,
        serving: Serving,
    ) -> Self {
        Self { tcp: Arc::new(tcp), places: Places::new(connections_max), turned, serving }
    }

    /// Accepts until stopped.
    pub(crate) async fn run(mut self) {
        let stop = self.serving.stop.clone();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
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

    /// The next connection, and its place.
    async fn next(&mut self) -> io::Result<(tokio::net::TcpStream, Place)> {
        let (stream, _) = self.tcp.accept().await?;
        let place = self.places.take(&mut self.turned, &self.serving.metrics).await;
        Ok((stream, place))
    }
}

/// Errors that say something of one connection and nothing of the listener.
fn of_one_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
