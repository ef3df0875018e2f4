//! What callers hold: a handle to one origin.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::Instant;

use crate::body::{Body, ResponseBody};
use crate::cell::BreakerState;
use crate::error::{Error, Kind, Stage};
use crate::origin::Origin;

/// A handle to one origin. Cheap to clone; the hot path has no map look-up.
#[derive(Debug, Clone)]
pub struct OriginHandle {
    origin: Origin,
}

/// A deadline as a request extension, for callers that go through `tower::Service`.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

impl OriginHandle {
    pub(crate) fn stub(origin: Origin) -> Self {
        Self { origin }
    }

    /// The origin.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Sends a request on a pooled connection.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives back what it held; a dial goes on for others.
    pub async fn send(&self, _request: Request<Body>, _deadline: Instant) -> Result<Response<ResponseBody>, Error> {
        Err(Error::new(Kind::Aborted, Stage::Queue))
    }

    /// Sends a request on a connection dialled for it, past any back-off.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    ///
    /// # Cancel safety
    ///
    /// As [`OriginHandle::send`].
    pub async fn fresh(&self, _request: Request<Body>, _deadline: Instant) -> Result<Response<ResponseBody>, Error> {
        Err(Error::new(Kind::Aborted, Stage::Queue))
    }

    /// Dials a connection, past any back-off, and leaves it in the pool.
    ///
    /// # Errors
    ///
    /// When the dial fails.
    ///
    /// # Cancel safety
    ///
    /// The dial goes on.
    pub async fn probe_dial(&self, _deadline: Instant) -> Result<(), Error> {
        Err(Error::new(Kind::Aborted, Stage::Queue))
    }

    /// Whether ordinary requests are let through.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        BreakerState::Closed
    }
}

impl tower::Service<Request<Body>> for OriginHandle {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let handle = self.clone();
        Box::pin(async move { handle.send(request, Instant::now()).await })
    }
}
