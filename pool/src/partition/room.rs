//! At the connection budget an idle connection makes room for a new one.
//!
//! 25,000 origins on 10,000 connections is normal operation, so finding an idle connection must cost nothing much,
//! and knowing where to look must not cost the checkout anything. A cell is listed here when a connection of it
//! falls idle, and stays listed until somebody looks and finds none: for a busy cell that is one flag to read,
//! and each look that finds nothing was paid for by one that listed. Which cell goes first is drawn at random.
//! Coldest first would be worse: under cyclic access the coldest is the next one needed.
//!
//! What was evicted takes a moment to close. It counts as room on its way, so that one who waits for room
//! costs one connection, however often others come by meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::Instant;

use super::timers::Whom;
use super::{Cell, Partition};

/// How long an evicted connection counts as room on its way. Closing takes a round trip at most; one whose peer does
/// not even take the farewell must not keep others waiting for room.
const CLOSING_MAX: Duration = Duration::from_millis(250);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Cells that may have an idle connection. Each is here once: see [`Cell::listed`], which changes under this lock.
    listed: Mutex<Listed>,
    /// Somebody could dial if only there were room.
    starved: AtomicBool,
    /// The budget was lowered below what is open: idle connections close until it is kept.
    shrinks: AtomicBool,
    /// Connections that were evicted and have not ended.
    closing: AtomicUsize,
    /// The timer will look whether they have.
    looks: AtomicBool,
}

#[derive(Debug, Default)]
struct Listed {
    cells: Vec<Arc<Cell>>,
    /// The partition is at its end and keeps no cell alive.
    closed: bool,
}

// === impl Room ===

impl Room {
    /// A connection of this cell fell idle.
    fn list(&self, cell: &Arc<Cell>) {
        if cell.listed.load(Ordering::Acquire) {
            return;
        }
        let mut listed = self.listed.lock();
        if !cell.listed.swap(true, Ordering::SeqCst) && !listed.closed {
            listed.cells.push(Arc::clone(cell));
        }
    }

    /// Takes a random cell off the list. If a connection of it falls idle from now on, it is listed again.
    fn draw(&self) -> Option<Arc<Cell>> {
        let mut listed = self.listed.lock();
        let among = listed.cells.len();
        if among == 0 {
            return None;
        }
        let cell = listed.cells.swap_remove(rand::rng().random_range(0..among));
        cell.listed.store(false, Ordering::SeqCst);
        Some(cell)
    }

    /// The cell is forgotten and must not be kept alive from here. It is never listed again.
    pub(super) fn forget(&self, cell: &Arc<Cell>) {
        let mut listed = self.listed.lock();
        listed.cells.retain(|listed| !Arc::ptr_eq(listed, cell));
        cell.listed.store(true, Ordering::SeqCst);
    }

    /// As [`Room::forget`], every cell there is or will be.
    pub(super) fn close(&self) {
        let listed = std::mem::replace(&mut *self.listed.lock(), Listed { cells: Vec::new(), closed: true });
        drop(listed);
    }

    /// A connection is about to be evicted. Noted before it is, for it may have ended a moment later.
    pub(super) fn closing(&self) {
        self.closing.fetch_add(1, Ordering::AcqRel);
    }

    /// An evicted connection has ended.
    pub(super) fn closed(&self) {
        let one_less = |closing: usize| closing.checked_sub(1);
        let _before = self.closing.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.starved.store(false, Ordering::Release);
        self.shrinks.store(false, Ordering::Release);
        self.looks.store(false, Ordering::Release);
        self.closing.store(0, Ordering::Release);
        while self.draw().is_some() {}
    }
}

// === impl Partition ===

impl Partition {
    /// A connection of this cell fell idle: if somebody starves, it may have to go.
    pub(super) fn note_idle(self: &Arc<Self>, cell: &Arc<Cell>) {
        self.room.list(cell);
        if self.room.starved.load(Ordering::SeqCst) && self.room.starved.swap(false, Ordering::SeqCst) {
            if self.room.shrinks.load(Ordering::Acquire) {
                self.shrink();
            }
            self.pump();
        }
    }

    /// Closes idle connections until the budget is kept; those in use now go when they fall idle. Probes may open more
    /// than it allows, so only a change of the budget asks for this.
    pub(super) fn shrink(&self) {
        let surplus = self.scheduler.lock().surplus();
        self.room.shrinks.store(surplus > 0, Ordering::Release);
        if surplus > 0 {
            self.close_idle(surplus);
        }
    }

    /// Sees to it that connections close for so many who could dial. The end of each pumps.
    pub(super) fn make_room(&self, wanted: usize) {
        if self.close_idle(wanted) && !self.room.looks.swap(true, Ordering::AcqRel) {
            self.timers.push(Instant::now() + CLOSING_MAX, Whom::Room);
        }
    }

    /// Has so many connections on their way out; `false` if there are not enough that are idle.
    fn close_idle(&self, wanted: usize) -> bool {
        // Before the search: a connection that falls idle behind its back says so.
        self.room.starved.store(true, Ordering::SeqCst);
        while self.room.closing.load(Ordering::Acquire) < wanted {
            if !self.evict_one() {
                return false;
            }
        }
        true
    }

    /// What has not closed by now does not count any longer.
    pub(super) fn look_for_room(self: &Arc<Self>) {
        self.room.looks.store(false, Ordering::Release);
        self.room.closing.store(0, Ordering::Release);
        self.pump();
    }

    /// Closes an idle connection of a random cell; `false` if there is none.
    pub(super) fn evict_one(&self) -> bool {
        while let Some(cell) = self.room.draw() {
            if cell.evict_idle() {
                self.metrics.spilled.inc();
                if cell.counts().idle > 0 {
                    self.room.list(&cell);
                }
                return true;
            }
        }
        false
    }
}
