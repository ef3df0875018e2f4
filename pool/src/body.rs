//! Request and response bodies.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use crate::error::{BoxError, Error, Kind, Sent, Stage};

/// A request body: nothing, bytes, or any stream of frames.
///
/// A replay hands the very same body to another connection, which is sound because the pool replays
/// only what was never polled.
pub struct Body {
    inner: Inner,
}

enum Inner {
    Full(Option<Bytes>),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

// === impl Body ===

impl Body {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self { inner: Inner::Full(None) }
    }

    /// Any body of bytes.
    pub fn wrap<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Self { inner: Inner::Stream(body.map_err(Into::into).boxed_unsync()) }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        Self { inner: Inner::Full((!bytes.is_empty()).then_some(bytes)) }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &self.size_hint()).finish()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().inner {
            Inner::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream(stream) => Pin::new(stream).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Inner::Stream(stream) => stream.size_hint(),
        }
    }
}

/// A response body that holds its connection until it ends or is dropped.
#[derive(Debug)]
pub struct ResponseBody {
    inner: hyper::body::Incoming,
}

// === impl ResponseBody ===

impl ResponseBody {
    /// Reads the whole body, at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// When the body is longer than `limit` ([`Error::is_too_large`]), its deadline passes, or the
    /// connection breaks.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the body; an HTTP/1.1 connection in the middle of it is closed.
    pub async fn bytes(self, _limit: usize) -> Result<Bytes, Error> {
        Err(Error::new(Kind::Aborted, Stage::Response))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.get_mut().inner)
            .poll_frame(cx)
            .map_err(|error| Error::exchange(Stage::Response, Sent::Maybe, error))
    }
}
