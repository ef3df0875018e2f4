//! The crowd, in a process of its own: one process has too few file descriptors for both ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What attackers say before they fall silent.
const MIXED: [&[u8]; 3] = [
    b"",
    b"GET /v1/status HTTP/1.1\r\nhost: x\r\nauthoriz",
    b"PUT /v1/guilds/g/calls/c/participants/s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"seq\":",
];

/// Opened in one go, each millisecond: the crowd stands within two seconds.
const BATCH: usize = 5;

/// Whoever was dropped comes back after this.
const BACK_AFTER: Duration = Duration::from_secs(1);

/// Longer than any limit of the server on such clients (10 s and what it takes to notice).
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the crowd.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Left {
    /// Connections that the server closed.
    pub(crate) dropped: f64,
    /// The longest that one stood.
    pub(crate) longest_s: f64,
    /// Connections that still stood after [`PATIENCE`].
    pub(crate) never_dropped: f64,
}

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
    pub(crate) fn start(addr: &str, kinds: &str, count: usize) -> Result<Self> {
        let role = format!("attackers {addr} {kinds} {count}");
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", &role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the attackers")?;
        let stdin = child.stdin.take().context("its input")?;
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

/// The process: opens `count` connections, keeps them open until told, then waits for their ends.
pub(crate) async fn stand_until_told(addr: SocketAddr, kinds: &str, count: usize) -> Result<()> {
    let words: &[&[u8]] = if kinds == "mixed" { &MIXED } else { &[b""] };
    let (stop, left) = (CancellationToken::new(), Arc::new(Mutex::new(Left::default())));
    let mut crowd = JoinSet::new();
    let mut tick = interval(Duration::from_millis(1));
    for n in 0..count {
        if n % BATCH == 0 {
            tick.tick().await;
        }
        crowd.spawn(attack(addr, words[n % words.len()], stop.clone(), Arc::clone(&left)));
    }
    println!("standing");
    let mut told = String::new();
    tokio::io::BufReader::new(tokio::io::stdin()).read_line(&mut told).await?;
    stop.cancel();
    while crowd.join_next().await.is_some() {}
    println!("{}", serde_json::to_string(&*left.lock())?);
    Ok(())
}

async fn attack(addr: SocketAddr, words: &[u8], stop: CancellationToken, left: Arc<Mutex<Left>>) {
    while !stop.is_cancelled() {
        if let Ok(mut stream) = TcpStream::connect(addr).await {
            let began = Instant::now();
            let mut sink = Vec::new();
            let stands = async {
                if stream.write_all(words).await.is_ok() {
                    while stream.read_buf(&mut sink).await.is_ok_and(|n| n > 0) {}
                }
            };
            let dropped = timeout(PATIENCE, stands).await.is_ok();
            let stood = Instant::now().saturating_duration_since(began).as_secs_f64();
            let mut left = left.lock();
            left.longest_s = left.longest_s.max(stood);
            *(if dropped { &mut left.dropped } else { &mut left.never_dropped }) += 1.0;
        }
        tokio::select! {
            () = sleep(BACK_AFTER) => {}
            () = stop.cancelled() => {}
        }
    }
}
