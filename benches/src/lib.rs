//! The rig of the benches: contestants in random order, rounds, medians, tables, plots, and servers to
//! run against.
//!
//! Machines are shared and noisy, so every figure is a *ratio taken in one run*: all contestants run in
//! every round, in a new random order each time, and a bar is judged by the median of the rounds' own ratios
//! ([`stats::Figure::ratio`]). Medians, the least and the greatest are printed, so that a reader sees how much to believe.

#![allow(clippy::print_stdout, clippy::print_stderr)] // Benches talk to a terminal.

pub mod args;
pub mod client;
pub mod fleet;
pub mod machine;
pub mod plot;
pub mod report;
pub mod stats;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

/// The runtime of a bench: as many workers as the machine has cores, like every service would.
///
/// # Errors
///
/// When threads cannot be started.
pub fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}
