//! The way to a byte stream: a `tower::Service` from [`Origin`] to [`Connected`].
//!
//! The service is injected, so that tests plug in duplex pipes and a simulation its own network. A
//! connector that returns a bare stream leaves TLS to the pool (which holds the gate for it); one that
//! did its own handshake, or needs none, says which protocol to speak.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tower::util::BoxCloneSyncService;

use super::Progress;
use crate::error::{BoxError, Error, Stage};
use crate::origin::Origin;

/// Sent bytes that are not acknowledged in this time break the connection: a dead host or a cut wire is
/// noticed without waiting for TCP's quarter of an hour.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried, in the resolver's order. More only eat the dial's time-out.
const ADDRESSES_MAX: usize = 4;

/// How long one address may keep the next from being tried. A SYN that was lost is repeated after 1 s.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);

/// The connector of a lane.
pub(crate) type Connector = BoxCloneSyncService<Origin, Connected, BoxError>;

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) type BoxIo = Box<dyn Io>;

/// The protocol spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What a connector returns.
pub struct Connected {
    pub(crate) io: BoxIo,
    pub(crate) alpn: Option<Alpn>,
    /// How long resolving the name took, if there was one.
    pub(crate) resolved: Option<Duration>,
}

/// Which stage a connector's failure belongs to; the TCP connector wraps its errors in it.
#[derive(Debug)]
pub(crate) struct StageError {
    stage: Stage,
    source: io::Error,
}

/// The connector used unless another is given: resolves, connects, sets the socket's options.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TcpConnector;

/// Reports a connector's progress: it is still resolving until it has had time to do more.
pub(crate) struct Target<'a> {
    resolves: bool,
    progress: &'a Progress,
}

// === impl Connected ===

impl Connected {
    /// A bare stream: the pool does TLS if the origin is https.
    pub fn bare(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), alpn: None, resolved: None }
    }

    /// A stream on which HTTP can start at once.
    pub fn ready(io: impl Io + 'static, alpn: Alpn) -> Self {
        Self { io: Box::new(io), alpn: Some(alpn), resolved: None }
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("alpn", &self.alpn).finish_non_exhaustive()
    }
}

// === impl Target ===

impl<'a> Target<'a> {
    pub(crate) fn new(origin: &Origin, progress: &'a Progress) -> Self {
        Self { resolves: origin.host().parse::<IpAddr>().is_err(), progress }
    }

    /// Runs the connector and classifies its failure.
    pub(crate) async fn observe(
        self,
        connecting: impl Future<Output = Result<Connected, BoxError>>,
    ) -> Result<Connected, Error> {
        self.progress.set(if self.resolves { Stage::Dns } else { Stage::Tcp });
        connecting.await.map_err(|error| match error.downcast::<StageError>() {
            Ok(error) => Error::dial(error.stage, error.source),
            Err(error) => Error::dial(Stage::Tcp, error),
        })
    }
}

// === impl StageError ===

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.stage)
    }
}

impl std::error::Error for StageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

// === impl TcpConnector ===

impl tower::Service<Origin> for TcpConnector {
    type Response = Connected;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Connected, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, origin: Origin) -> Self::Future {
        Box::pin(async move {
            let (stream, resolved) = connect(&origin).await?;
            Ok(Connected { resolved, ..Connected::bare(stream) })
        })
    }
}

async fn connect(origin: &Origin) -> Result<(TcpStream, Option<Duration>), StageError> {
    let at = |stage| move |source| StageError { stage, source };
    let (addresses, resolved) = match origin.host().parse::<IpAddr>() {
        Ok(ip) => (vec![SocketAddr::new(ip, origin.port())], None),
        Err(_) => {
            let began = Instant::now();
            let found = lookup_host((origin.host(), origin.port())).await.map_err(at(Stage::Dns))?.collect();
            (found, Some(Instant::now().saturating_duration_since(began)))
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = addresses.into_iter().take(ADDRESSES_MAX).peekable();
    while let Some(address) = addresses.next() {
        let connecting = TcpStream::connect(address);
        let connected = if addresses.peek().is_some() {
            timeout(ADDRESS_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        } else {
            connecting.await // The dial's own time-out bounds the last one.
        };
        match connected {
            Ok(stream) => {
                prepare(&stream).map_err(at(Stage::Tcp))?;
                return Ok((stream, resolved));
            }
            Err(error) => last = error,
        }
    }
    Err(at(Stage::Tcp)(last))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}
