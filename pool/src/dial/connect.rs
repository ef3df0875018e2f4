//! The way to a byte stream: a `tower::Service` from [`Origin`] to [`Connected`].
//!
//! The service is injected, so that tests plug in duplex pipes and a simulation its own network. A
//! connector that returns a bare stream leaves TLS to the pool (which holds the gate for it); one that
//! did its own handshake, or needs none, says which protocol to speak.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::Progress;
use super::resolve::Resolver;
use crate::error::{BoxError, Error, Stage, is_shortage};
use crate::origin::Origin;

/// Sent bytes that are not acknowledged in this time break the connection: a dead host or a cut wire is
/// noticed without waiting for TCP's quarter of an hour.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried: more only eat the dial's time-out.
const ADDRESSES_MAX: usize = 4;

/// Attempts of one dial: as many as fit into the second after which a kernel sends its own SYN again. Each is a
/// descriptor, so a lane's dials to silent hosts are seven times `dials_max` of them at worst, and a quarter more with its
/// probes.
pub(crate) const ATTEMPTS_MAX: usize = 7;

/// How long one attempt may keep the next from being made beside it: more than the way to most hosts and back takes. RFC
/// 8305 recommends 250 ms, and 100 at least. A silent address is tried again after it, because kernels send a SYN that was
/// lost, or came while the host was gone, again after a whole second. Where they go on so (Linux since 6.5, four times),
/// seven attempts so far apart find a host that has one address within a sixth of a second of its return.
const ATTEMPT_DELAY: Duration = Duration::from_millis(150);

/// How the dials of a partition get their streams.
#[derive(Debug, Clone)]
pub(crate) enum Connector {
    Tcp(TcpConnector),
    Given(BoxCloneSyncService<Origin, Connected, BoxError>),
}

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
}

/// The connector used unless another is given: resolves, connects, sets the socket's options.
#[derive(Debug, Clone, Default)]
pub(crate) struct TcpConnector {
    resolver: Resolver,
}

// === impl Connected ===

impl Connected {
    /// A bare stream: the pool does TLS if the origin is https.
    pub fn bare(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), alpn: None }
    }

    /// A stream on which HTTP can start at once.
    pub fn ready(io: impl Io + 'static, alpn: Alpn) -> Self {
        Self { io: Box::new(io), alpn: Some(alpn) }
    }
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("alpn", &self.alpn).finish_non_exhaustive()
    }
}

// === impl Connector ===

impl Connector {
    /// For one partition, which looks names up from so many places of its own.
    pub(crate) fn apart(&self, lookups: usize) -> Self {
        match self {
            Self::Tcp(tcp) => Self::Tcp(TcpConnector { resolver: tcp.resolver.apart(lookups) }),
            Self::Given(given) => Self::Given(given.clone()),
        }
    }

    /// Makes a stream. How far one that was given is cannot be known: it resolves a name until it is done.
    pub(super) async fn connect(&self, origin: &Origin, progress: &Progress) -> Result<Connected, Error> {
        let literal = origin.host().parse::<IpAddr>().ok();
        progress.set(if literal.is_none() { Stage::Dns } else { Stage::Tcp });
        match self {
            Self::Tcp(tcp) => tcp.connect(origin, literal, progress).await.map(Connected::bare),
            Self::Given(given) => {
                let connected = given.clone().oneshot(origin.clone()).await;
                connected.map_err(|error| Error::dial(Stage::Tcp, error))
            }
        }
    }
}

impl Default for Connector {
    /// TCP.
    fn default() -> Self {
        Self::Tcp(TcpConnector::default())
    }
}

// === impl TcpConnector ===

impl TcpConnector {
    #[cfg(test)]
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }

    async fn connect(&self, origin: &Origin, literal: Option<IpAddr>, progress: &Progress) -> Result<TcpStream, Error> {
        let at = |stage| move |error: io::Error| Error::dial(stage, error);
        let addresses = match literal {
            Some(ip) => in_turn(&[ip]),
            None => {
                let resolving = self.resolver.resolve(origin.host(), |waits| progress.queued(waits, Stage::Dns));
                let found = resolving.await.map_err(at(Stage::Dns))?;
                progress.set(Stage::Tcp);
                in_turn(&found)
            }
        };
        let connect = |ip| TcpStream::connect(SocketAddr::new(ip, origin.port()));
        let stream = first_of(addresses, connect).await.map_err(at(Stage::Tcp))?;
        prepare(&stream).map_err(at(Stage::Tcp))?;
        Ok(stream)
    }
}

/// The addresses to try, alternating between the families: one that leads nowhere costs one delay, however many
/// addresses it has (RFC 8305, section 4).
fn in_turn(found: &[IpAddr]) -> SmallVec<[IpAddr; ADDRESSES_MAX]> {
    let first_family = found.first().is_some_and(IpAddr::is_ipv6);
    let family = |of: bool| found.iter().filter(move |ip| ip.is_ipv6() == of).copied();
    let (mut ours, mut others) = (family(first_family), family(!first_family));
    let turns = std::iter::repeat_with(|| [ours.next(), others.next()]);
    turns.take(found.len()).flatten().flatten().take(ADDRESSES_MAX).collect()
}

