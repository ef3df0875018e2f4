//! The process that serves.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{HandshakeKind, ServerConfig};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::certs::Authority;
use super::delay::Delayed;
use super::faults::{Hole, bind, ip, listen};
use super::{Fault, FleetSpec, Protocol, Ready, Seen};

/// Requests at once on one HTTP/2 connection: what common servers allow.
const H2_STREAMS_MAX: u32 = 128;

/// A client that takes longer than this for its handshake is gone.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// When connections of hosts with resets end, milliseconds after their handshake.
const RESET_MS: std::ops::Range<u64> = 5..30;

/// Commands in flight to holes.
const COMMANDS_MAX: usize = 4;

struct Shared {
    spec: FleetSpec,
    authority: Authority,
    counters: Counters,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    handshakes: AtomicU64,
    resumed: AtomicU64,
    requests: AtomicU64,
}

struct Host {
    number: u32,
    shared: Arc<Shared>,
    tls: OnceLock<Arc<ServerConfig>>,
}

/// Serves until the input ends or the specification's life is over.
///
/// # Errors
///
/// When the specification cannot be read or an address not be bound.
pub async fn serve_until_told() -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let line = lines.next_line().await?.context("no specification")?;
    let spec: FleetSpec = serde_json::from_str(&line)?;
    let life = Duration::from_secs(spec.life_s);
    // Out of time is as good an end as any.
    timeout(life, converse(spec, lines)).await.unwrap_or(Ok(()))
}

async fn converse(spec: FleetSpec, mut lines: tokio::io::Lines<BufReader<tokio::io::Stdin>>) -> Result<()> {
    let authority = Authority::new(spec.tickets, &format!("bench authority {}", spec.first))?;
    let shared = Arc::new(Shared { spec, authority, counters: Counters::default(), tasks: TaskTracker::new() });
    let (heal, healing) = watch::channel(false);
    let (dug, mut digging) = mpsc::channel(COMMANDS_MAX);
    let (addrs, _refusing) = start(&shared, &healing, &dug).await?;
    drop(dug);
    let faulty: Vec<bool> = hosts(&shared.spec).map(|host| shared.spec.fault.hits(host)).collect();
    let holes = if shared.spec.fault == Fault::BlackHole { faulty.iter().filter(|faulty| **faulty).count() } else { 0 };
    wait_for(&mut digging, holes).await;
    say(&Ready { ca_pem: shared.authority.pem(), addrs, faulty }).await?;
    while let Some(line) = lines.next_line().await? {
        match line.split_once(' ').unwrap_or((line.as_str(), "")) {
            ("heal", after_ms) => {
                let (heal, after) = (heal.clone(), Duration::from_millis(after_ms.parse()?));
                shared.tasks.spawn(async move {
                    sleep(after).await;
                    heal.send_replace(true);
                });
                say(&true).await?;
            }
            ("break", _) => {
                heal.send_replace(false);
                wait_for(&mut digging, holes).await;
                say(&true).await?;
            }
            _ => say(&shared.counters.take()).await?,
        }
    }
    Ok(())
}

fn hosts(spec: &FleetSpec) -> std::ops::Range<u32> {
    spec.first..spec.first + spec.hosts
}

async fn wait_for(digging: &mut mpsc::Receiver<()>, holes: usize) {
    for _ in 0..holes {
        digging.recv().await;
    }
}

async fn say(what: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut out = tokio::io::stdout();
    out.write_all(&line).await?;
    out.flush().await
}

