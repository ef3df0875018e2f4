//! How long the head of a request may take, apart from how long a connection may idle.
//!
//! hyper has one time-out for both: short, it closes connections that clients wanted to use again
//! (and their next request fails); long, it lets a client drip a head for a minute. So the socket
//! is watched: bytes that arrive while no request is under way are the start of a head, and from
//! then on the time is short.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What is known of a connection's requests.
#[derive(Debug)]
pub(crate) struct HeadClock {
    began: Instant,
    under_way: AtomicU32,
    asked: AtomicBool,
    h2: AtomicBool,
    /// Milliseconds after `began`, plus one, at which a head started; 0: none has.
    head_since: AtomicU64,
}

/// A socket whose reads start the clock.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    inner: S,
    clock: Arc<HeadClock>,
}

/// A request under way, until its answer has been written.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<HeadClock>);

/// An answer's body that holds its request.
#[derive(Debug)]
pub(crate) struct Held {
    body: axum::body::Body,
    _request: UnderWay,
}

// === impl HeadClock ===

impl HeadClock {
    pub(crate) fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            began: now,
            under_way: AtomicU32::new(0),
            asked: AtomicBool::new(false),
            h2: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
        })
    }

    /// A head is complete: a request is under way until the guard is dropped.
    pub(crate) fn request(self: &Arc<Self>, version: Version) -> UnderWay {
        if version == Version::HTTP_2 {
            self.h2.store(true, Ordering::Relaxed);
        }
        self.asked.store(true, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::AcqRel);
        self.head_since.store(0, Ordering::Release);
        UnderWay(Arc::clone(self))
    }

    /// Whether any request ever came.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// How long a head has been arriving. Between requests HTTP/2 sends PINGs and windows, which are
    /// no heads; its PINGs find the dead, and its heads are bounded by its own limits.
    pub(crate) fn head_age(&self, now: Instant) -> Option<Duration> {
        if self.h2.load(Ordering::Relaxed) {
            return None;
        }
        let since = self.head_since.load(Ordering::Acquire).checked_sub(1)?;
        Some(now.saturating_duration_since(self.began + Duration::from_millis(since)))
    }

    fn read(&self, now: Instant) {
        if self.under_way.load(Ordering::Acquire) == 0 && self.head_since.load(Ordering::Acquire) == 0 {
            let since = now.saturating_duration_since(self.began).as_millis();
            self.head_since.store(u64::try_from(since).unwrap_or(u64::MAX - 1) + 1, Ordering::Release);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

// === impl Held ===

impl Held {
    pub(crate) fn new(body: axum::body::Body, request: UnderWay) -> Self {
        Self { body, _request: request }
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Watched ===

impl<S> Watched<S> {
    pub(crate) fn new(inner: S, clock: Arc<HeadClock>) -> Self {
        Self { inner, clock }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.clock.read(Instant::now());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_between_requests_start_the_clock() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let clock = HeadClock::new(t0);
        assert_eq!(clock.head_age(at(9_000)), None, "idle is no head");
        clock.read(at(1_000));
        clock.read(at(2_000));
        assert_eq!(clock.head_age(at(6_000)), Some(Duration::from_secs(5)), "dripping does not restart it");
        let request = clock.request(Version::HTTP_11);
        clock.read(at(6_100));
        assert_eq!(clock.head_age(at(99_000)), None, "a body is no head");
        drop(request);
        assert!(clock.asked() && clock.head_age(at(99_000)).is_none());
        clock.read(at(99_000));
        assert_eq!(clock.head_age(at(99_500)), Some(Duration::from_millis(500)));
    }
}