/// Tries one address after the other, [`ATTEMPT_DELAY`] apart or as soon as one fails, and the silent ones again, and
/// takes the first that answers. The dial's own time-out bounds them all.
async fn first_of<T, F>(addresses: SmallVec<[IpAddr; ADDRESSES_MAX]>, connect: impl Fn(IpAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let attempt = |ip| connect(ip).map(move |result| (ip, result));
    let mut to_try: VecDeque<_> = addresses.iter().copied().cycle().take(ATTEMPTS_MAX).collect();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        attempts.extend(to_try.pop_front().map(attempt));
        tokio::select! {
            biased;
            result = attempts.next() => match result {
                None => return Err(last),
                Some((_, Ok(connected))) => return Ok(connected),
                // Ours, and more of them would make it worse; those under way may still win.
                Some((_, Err(error))) if is_shortage(&error) => {
                    to_try.clear();
                    last = error;
                }
                Some((failed, Err(error))) => {
                    to_try.retain(|ip| *ip != failed);
                    last = error;
                }
            },
            () = sleep(ATTEMPT_DELAY), if !to_try.is_empty() => {}
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    SockRef::from(stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    fn addresses(of: &[&str]) -> Vec<IpAddr> {
        of.iter().map(|ip| ip.parse().expect("address")).collect()
    }

    #[test]
    fn families_take_turns() {
        let tried = in_turn(&addresses(&["::1", "::2", "::3", "::4", "10.0.0.1", "10.0.0.2"]));
        assert_eq!(tried.to_vec(), addresses(&["::1", "10.0.0.1", "::2", "10.0.0.2"]));
        assert_eq!(in_turn(&addresses(&["10.0.0.1", "10.0.0.2"])).len(), 2);
        assert!(in_turn(&[]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn r01_addresses_that_lead_nowhere_cost_a_delay_each() {
        let began = Instant::now();
        let found = addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        let alive = found[3];
        let connect = |ip| async move { if ip == alive { Ok(ip) } else { pending().await } };
        assert_eq!(first_of(in_turn(&found), connect).await.expect("the fourth lives"), alive);
        assert_eq!(Instant::now().saturating_duration_since(began), ATTEMPT_DELAY * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn r01_a_host_that_comes_back_during_a_dial_is_found_by_the_next_attempt() {
        let began = Instant::now();
        let found = addresses(&["10.0.0.1"]);
        let back = began + ATTEMPT_DELAY * 3 / 2;
        let tried = AtomicUsize::new(0);
        let connect = |ip| {
            tried.fetch_add(1, Ordering::Relaxed);
            async move { if Instant::now() < back { pending().await } else { Ok(ip) } }
        };
        assert_eq!(first_of(in_turn(&found), connect).await.expect("it is back"), found[0]);
        assert_eq!(Instant::now().saturating_duration_since(began), ATTEMPT_DELAY * 2);
        let silent = tokio::time::timeout(
            ATTEMPT_DELAY * 40,
            first_of(in_turn(&found), |_| {
                tried.fetch_add(1, Ordering::Relaxed);
                pending::<io::Result<()>>()
            }),
        );
        assert!(silent.await.is_err());
        assert_eq!(tried.into_inner(), 3 + ATTEMPTS_MAX, "a dial has a bound on its descriptors");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_is_not_tried_again() {
        let found = addresses(&["10.0.0.1", "10.0.0.2"]);
        let (refusing, tried) = (found[0], AtomicUsize::new(0));
        let connect = |ip: IpAddr| {
            tried.fetch_add(1, Ordering::Relaxed);
            async move { if ip == refusing { Err(io::ErrorKind::ConnectionRefused.into()) } else { pending().await } }
        };
        let connected = tokio::time::timeout(ATTEMPT_DELAY * 40, first_of::<(), _>(in_turn(&found), connect));
        assert!(connected.await.is_err());
        assert_eq!(tried.into_inner(), 4, "the refusal, and the silent one three times");
    }

    #[tokio::test(start_paused = true)]
    async fn r01_who_has_no_descriptor_left_for_another_attempt_waits_for_those_under_way() {
        let (tried, takes) = (AtomicUsize::new(0), ATTEMPT_DELAY * 3 / 2);
        let connect = |ip| {
            let first = tried.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !first {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                sleep(takes).await;
                Ok(ip)
            }
        };
        let began = Instant::now();
        first_of(in_turn(&addresses(&["10.0.0.1"])), connect).await.expect("the first attempt is not given up");
        assert_eq!(Instant::now().saturating_duration_since(began), takes);
        assert_eq!(tried.load(Ordering::Relaxed), 2, "one that is refused a descriptor is the last");
        let error = first_of(in_turn(&addresses(&["10.0.0.1"])), connect).await.expect_err("nothing is left");
        assert_eq!((error.kind(), tried.into_inner()), (io::ErrorKind::OutOfMemory, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_costs_nothing_and_a_slow_one_may_still_win() {
        let began = Instant::now();
        let found = addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let slow = found[1];
        let connect = |ip| async move {
            if ip != slow {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            sleep(ATTEMPT_DELAY * 2).await;
            Ok(ip)
        };
        assert_eq!(first_of(in_turn(&found), connect).await.expect("the second answers late"), slow);
        assert_eq!(Instant::now().saturating_duration_since(began), ATTEMPT_DELAY * 2);
        let refused =
            first_of(in_turn(&found), |_| async { Err::<(), _>(io::ErrorKind::ConnectionRefused.into()) }).await;
        assert_eq!(refused.expect_err("all refuse").kind(), io::ErrorKind::ConnectionRefused);
    }
}
