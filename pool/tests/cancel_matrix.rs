//! Every outcome at every stage of a request, and a caller who leaves at every stage.
//!
//! The way of a request is a row of [`At`]s. Whoever does the work of a stage (the connector, the server, the
//! request's body, whoever holds the connection that the caller wants) goes through [`Stops::pass`], which tells
//! that the stage was reached, waits there until the caller has gone, and then does what the case wants. So a
//! caller leaves *at* a stage, not at a time that is hoped to fall into it. Sockets and TLS are real.
//!
//! After each case nothing waits, nothing dials, the permits add up, and the next request is answered.

mod common;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use common::{Ca, Callers, PATIENCE, Server, after, reset, settled_after, soon, until};
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pool::{Alpn, Body, BoxError, Connected, Error, Lane, LaneLimits, Origin, OriginHandle, Stage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a slow stage takes.
const SLOW: Duration = Duration::from_millis(30);

/// When a dial that never ends is given up, and a request that is never answered.
const DIAL_TIMEOUT: Duration = Duration::from_millis(700);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Cases at once: enough to wait together, few enough that handshakes are not starved.
const CASES_AT_ONCE: usize = 48;

/// Nobody listens there, and nobody asks: it is the origin that takes the dial slot.
const OCCUPANT: &str = "https://127.0.0.1:1";

/// A stage of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Queue,
    DialSlot,
    Dns,
    Tcp,
    Tls,
    Handshake,
    Send,
    Head,
    Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Error,
    Slow,
    Never,
}

/// What a request comes through. A peer cannot hold the start of HTTP/2 (the client does not wait for it), so
/// there the socket itself does not take the first bytes. A connector is one stage: of a name it is `Dns`.
const WAYS: [(Way, &[At]); 4] = [
    (Way::Line, &[At::Queue, At::Send, At::Head, At::Body]),
    (Way::Dial, &[At::DialSlot, At::Tcp, At::Tls, At::Send, At::Head, At::Body]),
    (Way::NamedDial, &[At::Dns, At::Tls, At::Send, At::Head, At::Body]),
    (Way::BareDial, &[At::DialSlot, At::Tcp, At::Handshake, At::Send, At::Head, At::Body]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The only connection is in use.
    Line,
    Dial,
    NamedDial,
    /// Without TLS.
    BareDial,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    way: Way,
    alpn: Alpn,
    at: At,
    outcome: Outcome,
    /// Where the caller leaves, if it does.
    leaves: Option<At>,
}

/// Every case that can happen: behind an error or a silence there are no stages to leave at.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (way, stages) in WAYS {
        for alpn in [Alpn::Http1, Alpn::Http2] {
            for (n, at) in stages.iter().copied().enumerate() {
                for outcome in [Outcome::Ok, Outcome::Error, Outcome::Slow, Outcome::Never] {
                    let ends_here = matches!(outcome, Outcome::Error | Outcome::Never);
                    let reached = if ends_here { &stages[..=n] } else { stages };
                    for leaves in reached.iter().copied().map(Some).chain([None]) {
                        cases.push(Case { way, alpn, at, outcome, leaves });
                    }
                }
            }
        }
    }
    let named = |case: &Case| case.way != Way::NamedDial || case.at == At::Dns || case.leaves == Some(At::Dns);
    cases.retain(|case| named(case) && (case.way != Way::BareDial || case.alpn == Alpn::Http2));
    cases
}

/// Where the stages of one case stop.
#[derive(Debug)]
struct Stops {
    case: Case,
    /// The stage at which the caller leaves was reached.
    reached: CancellationToken,
    /// The caller has left.
    left: CancellationToken,
    /// Everything goes well from now on.
    healed: CancellationToken,
    /// What the occupant of the dial slot waits for.
    slot: CancellationToken,
}

// === impl Stops ===

impl Stops {
    fn new(case: Case) -> Arc<Self> {
        let token = CancellationToken::new;
        Arc::new(Self { case, reached: token(), left: token(), healed: token(), slot: token() })
    }

    async fn pass(self: Arc<Self>, at: At) -> io::Result<()> {
        if self.healed.is_cancelled() {
            return Ok(());
        }
        if self.case.leaves == Some(at) {
            self.reached.cancel();
            self.left.cancelled().await;
        }
        if self.case.at != at {
            return Ok(());
        }
        match self.case.outcome {
            Outcome::Ok => {}
            Outcome::Error => return Err(io::ErrorKind::ConnectionRefused.into()),
            Outcome::Slow => sleep(SLOW).await,
            // These two wait for the test itself.
            Outcome::Never if matches!(at, At::Queue | At::DialSlot) => self.healed.cancelled().await,
            Outcome::Never => std::future::pending().await,
        }
        Ok(())
    }

