//! Reading bodies with a bound on size, on silence and on the whole.

use std::time::Duration;

use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::StatusCode;
use http_body::Frame;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::ApiError;
use super::limits::BodyLimits;

/// Largest body, except on the bulk road: the largest request, a change of all levers, has ~4 KiB.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest line of the bulk road: four ids of 128 bytes, escaped, and as much again.
pub(crate) const LINE_BYTES_MAX: usize = 8 * 1024;

/// Bytes of a stream that are taken at once, if so many have arrived: eight of the usual frames. The sender may send as
/// many again for what was taken, and is woken for it; where each frame is taken alone, it is woken for each.
const AHEAD_BYTES: usize = 128 * 1024;

/// Reads a whole body.
pub(crate) async fn read(mut body: Body, limits: BodyLimits) -> Result<Bytes, ApiError> {
    if http_body::Body::size_hint(&body).lower() > BODY_BYTES_MAX as u64 {
        return Err(ApiError::too_large(BODY_BYTES_MAX));
    }
    let by = Instant::now() + limits.whole;
    let mut whole = BytesMut::new();
    loop {
        let slow = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not arrive in time");
        let next = timeout_at(by, timeout(limits.idle, body.frame())).await;
        let frame = next.map_err(|_| slow())?.map_err(|_| slow())?;
        let Some(frame) = frame else { return Ok(whole.freeze()) };
        let frame = frame.map_err(|e| ApiError::invalid(format!("the body broke off: {e}")))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > BODY_BYTES_MAX {
                return Err(ApiError::too_large(BODY_BYTES_MAX));
            }
            whole.extend_from_slice(&data);
        }
    }
}

/// Parses JSON; nothing at all counts as `{}`.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    object(bytes).map_err(|e| ApiError::invalid(format!("the body is not what it should be: {e}")))
}

/// Parses a JSON object. A list would do for a struct as well (its fields in their order), and an
/// empty one for a struct of defaults: nobody means that.
pub(crate) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let starts = bytes.trim_ascii_start().first();
    if starts.is_some_and(|b| *b == b'[') {
        return Err("expected an object, found a list".to_owned());
    }
    serde_json::from_slice(bytes).map_err(|e| located::<T>(bytes).unwrap_or_else(|| e.to_string()))
}

/// The error with the key it is about. Looked for only when there is an error: lines of the bulk
/// road are many, and almost all are right.
fn located<T: DeserializeOwned>(bytes: &[u8]) -> Option<String> {
    let error = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_slice(bytes)).err()?;
    let path = error.path().to_string();
    // `?` stands for a key that was not read to its end.
    (path != "." && path != "?").then(|| format!("`{path}` {}", error.inner()))
}

/// Cuts a streamed body into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// In the middle of a line that was too long.
    skipping: bool,
    ended: bool,
}

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A line without its end.
    Line(Bytes),
    /// A line was longer than [`LINE_BYTES_MAX`]; it was skipped.
    TooLong,
    /// The body ended, broke off, or was silent for too long.
    End,
}

// === impl Lines ===

