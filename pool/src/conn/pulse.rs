//! When a connection was last heard of.
//!
//! An HTTP/2 connection is asked for a sign of life (PING) after each `ping_interval` of silence. Between
//! the question and the answer nobody knows whether it still leads anywhere, so requests pass it over:
//! an idle connection is used only when its peer has been heard of within the interval, which is the same
//! as a PING before the first use after idleness, without the round trip. hyper owns the PING and tells
//! nobody, so what is watched is the byte stream: silence beyond the interval means that a PING is out.
//!
//! The same stream shows when the peer's settings have come, and with them how many requests it allows at once:
//! more than was taken for granted is given to those in line at once, not when the next request returns.

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
    told: Told,
}

/// Whether the peer's settings have come. They are the first that it says, and nobody is told of them; but they
/// are in force when our acknowledgement is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Something,
    Settings,
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

    /// Notes how many requests the peer allows at once. More than before is news for those in line.
    pub(super) fn allows(&self, streams_max: usize) {
        if self.streams_max.swap(streams_max, Ordering::AcqRel) < streams_max {
            self.revived.notify_one();
        }
    }

    fn heard(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::SeqCst);
        if self.passed_over.load(Ordering::SeqCst) && self.passed_over.swap(false, Ordering::SeqCst) {
            self.revived.notify_one();
        }
    }

    /// Waits until a connection that was passed over, or had no stream to spare, can perhaps take requests again.
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
        Self { io, pulse, told: Told::Nothing }
    }

    /// Something is written: the first after the peer spoke acknowledges its settings, and the driver reads them.
    fn answers(&mut self) {
        if self.told == Told::Something {
            self.told = Told::Settings;
            self.pulse.revived.notify_one();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.pulse.heard();
            if this.told == Told::Nothing {
                this.told = Told::Something;
            }
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answers();
        Pin::new(&mut this.io).poll_write(cx, buf)
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
        let this = self.get_mut();
        this.answers();
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    #[tokio::test(start_paused = true)]
    async fn a_raised_limit_and_the_peer_s_first_settings_are_news() {
        let pulse = Arc::new(Pulse::new(Duration::from_secs(10)));
        let news = || futures_util::FutureExt::now_or_never(pulse.revived()).is_some();
        pulse.allows(100);
        assert!(news());
        pulse.allows(10);
        assert!(!news(), "less is no news for those in line");
        pulse.allows(11);
        assert!(news());
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Watched::new(Box::new(near), Arc::clone(&pulse));
        let mut buffer = [0; 8];
        for (settings, first) in [(b"settings", true), (b"whatever", false)] {
            near.write_all(b"request").await.expect("written");
            assert!(!news(), "the peer has said nothing");
            far.write_all(settings).await.expect("written");
            near.read_exact(&mut buffer).await.expect("read");
            near.write_all(b"ack").await.expect("written");
            assert_eq!(news(), first);
        }
    }
}
