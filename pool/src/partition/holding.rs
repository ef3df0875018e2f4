//! A permit: the right to one connection, from the dial slot to the close.
//!
//! Returned by its destructor and nowhere else, so a dial that fails, times out, is cancelled or panics,
//! and a connection that ends for whatever reason, cannot leak one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;

use super::Cell;
use crate::cell::{ConnKey, Epoch, Event, FailedDial};
use crate::conn::Link;
use crate::dial::scheduler::Class;
use crate::error::{Error, Kind, Stage};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Holding {
    cell: Arc<Cell>,
    class: Class,
    state: Mutex<State>,
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

// === impl Holding ===

impl Holding {
    pub(super) fn new(cell: Arc<Cell>, class: Class, fresh: bool, epoch: Epoch) -> Self {
        Self { cell, class, state: Mutex::new(State::Dialling { fresh, epoch }) }
    }

    /// The dial worked: the permit is now the connection's.
    pub(super) fn connected(&self, link: Link, took: Duration) {
        let State::Dialling { fresh, epoch } = *self.state.lock() else { return };
        let shared = link.is_shared();
        let event = Event::Connected { fresh, epoch, channel: link, shared, took, jitter: rand::rng().random() };
        if let Some(key) = self.cell.open(event, |key| *self.state.lock() = State::Live(key)) {
            tracing::debug!(origin = %self.cell.origin(), ?key, shared, "connection opened");
        } else {
            *self.state.lock() = State::Over;
        }
        self.release_slot();
    }

    /// The dial failed.
    pub(super) fn failed(&self, error: Error, took: Duration) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Over);
        if let State::Dialling { fresh, epoch } = before {
            tracing::debug!(origin = %self.cell.origin(), %error, "dial failed");
            let blame = error.blame();
            if error.is_local() {
                self.cell.partition().hold_dials();
            }
            let dial = FailedDial { fresh, epoch, error, blame, jitter: rand::rng().random() };
            self.cell.apply(Event::DialFailed { dial, took });
            self.release_slot();
        }
    }

    fn release_slot(&self) {
        self.cell.partition().scheduler.lock().release_slot(self.class);
        self.cell.partition().pump();
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
        self.cell.partition().scheduler.lock().release_connection();
        self.cell.partition().pump();
        self.cell.partition().ended.notify_waiters();
    }
}
