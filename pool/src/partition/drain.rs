//! How origins and whole partitions come to their end.
//!
//! Of an origin its cell knows what is left. A partition has more than its cells know of: connections of origins that
//! were forgotten, or whose cell has begun a new life. So its drain goes by the budget's own count, and cuts by a token
//! that all of them descend from.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::{Cell, Partition};
use crate::cell::{CellCounts, Event, Intake};
use crate::lane::DrainReport;
use crate::origin::Origin;

/// How long a drain waits, after it cut connections at its deadline, for their tasks to notice.
pub(crate) const ABORT_WAIT: Duration = Duration::from_secs(1);

/// How often a drain looks for waiters who have left by themselves.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

// === impl Partition ===

impl Partition {
    /// Drops an origin: idle connections close now, busy ones after their request.
    pub(crate) fn forget(&self, origin: &Origin) {
        let cell = self.cells.lock().remove(origin);
        if let Some(cell) = cell {
            cell.apply(Event::Drain(Intake::Refuse));
            self.room.forget(&cell);
        }
    }

    /// Refuses new requests, answers or serves waiters, closes idle connections. Returns how many waited.
    pub(crate) fn begin_drain(&self, intake: Intake) -> usize {
        self.draining.store(true, Ordering::Release);
        let cells = self.cells_with_callers();
        let waiting = cells.iter().map(|cell| cell.counts().waiters).sum();
        cells.iter().for_each(|cell| cell.apply(Event::Drain(intake)));
        waiting
    }

    /// Drains one origin and forgets it.
    pub(crate) async fn drain_origin(&self, origin: &Origin, intake: Intake, deadline: Instant) -> DrainReport {
        let Some(cell) = self.cells.lock().remove(origin) else { return DrainReport::default() };
        if intake == Intake::ServeLine {
            cell.apply(Event::Drain(intake));
            self.note_drained(&cell);
        }
        // Now, for the drain may be dropped half-way.
        self.room.forget(&cell);
        self.drain_cell(&cell, intake, deadline).await
    }

    /// Drains every origin, and what is left of those that were drained or forgotten before; the partition takes none
    /// afterwards.
    pub(crate) async fn drain(&self, intake: Intake, deadline: Instant) -> DrainReport {
        let mut report = DrainReport::default();
        let waiting = self.begin_drain(intake);
        if intake == Intake::Refuse {
            report.waiters_refused = waiting;
        }
        if timeout_at(deadline, self.emptied(|| self.is_empty())).await.is_err() {
            report.waiters_refused += self.begin_drain(Intake::Refuse);
            report.connections_aborted = self.connections();
            self.token.cancel();
            let _late = timeout(ABORT_WAIT, self.emptied(|| self.is_empty())).await;
        }
        report
    }

    async fn drain_cell(&self, cell: &Arc<Cell>, intake: Intake, deadline: Instant) -> DrainReport {
        let is_empty = || {
            let CellCounts { permits, waiters, .. } = cell.counts();
            permits + waiters == 0
        };
        let mut report = DrainReport::default();
        if intake == Intake::Refuse {
            report.waiters_refused = cell.counts().waiters;
        }
        cell.apply(Event::Drain(intake));
        if timeout_at(deadline, self.emptied(is_empty)).await.is_err() {
            let left = cell.counts();
            report.waiters_refused += left.waiters;
            report.connections_aborted = left.permits;
            cell.apply(Event::Drain(Intake::Refuse));
            cell.cut();
            let _late = timeout(ABORT_WAIT, self.emptied(is_empty)).await;
        }
        report
    }

    /// Waits until this holds. Only the end of a connection or dial rings, so it is looked at beside that.
    async fn emptied(&self, is_empty: impl Fn() -> bool) {
        loop {
            let ended = self.ended.notified();
            if is_empty() {
                return;
            }
            // Waiters who give up ring no bell.
            let _again = timeout(DRAIN_LOOK, ended).await;
        }
    }

    /// Whether there are neither waiters nor connections nor dials.
    fn is_empty(&self) -> bool {
        self.connections() == 0 && self.cells_with_callers().iter().all(|cell| cell.counts().waiters == 0)
    }

    /// Those that are listed, and those that left the list before their callers did.
    pub(super) fn cells_with_callers(&self) -> Vec<Arc<Cell>> {
        let mut cells = self.cells.lock().list.clone();
        cells.extend(self.drained_cells());
        cells
    }
}