    async fn accept(self: Arc<Self>, tls: TlsAcceptor, stream: TcpStream) {
        if self.case.way == Way::BareDial {
            return self.serve(stream).await;
        }
        match Arc::clone(&self).pass(At::Tls).await {
            Err(_) => reset(stream),
            Ok(()) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.serve(stream).await;
                }
            }
        }
    }

    /// Reads the whole request, then answers `done` in two parts.
    async fn serve(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let this = Arc::clone(&self);
            async move {
                request.into_body().collect().await.map_err(io::Error::other)?;
                Arc::clone(&this).pass(At::Head).await?;
                Ok::<_, io::Error>(Response::new(StreamBody::new(this.parts(At::Body, ["do", "ne"]))))
            }
        });
        drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service).await);
    }

    /// Two frames, and a stage between them.
    fn parts(
        self: Arc<Self>,
        at: At,
        [first, second]: [&'static str; 2],
    ) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
        let second = async move {
            self.pass(at).await?;
            Ok(Frame::data(Bytes::from_static(second.as_bytes())))
        };
        let first = stream::iter([Ok(Frame::data(Bytes::from_static(first.as_bytes())))]);
        Box::pin(first.chain(stream::once(second)))
    }

    async fn connect(self: Arc<Self>, origin: Origin, address: (String, u16)) -> Result<Connected, BoxError> {
        if origin.to_string() == OCCUPANT {
            self.slot.cancelled().await;
            let fails = (self.case.at, self.case.outcome) == (At::DialSlot, Outcome::Error);
            return if fails { Err("held the slot".into()) } else { Ok(Connected::ready(duplex(64).0, Alpn::Http2)) };
        }
        let at = if self.case.way == Way::NamedDial { At::Dns } else { At::Tcp };
        Arc::clone(&self).pass(at).await?;
        let stream = TcpStream::connect(address).await?;
        Ok(match self.case.way {
            Way::BareDial => {
                let first_write = Some(Box::pin(self.pass(At::Handshake)) as Pass);
                Connected::ready(Reluctant { stream, first_write }, Alpn::Http2)
            }
            Way::Line | Way::Dial | Way::NamedDial => Connected::bare(stream),
        })
    }
}

type Pass = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A socket that takes its first bytes only after a stage was passed.
struct Reluctant {
    stream: TcpStream,
    first_write: Option<Pass>,
}

// === impl Reluctant ===

impl AsyncRead for Reluctant {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Reluctant {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(pass) = &mut self.first_write {
            ready!(pass.as_mut().poll(cx))?;
            self.first_write = None;
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl Case ===

impl Case {
    fn limits(&self) -> LaneLimits {
        let silent_dial =
            self.outcome == Outcome::Never && matches!(self.at, At::Dns | At::Tcp | At::Tls | At::Handshake);
        let one_connection = self.way == Way::Line;
        let defaults = LaneLimits::default();
        LaneLimits {
            partitions: 1,
            dials_max: 1,
            connections_per_origin_max: if one_connection { 1 } else { defaults.connections_per_origin_max },
            h2_streams_max: if one_connection { 1 } else { defaults.h2_streams_max },
            dial_timeout: if silent_dial { DIAL_TIMEOUT } else { PATIENCE },
            backoff_base: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            ..defaults
        }
    }

    /// What the caller who stays must be told.
    fn judge(&self, answer: &Result<Bytes, Error>) {
        match (self.outcome, answer) {
            (Outcome::Ok | Outcome::Slow, Ok(body)) => assert_eq!(body, "done", "{self:?}"),
            // Somebody else's dial failed, and made room.
            (Outcome::Error, Ok(body)) if self.at == At::DialSlot => assert_eq!(body, "done", "{self:?}"),
            (Outcome::Error, Err(error)) if self.at != At::DialSlot => {
                assert!(!error.is_timeout(), "{self:?} {error:?}")
            }
            (Outcome::Never, Err(error)) => {
                assert!(error.is_timeout(), "{self:?} {error:?}");
                let stage = match self.at {
                    At::Queue => Stage::Queue,
                    At::DialSlot => Stage::DialSlot,
                    At::Dns => Stage::Dns,
                    At::Tcp => Stage::Tcp,
                    At::Tls => Stage::Tls,
                    At::Handshake => Stage::Handshake,
                    At::Send | At::Head | At::Body => Stage::Response,
                };
                assert_eq!(error.stage(), stage, "{self:?} {error:?}");
            }
            (_, answer) => panic!("{self:?} {answer:?}"),
        }
    }

