//! Simulated gateways, incident plans and outside checks.
//!
//! A drill behaves as a fleet of real gateways would and knows nothing of a syncer but its HTTP
//! API, so it can be held against any build, on one machine or many. What it believes, it was told
//! over the wire:
//!
//! ```text
//! plan ─▶ population ─▶ gateway (bulk, single, watch, heartbeat) ──HTTP──▶ syncers
//!   │                      │ every answer and event
//!   │                      ▼
//!   │                   ledger (awaiting times) ─▶ checker (I3, I7, I10, R16)
//!   ▼                      │
//! script ─▶ fleet (break, heal, count) ──HTTP──▶ mock control ports
//!   │                      │
//!   └──────▶ report ◀──────┘
//! ```
//!
//! Start reading at [`run`]; the checks are in [`checker`], the plans in `drill/plans/`.
//!
//! ```no_run
//! use drill::{Observer, Plan, Targets, run};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), drill::Error> {
//! let plan = Plan::load("sfu-kill")?;
//! let targets = Targets {
//!     syncers: vec!["http://127.0.0.1:8441".to_owned()],
//!     controls: vec!["http://127.0.0.1:9000".to_owned()],
//!     ..Targets::default()
//! };
//! let report = run(plan, targets, Observer::none(), CancellationToken::new()).await?;
//! assert!(report.passed, "{:?}", report.checks);
//! # Ok(())
//! # }
//! ```

pub mod checker;
mod cli;
mod client;
mod control;
mod desk;
mod error;
mod fleet;
mod gateway;
mod ledger;
pub mod legacy;
mod media;
mod observe;
mod pace;
pub mod plan;
pub mod population;
mod reading;
mod report;
mod run;
mod script;
pub mod sse;
mod stats;
mod syncers;
mod table;
mod wire;

pub use self::cli::{Args, run_cli};
pub use self::client::Targets;
pub use self::control::{MockStats, Overdrawn};
pub use self::error::Error;
pub use self::ledger::Spread;
pub use self::observe::{Counts, Observer};
pub use self::plan::Plan;
pub use self::report::{CheckReport, Outcome, PhaseReport, Report};
pub use self::run::run;
pub use self::table::{progress, summary};
pub use self::wire::{PoolStatus, SyncerStatus};
