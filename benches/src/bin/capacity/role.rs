//! The processes that are measured, and the one that stands in for the SFUs.
//!
//! A bench starts its own executable again in a role, says in one line what it wants, and reads in one
//! line where to find it. When its input ends, so does the process, and it ends by itself after a while
//! in any case.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Body;
use benches::machine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use sfu_mock::{Cluster, ClusterConfig};
use syncer::config::TlsConfig;
use syncer::{Config, Options, Syncer};
use tokio::io::{AsyncBufReadExt, Lines, Stdin};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// The SFUs.
pub(crate) const SFUS: &str = "sfus";
/// A syncer.
pub(crate) const SYNCER: &str = "syncer";
/// A server that parses the lines and throws them away.
pub(crate) const PARSE_ONLY: &str = "parse_only";

/// No run takes as long.
const LIFE: Duration = Duration::from_secs(900);

/// SFUs of the mock cluster: enough that each takes some ten thousand of a million calls, few enough that their
/// connections do not hide the memory of calls.
pub(crate) const NODES: usize = 100;

/// What a process needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Where certificates and the catalogue are.
    pub(crate) dir: PathBuf,
    /// Levers of the syncer.
    pub(crate) limits: BTreeMap<String, toml::Value>,
}

/// A process in a role.
#[derive(Debug)]
pub(crate) struct Role {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    child: Child,
    input: Option<ChildStdin>,
}

// === impl Role ===

impl Role {
    /// Starts the process and waits until it listens.
    ///
    /// # Errors
    ///
    /// When it cannot be started or fails.
    pub(crate) fn start(role: &str, spec: &Spec) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {role}"))?;
        let mut input = child.stdin.take().context("no input")?;
        writeln!(input, "{}", serde_json::to_string(spec)?)?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let addr = line.trim().parse().with_context(|| format!("{role} did not start: {line:?}"))?;
        Ok(Self { addr, child, input: Some(input) })
    }

    /// Resident bytes.
    #[must_use]
    pub(crate) fn rss_bytes(&self) -> f64 {
        machine::rss_bytes_of(&self.child.id().to_string())
    }

    /// CPU seconds used.
    #[must_use]
    pub(crate) fn cpu_s(&self) -> f64 {
        machine::cpu_s_of(&self.child.id().to_string())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.input.take()); // The end of its input ends the process.
        let _ended = self.child.wait();
    }
}

/// Plays `role` until the input ends.
///
/// # Errors
///
/// When the role is unknown or cannot be played.
pub(crate) async fn play(role: &str) -> Result<()> {
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let spec: Spec = serde_json::from_str(&lines.next_line().await?.context("no specification")?)?;
    match role {
        SFUS => sfus(&spec, &mut lines).await,
        SYNCER => syncer(spec, &mut lines).await,
        PARSE_ONLY => parse_only(&spec, &mut lines).await,
        _ => bail!("there is no role {role}"),
    }
}

type Input = Lines<tokio::io::BufReader<Stdin>>;

async fn told(addr: SocketAddr, input: &mut Input) {
    println!("{addr}");
    // Out of time is as good an end as any; a line means nothing.
    let _end = timeout(LIFE, async { while let Ok(Some(_)) = input.next_line().await {} }).await;
}

async fn sfus(spec: &Spec, input: &mut Input) -> Result<()> {
    let config = ClusterConfig {
        nodes: NODES,
        base: Some(Ipv4Addr::new(127, 61, 0, 1)),
        capacity: 1_000_000,
        dir: Some(spec.dir.clone()),
        ..ClusterConfig::default()
    };
    let cluster = Cluster::start(config).await?;
    told(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), input).await;
    cluster.shutdown().await;
    Ok(())
}

async fn syncer(spec: Spec, input: &mut Input) -> Result<()> {
    let config = Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        tls: Some(TlsConfig { cert: spec.dir.join("api.pem"), key: spec.dir.join("api-key.pem") }),
        sfus_file: Some(spec.dir.join("sfus.toml")),
        sfu_ca_file: Some(spec.dir.join("ca.pem")),
        limits: spec.limits,
        ..Config::default()
    };
    let running = Syncer::start(config, Options::default()).await?;
    while !running.is_ready() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    told(running.addr(), input).await;
    Ok(())
}

/// A bare hyper server. It speaks as the syncer's listener does and does nothing else.
async fn parse_only(spec: &Spec, input: &mut Input) -> Result<()> {
    let tls = TlsConfig { cert: spec.dir.join("api.pem"), key: spec.dir.join("api-key.pem") };
    let tls = Config { tls: Some(tls), ..Config::default() }.server_tls()?.context("it has a certificate")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (addr, tls, tasks) = (listener.local_addr()?, TlsAcceptor::from(tls), TaskTracker::new());
    let accepting = async {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tasks.spawn(async move {
                let Ok(()) = stream.set_nodelay(true) else { return };
                let Ok(stream) = tls.accept(stream).await else { return };
                let mut builder = auto::Builder::new(TokioExecutor::new());
                let mut http2 = builder.http2();
                http2.timer(TokioTimer::new()).initial_stream_window_size(syncer::api::STREAM_WINDOW_BYTES);
                drop(builder.serve_connection(TokioIo::new(stream), service_fn(count)).await);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = told(addr, input) => {}
    }
    Ok(())
}

async fn count(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, http::Error> {
    let (operations, others) = syncer::api::parse_only(Body::new(request.into_body())).await;
    Response::builder().body(Full::from(format!("{{\"operations\":{operations},\"others\":{others}}}\n")))
}

/// A certificate for the loopback address, written to `dir`; returns it as the authority to trust.
///
/// # Errors
///
/// When it cannot be made or written.
pub(crate) fn certify(dir: &Path) -> Result<String> {
    std::fs::create_dir_all(dir)?;
    let made = rcgen::generate_simple_self_signed(vec![Ipv4Addr::LOCALHOST.to_string()])?;
    std::fs::write(dir.join("api.pem"), made.cert.pem())?;
    std::fs::write(dir.join("api-key.pem"), made.signing_key.serialize_pem())?;
    Ok(made.cert.pem())
}

/// TLS settings of a client that trusts `ca_pem`.
///
/// # Errors
///
/// When the certificate cannot be used.
pub(crate) fn client_tls(ca_pem: &str) -> Result<Arc<rustls::ClientConfig>> {
    Ok(Arc::new(benches::client::tls(ca_pem)?))
}
