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
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::contain::message;
use super::timers::{self, Whom};
use super::{Cell, Partition};
use crate::cell::{Event, Intake};
use crate::fault::{self, Point};

/// Panics of a partition's machinery that are put down to chance, and within what time. One bad input panics
/// once; a state that is broken panics with every event, and a partition in trouble has hundreds a minute.
const PANICS_MAX: usize = 5;
const PANICS_WINDOW: Duration = Duration::from_secs(60);

/// Pause before the line for dial slots is looked at again after a panic.
const PUMP_PAUSE: Duration = Duration::from_millis(100);

/// How long a rebuild waits for the lock of a cell. A step takes microseconds: a lock that is held for longer
/// is held by something that hangs.
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// Least time from one rebuild to the next: a second, twice as much each time, at most a minute. Each tells every
/// caller to try again and closes every idle connection, so one that did not help must not be tried at the rate of
/// requests.
const REBUILD_PAUSE_MIN: Duration = Duration::from_secs(1);
const REBUILD_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Where the era begins in [`Partition::pumps`]; below it they are counted. Callers of four billion at once do not exist,
/// and a rebuild a minute needs eight thousand years for as many eras.
const ERA: u64 = 1 << 32;

/// How many panics are put down to chance, and how often a partition is rebuilt.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// The latest, at most [`PANICS_MAX`], oldest first.
    panics: VecDeque<Instant>,
    /// When the partition was rebuilt last, and how long it is left alone from then on.
    rebuilt: Option<(Instant, Duration)>,
}

/// Looks after the callers of a partition whose runtime has ended, and with it the timer that kept their deadlines. Held
/// by the timer's keeper, so that it is dropped when that is.
#[derive(Debug)]
struct LastWill {
    partition: Weak<Partition>,
    /// Cancelled when there is another timer, or when the lane ends as it should.
    token: CancellationToken,
}

// === impl Budget ===

impl Budget {
    /// Spends one. `true` when that was one too many and the partition is to be rebuilt; the count begins anew then.
    fn spend(&mut self, now: Instant) -> bool {
        self.panics.retain(|at| now.saturating_duration_since(*at) < PANICS_WINDOW);
        if self.panics.len() < PANICS_MAX {
            self.panics.push_back(now);
            return false;
        }
        let rebuild = self.may_rebuild(now);
        if rebuild {
            self.panics.clear();
        }
        rebuild
    }

    /// Whether the partition may be rebuilt now; it is taken to be.
    fn may_rebuild(&mut self, now: Instant) -> bool {
        let ago = |at| now.saturating_duration_since(at);
        let pause = match self.rebuilt {
            Some((at, pause)) if ago(at) < pause => return false,
            Some((at, pause)) if ago(at) < pause + REBUILD_PAUSE_MAX => (pause * 2).min(REBUILD_PAUSE_MAX),
            _ => REBUILD_PAUSE_MIN,
        };
        self.rebuilt = Some((now, pause));
        true
    }
}

// === impl LastWill ===

impl LastWill {
    fn partition(&self) -> Option<Arc<Partition>> {
        self.partition.upgrade()
    }
}

impl Drop for LastWill {
    fn drop(&mut self) {
        if !self.token.is_cancelled()
            && let Some(partition) = self.partition()
        {
            partition.orphaned();
        }
    }
}

// === impl Partition ===

