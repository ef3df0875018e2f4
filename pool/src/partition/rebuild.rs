//! What happens to a partition whose own machinery fails: its timer, its line for dial slots, or a cell that
//! nobody can reach.
//!
//! A timer that panics is started again, the line goes on where it was. That is believed a few times a minute;
//! beyond it the partition's state is what makes them panic, and the partition is rebuilt whole, in place, so
//! that every handle stays good: lines and timers empty, each cell in a new life as after a panic of its own
//! ([`super::contain`]). Permits are not part of what is rebuilt: each belongs to a dial or connection that
//! still exists, and comes back with it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::contain::message;
use super::timers::{self, Whom};
use super::{Cell, Partition};

/// Panics of a partition's machinery that are put down to chance, and within what time. One bad input panics
/// once; a state that is broken panics with every event, and a partition in trouble has hundreds a minute.
const PANICS_MAX: usize = 5;
const PANICS_WINDOW: Duration = Duration::from_secs(60);

/// Pause before the line for dial slots is looked at again after a panic.
const PUMP_PAUSE: Duration = Duration::from_millis(100);

/// How long a rebuild waits for the lock of a cell. A step takes microseconds: a lock that is held for longer
/// is held by something that hangs.
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// How many panics are put down to chance.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// The latest, at most [`PANICS_MAX`], oldest first.
    panics: VecDeque<Instant>,
}

// === impl Budget ===

impl Budget {
    /// Spends one. `false` when that was one too many; the count begins anew then.
    fn spend(&mut self, now: Instant) -> bool {
        self.panics.retain(|at| now.saturating_duration_since(*at) < PANICS_WINDOW);
        if self.panics.len() >= PANICS_MAX {
            self.panics.clear();
            return false;
        }
        self.panics.push_back(now);
        true
    }
}

// === impl Partition ===

impl Partition {
    /// Starts the timer; one that ran before ends when it next awaits something.
    pub(super) fn start_timer(self: &Arc<Self>) {
        let token = self.spawner.token();
        let before = std::mem::replace(&mut *self.timer.lock(), token.clone());
        before.cancel();
        let (timed, weak) = (Arc::downgrade(self), Arc::downgrade(self));
        let panicked = move |panic: &str| {
            if let Some(partition) = weak.upgrade() {
                partition.metrics.restarts.inc();
                partition.panicked("timer", panic);
            }
        };
        self.spawner.keep(token, panicked, move || timers::run(timed.clone()));
    }

    /// Gives dial slots to whoever is in line until there is no slot, no room or nobody left. A panic in it
    /// reaches none of those who came by, and what it left undone is done a moment later.
    ///
    /// Whoever comes while somebody is at it leaves one more round to them: a dial that ends while it is started (the
    /// runtime is on its way out) must not call this from within, once for everybody in line.
    pub(crate) fn pump(self: &Arc<Self>) {
        if self.pumps.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let mut seen = 1;
        while seen > 0 {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve_line())) {
                self.panicked("dial line", message(&*panic));
                self.timers.push(Instant::now() + PUMP_PAUSE, Whom::Pace);
            }
            // A rebuild sets it to 0 and has begun anew.
            let over = self.pumps.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire);
            seen = over.err().unwrap_or(0);
        }
    }

    fn panicked(self: &Arc<Self>, what: &'static str, panic: &str) {
        let (lane, partition) = self.metrics.labels();
        tracing::error!(lane, partition, what, panic, "partition panicked and goes on");
        let by_chance = self.budget.lock().spend(Instant::now());
        if !by_chance {
            self.rebuild("panics");
        }
    }

    /// The timer has not been seen for too long. It may be stuck for good, so it is left to itself.
    pub(crate) fn revive(self: &Arc<Self>) {
        self.rebuild("hang");
        self.start_timer();
    }

    fn rebuild(self: &Arc<Self>, why: &'static str) {
        let (lane, partition) = self.metrics.labels();
        tracing::error!(lane, partition, why, "partition is rebuilt");
        self.metrics.rebuilds.inc();
        // Before the cells: what a new life asks for must not be lost.
        let in_line = self.scheduler.lock().clear();
        let timed = self.timers.clear();
        self.room.clear();
        self.paced.store(false, Ordering::Release);
        self.held_until_ms.store(0, Ordering::Relaxed);
        self.pumps.store(0, Ordering::Release);
        let cells = self.cells.lock().list.clone();
        let timed = timed.iter().filter_map(std::sync::Weak::upgrade);
        // A cell that is being drained is in no list, and may still serve its line.
        let mut all: Vec<_> = cells.into_iter().chain(in_line).chain(timed).collect();
        all.sort_unstable_by_key(Arc::as_ptr);
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        for cell in all.iter().filter(|cell| !cell.renew(LOCK_WAIT)) {
            tracing::error!(origin = %cell.origin(), "cell is stuck and is replaced");
            self.replace(cell);
        }
        self.ended.notify_waiters();
    }

    /// Puts a new cell in the place of one that cannot be reached; handles look for it with their next request.
    fn replace(self: &Arc<Self>, stuck: &Arc<Cell>) {
        let fresh = Arc::new(Cell::new(stuck.origin().clone(), Arc::clone(self), Arc::clone(&self.tuning)));
        stuck.give_up();
        let mut cells = self.cells.lock();
        let at = cells.index.get(stuck.origin()).copied();
        if let Some(place) = at.and_then(|at| cells.list.get_mut(at)).filter(|cell| Arc::ptr_eq(cell, stuck)) {
            *place = fresh;
        }
    }
}