    async fn run(self, tls: TlsAcceptor, ca: Arc<Ca>) {
        let stops = Stops::new(self);
        let accepting = Arc::clone(&stops);
        let server = Server::rude("https", move |stream| Arc::clone(&accepting).accept(tls.clone(), stream)).await;
        let address = (server.origin.host().to_owned(), server.origin.port());
        let name = if self.way == Way::NamedDial { "localhost" } else { server.origin.host() };
        let origin = Origin::parse(&format!("https://{name}:{}", server.origin.port())).expect("origin");
        let connecting = Arc::clone(&stops);
        let connector = tower::service_fn(move |origin| Arc::clone(&connecting).connect(origin, address.clone()));
        let tls = pool::tls::client_config(ca.pem().as_bytes(), None).expect("tls");
        let lane = Lane::builder("matrix").tls(tls).limits(self.limits()).connector(connector).build().expect("lane");
        let sfu = lane.origin(&origin);
        let helpers = Callers::new();
        obstruct(&lane, &sfu, &stops, &helpers).await;

        let answer = {
            let patience = if self.outcome == Outcome::Never { REQUEST_TIMEOUT } else { PATIENCE };
            let caller = pin!(ask(&sfu, &stops, patience));
            tokio::select! {
                biased;
                () = stops.reached.cancelled() => None,
                answer = caller => Some(answer),
            }
        };
        assert_eq!(lane.snapshot().waiters, 0, "{self:?}: a place in line outlived its caller");
        stops.left.cancel();
        match &answer {
            Some(answer) => self.judge(answer),
            None => assert!(self.leaves.is_some(), "{self:?}"),
        }
        assert!(
            answer.is_none() || self.leaves.is_none(),
            "{self:?} was over before the caller could leave: {answer:?}"
        );
        if matches!(self.at, At::Queue | At::DialSlot) && self.outcome == Outcome::Never {
            stops.healed.cancel();
        }
        helpers.close();
        helpers.wait().await;
        settled_after(&format!("{self:?}"), &lane).await;
        stops.healed.cancel();
        next_request(&lane, &origin, &stops).await;
        settled_after(&format!("{self:?}, and a request"), &lane).await;
    }
}

/// Puts into the caller's way what it is to wait for, and takes it away when the stage is passed.
async fn obstruct(lane: &Lane, sfu: &OriginHandle, stops: &Arc<Stops>, helpers: &Callers) {
    let (case, lane, sfu, stops) = (stops.case, lane.clone(), sfu.clone(), Arc::clone(stops));
    if case.way == Way::Line {
        let held = sfu.hold(soon()).await.expect("the only connection");
        helpers.spawn(async move {
            until("the caller is in line", || lane.snapshot().waiters == 1).await;
            if stops.pass(At::Queue).await.is_err() {
                lane.forget(sfu.origin());
            }
            drop(held);
        });
    } else if case.at == At::DialSlot || case.leaves == Some(At::DialSlot) {
        let occupant = lane.origin(&Origin::parse(OCCUPANT).expect("origin"));
        tokio::select! {
            held = occupant.hold(soon()) => panic!("{held:?}"),
            () = until("the only dial slot is taken", || lane.snapshot().dialling == 1) => {}
        }
        helpers.spawn(async move {
            until("the origin is in line for the slot", || lane.snapshot().dial_queue == 1).await;
            drop(Arc::clone(&stops).pass(At::DialSlot).await);
            stops.slot.cancel();
        });
    }
}

async fn ask(sfu: &OriginHandle, stops: &Arc<Stops>, patience: Duration) -> Result<Bytes, Error> {
    let body = Body::wrap(StreamBody::new(Arc::clone(stops).parts(At::Send, ["as", "k"])));
    let request = Request::put("/").body(body).expect("request");
    sfu.send(request, after(patience)).await?.into_body().bytes(64).await
}

/// Everything goes well again, and the pool knows it when the back-off is over.
async fn next_request(lane: &Lane, origin: &Origin, stops: &Arc<Stops>) {
    let case = stops.case;
    let deadline = soon();
    loop {
        match ask(&lane.origin(origin), stops, PATIENCE).await {
            Ok(body) => return assert_eq!(body, "done", "{case:?}"),
            Err(error) => assert!(error.is_fail_fast() && after(Duration::ZERO) < deadline, "{case:?}: {error:?}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i08_no_outcome_at_no_stage_loses_a_permit_wherever_the_caller_leaves() {
    let ca = Arc::new(Ca::new());
    let acceptor = |alpn| TlsAcceptor::from(ca.server_config([127, 0, 0, 1].into(), &[alpn]));
    let (h1, h2) = (acceptor("http/1.1"), acceptor("h2"));
    let (turns, mut running) = (Arc::new(Semaphore::new(CASES_AT_ONCE)), JoinSet::new());
    let cases = cases();
    for case in cases.clone() {
        let tls = if case.alpn == Alpn::Http1 { h1.clone() } else { h2.clone() };
        let (turns, ca) = (Arc::clone(&turns), Arc::clone(&ca));
        running.spawn(async move {
            let _turn = turns.acquire().await.expect("never closed");
            case.run(tls, ca).await;
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("the case's panic says which it was");
    }
    for (at, outcome) in
        [At::Queue, At::DialSlot, At::Dns, At::Tcp, At::Tls, At::Handshake, At::Send, At::Head, At::Body]
            .into_iter()
            .flat_map(|at| [Outcome::Ok, Outcome::Error, Outcome::Slow, Outcome::Never].map(|outcome| (at, outcome)))
    {
        let here: Vec<_> = cases.iter().filter(|case| (case.at, case.outcome) == (at, outcome)).collect();
        assert!(here.iter().any(|case| case.leaves == Some(at)) && here.iter().any(|case| case.leaves.is_none()));
    }
}
