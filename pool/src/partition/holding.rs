//! A permit: the right to one connection, from the dial slot to the close.
//!
//! It comes with a dial slot, which is done with when the dial is. Both are returned by their destructors and nowhere
//! else, so a dial that fails, times out, is cancelled or panics, and a connection that ends for whatever reason,
//! cannot leak one; nor can a panic on the way from one to the other.
//!
//! That this is so is watched from outside: who has one is counted apart from the budget that gives them
//! ([`Partition::permits_off`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::yield_now;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;

use super::{Cell, Partition};
use crate::cell::{ConnKey, Epoch, Event, FailedDial};
use crate::conn::Link;
use crate::dial::scheduler::Class;
use crate::error::{Error, Kind, Stage};
use crate::fault::{self, Point};

/// How often permits that are off are looked at before they are said to be.
const OFF_LOOKS: usize = 4;

/// What the line for dial slots gives: a slot and a permit.
#[derive(Debug)]
pub(super) struct Grant {
    slot: Slot,
    permit: Permit,
}

#[derive(Debug)]
struct Slot {
    partition: Arc<Partition>,
    class: Class,
}

#[derive(Debug)]
struct Permit {
    partition: Arc<Partition>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Holding {
    cell: Arc<Cell>,
    state: Mutex<State>,
    slot: Mutex<Option<Held<Slot>>>,
    /// Dropped last, and after the cell was told.
    _permit: Held<Permit>,
}

/// What a dial or connection has of the budget. Ceases to be counted just before it is given back, for that may take
/// long: whoever waited for it is served then.
#[derive(Debug)]
struct Held<T> {
    _counted: Counted,
    _what: T,
}

#[derive(Debug)]
struct Counted {
    partition: Arc<Partition>,
    which: fn(&HeldCounts) -> &AtomicUsize,
}

/// What the dials and connections of a partition have of its budget, by their own count.
#[derive(Debug, Default)]
pub(super) struct HeldCounts {
    permits: AtomicUsize,
    slots: AtomicUsize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Dialling {
        fresh: bool,
        epoch: Epoch,
    },
    Live(ConnKey),
    /// The dial failed, or its cell has begun a new life meanwhile: only the permit is left.
    Over,
}

// === impl Grant ===

impl Grant {
    pub(super) fn new(partition: &Arc<Partition>, class: Class) -> Self {
        let slot = Slot { partition: Arc::clone(partition), class };
        Self { slot, permit: Permit { partition: Arc::clone(partition) } }
    }

    pub(super) fn class(&self) -> Class {
        self.slot.class
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        self.partition.scheduler.lock().release_slot(self.class);
        self.partition.pump();
    }
}

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        self.partition.scheduler.lock().release_connection();
        self.partition.pump();
        self.partition.ended.notify_waiters();
    }
}

// === impl Held ===

impl<T> Held<T> {
    fn new(what: T, partition: &Arc<Partition>, which: fn(&HeldCounts) -> &AtomicUsize) -> Self {
        which(&partition.held).fetch_add(1, Ordering::AcqRel);
        Self { _counted: Counted { partition: Arc::clone(partition), which }, _what: what }
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.partition.held).fetch_sub(1, Ordering::AcqRel);
    }
}

// === impl Partition ===

impl Partition {
    /// Permits and dial slots that the budget has given and no dial or connection has. One on its way, from the line to
    /// its dial or back, is off for about a microsecond, so what is off is looked at again; one whose thread is off the
    /// processor just then is still counted.
    pub(super) fn permits_off(&self) -> i64 {
        let mut off = 0;
        for _ in 0..OFF_LOOKS {
            off = self.permits_off_now();
            if off == 0 {
                break;
            }
            yield_now();
        }
        off
    }

    fn permits_off_now(&self) -> i64 {
        let scheduler = self.scheduler.lock();
        let given = scheduler.connections() + scheduler.slots_taken();
        let held = self.held.permits.load(Ordering::Acquire) + self.held.slots.load(Ordering::Acquire);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        count(given) - count(held)
    }
}

// === impl Holding ===

impl Holding {
    pub(super) fn new(cell: Arc<Cell>, grant: Grant, fresh: bool, epoch: Epoch) -> Self {
        let state = Mutex::new(State::Dialling { fresh, epoch });
        let slot = Held::new(grant.slot, cell.partition(), |held| &held.slots);
        let permit = Held::new(grant.permit, cell.partition(), |held| &held.permits);
        Self { cell, state, slot: Mutex::new(Some(slot)), _permit: permit }
    }

    /// The dial worked: the permit is now the connection's.
    pub(super) fn connected(&self, link: Link, took: Duration) {
        let State::Dialling { fresh, epoch } = *self.state.lock() else { return };
        let _until_done = self.slot.lock().take();
        let shared = link.is_shared();
        let event = Event::Connected { fresh, epoch, channel: link, shared, took, jitter: rand::rng().random() };
        if let Some(key) = self.cell.open(event, |key| *self.state.lock() = State::Live(key)) {
            tracing::debug!(origin = %self.cell.origin(), ?key, shared, "connection opened");
        } else {
            *self.state.lock() = State::Over;
        }
        fault::point(Point::DialOpened);
    }

    /// The dial failed.
    pub(super) fn failed(&self, error: Error, took: Duration) {
        let _until_done = self.slot.lock().take();
        let before = std::mem::replace(&mut *self.state.lock(), State::Over);
        if let State::Dialling { fresh, epoch } = before {
            tracing::debug!(origin = %self.cell.origin(), %error, "dial failed");
            let blame = error.blame();
            if error.is_shortage() {
                self.cell.partition().hold_dials();
            }
            let dial = FailedDial { fresh, epoch, error, blame, jitter: rand::rng().random() };
            self.cell.apply(Event::DialFailed { dial, took });
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let state = *self.state.get_mut();
        match state {
            State::Dialling { .. } => self.failed(Error::new(Kind::Aborted, Stage::DialSlot), Duration::ZERO),
            State::Live(key) => {
                self.cell.ended.fetch_add(1, Ordering::Relaxed);
                self.cell.apply(Event::Closed(key));
            }
            State::Over => {}
        }
    }
}
