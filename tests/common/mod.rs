//! What the tests of whole programs share: processes that end with the test, and waiting for
//! conditions instead of sleeping.
//!
//! Use it from a suite with `#[path = "../common/mod.rs"] mod common;`.

#![allow(dead_code, reason = "each suite uses a part of it")]
#![allow(clippy::print_stderr, reason = "a failed test shows what its processes said last")]

pub(crate) mod mock;

use std::fs::File;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// The program under test.
pub(crate) const TRUNKLINE: &str = env!("CARGO_BIN_EXE_trunkline");

/// How long anything may take on a slow, noisy machine before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A process that is killed, by its id, when the test lets go of it. Its output is kept in a file.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

// === impl Process ===

impl Process {
    /// Starts `program`, with stdout and stderr in `dir/name.log`.
    pub(crate) fn start(dir: &Path, name: &str, command: &mut Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).expect("a log file can be made");
        let err = out.try_clone().expect("its handle can be shared");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        Self { name: name.to_owned(), child: child.unwrap_or_else(|e| panic!("starting {name}: {e}")), log }
    }

    /// Starts `trunkline` with these arguments.
    pub(crate) fn trunkline<S: AsRef<std::ffi::OsStr>>(dir: &Path, name: &str, args: &[S]) -> Self {
        Self::start(dir, name, Command::new(TRUNKLINE).args(args).env_remove("RUST_LOG"))
    }

    /// Sends a signal, such as `KILL`, `STOP`, `CONT` or `TERM`, to this process alone.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill can be run");
        assert!(status.success(), "kill -s {signal} {pid} ({})", self.name);
    }

    /// Everything it wrote so far.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&self) -> bool {
        // A process that has ended and was not waited for is a zombie, state Z.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let start = tokio::time::Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            assert!(tokio::time::Instant::now() - start < limit, "{} did not end:\n{}", self.name, self.output());
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            let text = self.output();
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            eprintln!("--- {} said last:", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Runs `trunkline` to its end and returns what it said. Not for services.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(TRUNKLINE).args(args).env_remove("RUST_LOG").stdin(Stdio::null()).output().expect("trunkline runs")
}

/// A port of the loopback address that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Waits until `look` finds something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let start = tokio::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() - start < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until a file exists and has content, and returns it.
pub(crate) async fn file(path: &Path) -> String {
    eventually(&path.display().to_string(), PATIENCE, || async {
        std::fs::read_to_string(path).ok().filter(|text| !text.is_empty())
    })
    .await
}

/// A client with the program's crypto provider and a limit on every request.
pub(crate) fn client() -> reqwest::Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok(); // one of several tests was first
    reqwest::Client::builder().timeout(PATIENCE).build().expect("a client")
}

/// The same, for servers whose certificates the authority in this file signed.
pub(crate) fn client_that_trusts(ca_file: &str) -> reqwest::Client {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let pem = std::fs::read(ca_file).expect("an authority");
    let ca = reqwest::Certificate::from_pem(&pem).expect("a certificate");
    reqwest::Client::builder().timeout(PATIENCE).tls_certs_only([ca]).build().expect("a client")
}
