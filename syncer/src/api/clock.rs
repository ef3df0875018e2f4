//! What a connection is waiting for, and since when.
//!
//! hyper has one time-out for heads and for idling: short, it closes connections that clients wanted
//! to use again (and their next request fails); long, it lets a client drip a head for a minute. And
//! it has none for a client that asks and does not read. So the socket and the answers are watched:
//! part of a head, be it behind another request, is to be whole soon after nothing else is under way; a
//! write that the socket does not take, and an answer that is not taken, have limits of their own
//! ([`Clock::overdue`]). While a request is under way hyper reads no head, so that time is not the client's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::framing::Framing;
use super::limits::ConnectionLimits;
use super::place::Attended;

/// Largest piece of an answer given to the connection at once. HTTP/2 keeps a piece that the
/// client's window does not admit, so this times the streams is what a slow reader can tie up: 4 MiB.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Clock {
    limits: ConnectionLimits,
    asked: AtomicBool,
    h2: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where heads are in what arrives.
    framing: Framing,
    /// Part of a head is here, and no request under way.
    head_since: Option<Instant>,
    /// The socket took nothing of a write.
    write_since: Option<Instant>,
    /// No request is under way.
    idle_since: Instant,
    under_way: Slab<Exchange>,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// When its head was complete; of a stream, when it last said something.
    since: Instant,
    stream: bool,
}

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// Drop it, for this reason.
    Drop(&'static str),
    /// Nobody uses it: ask it to leave.
    Idle,
}

/// A socket whose reads and writes are noted.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    inner: S,
    clock: Arc<Clock>,
}

/// A request under way, until its answer has been written.
#[derive(Debug)]
pub(crate) struct UnderWay {
    clock: Arc<Clock>,
    key: usize,
}

/// An answer's body that holds its request, and comes in pieces.
#[derive(Debug)]
pub(crate) struct Held {
    body: axum::body::Body,
    rest: Bytes,
    request: UnderWay,
    /// Until it is dropped, the request is under way for the connection's place too.
    _attended: Attended,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(limits: ConnectionLimits, now: Instant) -> Arc<Self> {
        let state = State {
            framing: Framing::new(),
            head_since: None,
            write_since: None,
            idle_since: now,
            under_way: Slab::new(),
        };
        Arc::new(Self { limits, asked: AtomicBool::new(false), h2: AtomicBool::new(false), state: Mutex::new(state) })
    }

    /// A head is complete: a request is under way until the guard is dropped.
    pub(crate) fn request(self: &Arc<Self>, version: Version, now: Instant) -> UnderWay {
        if version == Version::HTTP_2 {
            self.h2.store(true, Ordering::Relaxed);
        }
        self.asked.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.head_since = None;
        let key = state.under_way.insert(Exchange { since: now, stream: false });
        drop(state);
        UnderWay { clock: Arc::clone(self), key }
    }

    /// Whether a head had a length beside chunks.
    pub(crate) fn two_lengths(&self) -> bool {
        self.state.lock().framing.two_lengths()
    }

    /// Whether any request ever came.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// What took too long. Between requests HTTP/2 sends PINGs and windows, which are no heads. Its later heads are
    /// bounded otherwise: until one ends a client may send nothing else, not even the answer to the PING that follows
    /// silence, and what drips is silence. So it has 30 s (`PING_AFTER` and `PING_MAX`), and five CONTINUATION
    /// frames.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Overdue> {
        let h2 = self.h2.load(Ordering::Relaxed);
        let ConnectionLimits { head, answer, write, stream_idle, idle: idle_max, .. } = self.limits;
        let state = self.state.lock();
        let over = |since: Option<Instant>, max| since.is_some_and(|s| now.saturating_duration_since(s) > max);
        if !h2 && over(state.head_since, head) {
            return Some(Overdue::Drop("slow_head"));
        }
        if over(state.write_since, write) {
            return Some(Overdue::Drop("slow_reader"));
        }
        let mut idle = true;
        for (_, exchange) in &state.under_way {
            idle = false;
            if exchange.stream && over(Some(exchange.since), stream_idle) {
                return Some(Overdue::Drop("unread_stream"));
            }
            if !exchange.stream && over(Some(exchange.since), answer) {
                return Some(Overdue::Drop("slow_reader"));
            }
        }
        (h2 && idle && over(Some(state.idle_since), idle_max)).then_some(Overdue::Idle)
    }

    fn read(&self, bytes: &[u8], now: Instant) {
        let mut state = self.state.lock();
        state.framing.take(bytes);
        state.await_head(now);
    }

    fn write<T>(&self, polled: &Poll<T>) {
        match polled {
            Poll::Ready(_) => self.state.lock().write_since = None,
            Poll::Pending => {
                self.state.lock().write_since.get_or_insert_with(Instant::now);
            }
        }
    }
}

// === impl State ===

impl State {
    fn await_head(&mut self, now: Instant) {
        if self.under_way.is_empty() && self.framing.in_head() {
            self.head_since.get_or_insert(now);
        } else {
            self.head_since = None;
        }
    }
}

