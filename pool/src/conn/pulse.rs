//! When a connection was last heard of.
//!
//! An HTTP/2 connection is asked for a sign of life (PING) after each `ping_interval` of silence. Between
//! the question and the answer nobody knows whether it still leads anywhere, so requests pass it over:
//! an idle connection is used only when its peer has been heard of within the interval, which is the same
//! as a PING before the first use after idleness, without the round trip. hyper owns the PING and tells
//! nobody, so what is watched is the byte stream: silence beyond the interval means that a PING is out.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dial::connect::BoxIo;

/// Part of the interval that the answer to a PING may take before the connection is passed over: timers
/// and round trips are not exact.
const GRACE_SHARE: u32 = 4;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pulse {
    epoch: Instant,
    /// Milliseconds after `epoch`.
    heard_ms: AtomicU64,
    silence_ms_max: u64,
    /// Somebody passed the connection over and wants to know when it speaks.
    passed_over: AtomicBool,
    revived: Notify,
    /// Requests that the peer allows at once.
    pub(super) streams_max: AtomicUsize,
}

/// A byte stream that notes when bytes arrive.
pub(super) struct Watched {
    io: BoxIo,
    pulse: Arc<Pulse>,
}

// === impl Pulse ===

impl Pulse {
    pub(super) fn new(ping_interval: Duration) -> Self {
        let silence_max = ping_interval.saturating_add(ping_interval / GRACE_SHARE);
        Self {
            epoch: Instant::now(),
            heard_ms: AtomicU64::new(0),
            silence_ms_max: u64::try_from(silence_max.as_millis()).unwrap_or(u64::MAX).max(1),
            passed_over: AtomicBool::new(false),
            revived: Notify::new(),
            streams_max: AtomicUsize::new(1),
        }
    }

    fn now_ms(&self) -> u64 {
        let since = Instant::now().saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the peer was heard of within the interval. If not, [`Pulse::revived`] tells when it is.
    pub(super) fn is_lively(&self) -> bool {
        let silent_ms = || self.now_ms().saturating_sub(self.heard_ms.load(Ordering::Acquire));
        if silent_ms() <= self.silence_ms_max {
            return true;
        }
        self.passed_over.store(true, Ordering::SeqCst);
        // It may have spoken in between, and then nobody would tell.
        silent_ms() <= self.silence_ms_max
    }

    fn heard(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::SeqCst);
        if self.passed_over.load(Ordering::SeqCst) && self.passed_over.swap(false, Ordering::SeqCst) {
            self.revived.notify_one();
        }
    }

    /// Waits until a connection that was passed over has been heard of.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call sees it.
    pub(crate) async fn revived(&self) {
        self.revived.notified().await;
    }
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(io: BoxIo, pulse: Arc<Pulse>) -> Self {
        Self { io, pulse }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.pulse.heard();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_passed_over_until_it_speaks() {
        let pulse = Pulse::new(Duration::from_millis(100));
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(pulse.is_lively());
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!pulse.is_lively(), "a ping must be out");
        pulse.heard();
        assert!(pulse.is_lively());
        pulse.revived().await;
    }
}
