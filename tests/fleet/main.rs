//! Whole fleets: every part a process of its own, or `dev` with all of them in one, broken by drills
//! and judged from outside.
//!
//! The machine that runs this may be small, so the fleets are smaller than the README's and only
//! one runs at a time. Counts and order are asserted, times only reported.

#[path = "../common/mod.rs"]
mod common;

mod apart;
mod descriptors;
mod dev;
mod input;
mod limits;
mod parts;
mod secrets;

use tokio::sync::{Mutex, MutexGuard};

/// Fleets take turns: two at once on a small machine would measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}