impl Lines {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), skipping: false, ended: false }
    }

    /// The next line that has already arrived.
    pub(crate) fn buffered(&mut self) -> Option<Next> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.buffer) else {
                if self.buffer.len() > LINE_BYTES_MAX {
                    self.buffer.clear();
                    // Told once, however much of it still comes.
                    return (!std::mem::replace(&mut self.skipping, true)).then_some(Next::TooLong);
                }
                return None;
            };
            let line = self.buffer.split_to(end).freeze();
            self.buffer.advance(1);
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if line.len() > LINE_BYTES_MAX {
                return Some(Next::TooLong);
            }
            let line = line.slice_ref(line.trim_ascii());
            if !line.is_empty() {
                return Some(Next::Line(line));
            }
        }
    }

    /// The next line, whole, waiting for at most `idle`: bytes that drip do not extend it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    pub(crate) async fn next(&mut self, idle: Duration) -> Next {
        let by = Instant::now() + idle;
        let mut waited = false;
        loop {
            if let Some(next) = self.buffered() {
                return next;
            }
            // What comes without a pause and brings no line: others go first, and the time runs.
            if std::mem::replace(&mut waited, true) {
                tokio::task::yield_now().await;
                if Instant::now() >= by {
                    return Next::End;
                }
            }
            if self.ended {
                // The last line needs no line break.
                let rest = std::mem::take(&mut self.buffer).freeze();
                let rest = rest.slice_ref(rest.trim_ascii());
                return if rest.is_empty() || self.skipping { Next::End } else { Next::Line(rest) };
            }
            match timeout_at(by, self.body.frame()).await {
                Ok(frame) => self.take(frame),
                Err(_) => return Next::End,
            }
        }
    }

    /// Whether nothing more will arrive.
    pub(crate) const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes what has arrived, without waiting; says whether that was anything, be it the end.
    pub(crate) fn arrived(&mut self) -> bool {
        let before = self.buffer.len();
        while !self.ended
            && self.buffer.len() < AHEAD_BYTES
            && let Some(frame) = self.body.frame().now_or_never()
        {
            self.take(frame);
        }
        self.ended || self.buffer.len() > before
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, axum::Error>>) {
        match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
            }
            None => self.ended = true,
            // Half a line is none; the whole ones before it are.
            Some(Err(_)) => {
                self.buffer.truncate(memchr::memrchr(b'\n', &self.buffer).map_or(0, |at| at + 1));
                self.ended = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    async fn lines(chunks: Vec<Vec<u8>>) -> Vec<Next> {
        let stream = futures_util::stream::iter(chunks.into_iter().map(|c| Ok::<_, std::io::Error>(Bytes::from(c))));
        let mut lines = Lines::new(Body::from_stream(stream));
        let mut seen = Vec::new();
        loop {
            match lines.next(Duration::from_secs(30)).await {
                Next::End => return seen,
                next => seen.push(next),
            }
        }
    }

    #[tokio::test]
    async fn lines_survive_any_cut() {
        let text = b"one\r\n\n  two\nthree";
        for size in 1..=text.len() {
            let seen = lines(text.chunks(size).map(<[u8]>::to_vec).collect()).await;
            assert_eq!(seen, ["one", "two", "three"].map(|l| Next::Line(Bytes::from_static(l.as_bytes()))));
        }
    }

    #[tokio::test]
    async fn a_line_too_long_is_told_once_and_costs_only_itself() {
        let long = vec![b'x'; 3 * LINE_BYTES_MAX];
        let text = [b"a\n", &long[..], b"\nb\n"].concat();
        for size in [1_000, LINE_BYTES_MAX, text.len()] {
            let seen = lines(text.chunks(size).map(<[u8]>::to_vec).collect()).await;
            let line = |l: &'static str| Next::Line(Bytes::from_static(l.as_bytes()));
            assert_eq!(seen, [line("a"), Next::TooLong, line("b")], "cut every {size} bytes");
        }
    }

    #[tokio::test]
    async fn what_has_arrived_is_taken_at_once_up_to_a_bound() {
        const FRAME: usize = 16 * 1024;
        let frame = [&[b'x'; FRAME - 1][..], b"\n"].concat();
        let frames = vec![Bytes::from(frame); 20].into_iter().map(Ok::<_, std::io::Error>);
        let later = futures_util::stream::pending();
        let mut lines = Lines::new(Body::from_stream(futures_util::stream::iter(frames).chain(later)));
        let mut taken = Vec::new();
        while lines.arrived() {
            taken.push(lines.buffer.len() / FRAME);
            lines.buffer.clear();
        }
        assert_eq!(taken, [8, 8, 4]);
    }

    #[tokio::test]
    async fn whole_lines_before_a_break_are_lines() {
        let frames = [Ok("first\n"), Ok("a\nb\nhal"), Err(std::io::Error::other("reset"))];
        let frames = futures_util::stream::iter(frames).map(|frame| frame.map(Bytes::from));
        let mut lines = Lines::new(Body::from_stream(frames));
        assert!(lines.arrived());
        for line in ["first", "a", "b"] {
            assert_eq!(lines.next(Duration::from_secs(30)).await, Next::Line(Bytes::from(line)));
        }
        assert_eq!(lines.next(Duration::from_secs(30)).await, Next::End);
    }

    #[tokio::test]
    async fn who_sends_no_line_without_a_pause_lets_others_go_first() {
        let frames = std::iter::repeat_n("\n\n\n", 1_000).chain(["late\n"]);
        let frames = frames.map(|frame| Ok::<_, std::io::Error>(Bytes::from(frame)));
        let mut lines = Lines::new(Body::from_stream(futures_util::stream::iter(frames)));
        tokio::select! {
            biased;
            next = lines.next(Duration::from_secs(600)) => panic!("{next:?}"),
            () = tokio::task::yield_now() => {}
        }
    }

    fn dripping() -> Body {
        Body::from_stream(futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_and_dripping_bodies_are_given_up() {
        let silent = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let limits = BodyLimits { idle: Duration::from_secs(10), whole: Duration::from_secs(30) };
        for (body, lasts_s) in [(silent, 10), (dripping(), 30)] {
            let began = Instant::now();
            assert_eq!(read(body, limits).await.expect_err("slow").status, StatusCode::REQUEST_TIMEOUT);
            assert_eq!(Instant::now().saturating_duration_since(began).as_secs(), lasts_s);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_line_is_given_up() {
        let began = Instant::now();
        assert_eq!(Lines::new(dripping()).next(Duration::from_secs(60)).await, Next::End);
        assert_eq!(Instant::now().saturating_duration_since(began).as_secs(), 60);
    }
}
