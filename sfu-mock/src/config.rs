//! What a cluster is made of.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use sfu_api::{RegionId, ZoneId};

use crate::Error;
use crate::address;

/// Most nodes in one process: each needs a listening socket, and the usual hard limit of open
/// files (65,536 or more) must leave room for connections.
pub(crate) const NODES_MAX: usize = 20_000;
/// Longest name, so that `name-12345` stays a valid DNS label (63 bytes).
const NAME_BYTES_MAX: usize = 40;
/// Longest added latency: beyond every deadline a client uses, short enough to end a test.
pub(crate) const LATENCY_MAX: Duration = Duration::from_secs(120);

/// What a syncer takes for a weight.
const WEIGHTS: RangeInclusive<f64> = 0.01..=100.0;

/// How to start a [`crate::Cluster`].
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// SFUs to run, 1 to 20,000.
    pub nodes: usize,
    /// Regions, given to the nodes round robin; at least one.
    pub regions: Vec<RegionId>,
    /// Zones of each region, given to its nodes round robin; none names no zones.
    pub zones: Vec<ZoneId>,
    /// Weights, given to the nodes of each zone round robin; none names no weights.
    pub weights: Vec<f64>,
    /// Seeds error rates and the choice of nodes by share. Not incarnations: those are always new.
    pub seed: u64,
    /// First part of every node's id: `sfu` makes `sfu-1`, `sfu-2`…
    pub name: String,
    /// Number of the first node in ids and addresses; at least 1.
    pub first_node: usize,
    /// Address of node number 1; the others follow. Default: derived from the number that `name`
    /// ends with (`m3` is 127.3.0.1), else 127.1.0.1. Where the machine has only 127.0.0.1, every
    /// node gets a port of its own there.
    pub base: Option<Ipv4Addr>,
    /// Port of every node; 0 chooses one that is free on all of them.
    pub port: u16,
    /// Where the control port listens; must be loopback.
    pub control: SocketAddr,
    /// Calls each node can carry.
    pub capacity: u32,
    /// Added to every answer of every node.
    pub latency: Duration,
    /// An empty room that nobody named for this long removes itself.
    pub empty_room_ttl: Duration,
    /// Where to write `ca.pem`, `sfus.toml` and `control.url`; `None` writes nothing.
    pub dir: Option<PathBuf>,
    /// Where the CA's key is kept (`ca.pem`, `ca-key.pem`), made there if absent, so that several
    /// clusters share one CA. Default: `dir`, else a CA in memory.
    pub ca_dir: Option<PathBuf>,
}

/// Where a node stands, and how much of the work it shall have.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) region: RegionId,
    pub(crate) zone: Option<ZoneId>,
    pub(crate) weight: Option<f64>,
}

// === impl ClusterConfig ===

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            nodes: 3,
            regions: vec![RegionId::new("a").expect("a valid id")],
            zones: Vec::new(),
            weights: Vec::new(),
            seed: 0,
            name: "sfu".to_owned(),
            first_node: 1,
            base: None,
            port: 0,
            control: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            capacity: 1000,
            latency: Duration::ZERO,
            empty_room_ttl: Duration::from_secs(120), // the contract's value
            dir: None,
            ca_dir: None,
        }
    }
}

impl ClusterConfig {
    /// Where node `i` stands: neighbours are in different regions, those of one region in different zones, and each zone
    /// has every weight.
    pub(crate) fn spot(&self, i: usize) -> Spot {
        let nth_of_region = i / self.regions.len();
        let nth_of_zone = nth_of_region / self.zones.len().max(1);
        Spot {
            region: self.regions[i % self.regions.len()].clone(),
            zone: self.zones.get(nth_of_region % self.zones.len().max(1)).cloned(),
            weight: self.weights.get(nth_of_zone % self.weights.len().max(1)).copied(),
        }
    }

    /// Checks what can be checked without touching the system.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return Err(Error::config(format!("nodes must be 1 to {NODES_MAX}, got {}", self.nodes)));
        }
        if self.regions.is_empty() {
            return Err(Error::config("regions must name at least one region, for example a,b,c"));
        }
        if let Some(twice) = self.zones.iter().enumerate().find(|(i, z)| self.zones[..*i].contains(z)) {
            return Err(Error::config(format!("zones name {} twice", twice.1)));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !WEIGHTS.contains(weight)) {
            let (min, max) = (WEIGHTS.start(), WEIGHTS.end());
            return Err(Error::config(format!("weights must be numbers from {min} to {max}, got {weight}")));
        }
        if let Some(twice) = self.regions.iter().enumerate().find(|(i, r)| self.regions[..*i].contains(r)) {
            return Err(Error::config(format!("regions name {} twice", twice.1)));
        }
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let name = &self.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(named) || name.starts_with('-') {
            return Err(Error::config(format!(
                "name must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, not starting with -, got {name:?}: it becomes \
                 part of a host name"
            )));
        }
        if self.first_node == 0 {
            return Err(Error::config("first-node counts from 1"));
        }
        if !self.control.ip().is_loopback() {
            return Err(Error::config(format!(
                "control must be a loopback address, got {}: it takes orders from anyone who reaches it",
                self.control
            )));
        }
        if self.capacity == 0 {
            return Err(Error::config("capacity must be at least 1"));
        }
        if self.latency > LATENCY_MAX {
            return Err(Error::config(format!("latency must be at most {} s", LATENCY_MAX.as_secs())));
        }
        address::plan(self).map(|_| ())
    }
}
