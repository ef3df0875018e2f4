//! Request and response bodies.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

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

impl Body {
    /// Whether all of it is at hand, so that sending it waits for nobody.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.inner, Inner::Full(_))
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

/// A response body that holds its connection until it ends or is dropped. It does not hold the lane: when the last
/// handle of that is dropped, its connections are cut, and a body that is being read breaks.
///
/// Reading it is bounded by the request's deadline, unless [`ResponseBody::idle_limited`] says otherwise.
#[derive(Debug)]
pub struct ResponseBody {
    /// `None` once the time was up or the body broke.
    inner: Option<Incoming>,
    lease: Option<Hold>,
    limit: TimeLimit,
    /// Set up when the first frame does not come at once; most bodies are there with their head.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Frames in a row that were there.
    at_hand: u32,
    reused: bool,
}

/// Frames that are taken without a look at the clock because they are there. A process that stood still comes to the
/// deadline before it has read what arrived in the meantime, and these are most answers whole.
const AT_HAND_MAX: u32 = 8;

/// What a body gives back when it is over; dropping it is what counts.
pub(crate) type Hold = Box<dyn Held>;

/// Something that is held by being alive.
pub(crate) trait Held: fmt::Debug + Send + Sync {
    /// The body's time was up: the head alone was no answer.
    fn late(&mut self) {}

    /// The body broke.
    fn broken(&mut self) {}

    /// The caller left before the body's end.
    fn left(&mut self) {}

    /// The body lasts as long as it likes, which says nothing about how long requests take.
    fn untimed(&mut self) {}
}

#[derive(Debug, Clone, Copy)]
enum TimeLimit {
    Deadline(Instant),
    Idle(Duration),
}

// === impl ResponseBody ===

impl ResponseBody {
    pub(crate) fn new(inner: Incoming, lease: Hold, deadline: Instant, reused: bool) -> Self {
        let limit = TimeLimit::Deadline(deadline);
        let mut body = Self { inner: Some(inner), lease: Some(lease), limit, sleep: None, at_hand: 0, reused };
        body.release_if_over();
        body
    }

    /// Replaces the request's deadline by a limit on silence: the body may last for ever as long as the
    /// next frame comes within `idle_max`. For event streams.
    #[must_use]
    pub fn idle_limited(mut self, idle_max: Duration) -> Self {
        self.limit = TimeLimit::Idle(idle_max);
        self.lease.iter_mut().for_each(|lease| lease.untimed());
        self.sleep = None;
        self
    }

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
    pub async fn bytes(mut self, limit: usize) -> Result<Bytes, Error> {
        if self.size_hint().lower() > limit as u64 {
            return Err(self.error(Kind::TooLarge));
        }
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if data.len() > limit - first.len() - rest.len() {
                return Err(self.error(Kind::TooLarge));
            }
            if first.is_empty() {
                first = data; // Most bodies are one frame and are not copied.
            } else {
                rest.extend_from_slice(&data);
            }
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(whole.freeze())
    }

    fn error(&self, kind: Kind) -> Error {
        Error::new(kind, Stage::Response).with_sent(Sent::Maybe).with_reused(self.reused)
    }

    fn release_if_over(&mut self) {
        if self.is_end_stream() {
            self.lease = None;
        }
    }

    /// Whether a frame came too late. A peer that always has one ready is never waited for, so the sleep does not
    /// tell; and a frame without data is as good as silence.
    fn is_late(&mut self, frame: &Frame<Bytes>, cx: &mut Context<'_>) -> bool {
        let empty = frame.data_ref().is_some_and(Bytes::is_empty);
        self.at_hand += 1;
        match self.limit {
            TimeLimit::Deadline(_) if !empty && self.at_hand < AT_HAND_MAX => false,
            TimeLimit::Deadline(deadline) => {
                self.at_hand = 0;
                Instant::now() >= deadline
            }
            TimeLimit::Idle(_) if empty => self.poll_late(cx).is_ready(),
            TimeLimit::Idle(_) => {
                self.sleep = None;
                false
            }
        }
    }

    /// The time is up: what was held is given back, and the body is over.
    fn late(&mut self) -> Error {
        self.inner = None;
        self.lease = None;
        self.error(Kind::Timeout)
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let sleep = self.sleep.get_or_insert_with(|| {
            Box::pin(match limit {
                TimeLimit::Deadline(deadline) => sleep_until(deadline),
                TimeLimit::Idle(idle_max) => tokio::time::sleep(idle_max),
            })
        });
        sleep.as_mut().poll(cx)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.lease.iter_mut().for_each(|lease| lease.left());
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.release_if_over();
                if this.lease.is_some() && this.is_late(&frame, cx) {
                    return Poll::Ready(Some(Err(this.late())));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.inner = None; // HTTP/2 would say so again with each poll.
                this.lease.take().into_iter().for_each(|mut lease| lease.broken());
                let error = Error::in_body(error).with_reused(this.reused);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                this.lease = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                this.at_hand = 0;
                if this.lease.is_some() && this.poll_late(cx).is_ready() {
                    // A connection that still brings frames has not failed us; this one has.
                    this.lease.iter_mut().for_each(|lease| lease.late());
                    return Poll::Ready(Some(Err(this.late())));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
