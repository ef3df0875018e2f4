//! Open connections: what requests are handed to, and the futures that move their bytes.
//!
//! hyper's `client::conn` directly. The driver of a connection is the tail of the task that dialled it,
//! so a connection belongs to its partition from the first packet to the last.

mod driver;
mod exchange;
mod h1;
mod pulse;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use self::driver::{Driver, TaskExecutor};
use self::driver::{H1Driver, H2Driver};
pub(crate) use self::exchange::{Failure, Lease, exchange, fit};
use self::h1::Return;
pub(crate) use self::pulse::Pulse;
use self::pulse::Watched;
use crate::body::Body;
use crate::cell::Channel;
use crate::dial::connect::{Alpn, BoxIo};
use crate::error::{Error, Stage};

/// Bytes of a response's header block on HTTP/2. On HTTP/1.1 it is bounded by [`H1_BUFFER_BYTES_MAX`] and by hyper's
/// own limit of 100 headers: another one would cost an allocation per response.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// hyper's read buffer per HTTP/1.1 connection; its lower bound is 8 KiB and it must hold the headers.
const H1_BUFFER_BYTES_MAX: usize = 32 * 1024;

/// HTTP/2 settings of a lane.
#[derive(Debug, Clone)]
pub(crate) struct ConnSettings {
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
}

/// A handle to a connection.
#[derive(Debug)]
pub(crate) enum Link {
    /// HTTP/1.1: one request at a time. The handle travels with the request and comes back.
    H1 { sender: http1::SendRequest<Body>, back: Arc<Return> },
    /// HTTP/2: every request gets a copy.
    H2 { sender: http2::SendRequest<Body>, shared: Arc<Shared> },
}

/// What all handles to an HTTP/2 connection have in common. The driver hears when the last one is gone.
#[derive(Debug)]
pub(crate) struct Shared {
    pulse: Arc<Pulse>,
    _in_use: DropGuard,
}

/// Starts HTTP on a stream.
pub(crate) async fn handshake(
    io: BoxIo,
    alpn: Alpn,
    settings: &ConnSettings,
    executor: TaskExecutor,
) -> Result<(Link, Driver), Error> {
    let failed = |error| Error::dial(Stage::Handshake, error);
    match alpn {
        Alpn::Http1 => {
            let (sender, conn) = http1::Builder::new()
                .max_buf_size(H1_BUFFER_BYTES_MAX)
                .handshake(TokioIo::new(io))
                .await
                .map_err(failed)?;
            let back = Arc::new(Return::default());
            Ok((Link::H1 { sender, back: Arc::clone(&back) }, Driver::H1(Box::new(H1Driver::new(conn, back)))))
        }
        Alpn::Http2 => {
            let pulse = Arc::new(Pulse::new(settings.ping_interval));
            let (executor, tasks) = executor.of_one();
            let (sender, conn) = http2::Builder::new(executor)
                .timer(TokioTimer::new())
                .max_header_list_size(HEADER_BYTES_MAX)
                .keep_alive_interval(settings.ping_interval)
                .keep_alive_timeout(settings.ping_timeout)
                .keep_alive_while_idle(true)
                .handshake(TokioIo::new(Watched::new(io, Arc::clone(&pulse))))
                .await
                .map_err(failed)?;
            pulse.allows(conn.current_max_send_streams());
            let unused = CancellationToken::new();
            let shared = Shared { pulse: Arc::clone(&pulse), _in_use: unused.clone().drop_guard() };
            let driver = H2Driver::new(conn, pulse, unused, tasks);
            Ok((Link::H2 { sender, shared: Arc::new(shared) }, Driver::H2(Box::new(driver))))
        }
    }
}

// === impl Link ===

impl Link {
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::H2 { .. })
    }

    /// The sign of life of an HTTP/2 connection.
    pub(crate) fn pulse(&self) -> Option<Arc<Pulse>> {
        match self {
            Self::H1 { .. } => None,
            Self::H2 { shared, .. } => Some(Arc::clone(&shared.pulse)),
        }
    }

    pub(crate) async fn try_send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        match self {
            Self::H1 { sender, .. } => sender.try_send_request(request).await,
            Self::H2 { sender, .. } => sender.try_send_request(request).await,
        }
    }

    /// The exchange was given up: an HTTP/1.1 connection ends with it.
    pub(crate) fn cut(self) {
        if let Self::H1 { back, .. } = self {
            back.cut();
        }
    }

    /// Waits until the connection can take the next request; `false` when it never will.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self {
            Self::H1 { sender, .. } => sender.poll_ready(cx).map(|ready| ready.is_ok()),
            Self::H2 { sender, .. } => Poll::Ready(!sender.is_closed()),
        }
    }
}

impl Channel for Link {
    fn share(&self) -> Option<Self> {
        match self {
            Self::H1 { .. } => None,
            Self::H2 { sender, shared } => Some(Self::H2 { sender: sender.clone(), shared: Arc::clone(shared) }),
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Self::H1 { sender, .. } => !sender.is_closed(),
            Self::H2 { sender, .. } => !sender.is_closed(),
        }
    }

    fn is_lively(&self) -> bool {
        match self {
            Self::H1 { .. } => true,
            Self::H2 { shared, .. } => shared.pulse.is_lively(),
        }
    }

    fn streams_max(&self) -> usize {
        match self {
            Self::H1 { .. } => 1,
            Self::H2 { shared, .. } => shared.pulse.streams_max.load(Ordering::Relaxed),
        }
    }
}