// === impl UnderWay ===

impl UnderWay {
    /// The answer is a stream, and said something just now.
    fn streams(&self, now: Instant) {
        if let Some(exchange) = self.clock.state.lock().under_way.get_mut(self.key) {
            *exchange = Exchange { since: now, stream: true };
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.clock.state.lock();
        state.under_way.try_remove(self.key);
        if state.under_way.is_empty() {
            let now = Instant::now();
            state.idle_since = now;
            state.await_head(now);
        }
    }
}

// === impl Held ===

impl Held {
    /// Bodies without a length are streams.
    pub(super) fn new(body: axum::body::Body, request: UnderWay, attended: Attended) -> Self {
        let streams = body.size_hint().exact().is_none();
        if streams {
            request.streams(Instant::now());
        }
        attended.answered(streams);
        Self { body, rest: Bytes::new(), request, _attended: attended }
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let streams = this.body.size_hint().exact().is_none();
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
            if streams {
                this.request.streams(Instant::now());
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES_MAX));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

// === impl Watched ===

impl<S> Watched<S> {
    pub(crate) fn new(inner: S, clock: Arc<Clock>) -> Self {
        Self { inner, clock }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            this.clock.read(bytes, Instant::now());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.clock.write(&polled);
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_flush(cx);
        this.clock.write(&polled);
        polled
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
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.clock.write(&polled);
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::super::place::Place;
    use super::*;

    fn clock() -> (Arc<Clock>, impl Fn(u64) -> Instant) {
        let t0 = Instant::now();
        (Clock::new(ConnectionLimits::default(), t0), move |ms| t0 + Duration::from_millis(ms))
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_five_seconds_from_its_first_byte_or_the_end_of_what_came_before() {
        let slow = Some(Overdue::Drop("slow_head"));
        let (clock, at) = clock();
        assert_eq!(clock.overdue(at(99_000)), None, "HTTP/1.1 may idle: hyper looks after it");
        clock.read(b"PUT / HTTP/1.1\r\nco", at(1_000));
        clock.read(b"ntent-length: 4", at(2_000));
        assert_eq!(clock.overdue(at(6_000)), None);
        assert_eq!(clock.overdue(at(6_001)), slow, "dripping does not restart it");
        clock.read(b"\r\n\r\n{", at(6_100));
        let request = clock.request(Version::HTTP_11, at(6_100));
        clock.read(b"   ", at(6_200));
        assert_eq!(clock.overdue(at(60_000)), None, "a body is no head");
        clock.read(b"GET", at(7_000));
        assert_eq!(clock.overdue(at(60_000)), None, "nobody reads it yet");
        tokio::time::advance(Duration::from_secs(30)).await;
        drop(request);
        assert!(clock.asked());
        assert_eq!(clock.overdue(at(35_000)), None);
        assert_eq!(clock.overdue(at(35_001)), slow, "behind a request too");
        clock.read(b" / HTTP/1.1\r\n\r\n", at(36_000));
        assert_eq!(clock.overdue(at(70_000)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_reads_are_overdue() {
        let (clock, at) = clock();
        let request = clock.request(Version::HTTP_2, at(0));
        assert_eq!(clock.overdue(at(75_000)), None);
        assert_eq!(clock.overdue(at(75_001)), Some(Overdue::Drop("slow_reader")));
        request.streams(at(50_000));
        assert_eq!(clock.overdue(at(125_000)), None, "a stream may last");
        assert_eq!(clock.overdue(at(125_001)), Some(Overdue::Drop("unread_stream")));
        request.streams(at(125_000));
        assert_eq!(clock.overdue(at(130_000)), None, "it spoke");
        drop(request);
        clock.write::<()>(&Poll::Pending);
        assert_eq!(clock.overdue(at(30_000)), None);
        assert_eq!(clock.overdue(at(30_001)), Some(Overdue::Drop("slow_reader")), "the socket takes nothing");
        clock.write(&Poll::Ready(()));
        assert_eq!(clock.overdue(at(75_001)), Some(Overdue::Idle), "nobody uses it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_comes_whole_and_in_pieces() {
        let (clock, at) = clock();
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES_MAX + 5).map(|n| (n % 251) as u8).collect();
        let (_, attended) = Place::alone().seat().request(axum::body::Body::empty());
        let mut held = Held::new(bytes.clone().into(), clock.request(Version::HTTP_2, at(0)), attended);
        let (mut seen, mut pieces) = (Vec::new(), 0);
        while !held.is_end_stream() {
            assert_eq!(held.size_hint().exact(), Some((bytes.len() - seen.len()) as u64));
            let data = held.frame().await.expect("more").expect("no error").into_data().expect("data");
            assert!(data.len() <= PIECE_BYTES_MAX);
            seen.extend_from_slice(&data);
            pieces += 1;
        }
        assert_eq!((seen == bytes, pieces), (true, 4));
    }
}
