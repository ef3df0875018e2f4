//! Servers to run against: many loopback hosts in a process of their own.
//!
//! A bench starts its own executable again in the role `serve`, so that the servers' CPU, memory and
//! file descriptors are not the contestants'. Parent and servers talk in lines over the child's standard
//! input and output; when the input ends, so does the process, and it ends by itself after a while in
//! any case.

mod certs;
mod delay;
mod faults;
mod serve;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::serve::serve_until_told;

/// The role under which an executable serves.
pub const ROLE: &str = "serve";

/// What the servers are like.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FleetSpec {
    /// Hosts: addresses from this one on.
    pub first: u32,
    /// How many hosts.
    pub hosts: u32,
    /// What they speak.
    pub protocol: Protocol,
    /// Time an answer takes.
    pub handler_ms: u64,
    /// Added to every round trip.
    pub rtt_ms: u64,
    /// What is wrong with every fifth of them.
    pub fault: Fault,
    /// Whether TLS sessions can be resumed.
    pub tickets: bool,
    /// The process ends after this, whatever happens.
    pub life_s: u64,
}

/// What a fleet speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1 over TLS.
    Http1,
    /// HTTP/2 over TLS.
    Http2,
    /// Every second host does not know HTTP/2.
    Mixed,
}

/// What is wrong with every fifth host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// Nothing.
    None,
    /// No answer to a SYN.
    BlackHole,
    /// Nobody listens.
    Refused,
    /// Connections are reset 5 to 30 ms after their handshake, whatever they are doing.
    Resets,
}

/// What the servers saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// TCP connections accepted.
    pub accepted: u64,
    /// TLS handshakes finished.
    pub handshakes: u64,
    /// Those that resumed a session.
    pub resumed: u64,
    /// Requests answered.
    pub requests: u64,
}

/// What the servers say when they are ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// The authority to trust.
    pub ca_pem: String,
    /// Every host's address.
    pub addrs: Vec<SocketAddr>,
    /// Whether a host is one of those with a fault.
    pub faulty: Vec<bool>,
}

/// Servers in a child process.
#[derive(Debug)]
pub struct Fleet {
    /// What to connect to.
    pub ready: Ready,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

// === impl FleetSpec ===

impl FleetSpec {
    /// Healthy, near and fast HTTP/2 servers.
    #[must_use]
    pub fn healthy(hosts: u32) -> Self {
        Self {
            first: 0,
            hosts,
            protocol: Protocol::Http2,
            handler_ms: 5,
            rtt_ms: 0,
            fault: Fault::None,
            tickets: true,
            life_s: 900,
        }
    }
}

// === impl Fault ===

impl Fault {
    /// Whether a host has it.
    #[must_use]
    pub fn hits(self, host: u32) -> bool {
        self != Self::None && host % 5 == 4
    }

    /// Whether a host with it answers nothing.
    #[must_use]
    pub fn kills(self) -> bool {
        matches!(self, Self::BlackHole | Self::Refused)
    }
}

// === impl Fleet ===

impl Fleet {
    /// Starts servers and waits until they listen.
    ///
    /// # Errors
    ///
    /// When the process cannot be started or fails to listen.
    pub fn start(spec: &FleetSpec) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", ROLE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the servers")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("the servers have no output")?);
        let ready = Ready { ca_pem: String::new(), addrs: Vec::new(), faulty: Vec::new() };
        let mut fleet = Self { ready, child, input, output };
        fleet.ready = fleet.ask(&serde_json::to_string(spec)?)?;
        Ok(fleet)
    }

    /// What the servers have seen since this was last asked.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn seen(&mut self) -> Result<Seen> {
        self.ask("seen")
    }

    /// Brings black holes to life after this time, for the rest of the run.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn heal_in(&mut self, after: Duration) -> Result<()> {
        self.ask::<bool>(&format!("heal {}", after.as_millis())).map(drop)
    }

    /// Makes black holes of healed hosts again.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn break_again(&mut self) -> Result<()> {
        self.ask::<bool>("break").map(drop)
    }

    fn ask<T: DeserializeOwned>(&mut self, line: &str) -> Result<T> {
        let input = self.input.as_mut().context("the servers were stopped")?;
        writeln!(input, "{line}").context("the servers are gone")?;
        let mut answer = String::new();
        if self.output.read_line(&mut answer)? == 0 {
            bail!("the servers ended");
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(self.input.take()); // The end of its input ends the process.
        let _ended = self.child.wait();
    }
}
