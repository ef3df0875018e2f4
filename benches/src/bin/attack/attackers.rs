//! The crowd, in a process of its own: one process has too few file descriptors for both ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::scenario::Scenario;
use super::server::Ready;

/// Whoever was dropped comes back after this.
const BACK_AFTER: Duration = Duration::from_secs(1);

/// Longer than the server allows, by so much that it is not a matter of noticing.
const PATIENCE: Duration = Duration::from_secs(20);

/// After the last has come, all stand within this.
const STANDS_WITHIN: Duration = Duration::from_secs(120);

/// What became of the crowd.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Left {
    /// Connections that the server closed.
    pub(crate) dropped: f64,
    /// The longest that one stood.
    pub(crate) longest_s: f64,
    /// Connections that still stood [`PATIENCE`] after their time.
    pub(crate) never_dropped: f64,
}

/// A connection, over TLS or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A crowd that stands.
#[derive(Debug)]
pub(crate) struct Attackers {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

// === impl Attackers ===

impl Attackers {
    /// Starts the process and waits until the crowd stands.
    pub(crate) fn start(ready: &Ready, scenario: &Scenario, count: u32) -> Result<Self> {
        let role = format!("attackers {} {} {count}", scenario.name, ready.addr);
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", &role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the attackers")?;
        let mut stdin = child.stdin.take().context("its input")?;
        writeln!(stdin, "{}", serde_json::to_string(&ready.ca_pem)?)?;
        let mut stdout = BufReader::new(child.stdout.take().context("its output")?);
        stdout.read_line(&mut String::new()).context("waiting for the crowd")?;
        Ok(Self { child, stdin, stdout })
    }

    /// Nobody comes back any more; waits until the last one was dropped.
    pub(crate) fn end(mut self) -> Result<Left> {
        self.stdin.write_all(b"end\n")?;
        self.stdin.flush()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        self.child.wait()?;
        serde_json::from_str(&line).context("what became of the crowd")
    }
}

/// One who attacks, and how.
#[derive(Clone)]
struct Attacker {
    scenario: &'static Scenario,
    addr: SocketAddr,
    tls: Option<TlsConnector>,
    stop: CancellationToken,
    left: Arc<Mutex<Left>>,
}

/// The process: opens `count` connections, keeps them open until told, then waits for their ends.
pub(crate) async fn stand_until_told(scenario: &'static Scenario, addr: SocketAddr, count: u32) -> Result<()> {
    let mut told = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let ca_pem: Option<String> = serde_json::from_str(&told.next_line().await?.context("whom to trust")?)?;
    let tls = match ca_pem.filter(|_| scenario.handshakes) {
        Some(pem) => Some(TlsConnector::from(Arc::new(benches::client::tls(&pem)?))),
        None => None,
    };
    let attacker = Attacker { scenario, addr, tls, stop: CancellationToken::new(), left: Arc::default() };
    let mut crowd = JoinSet::new();
    let (stands, mut all_stand) = mpsc::channel::<()>(1);
    let began = Instant::now();
    for (n, words) in (0..count).zip(scenario.words.iter().cycle()) {
        sleep_until(began + Duration::from_secs(1) * n / scenario.opened_per_s).await;
        crowd.spawn(attacker.clone().attack(words, stands.clone()));
    }
    drop(stands);
    // None is sent: everybody has dropped their end.
    timeout(STANDS_WITHIN, all_stand.recv()).await.context("the crowd does not come to stand")?;
    println!("standing");
    told.next_line().await?;
    attacker.stop.cancel();
    while crowd.join_next().await.is_some() {}
    println!("{}", serde_json::to_string(&*attacker.left.lock())?);
    Ok(())
}

// === impl Attacker ===

impl Attacker {
    /// Stands again and again, or once. `stands` is dropped when it does for the first time.
    async fn attack(self, words: &[u8], stands: mpsc::Sender<()>) {
        let mut stands = Some(stands);
        while !self.stop.is_cancelled() {
            if let Ok(stream) = self.connected(words).await {
                stands.take();
                self.stand(stream).await;
                if !self.scenario.come_back {
                    return;
                }
            }
            tokio::select! {
                () = sleep(BACK_AFTER) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    async fn connected(&self, words: &[u8]) -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.addr).await?;
        let mut stream: Box<dyn Stream> = match &self.tls {
            Some(tls) => Box::new(tls.connect(self.addr.ip().into(), stream).await?),
            None => Box::new(stream),
        };
        stream.write_all(words).await?;
        Ok(stream)
    }

    /// Says nothing any more until it is dropped.
    async fn stand(&self, mut stream: Box<dyn Stream>) {
        let began = Instant::now();
        let mut sink = Vec::new();
        let stands = async { while stream.read_buf(&mut sink).await.is_ok_and(|n| n > 0) {} };
        let dropped = timeout(self.scenario.allowed + PATIENCE, stands).await.is_ok();
        let stood = Instant::now().saturating_duration_since(began).as_secs_f64();
        let mut left = self.left.lock();
        left.longest_s = left.longest_s.max(stood);
        *(if dropped { &mut left.dropped } else { &mut left.never_dropped }) += 1.0;
    }
}
