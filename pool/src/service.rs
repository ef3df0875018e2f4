//! What callers hold: a handle to one origin.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::TryFutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::Instrument;

use crate::body::{Body, ResponseBody};
use crate::cell::BreakerState;
use crate::conn::{Failure, Lease, exchange};
use crate::error::Error;
use crate::lane::Lane;
use crate::metrics::PartitionMetrics;
use crate::origin::Origin;
use crate::partition::{Acquire, Cell};
use crate::spans::RequestSpan;

/// How often a request that hyper handed back unsent is tried on another connection. Each time a
/// connection was closed in the instant it was picked; three in a row are no accident.
const REPLAYS_MAX: u32 = 3;

/// A handle to one origin. Cheap to clone; the hot path has no map look-up.
///
/// It keeps its lane alive. After [`Lane::forget`] it refuses with [`Error::is_draining`]; ask the lane
/// for a new one.
#[derive(Debug, Clone)]
pub struct OriginHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cell: Arc<Cell>,
    lane: Lane,
}

/// A connection that is held and not used; dropping it gives it back. An HTTP/1.1 connection is out of the
/// pool meanwhile, an HTTP/2 connection has one stream less.
#[derive(Debug)]
pub struct HeldConnection {
    lease: Lease,
}

/// A deadline as a request extension, for callers that go through `tower::Service`.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// What becomes of a request on one connection.
type Exchanged = Result<(Response<Incoming>, Lease), Failure>;

/// What becomes of a request.
type Answer = Result<Response<ResponseBody>, Error>;

/// The future of the `tower::Service` implementations.
pub type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Error>> + Send>>;

// === impl OriginHandle ===

impl OriginHandle {
    pub(crate) fn new(cell: Arc<Cell>, lane: Lane) -> Self {
        Self { inner: Arc::new(Inner { cell, lane }) }
    }

    /// The origin.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        self.inner.cell.origin()
    }

    /// The lane this handle belongs to.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.inner.lane
    }

    /// Sends a request on a pooled connection and waits, until `deadline`, for the head of the response.
    ///
    /// Only path and query of the request's URI are used; scheme, host and `Host` header come from the
    /// origin. A request is sent a second time only if it provably never left on a connection that had
    /// served others before.
    ///
    /// # Errors
    ///
    /// See [`Error`]: the stage tells how far the request came, [`Error::sent`] whether the server may
    /// have seen it, [`Error::is_fail_fast`] that somebody else's dial failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line, resets the HTTP/2 stream or closes the HTTP/1.1 connection it
    /// was using. A dial made for it goes on for others.
    pub fn send(
        &self,
        request: Request<Body>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Error>> + Send {
        self.run(request, deadline, false)
    }

    /// Sends a request on a connection that is dialled for it: past any back-off and past the line, but
    /// through the dial gates. The connection stays in the pool afterwards.
    ///
    /// This is the health probe: its errors are fresh evidence, and its success ends a back-off.
    ///
    /// # Errors
    ///
    /// As [`OriginHandle::send`], but never [`Error::is_fail_fast`].
    ///
    /// # Cancel safety
    ///
    /// As [`OriginHandle::send`].
    pub fn fresh(
        &self,
        request: Request<Body>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Error>> + Send {
        self.run(request, deadline, true)
    }

    /// Dials a connection, past any back-off, and leaves it in the pool. For probing and warming up.
    ///
    /// # Errors
    ///
    /// When the dial fails or does not finish by `deadline`.
    ///
    /// # Cancel safety
    ///
    /// A dial that has begun goes on, and its connection is pooled.
    pub async fn probe_dial(&self, deadline: Instant) -> Result<(), Error> {
        let lease = self.acquire(true, deadline).await?;
        drop(lease);
        Ok(())
    }

    /// Takes a connection as [`OriginHandle::send`] would, and sends nothing: for warming up to a number of
    /// connections, and for measuring the pool alone.
    ///
    /// # Errors
    ///
    /// As [`OriginHandle::send`], up to the handshake.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line.
    pub fn hold(&self, deadline: Instant) -> impl Future<Output = Result<HeldConnection, Error>> + Send {
        self.acquire(false, deadline).map_ok(|lease| HeldConnection { lease })
    }

    /// Whether ordinary requests are let through, as of now.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        self.cell().breaker(Instant::now())
    }

    /// How many of this origin's connections have ended since the handle's cell was made, whoever
    /// ended them. When it moves without a reason of ours, the peer may have died: a cheap hint to look.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.cell().ended()
    }

    #[cfg(test)]
    pub(crate) fn partition(&self) -> &Arc<crate::partition::Partition> {
        self.inner.cell.partition()
    }

    /// The origin's cell. A handle that was made when the lane was full looks again whether there is room.
    fn cell(&self) -> Cow<'_, Arc<Cell>> {
        if self.inner.cell.is_surplus() {
            Cow::Owned(self.inner.cell.partition().cell(self.origin()))
        } else {
            Cow::Borrowed(&self.inner.cell)
        }
    }

    fn acquire(&self, fresh: bool, deadline: Instant) -> Acquire<'_> {
        Acquire::new(self.cell(), fresh, deadline)
    }

    /// Whoever waits keeps its request in this future, so it is small: one block (an `async fn` would keep its
    /// arguments twice), and the exchange apart, which begins when the wait is over.
    #[expect(clippy::manual_async_fn, reason = "see above")]
    fn run(&self, mut request: Request<Body>, deadline: Instant, fresh: bool) -> impl Future<Output = Answer> + Send {
        async move {
            let span = RequestSpan::new(self.inner.lane.name(), self.origin());
            let mut replays = 0;
            loop {
                let lease =
                    span.queue(self.acquire(fresh, deadline)).await.map_err(|error| self.failed(error, &span))?;
                let began = Instant::now();
                // A connection may be had without a wait, and a wait may end late: no request starts too late.
                if began >= deadline {
                    drop(lease);
                    return Err(self.failed(Error::too_late_to_send(), &span));
                }
                let (reused, exchanged) = self.exchange(lease, request, deadline, &span);
                match exchanged.await {
                    Ok((response, mut lease)) => {
                        let now = Instant::now();
                        self.metrics().answered(reused, now.saturating_duration_since(began));
                        lease.headed(now);
                        let hold = span.response(Box::new(lease));
                        return Ok(response.map(|body| ResponseBody::new(body, hold, deadline, reused)));
                    }
                    Err(failure) => match failure.unsent {
                        Some(unsent) if reused && replays < REPLAYS_MAX => {
                            replays += 1;
                            self.metrics().replayed.inc();
                            request = unsent;
                        }
                        _ => return Err(self.failed(failure.error, &span)),
                    },
                }
            }
        }
    }

    /// Apart, because a lease that is looked at in the caller's future has a place in it for good.
    fn exchange<'a>(
        &'a self,
        lease: Lease,
        request: Request<Body>,
        deadline: Instant,
        span: &RequestSpan,
    ) -> (bool, Pin<Box<impl Future<Output = Exchanged> + use<'a>>>) {
        let reused = lease.reused();
        let stage = span.send(reused);
        (reused, Box::pin(exchange(lease, request, self.origin(), deadline).instrument(stage)))
    }

    fn failed(&self, error: Error, span: &RequestSpan) -> Error {
        self.metrics().failed(&error);
        span.ended(error.cause());
        error
    }

    fn metrics(&self) -> &PartitionMetrics {
        &self.inner.cell.partition().metrics
    }
}

