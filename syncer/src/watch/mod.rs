//! News of endpoints for the gateways: coalesced, bounded, resumable.
//!
//! The contract (R16): delivery is at least once; per watcher and call (epoch, phase) strictly
//! grows; a watcher that fell behind may see only the last state; one that cannot be brought up to
//! date from the log is told `resync`, followed by the present state of all its calls, among them
//! some that it has seen: there the counting starts anew.
//!
//! ```text
//! engine ─announce─▶ Hub ─▶ Log per gateway ◀─ reads after its number ─ Watcher ─▶ SSE
//!                                                     fleet: local Watcher + each peer's local watch
//! ```
//!
//! The engine never waits: announcing is one map look-up and one insert per gateway. A watcher is
//! a position in its gateway's [`log::Log`]; credentials are made when an event is delivered, so
//! that thousands of tokens for a gateway that is not there cost nothing.

mod cursor;
mod event;
mod fleet;
mod log;
mod metrics;
pub(crate) mod sse;
#[cfg(test)]
mod tests;
mod watcher;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use sfu_api::{GatewayId, SessionId};
use tokio::sync::watch;

use crate::engine::{Announcement, Announcer};

pub(crate) use self::cursor::{Cursor, CursorError};
pub use self::event::{Credential, EndpointEvent};
pub(crate) use self::fleet::{Fleet, Scope};
pub use self::metrics::WatchMetrics;
pub(crate) use self::watcher::Watcher;

use self::log::Log;

/// News kept per gateway, one per call: a gateway that holds sessions of 32,768 calls is ten times
/// the largest; 300 bytes each make 10 MiB at worst.
pub const EVENTS_PER_GATEWAY_MAX: usize = 32_768;
/// Gateways with news kept: 2.6 M users on 650 per gateway.
pub const GATEWAYS_MAX: usize = 4_096;

/// Where watchers find the present state and credentials.
pub trait Source: Send + Sync {
    /// The present state of every call in which the gateway has sessions.
    fn current(&self, gateway: &GatewayId) -> Vec<Announcement>;
    /// The session's credential for the announced endpoint.
    fn credential(&self, news: &Announcement, session: &SessionId) -> Option<String>;
}

/// Takes the engine's announcements and keeps them for the watchers.
#[derive(Debug)]
pub struct Hub {
    boot: u64,
    /// One numbering for all gateways: a log that was dropped and made anew cannot be mistaken.
    seq: AtomicU64,
    logs: RwLock<HashMap<GatewayId, Arc<GatewayLog>>>,
    events_max: usize,
    metrics: WatchMetrics,
}

#[derive(Debug)]
struct GatewayLog {
    log: Mutex<Log>,
    /// The number of the last news: watchers sleep on it.
    head: watch::Sender<u64>,
    watchers: AtomicUsize,
}

// === impl Hub ===

impl Hub {
    /// An empty hub; `boot` tells its cursors from those of an earlier process.
    #[must_use]
    pub fn new(boot: u64) -> Arc<Self> {
        Self::bounded(boot, EVENTS_PER_GATEWAY_MAX)
    }

    pub(crate) fn bounded(boot: u64, events_max: usize) -> Arc<Self> {
        Arc::new(Self {
            boot,
            seq: AtomicU64::new(0),
            logs: RwLock::default(),
            events_max,
            metrics: WatchMetrics::default(),
        })
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &WatchMetrics {
        &self.metrics
    }

    fn log(&self, gateway: &GatewayId) -> Option<Arc<GatewayLog>> {
        if let Some(log) = self.logs.read().get(gateway) {
            return Some(Arc::clone(log));
        }
        let mut logs = self.logs.write();
        if let Some(log) = logs.get(gateway) {
            return Some(Arc::clone(log));
        }
        if logs.len() >= GATEWAYS_MAX {
            // Any gateway that nobody watches for; when it comes back it is told to resync.
            let idle = logs.iter().find(|(_, l)| l.watchers.load(Ordering::Relaxed) == 0).map(|(g, _)| g.clone())?;
            logs.remove(&idle);
            self.metrics.logs_dropped.inc();
        }
        let seq = self.seq.load(Ordering::Acquire);
        let log = Arc::new(GatewayLog {
            log: Mutex::new(Log::new(seq, self.events_max)),
            head: watch::Sender::new(seq),
            watchers: AtomicUsize::new(0),
        });
        logs.insert(gateway.clone(), Arc::clone(&log));
        Some(log)
    }
}

impl Announcer for Hub {
    fn announce(&self, announcement: &Announcement) {
        let news = Arc::new(announcement.clone());
        for (gateway, _) in &news.sessions {
            let Some(log) = self.log(gateway) else {
                self.metrics.dropped.inc();
                continue;
            };
            let mut ring = log.log.lock();
            // Numbered under the log's lock, so that numbers grow within it.
            let seq = self.seq.fetch_add(1, Ordering::AcqRel) + 1;
            if ring.push(seq, Arc::clone(&news)) {
                log.head.send_replace(seq);
            }
        }
        self.metrics.announced.inc();
    }
}
