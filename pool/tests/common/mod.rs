//! Servers on loopback with real TLS, well behaved and not, for the tests of the pool.
#![allow(dead_code, unreachable_pub, missing_docs)] // Each test binary uses its own part.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use pool::{Body, Lane, LaneLimits, Origin};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest wait for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("ca") }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a client.
    pub fn client_cert(&self) -> pool::tls::ClientCert {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec!["client".to_owned()]).expect("name");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate");
        pool::tls::ClientCert { chain_pem: cert.pem().into_bytes(), key_pem: key.serialize_pem().into_bytes() }
    }

    /// A server that takes only clients with a certificate of ours.
    pub async fn mutual(&self) -> Server {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("ca");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .expect("verifier");
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![ip.to_string()]).expect("name");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("certificate and key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Server::start("https", ip, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    pub fn server_config(&self, ip: IpAddr, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![ip.to_string(), "localhost".to_owned()]).expect("names");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("certificate and key");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    pub fn lane(&self, limits: LaneLimits) -> Lane {
        let tls = pool::tls::client_config(self.pem().as_bytes(), None).expect("tls");
        Lane::builder("test").tls(tls).limits(limits).build().expect("lane")
    }
}

/// Callers beside the test. A panic in a task ends that task only: here it ends the test that waits for them.
#[derive(Clone, Default)]
pub struct Callers {
    tasks: TaskTracker,
    panic: Arc<Mutex<Option<Box<dyn Any + Send>>>>,
}

impl Callers {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn spawn<T>(&self, caller: impl Future<Output = T> + Send + 'static) {
        let panic = Arc::clone(&self.panic);
        self.tasks.spawn(async move {
            if let Err(panicked) = AssertUnwindSafe(caller).catch_unwind().await {
                panic.lock().get_or_insert(panicked);
            }
        });
    }

    pub fn close(&self) {
        self.tasks.close();
    }

    /// Waits for all of them, and panics as the first of them did.
    pub async fn wait(&self) {
        self.tasks.wait().await;
        let panicked = self.panic.lock().take();
        if let Some(panicked) = panicked {
            resume_unwind(panicked);
        }
    }
}

/// What a server has seen.
#[derive(Default)]
pub struct Seen {
    pub accepted: AtomicUsize,
    pub open: AtomicUsize,
    pub requests: AtomicUsize,
}

pub struct Server {
    pub origin: Origin,
    pub seen: Arc<Seen>,
    /// Ends every connection in good order (GOAWAY on HTTP/2).
    graceful: Arc<Notify>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    /// As `https`, on 127.0.0.`host`: TLS sessions are remembered per name, not per port.
    pub async fn https_at(ca: &Ca, host: u8, alpn: &[&str]) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
        let tls = TlsAcceptor::from(ca.server_config(ip, alpn));
        Self::start("https", ip, Some(tls)).await
    }

    /// An HTTPS server that speaks what `alpn` names.
    pub async fn https(ca: &Ca, alpn: &[&str]) -> Self {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let tls = TlsAcceptor::from(ca.server_config(ip, alpn));
        Self::start("https", ip, Some(tls)).await
    }

    pub async fn http() -> Self {
        Self::start("http", IpAddr::V4(Ipv4Addr::LOCALHOST), None).await
    }

    async fn start(scheme: &str, ip: IpAddr, tls: Option<TlsAcceptor>) -> Self {
        let (seen, graceful) = (Arc::new(Seen::default()), Arc::new(Notify::new()));
        let (shared, goodbye) = (Arc::clone(&seen), Arc::clone(&graceful));
        Self::raw(scheme, ip, seen, graceful, move |stream| {
            let (tls, seen, goodbye) = (tls.clone(), Arc::clone(&shared), Arc::clone(&goodbye));
            async move {
                match tls {
                    None => serve(stream, seen, goodbye).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, seen, goodbye).await;
                        }
                    }
                }
            }
        })
        .await
    }

    /// A server that does with each TCP connection whatever `behave` does.
    pub async fn rude<F, Fut>(scheme: &str, behave: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self::raw(scheme, ip, Arc::default(), Arc::default(), behave).await
    }

    async fn raw<F, Fut>(scheme: &str, ip: IpAddr, seen: Arc<Seen>, graceful: Arc<Notify>, behave: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind(SocketAddr::new(ip, 0)).expect("port");
        let listener: TcpListener = socket.listen(1024).expect("listen");
        let address = listener.local_addr().expect("address");
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let origin = Origin::parse(&format!("{scheme}://{address}")).expect("origin");
        let server = Self { origin, seen: Arc::clone(&seen), graceful, stop: stop.clone(), tasks: tasks.clone() };
        let accepting = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                seen.accepted.fetch_add(1, Ordering::SeqCst);
                seen.open.fetch_add(1, Ordering::SeqCst);
                let (work, seen) = (behave(stream), Arc::clone(&seen));
                let stop = stop.clone();
                tasks.spawn(async move {
                    let _stopped: Option<()> = stop.run_until_cancelled_owned(work).await;
                    seen.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        };
        let stop = server.stop.clone();
        server.tasks.spawn(async move { stop.run_until_cancelled_owned(accepting).await });
        server
    }

    pub fn accepted(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst)
    }

    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Sends GOAWAY on every open connection (closes idle HTTP/1.1 connections).
    pub fn say_goodbye(&self) {
        self.graceful.notify_waiters();
    }
}

