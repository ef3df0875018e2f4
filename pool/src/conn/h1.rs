//! The way back of an HTTP/1.1 connection.
//!
//! When a response body ends, hyper may still have to flush, or to skip the rest of a body that was
//! dropped early, before the connection can take the next request. Waiting for that is the business of
//! the connection's owner, not of the caller: the lease is parked here and the driver, which moves the
//! bytes anyway, returns it when the connection is ready. No task is spawned per request.

use std::sync::{Arc, OnceLock};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::exchange::Lease;
use crate::partition::Cell;

/// What an HTTP/1.1 connection has beside hyper's: where a finished request leaves its lease for the driver.
#[derive(Debug, Default)]
pub(crate) struct Return {
    /// The connection's cell, once it was leased.
    cell: OnceLock<Arc<Cell>>,
    slot: Mutex<Slot>,
    pub(super) driver: AtomicWaker,
}

#[derive(Debug, Default)]
struct Slot {
    parked: Option<Lease>,
    /// The exchange was given up: the connection cannot be used again.
    cut: bool,
    /// The driver has ended.
    closed: bool,
}

// === impl Return ===

impl Return {
    /// The connection is this cell's.
    pub(super) fn belongs_to(&self, cell: &Arc<Cell>) {
        self.cell.get_or_init(|| Arc::clone(cell));
    }

    pub(super) fn cell(&self) -> Option<&Arc<Cell>> {
        self.cell.get()
    }

    /// Leaves a lease for the driver. After the driver's end it is dropped, which retires it.
    pub(super) fn park(&self, lease: Lease) {
        let refused = {
            let mut slot = self.slot.lock();
            if slot.closed { Some(lease) } else { slot.parked.replace(lease) }
        };
        if let Some(lease) = refused {
            lease.discard();
        }
        self.driver.wake();
    }

    /// Ends the connection: its exchange was abandoned half-way.
    pub(super) fn cut(&self) {
        self.slot.lock().cut = true;
        self.driver.wake();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.slot.lock().cut
    }

    pub(super) fn take_parked(&self) -> Option<Lease> {
        self.slot.lock().parked.take()
    }

    pub(super) fn put_back(&self, lease: Lease) {
        self.slot.lock().parked = Some(lease);
    }

    /// The driver ends; whatever is parked goes with it.
    pub(super) fn close(&self) {
        let parked = {
            let mut slot = self.slot.lock();
            slot.closed = true;
            slot.parked.take()
        };
        if let Some(lease) = parked {
            lease.discard();
        }
    }
}
