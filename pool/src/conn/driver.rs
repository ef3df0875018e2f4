//! The future that moves a connection's bytes. It ends when the connection does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::lazy;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::h1::Return;
use super::pulse::{Pulse, Watched};
use crate::body::Body;
use crate::dial::connect::BoxIo;
use crate::fault::{self, Point};
use crate::partition::Spawner;

/// How long a finished HTTP/1.1 exchange may take to leave its connection ready, and a finished HTTP/2 connection to close.
/// A peer that answered early and does not read the rest of the request would keep it for ever, and so would a caller
/// whose request body does not end.
const READY_WAIT: Duration = Duration::from_millis(100);

type Stream = TokioIo<BoxIo>;

/// Moves the bytes of one connection.
pub(crate) enum Driver {
    H1(Box<H1Driver>),
    H2(Box<H2Driver>),
}

/// An HTTP/1.1 connection; also returns leases when the connection is ready again.
pub(crate) struct H1Driver {
    conn: http1::Connection<Stream, Body>,
    back: Arc<Return>,
    /// Runs while a lease is parked.
    ready_by: Option<Pin<Box<Sleep>>>,
}

/// The dispatching half of an HTTP/2 connection; hyper runs the other half on [`TaskExecutor`], and a task for each
/// request body that is not sent at once. Those end with the driver.
pub(crate) struct H2Driver {
    /// While requests can be sent.
    conn: Option<http2::Connection<TokioIo<Watched>, Body, TaskExecutor>>,
    pulse: Arc<Pulse>,
    /// The last handle is gone: nobody waits for an answer any more.
    unused: CancellationToken,
    tasks: Tasks,
    /// Runs from when no more can be sent.
    closing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What hyper runs for one connection: dropping this ends it.
pub(super) struct Tasks {
    ended: CancellationToken,
    _end: DropGuard,
}

/// Runs hyper's HTTP/2 tasks as tasks of the connection's owner. Each keeps the connection's permit
/// alive, so the permit comes back when the socket is really closed.
#[derive(Clone)]
pub(crate) struct TaskExecutor {
    spawner: Spawner,
    token: CancellationToken,
    permit: Arc<dyn Send + Sync>,
}

// === impl Driver ===

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.get_mut() {
            Self::H1(driver) => driver.poll(cx),
            Self::H2(driver) => driver.poll(cx),
        }
    }
}

// === impl H1Driver ===

impl H1Driver {
    pub(super) fn new(conn: http1::Connection<Stream, Body>, back: Arc<Return>) -> Self {
        Self { conn, back, ready_by: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.back.driver.register(cx.waker());
        if self.back.is_cut() || Pin::new(&mut self.conn).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(mut lease) = self.back.take_parked() {
            match lease.poll_ready(cx) {
                Poll::Pending => {
                    self.back.put_back(lease);
                    let ready_by = self.ready_by.get_or_insert_with(|| Box::pin(sleep(READY_WAIT)));
                    return ready_by.as_mut().poll(cx); // The end of the driver retires the lease.
                }
                Poll::Ready(true) => lease.give_back(),
                Poll::Ready(false) => lease.discard(),
            }
            self.ready_by = None;
        }
        Poll::Pending
    }
}

impl Drop for H1Driver {
    fn drop(&mut self) {
        self.back.close();
    }
}

// === impl H2Driver ===

impl H2Driver {
    pub(super) fn new(
        conn: http2::Connection<TokioIo<Watched>, Body, TaskExecutor>,
        pulse: Arc<Pulse>,
        unused: CancellationToken,
        tasks: Tasks,
    ) -> Self {
        Self { conn: Some(conn), pulse, unused, tasks, closing: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(conn) = &mut self.conn {
            let ended = Pin::new(&mut *conn).poll(cx);
            self.pulse.allows(conn.current_max_send_streams());
            drop(ready!(ended));
            self.conn = None;
        }
        self.closing
            .get_or_insert_with(|| Box::pin(closing(self.unused.clone(), self.tasks.ended.clone())))
            .as_mut()
            .poll(cx)
    }
}

/// Answers that are under way come still; what is left when nobody waits for one is not waited for.
async fn closing(unused: CancellationToken, ended: CancellationToken) {
    let answered = async {
        unused.cancelled().await;
        sleep(READY_WAIT).await;
    };
    let _first: Option<()> = ended.run_until_cancelled(answered).await;
}

// === impl TaskExecutor ===

impl TaskExecutor {
    pub(crate) fn new(spawner: Spawner, token: CancellationToken, permit: Arc<dyn Send + Sync>) -> Self {
        Self { spawner, token, permit }
    }

    /// For one connection.
    pub(super) fn of_one(self) -> (Self, Tasks) {
        let (token, ended) = (self.token.child_token(), CancellationToken::new());
        let permit = Arc::new((self.permit, ended.clone().drop_guard()));
        let tasks = Tasks { ended, _end: token.clone().drop_guard() };
        (Self { token, permit, ..self }, tasks)
    }
}

impl<F> hyper::rt::Executor<F> for TaskExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let permit = Arc::clone(&self.permit);
        // No async block: see [`Spawner::spawn_under`].
        let task = lazy(|_| fault::point(Point::HyperTaskBegins)).then(|()| future).map(move |_| {
            fault::point(Point::HyperTaskEnds);
            drop(permit);
        });
        self.spawner.spawn_under(&self.token, task);
    }
}