impl Partition {
    /// Starts the timer; one that ran before ends when it next awaits something.
    pub(super) fn start_timer(self: &Arc<Self>) {
        let token = self.spawner.token();
        let before = std::mem::replace(&mut *self.timer.lock(), token.clone());
        before.cancel();
        let timed = Arc::downgrade(self);
        let last_will = LastWill { partition: Arc::downgrade(self), token: token.clone() };
        let panicked = move |panic: &str| {
            if let Some(partition) = last_will.partition() {
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
        let before = self.pumps.fetch_add(1, Ordering::AcqRel);
        let era = before - before % ERA;
        let mut seen = before + 1;
        if before > era {
            return;
        }
        // In another era somebody else is at it: the partition was rebuilt meanwhile.
        while seen - seen % ERA == era {
            if !self.line_rests()
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.serve_line()))
            {
                self.panicked("dial line", message(&*panic));
                self.rest_line(Instant::now() + PUMP_PAUSE);
            }
            match self.pumps.compare_exchange(seen, era, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Whether the line is left alone, because it panicked a moment ago.
    fn line_rests(&self) -> bool {
        let until = self.rests_until_ms.load(Ordering::Relaxed);
        until > 0 && self.since_epoch_ms(Instant::now()) < until
    }

    fn rest_line(&self, until: Instant) {
        self.rests_until_ms.store(self.since_epoch_ms(until), Ordering::Relaxed);
        self.timers.push(until, Whom::Pace);
    }

    /// Copes with a panic of the partition's machinery. What it does may be as broken as what panicked, and it runs
    /// in destructors: a panic in here is swallowed.
    pub(super) fn panicked(self: &Arc<Self>, what: &'static str, panic: &str) {
        let cope = || {
            let too_many = self.budget.lock().spend(Instant::now());
            if too_many {
                self.rebuild("panics");
            }
            let (lane, partition) = self.metrics.labels();
            tracing::error!(lane, partition, what, panic, "partition panicked and goes on");
        };
        let _swallowed = catch_unwind(AssertUnwindSafe(cope));
    }

    /// The timer has not been seen for too long, and gets a successor. If it is in the middle of something, it hangs
    /// there, and the partition is rebuilt. If not, it waits for its turn behind a task that blocks its thread:
    /// nothing is wrong with the partition.
    pub(crate) fn revive(self: &Arc<Self>) {
        if self.ringing.load(Ordering::Acquire) {
            if !self.budget.lock().may_rebuild(Instant::now()) {
                return;
            }
            self.rebuild("hang");
        } else {
            let (lane, partition) = self.metrics.labels();
            tracing::warn!(lane, partition, "the timer does not come to its turn: something blocks its thread");
            self.metrics.restarts.inc();
        }
        self.start_timer();
    }

    /// The runtime is gone, and with it whoever kept the deadlines of those in line. They are told to go elsewhere, and
    /// so is whoever comes now.
    fn orphaned(&self) {
        let (lane, partition) = self.metrics.labels();
        tracing::warn!(lane, partition, "the lane's runtime has ended, and so has the partition");
        self.begin_drain(Intake::Refuse);
        self.leaving_cells().iter().for_each(|cell| cell.apply(Event::Drain(Intake::Refuse)));
    }

    pub(super) fn rebuild(self: &Arc<Self>, why: &'static str) {
        let (lane, partition) = self.metrics.labels();
        tracing::error!(lane, partition, why, "partition is rebuilt");
        self.metrics.rebuilds.inc();
        // Before the cells: what a new life asks for must not be lost.
        let in_line = self.scheduler.lock().clear().into_iter().map(|want| want.cell);
        let timed = self.timers.clear();
        self.room.clear();
        self.paced.store(false, Ordering::Release);
        self.held_until_ms.store(0, Ordering::Relaxed);
        // Whoever serves the line may hang there: the next who comes is not to rely on them.
        let next_era = |pumps: u64| Some((pumps - pumps % ERA).wrapping_add(ERA));
        let _before = self.pumps.fetch_update(Ordering::AcqRel, Ordering::Acquire, next_era);
        let cells = self.cells.lock().list.clone();
        let timed = timed.iter().filter_map(Weak::upgrade);
        let mut all: Vec<_> = cells.into_iter().chain(self.leaving_cells()).chain(in_line).chain(timed).collect();
        all.sort_unstable_by_key(Arc::as_ptr);
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        for cell in all.iter().filter(|cell| !cell.renew(LOCK_WAIT)) {
            tracing::error!(origin = %cell.origin(), "cell is stuck and is replaced");
            self.replace(cell);
        }
        fault::point(Point::Rebuild);
        self.ended.notify_waiters();
    }

    /// Puts a new cell in the place of one that cannot be reached; handles look for it with their next request. Who
    /// waits in the old one is told as soon as it can be reached.
    fn replace(self: &Arc<Self>, stuck: &Arc<Cell>) {
        self.note_stuck(stuck);
        let fresh = Arc::new(Cell::new(stuck.origin().clone(), Arc::clone(self), Arc::clone(&self.tuning)));
        {
            let mut cells = self.cells.lock();
            let at = cells.index.get(stuck.origin()).copied();
            let place = at.and_then(|at| cells.list.get_mut(at)).filter(|cell| Arc::ptr_eq(cell, stuck));
            let Some(place) = place else { return };
            *place = Arc::clone(&fresh);
            stuck.give_up();
        }
        self.room.forget(stuck);
        if self.draining.load(Ordering::Acquire) {
            fresh.apply(Event::Drain(Intake::Refuse));
        }
    }
}
