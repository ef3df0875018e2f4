//! One timer for all deadlines of a partition.
//!
//! A cell asks to be rung at its earliest deadline only, so a thousand waiters of one origin are one
//! entry here. Entries are not removed when a cell asks for an earlier time: the cell knows of the late ring and
//! does not ask for it again.
//!
//! Callers have no timer of their own, so a ring that is lost (a panic between taking it and passing it on) must
//! not be the end of it. When the timer starts, and every second after, it looks at every cell and does what an
//! overdue ring should have done. That costs a lock per origin and second, 0.1 ms for the 3,000 origins of a
//! partition in the largest fleet; a timer per caller would cost each of them two visits to the runtime's
//! timers. A timer that hangs is the watchdog's business ([`super::watchdog`]), who has everybody told to try
//! again; one whose runtime has ended leaves a will ([`super::rebuild`]).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Weak;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Cell, Partition};
use crate::fault::{self, Point};

/// How often the timer shows that it is alive when nobody needs it. A stuck one is seen within seconds, and
/// a lane of eight partitions wakes eight times a second.
const HEARTBEAT: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: Mutex<BinaryHeap<Reverse<Entry>>>,
    earlier: Notify,
}

#[derive(Debug)]
struct Entry {
    at: Instant,
    whom: Whom,
}

/// Whom to ring. The partition's two are apart, so that the ring of one is not taken for the other's.
#[derive(Debug)]
pub(super) enum Whom {
    Cell(Weak<Cell>),
    /// The partition, which looks whether there is room now.
    Room,
    /// The partition, whose rate allows a dial again.
    Pace,
}

// === impl Timers ===

impl Timers {
    /// Rings a cell at `at`.
    pub(crate) fn arm(&self, at: Instant, cell: Weak<Cell>) {
        self.push(at, Whom::Cell(cell));
    }

    pub(super) fn push(&self, at: Instant, whom: Whom) {
        let first = {
            let mut heap = self.heap.lock();
            let first = heap.peek().is_none_or(|Reverse(entry)| at < entry.at);
            heap.push(Reverse(Entry { at, whom }));
            first
        };
        if first {
            self.earlier.notify_one();
        }
    }

    pub(super) fn pop_due(&self, now: Instant) -> Option<(Instant, Whom)> {
        let mut heap = self.heap.lock();
        if heap.peek().is_none_or(|Reverse(entry)| entry.at > now) {
            return None;
        }
        heap.pop().map(|Reverse(entry)| (entry.at, entry.whom))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.lock().peek().map(|Reverse(entry)| entry.at)
    }

    /// Forgets every ring; with the cells that asked for one.
    pub(super) fn clear(&self) -> Vec<Weak<Cell>> {
        let entries = std::mem::take(&mut *self.heap.lock());
        let cell = |Reverse(entry): Reverse<Entry>| match entry.whom {
            Whom::Cell(cell) => Some(cell),
            Whom::Room | Whom::Pace => None,
        };
        entries.into_iter().filter_map(cell).collect()
    }
}

/// Rings cells until the partition is gone.
pub(super) async fn run(partition: Weak<Partition>) {
    let mut sweep_at = Instant::now();
    loop {
        let Some(partition) = partition.upgrade() else { return };
        partition.ringing.store(true, Release);
        fault::point(Point::TimerBegins);
        let now = Instant::now();
        let next = partition.ring(now);
        if now >= sweep_at {
            partition.sweep(now);
            sweep_at = now + HEARTBEAT;
        }
        partition.beat(now);
        fault::point(Point::TimerEnds);
        partition.ringing.store(false, Release);
        let earlier = partition.timers.earlier.notified();
        let beat = now + HEARTBEAT;
        tokio::select! {
            () = earlier => {}
            () = sleep_until(next.map_or(beat, |at| at.min(beat))) => {}
        }
    }
}

// === impl Entry ===

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}
