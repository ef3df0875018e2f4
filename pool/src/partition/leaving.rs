//! Cells that are in no list any more and may still have callers.
//!
//! Callers have no timer of their own, so whoever may have callers must be where the timer looks. Two kinds of cells
//! leave the list before their callers do: one that is drained and serves its line, and one that a rebuild could
//! not lock and has replaced. The latter is not dead for that: whoever held its lock may only have been off the
//! processor for a moment. It begins its new life as soon as it can be reached.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Cell, Partition};
use crate::cell::{Event, Intake};

/// A cell in no list. A drained one is here while somebody is in its line, so these are never more than there are places
/// for waiters; a stuck one while somebody holds its lock, so these are never more than there are threads.
#[derive(Debug, Clone)]
pub(super) struct Leaving {
    cell: Arc<Cell>,
    stuck: bool,
}

// === impl Leaving ===

impl Leaving {
    /// Does what its timer, or the rebuild, should have done. `true` when nobody can be waiting in it any more.
    fn look(&self, now: Instant) -> bool {
        if self.stuck {
            let reached = self.cell.renew(Duration::ZERO);
            if reached && self.cell.is_surplus() {
                // What is in use closes after its request, and newcomers ask the cell in its place.
                self.cell.apply(Event::Drain(Intake::Surplus));
            }
            return reached;
        }
        self.cell.sweep(now);
        self.cell.counts().waiters == 0
    }
}

// === impl Partition ===

impl Partition {
    /// A rebuild could not reach this cell.
    pub(super) fn note_stuck(&self, cell: &Arc<Cell>) {
        let mut leaving = self.leaving.lock();
        if let Some(known) = leaving.iter_mut().find(|leaving| Arc::ptr_eq(&leaving.cell, cell)) {
            known.stuck = true;
        } else {
            leaving.push(Leaving { cell: Arc::clone(cell), stuck: true });
        }
    }

    /// This cell takes no newcomers, but serves its line.
    pub(super) fn note_drained(&self, cell: &Arc<Cell>) {
        self.leaving.lock().push(Leaving { cell: Arc::clone(cell), stuck: false });
    }

    pub(super) fn sweep_leaving(&self, now: Instant) {
        let leaving = self.leaving.lock().clone();
        for gone in leaving.iter().filter(|leaving| leaving.look(now)) {
            self.leaving.lock().retain(|leaving| !Arc::ptr_eq(&leaving.cell, &gone.cell));
        }
    }

    /// Those that were drained and still serve their line. The lock of a stuck one might not come back.
    pub(super) fn drained_cells(&self) -> Vec<Arc<Cell>> {
        let leaving = self.leaving.lock();
        leaving.iter().filter(|leaving| !leaving.stuck).map(|leaving| Arc::clone(&leaving.cell)).collect()
    }

    pub(super) fn leaving_cells(&self) -> Vec<Arc<Cell>> {
        self.leaving.lock().iter().map(|leaving| Arc::clone(&leaving.cell)).collect()
    }
}