// === impl HeldConnection ===

impl HeldConnection {
    /// Whether the connection has served others before.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.lease.reused()
    }
}

/// The request's deadline is a [`Deadline`] extension, or the lane's `request_timeout` from now.
///
/// # Cancel safety
///
/// As [`OriginHandle::send`].
impl tower::Service<Request<Body>> for OriginHandle {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture;

    /// Always ready: what bounds the pool is decided per request.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        let handle = self.clone();
        let deadline = request.extensions().get::<Deadline>().map_or_else(
            || Instant::now() + handle.inner.cell.partition().tuning().request_timeout.get(),
            |deadline| deadline.0,
        );
        Box::pin(async move { handle.send(request, deadline).await })
    }
}

/// The origin is taken from the request's absolute URI.
///
/// # Cancel safety
///
/// As [`OriginHandle::send`].
impl tower::Service<Request<Body>> for Lane {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture;

    /// Always ready: what bounds the pool is decided per request.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        match Origin::of(request.uri()) {
            Ok(origin) => self.origin(&origin).call(request),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::Connected;

    #[tokio::test]
    async fn r04_a_caller_in_line_costs_little_more_than_its_request() {
        let connector = tower::service_fn(|_: Origin| std::future::pending::<Result<Connected, Infallible>>());
        let lane = Lane::builder("sizes").connector(connector).build().expect("lane");
        let handle = lane.origin(&Origin::parse("http://127.0.0.1:7443").expect("origin"));
        let now = Instant::now();
        let (hold, send) =
            (size_of_val(&handle.hold(now)), size_of_val(&handle.send(Request::new(Body::empty()), now)));
        assert!(hold <= 48, "{hold} bytes for a caller that holds a connection");
        assert!(
            send <= size_of::<Request<Body>>() + 112,
            "{send} bytes for a caller with its request of {}",
            size_of::<Request<Body>>()
        );
    }
}
