//! A mock SFU cluster over real HTTPS that injects failures.
//!
//! A fleet that recovers can only be tested against a fleet that breaks. This crate runs any number
//! of SFUs in one process, each with its own loopback address, certificate and state, all speaking
//! the native contract of `sfu-api` over HTTP/1.1 and HTTP/2. Real sockets and real TLS, because
//! that is where recovery goes wrong: refused connections, resets, silence, lying peers.
//!
//! ```no_run
//! # async fn example() -> Result<(), sfu_mock::Error> {
//! use sfu_mock::{Cluster, ClusterConfig, Fault, Target};
//!
//! let cluster = Cluster::start(ClusterConfig { nodes: 50, ..ClusterConfig::default() }).await?;
//! let hit = cluster.fault(&Target::share(0.2), &Fault::Kill).await?;
//! assert_eq!(hit.len(), 10);
//! cluster.heal_all().await?;
//! cluster.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Where to read on: `rooms` is the contract as a pure state machine, `node` puts it behind a
//! socket and applies faults, `cluster` and `control` drive many of them, `budget` and `meter`
//! count what arrived, independently of what the callers believe they sent.

mod address;
mod budget;
mod cli;
mod cluster;
mod config;
mod control;
mod error;
mod fault;
mod meter;
mod node;
mod pki;
mod rooms;
mod token;

pub use self::budget::{Budget, Budgets, Overdrawn};
pub use self::cli::{Args, run};
pub use self::cluster::{Cluster, NodeView};
pub use self::config::ClusterConfig;
pub use self::error::Error;
pub use self::fault::{Fault, Garbage, Target};
pub use self::meter::{NodeStats, PeakRates, Stats};
