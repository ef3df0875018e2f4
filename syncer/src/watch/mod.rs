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
//! a position in its gateway's [`log::Log`]. What an event says is read, and its credentials are made,
//! when it is delivered: a gateway that is not there costs a few words for each call that changed. If
//! the call has changed again since, the log has or gets a later note of it, and the earlier is passed over.
//!
//! News is kept for `watch.resume_window` and no longer, whether the call lives on or not: it is what a
//! gateway missed, not what is. Beyond `watch.events_max` the oldest of the whole hub goes first. Either
//! way the log's floor rises, so an older cursor gets 410, and a watcher that slow a `resync`.

mod crowd;
mod cursor;
mod event;
mod fleet;
mod limits;
mod log;
mod metrics;
pub(crate) mod sse;
#[cfg(test)]
mod tests;
mod watcher;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use sfu_api::{CallId, GatewayId, GuildId, SessionId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::drivers;
use crate::engine::{Announcement, Announcer, NewsCursor};

pub(crate) use self::cursor::{Cursor, CursorError};
pub use self::event::{Credential, EndpointEvent};
pub(crate) use self::fleet::{Fleet, Scope};
pub use self::limits::WatchLevers;
pub use self::metrics::WatchMetrics;
pub(crate) use self::watcher::Watcher;

use self::crowd::Crowd;
use self::log::{Log, Note};

/// The part of all news that goes when there is no room: 16,384 of them pay for one look at each of
/// the 4,096 logs.
const ROOM_DIVISOR: usize = 64;
/// How often old news is let go: a tenth more memory than the usual window alone would need.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Gateways with news kept: 2.6 M users on 650 per gateway.
pub const GATEWAYS_MAX: usize = 4_096;

/// Where watchers find the present state and credentials.
pub trait Source: Send + Sync {
    /// The present state of some of the calls in which the gateway has sessions, and where the next
    /// page begins. Calls that come or go between two pages may be on one or not.
    fn current(&self, gateway: &GatewayId, at: NewsCursor) -> (Vec<Announcement>, Option<NewsCursor>);
    /// The present state of one call, if the gateway has sessions in it.
    fn call(&self, gateway: &GatewayId, guild: &GuildId, call: &CallId) -> Option<Announcement>;
    /// The session's credential for the announced endpoint.
    fn credential(&self, news: &Announcement, session: &SessionId) -> Option<drivers::Credential>;
}

/// Takes the engine's announcements and keeps them for the watchers.
#[derive(Debug)]
pub struct Hub {
    boot: u64,
    /// One numbering for all gateways: a log that was dropped and made anew cannot be mistaken.
    seq: AtomicU64,
    logs: RwLock<HashMap<GatewayId, Arc<GatewayLog>>>,
    /// News in all logs together.
    held: AtomicUsize,
    /// Whoever makes room; others wait for it instead of doing it again.
    making_room: Mutex<()>,
    limits: WatchLevers,
    metrics: WatchMetrics,
}

#[derive(Debug)]
struct GatewayLog {
    log: Mutex<Log>,
    /// The number of the last news: watchers sleep on it.
    head: watch::Sender<u64>,
    /// Grows only under the log's lock, so that a log with watchers is never closed.
    watchers: AtomicUsize,
    /// Those of them that the gateway opened here itself. Kept as long as the log, so that a gateway whose watches
    /// come and go is warned of no more often.
    own: Mutex<Crowd>,
}

// === impl Hub ===

impl Hub {
    /// An empty hub; `boot` tells its cursors from those of an earlier process.
    #[must_use]
    pub fn new(boot: u64, limits: WatchLevers) -> Arc<Self> {
        Arc::new(Self {
            boot,
            seq: AtomicU64::new(0),
            logs: RwLock::default(),
            held: AtomicUsize::new(0),
            making_room: Mutex::default(),
            limits,
            metrics: WatchMetrics::default(),
        })
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &WatchMetrics {
        &self.metrics
    }

    /// Lets news go that is older than `watch.resume_window` or beyond the other limits, and the logs of gateways that
    /// have been away for as long.
    pub fn sweep(&self, now: Instant) {
        let (window, per_gateway) = (self.limits.resume_window.get(), self.limits.per_gateway());
        let mut idle = Vec::new();
        for (gateway, log) in self.all_logs() {
            self.edit(&log, |ring| {
                ring.drop_older(window, now);
                ring.trim(per_gateway);
            });
            if log.is_idle(window, now) {
                idle.push(gateway);
            }
        }
        self.make_room();
        if idle.is_empty() {
            return;
        }
        let mut logs = self.logs.write();
        for gateway in idle {
            if logs.get(&gateway).is_some_and(|log| self.close(log, |ring| ring.is_idle(window, now))) {
                logs.remove(&gateway);
            }
        }
    }

    /// Keeps news for its gateways and wakes their watchers.
    pub(crate) fn take(&self, announcement: &Announcement, now: Instant) {
        let note = Arc::new(Note::of(announcement, now));
        let per_gateway = self.limits.per_gateway();
        for (gateway, _) in &announcement.sessions {
            while let Some(log) = self.log(gateway, now) {
                let taken = self.edit(&log, |ring| {
                    if ring.is_closed() {
                        return false; // just now; the next one is new
                    }
                    // Numbered under the log's lock, so that numbers grow within it.
                    let seq = self.seq.fetch_add(1, Ordering::AcqRel) + 1;
                    if ring.push(seq, Arc::clone(&note), per_gateway) {
                        log.head.send_replace(seq);
                    }
                    true
                });
                if taken {
                    break;
                }
            }
            // After it: what was overtaken on its way needs no room.
            self.make_room();
        }
        self.metrics.announced.inc();
    }

    /// The gateway's log, made if need be; `None` when there are too many and all are watched.
    fn log(&self, gateway: &GatewayId, now: Instant) -> Option<Arc<GatewayLog>> {
        if let Some(log) = self.logs.read().get(gateway) {
            return Some(Arc::clone(log));
        }
        let mut logs = self.logs.write();
        if let Some(log) = logs.get(gateway) {
            return Some(Arc::clone(log));
        }
        if logs.len() >= GATEWAYS_MAX {
            // Any gateway that nobody watches for; when it comes back it is told to resync.
            let Some(idle) = logs.iter().find(|(_, log)| self.close(log, |_| true)).map(|(g, _)| g.clone()) else {
                self.metrics.dropped.inc();
                return None;
            };
            logs.remove(&idle);
            self.metrics.logs_dropped.inc();
        }
        let seq = self.seq.load(Ordering::Acquire);
        let log = Arc::new(GatewayLog {
            log: Mutex::new(Log::new(seq, now)),
            head: watch::Sender::new(seq),
            watchers: AtomicUsize::new(0),
            own: Mutex::default(),
        });
        logs.insert(gateway.clone(), Arc::clone(&log));
        Some(log)
    }

    fn all_logs(&self) -> Vec<(GatewayId, Arc<GatewayLog>)> {
        self.logs.read().iter().map(|(g, log)| (g.clone(), Arc::clone(log))).collect()
    }

    /// Closes a log that nobody watches, if `also` holds of it. The caller holds the map for writing
    /// and takes it out.
    fn close(&self, log: &GatewayLog, also: impl FnOnce(&Log) -> bool) -> bool {
        self.edit(log, |ring| {
            let closes = log.watchers.load(Ordering::Acquire) == 0 && also(ring);
            if closes {
                ring.close();
            }
            closes
        })
    }

    /// Lets the oldest of all news go until there is room, if there is none. There may be as many more as there are
    /// threads that announce at this moment.
    fn make_room(&self) {
        let all = self.limits.all();
        if self.held.load(Ordering::Relaxed) <= all {
            return;
        }
        let _one = self.making_room.lock();
        if self.held.load(Ordering::Relaxed) <= all {
            return; // somebody else made it
        }
        let logs = self.all_logs();
        // A look at all logs has to be worth it.
        let goal = all.saturating_sub((all / ROOM_DIVISOR).max(logs.len()));
        while self.held.load(Ordering::Relaxed) > goal {
            let Some(oldest) = logs.iter().filter_map(|(_, l)| l.log.lock().oldest()).min() else { return };
            let range = self.seq.load(Ordering::Acquire).saturating_sub(oldest);
            let cut = oldest + range / ROOM_DIVISOR as u64;
            for (_, log) in &logs {
                self.edit(log, |ring| {
                    let before = ring.len();
                    ring.drop_through(cut);
                    self.metrics.overflowed.inc_by((before - ring.len()) as u64);
                });
            }
        }
    }

    /// Changes a log and counts what that did to the whole.
    fn edit<T>(&self, log: &GatewayLog, change: impl FnOnce(&mut Log) -> T) -> T {
        let mut ring = log.log.lock();
        let before = ring.len();
        let value = change(&mut ring);
        let after = ring.len();
        if after >= before {
            self.held.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(before - after, Ordering::Relaxed);
        }
        self.metrics.held.inc_by(i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX));
        value
    }
}

impl Announcer for Hub {
    fn announce(&self, announcement: &Announcement) {
        self.take(announcement, Instant::now());
    }
}

// === impl GatewayLog ===

impl GatewayLog {
    fn is_idle(&self, window: Duration, now: Instant) -> bool {
        self.watchers.load(Ordering::Acquire) == 0 && self.log.lock().is_idle(window, now)
    }
}
