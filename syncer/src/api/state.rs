//! What handlers share, and readiness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::audit::Audit;
use super::auth::Auth;
use super::limits::HttpLevers;
use super::metrics::HttpMetrics;
use crate::engine::Engine;
use crate::ownership::Ownership;
use crate::peer::Peers;
use crate::token::Signer;
use crate::watch::{GATEWAYS_MAX, Hub};

/// Watches of one syncer at once: every gateway of a large fleet twice.
pub(crate) const WATCHERS_MAX: usize = 2 * GATEWAYS_MAX;

/// What handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) hub: Arc<Hub>,
    pub(crate) ownership: Arc<Ownership>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) sfu_lane: pool::Lane,
    pub(crate) signer: Arc<Signer>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) audit: Audit,
    pub(crate) ready: Readiness,
    pub(crate) watchers: Arc<Semaphore>,
    pub(crate) registry: prometheus_client::registry::Registry,
    pub(crate) http: HttpMetrics,
    pub(crate) limits: Arc<HttpLevers>,
    /// Streams (watches, the bulk road) end with it.
    pub(crate) stop: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) started: Instant,
    /// Tells requests of this process from those of an earlier one in logs.
    pub(crate) boot: u64,
    pub(crate) requests: AtomicU64,
}

/// What must have happened once before traffic is taken (R11), and whether we are leaving.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<BTreeMap<&'static str, bool>>);

// === impl Readiness ===

impl Readiness {
    /// Not ready until each of `latches` is set.
    pub(crate) fn waiting_for(latches: &[&'static str]) -> Self {
        Self(Mutex::new(latches.iter().map(|l| (*l, false)).collect()))
    }

    /// Sets a latch, or takes it back.
    pub(crate) fn set(&self, latch: &'static str, done: bool) {
        self.0.lock().insert(latch, done);
    }

    /// What is still missing.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.0.lock().iter().filter(|(_, done)| !**done).map(|(latch, _)| *latch).collect()
    }
}
