//! A permit: the right to one connection, from the dial slot to the close.
//!
//! It comes with a dial slot, which is done with when the dial is. Both are returned by their destructors and nowhere
//! else, so a dial that fails, times out, is cancelled or panics, and a connection that ends for whatever reason,
//! cannot leak one; nor can a panic on the way from one to the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;

use super::{Cell, Partition};
use crate::cell::{ConnKey, Epoch, Event, FailedDial};
use crate::conn::Link;
use crate::dial::scheduler::Class;
use crate::error::{Error, Kind, Stage};
use crate::fault::{self, Point};

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
    slot: Mutex<Option<Slot>>,
    /// Dropped last, and after the cell was told.
    _permit: Permit,
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

// === impl Holding ===

impl Holding {
    pub(super) fn new(cell: Arc<Cell>, grant: Grant, fresh: bool, epoch: Epoch) -> Self {
        let state = Mutex::new(State::Dialling { fresh, epoch });
        Self { cell, state, slot: Mutex::new(Some(grant.slot)), _permit: grant.permit }
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
