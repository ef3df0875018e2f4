//! A stream whose reader learns of everything late: round-trip time on loopback.
//!
//! Each flight from the client is delivered one round trip after it came in; answers go out at once. So
//! a TLS 1.3 handshake costs one round trip, a request one more, as over a real distance.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Most bytes under way at once; a request of a bench is far smaller.
const UNDER_WAY_MAX: usize = 256 * 1024;

/// A stream with a round-trip time.
pub(super) struct Delayed {
    stream: TcpStream,
    delay: Duration,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    ended: bool,
    alarm: Pin<Box<Sleep>>,
}

// === impl Delayed ===

impl Delayed {
    pub(super) fn new(stream: TcpStream, delay: Duration) -> Self {
        let alarm = Box::pin(sleep_until(Instant::now()));
        Self { stream, delay, under_way: VecDeque::new(), bytes: 0, ended: false, alarm }
    }

    /// Takes what has come in, so that it ages.
    fn collect(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut space = [0; 4_096];
        while !self.ended && self.bytes < UNDER_WAY_MAX {
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Pending => break,
                Poll::Ready(result) => result?,
            }
            let bytes = buf.filled().to_vec();
            self.ended = bytes.is_empty();
            self.bytes += bytes.len();
            if !bytes.is_empty() {
                self.under_way.push_back((Instant::now() + self.delay, bytes));
            }
        }
        Ok(())
    }
}

impl AsyncRead for Delayed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.delay.is_zero() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        this.collect(cx)?;
        let Some((due, bytes)) = this.under_way.front_mut() else {
            return if this.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        if *due > Instant::now() {
            this.alarm.as_mut().reset(*due);
            ready!(this.alarm.as_mut().poll(cx));
        }
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        bytes.drain(..count);
        this.bytes -= count;
        if bytes.is_empty() {
            this.under_way.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Delayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