/// Binds every host to the same port and starts it. Returned sockets refuse while they are kept.
async fn start(
    shared: &Arc<Shared>,
    healing: &watch::Receiver<bool>,
    dug: &mpsc::Sender<()>,
) -> Result<(Vec<SocketAddr>, Vec<socket2::Socket>)> {
    let (mut addrs, mut refusing, mut port) = (Vec::new(), Vec::new(), 0);
    for number in hosts(&shared.spec) {
        let socket = bind(number, port).with_context(|| format!("binding {}", ip(number)))?;
        let addr = socket.local_addr()?.as_socket().context("no internet address")?;
        port = addr.port();
        addrs.push(addr);
        let faulty = shared.spec.fault.hits(number);
        if faulty && shared.spec.fault == Fault::Refused {
            refusing.push(socket);
            continue;
        }
        let host = Arc::new(Host { number, shared: Arc::clone(shared), tls: OnceLock::new() });
        let listener = listen(socket)?;
        if faulty && shared.spec.fault == Fault::BlackHole {
            shared.tasks.spawn(host.live_and_die(listener, healing.clone(), dug.clone()));
        } else {
            shared.tasks.spawn(async move { host.accept(&listener).await });
        }
    }
    Ok((addrs, refusing))
}

// === impl Counters ===

impl Counters {
    fn take(&self) -> Seen {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Seen {
            accepted: take(&self.accepted),
            handshakes: take(&self.handshakes),
            resumed: take(&self.resumed),
            requests: take(&self.requests),
        }
    }
}

// === impl Host ===

impl Host {
    /// A black hole until told to heal, a host until told to break.
    async fn live_and_die(
        self: Arc<Self>,
        mut listener: TcpListener,
        mut healing: watch::Receiver<bool>,
        dug: mpsc::Sender<()>,
    ) {
        loop {
            let Ok(hole) = Hole::dig(listener).await else { return };
            if dug.send(()).await.is_err() || healing.wait_for(|healed| *healed).await.is_err() {
                return;
            }
            let Ok(healed) = hole.heal() else { return };
            listener = healed;
            tokio::select! {
                () = self.accept(&listener) => {}
                broken = healing.wait_for(|healed| !*healed) => if broken.is_err() { return },
            }
        }
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(Duration::from_millis(10)).await; // Out of descriptors: others may close theirs.
                continue;
            };
            self.shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
            let host = Arc::clone(self);
            self.shared.tasks.spawn(async move {
                // A client that broke off is its own business.
                let _over = host.connection(stream).await;
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) -> Result<()> {
        let spec = &self.shared.spec;
        stream.set_nodelay(true)?;
        let resets = spec.fault == Fault::Resets && spec.fault.hits(self.number);
        if resets {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        let rtt = Duration::from_millis(spec.rtt_ms);
        sleep(rtt).await; // The TCP handshake's round trip, which the kernel has done without it.
        let acceptor = TlsAcceptor::from(self.tls()?);
        let tls = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(Delayed::new(stream, rtt))).await??;
        let counters = &self.shared.counters;
        counters.handshakes.fetch_add(1, Ordering::Relaxed);
        if tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
            counters.resumed.fetch_add(1, Ordering::Relaxed);
        }
        let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        let handler = Duration::from_millis(spec.handler_ms);
        let host = Arc::clone(&self);
        let service = service_fn(move |_: Request<Incoming>| {
            let host = Arc::clone(&host);
            async move {
                if !handler.is_zero() {
                    sleep(handler).await;
                }
                host.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            }
        });
        let io = TokioIo::new(tls);
        let serving = async {
            if h2 {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new()).max_concurrent_streams(H2_STREAMS_MAX);
                builder.serve_connection(io, service).await
            } else {
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service).await
            }
        };
        if resets {
            let life = Duration::from_millis(rand::random_range(RESET_MS));
            return timeout(life, serving).await.map_or(Ok(()), |served| Ok(served?));
        }
        Ok(serving.await?)
    }

    fn tls(&self) -> Result<Arc<ServerConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let protocol = match self.shared.spec.protocol {
            Protocol::Mixed if self.number % 2 == 1 => Protocol::Http1,
            protocol => protocol,
        };
        let config = self.shared.authority.host(ip(self.number), protocol)?;
        Ok(Arc::clone(self.tls.get_or_init(|| config)))
    }
}
