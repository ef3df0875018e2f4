//! Sockets: accept, handshake, serve, and the faults that happen below HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Door, Mood, Node, serve};
use crate::Error;

/// Connections that wait to be accepted: what a whole fleet of callers opens at once after a kill.
const BACKLOG: i32 = 1024;
/// Live connections per node. A syncer keeps a few; the rest is clients at the media door.
const CONNECTIONS_MAX: usize = 4096;
/// A handshake takes milliseconds; a client that is silent for so long is not coming.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// HTTP/1.1: from the end of one request to the complete head of the next. hyper's one timer covers
/// idling too, so this must exceed the idle time of the callers' pools (60 s and less), or their
/// connections would die under them.
const IDLE_AND_HEAD_MAX: Duration = Duration::from_secs(75);
/// Headers of a request, in number and in bytes.
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// Pause after `accept` failed: descriptors do not come back faster.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listener that can be opened again at once after it was closed.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let open = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        // Without it, connections of the last incarnation in TIME_WAIT would keep the port.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|e: io::Error| Error::bind(address, e))
}

/// Accepts until the door closes. The listener is gone when this returns.
pub(super) async fn accept(node: Arc<Node>, listener: tokio::net::TcpListener, door: Door) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = door.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, _)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let (node, of) = (Arc::clone(&node), door.clone());
                door.tasks.spawn(async move {
                    connection(node, tcp, of).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(sfu = %node.id, %error, "cannot accept");
                tokio::select! {
                    () = door.stop.cancelled() => return,
                    () = tokio::time::sleep(ACCEPT_RETRY) => {}
                }
            }
        }
    }
}

async fn connection(node: Arc<Node>, tcp: TcpStream, door: Door) {
    // Small answers; without it each would wait for the peer's delayed acknowledgement.
    if tcp.set_nodelay(true).is_err() {
        return; // the peer is gone already
    }
    let mood = node.mood.subscribe();
    let io = Resettable { tcp, reset: Arc::clone(&door.reset) };
    let work = pin!(handshake_and_serve(node, io, door.clone()));
    while_not_silent(work, mood, &door).await;
}

/// Drives a connection, except while the node is silent: then nothing is read or written, exactly
/// as if the host were unplugged, and it goes on when the node is healed.
async fn while_not_silent(mut work: Pin<&mut impl Future<Output = ()>>, mut mood: watch::Receiver<Mood>, door: &Door) {
    loop {
        let silent = mood.borrow_and_update().black_holed;
        tokio::select! {
            biased;
            () = door.stop.cancelled() => return,
            changed = mood.changed() => if changed.is_err() { return },
            () = work.as_mut(), if !silent => return,
        }
    }
}

async fn handshake_and_serve(node: Arc<Node>, io: Resettable, door: Door) {
    let accept = TlsAcceptor::from(Arc::clone(&node.tls)).accept(io);
    let tls = match tokio::time::timeout(HANDSHAKE_MAX, accept).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(sfu = %node.id, %error, "tls handshake failed");
            return;
        }
        Err(_) => return,
    };
    let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request: Request<Incoming>| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Infallible>(serve::handle(&node, request).await) }
    });
    let streams = Streams { tasks: door.tasks, stop: door.stop };
    serve_http(tls, h2, service, streams).await;
}

/// Serves HTTP without TLS, for the control port.
pub(crate) async fn serve_plain<S, B>(tcp: TcpStream, service: S, tasks: TaskTracker, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let streams = Streams { tasks, stop: stop.clone() };
    tokio::select! {
        () = stop.cancelled() => {}
        () = serve_http(tcp, false, service, streams) => {}
    }
}

async fn serve_http<I, S, B>(io: I, h2: bool, service: S, streams: Streams)
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io = TokioIo::new(io);
    let served = if h2 {
        let mut http = hyper::server::conn::http2::Builder::new(streams);
        http.timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEADER_BYTES_MAX);
        http.serve_connection(io, service).await
    } else {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(IDLE_AND_HEAD_MAX).max_headers(HEADERS_MAX);
        http.serve_connection(io, service).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// Runs HTTP/2 streams as tasks of the door, so that closing it ends and awaits them.
#[derive(Clone, Debug)]
struct Streams {
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A socket that says goodbye with a reset when its node was killed.
#[derive(Debug)]
struct Resettable {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

// === impl Streams ===

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = stream => {}
            }
        });
    }
}

// === impl Resettable ===

impl Drop for Resettable {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Acquire)
            && let Err(error) = self.tcp.set_zero_linger()
        {
            tracing::debug!(%error, "cannot reset a connection");
        }
    }
}

impl AsyncRead for Resettable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