/// Answers what comes on a connection, until it ends or `goodbye` rings.
pub async fn serve<S>(stream: S, seen: Arc<Seen>, goodbye: Arc<Notify>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        seen.requests.fetch_add(1, Ordering::SeqCst);
        answer(request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(256);
    let conn = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(conn);
    tokio::select! {
        _ = conn.as_mut() => return,
        () = goodbye.notified() => conn.as_mut().graceful_shutdown(),
    }
    drop(conn.await);
}

type ServerBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// `/ok`, `/echo`, `/slow/{ms}`, `/never`, `/big/{bytes}`, `/stall` (a head, one chunk, silence),
/// `/drip/{chunks}` (one in 5 ms), `/hollow` (an empty one in 5 ms, for ever).
async fn answer(request: Request<Incoming>) -> Result<Response<ServerBody>, Infallible> {
    let path = request.uri().path().to_owned();
    let number = || path.rsplit('/').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let body: ServerBody = match path.split('/').nth(1).unwrap_or_default() {
        "echo" => match request.into_body().collect().await {
            Ok(body) => Full::new(body.to_bytes()).boxed_unsync(),
            Err(_) => Full::default().boxed_unsync(),
        },
        "slow" => {
            sleep(Duration::from_millis(number())).await;
            Full::from("slow").boxed_unsync()
        }
        "never" => std::future::pending().await,
        "big" => Full::from(vec![b'x'; usize::try_from(number()).unwrap_or(0)]).boxed_unsync(),
        "drip" => {
            let drops = futures_util::stream::iter(0..number()).then(async |_| {
                sleep(Duration::from_millis(5)).await;
                Ok(Frame::data(Bytes::from_static(b"drop")))
            });
            StreamBody::new(drops).boxed_unsync()
        }
        "hollow" => {
            let frames = futures_util::stream::repeat(()).then(async |()| {
                sleep(Duration::from_millis(5)).await;
                Ok(Frame::data(Bytes::new()))
            });
            StreamBody::new(frames).boxed_unsync()
        }
        "stall" => {
            let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
            let rest = futures_util::stream::pending();
            StreamBody::new(first.chain(rest)).boxed_unsync()
        }
        _ => Full::from("ok").boxed_unsync(),
    };
    Ok(Response::new(body))
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).expect("request")
}

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub fn after(wait: Duration) -> Instant {
    Instant::now() + wait
}

pub fn quick_limits() -> LaneLimits {
    LaneLimits { dial_timeout: Duration::from_secs(10), ..LaneLimits::default() }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Closes a connection with RST instead of FIN.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(stream);
}

/// Nothing waits, nothing dials, and every permit is accounted for: the budget's own count is what is open.
pub async fn settled(lane: &Lane) {
    settled_after("what it did", lane).await;
}

/// As [`settled`], for tests of many cases.
pub async fn settled_after(what: &str, lane: &Lane) {
    until(&format!("the lane has settled after {what}"), || {
        let now = lane.snapshot();
        let quiet = now.waiters == 0 && now.dialling == 0 && now.in_use == 0;
        quiet && now.permits_off == 0 && now.connections == now.live
    })
    .await;
}
