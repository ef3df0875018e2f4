//! The syncer under attack, in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde::{Deserialize, Serialize};
use syncer::config::TlsConfig;
use syncer::{Config, Options, Syncer};
use tokio::io::AsyncBufReadExt as _;
use tokio::time::sleep;

use super::scenario::Scenario;

/// Clock ticks per second of `/proc/PID/stat`; 100 on every Linux in use.
const TICKS_PER_S: f64 = 100.0;
/// Bytes of a page.
const PAGE_BYTES: f64 = 4_096.0;

/// Where the server is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) url: String,
    pub(crate) addr: String,
    pub(crate) ca_pem: Option<String>,
    pub(crate) pid: u32,
}

/// What it used so far, and has now.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) connections: f64,
    pub(crate) cpu_s: f64,
    pub(crate) rss_bytes: f64,
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) ready: Ready,
    child: Child,
    stdin: Option<ChildStdin>,
}

// === impl Server ===

impl Server {
    pub(crate) fn start(scenario: &Scenario) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", &format!("server {}", scenario.name)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { ready: serde_json::from_str(&line).context("where the server is")?, child, stdin })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stdin.take();
        self.child.wait().ok();
    }
}

// === impl Seen ===

impl Seen {
    pub(crate) fn of_process(pid: u32) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let number = |text: &str, n: usize| -> f64 {
            text.split_whitespace().nth(n).and_then(|word| word.parse().ok()).unwrap_or_default()
        };
        let stat = read("stat");
        let stat = stat.rsplit(')').next().unwrap_or_default();
        let cpu_s = (number(stat, 11) + number(stat, 12)) / TICKS_PER_S;
        Self { connections: 0.0, cpu_s, rss_bytes: number(&read("statm"), 1) * PAGE_BYTES }
    }
}

/// The process: a syncer without SFUs, whose joins are answered from memory.
pub(crate) async fn serve_until_told(scenario: &Scenario) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("trunkline-attack-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let limits = scenario.levers.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    let mut config = Config { listen: "127.0.0.1:0".parse()?, limits, ..Config::default() };
    let mut ca_pem = None;
    if scenario.scheme == "https" {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
        let tls = TlsConfig { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        std::fs::write(&tls.cert, cert.pem())?;
        std::fs::write(&tls.key, key.serialize_pem())?;
        config.tls = Some(tls);
        ca_pem = Some(issuer.pem());
    }
    let syncer = Syncer::start(config, Options::default()).await?;
    while !syncer.is_ready() {
        sleep(Duration::from_millis(10)).await;
    }
    let addr = syncer.addr().to_string();
    let ready = Ready { url: syncer.url().to_owned(), addr, ca_pem, pid: std::process::id() };
    println!("{}", serde_json::to_string(&ready)?);
    let mut told = String::new();
    tokio::io::BufReader::new(tokio::io::stdin()).read_line(&mut told).await?;
    std::fs::remove_dir_all(&dir).context("the certificate")
}
