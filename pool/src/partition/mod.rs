//! A partition: the owner of some origins' connections.
//!
//! Partitioned by *origin*, not by thread: an origin lives in one place, so its caps, its line and its
//! idle connections are one lock and exact. A partition shares nothing mutable with the next one on the
//! checkout path: it has its own cells, dial scheduler, timer, budgets and tasks. What is above it (the
//! lane) only looks up and adds up.

mod holding;
mod site;
mod tasks;
mod timers;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use rate_limit::Backoff;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;
use tokio::time::Instant;

use self::holding::Holding;
pub(crate) use self::site::Cell;
pub(crate) use self::tasks::Spawner;
use self::timers::Timers;
use crate::cell::{CellLimits, Event};
use crate::dial::Dialer;
use crate::dial::scheduler::{Scheduler, Turn};
use crate::limits::LaneLimits;
use crate::metrics::PartitionMetrics;
use crate::origin::Origin;

/// Cells asked for an idle connection to close when the partition's budget is used up: with a twentieth
/// of the cells holding one, 64 find one 19 times in 20.
const EVICT_TRIES: usize = 64;

/// How soon the search for room goes on where it stopped. All 25,000 origins of the largest fleet over 8
/// partitions are searched in a quarter of a second.
const EVICT_RETRY: Duration = Duration::from_millis(5);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Partition {
    limits: LaneLimits,
    cell_limits: CellLimits,
    waiters_max: usize,
    origins_max: usize,
    waiters: AtomicUsize,
    /// Somebody could dial if only there were room.
    starved: AtomicBool,
    /// The timer will look for room again.
    searching: AtomicBool,
    draining: AtomicBool,
    cells: Mutex<Cells>,
    scheduler: Mutex<Scheduler<Arc<Cell>>>,
    timers: Timers,
    dialer: Arc<Dialer>,
    spawner: Spawner,
    pub(crate) metrics: PartitionMetrics,
}

#[derive(Debug, Default)]
struct Cells {
    index: HashMap<Origin, usize, FxBuildHasher>,
    list: Vec<Arc<Cell>>,
    /// Where the search for an idle connection goes on.
    cursor: usize,
}

/// What a partition holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartitionSnapshot {
    /// Origins with state.
    pub origins: usize,
    /// Callers waiting.
    pub waiters: usize,
    /// Origins in line for a dial slot.
    pub dial_queue: usize,
    /// Dials in flight.
    pub dialling: usize,
    /// Open connections.
    pub live: usize,
    /// Open connections without a request.
    pub idle: usize,
    /// Requests on connections.
    pub in_use: usize,
    /// Permits that are neither a live connection nor a dial; must be 0.
    pub permits_off: i64,
}

// === impl Partition ===

impl Partition {
    pub(crate) fn new(
        limits: &LaneLimits,
        dialer: Arc<Dialer>,
        spawner: Spawner,
        metrics: PartitionMetrics,
    ) -> Arc<Self> {
        let share = |whole: usize| (whole / limits.partitions).max(1);
        let slots = share(limits.dials_max);
        let partition = Arc::new(Self {
            cell_limits: CellLimits {
                connections_max: limits.connections_per_origin_max,
                waiters_max: limits.waiters_per_origin_max,
                dials_max: Scheduler::<Arc<Cell>>::origin_share(slots),
                streams_max: limits.h2_streams_max,
                idle_timeout: limits.idle_timeout,
                age_max: limits.age_max,
                backoff: Backoff { base: limits.backoff_base, max: limits.backoff_max },
            },
            waiters_max: share(limits.waiters_max),
            // Hashing is even only on average: half as much again keeps the lane's total reachable.
            origins_max: share(limits.origins_max).saturating_mul(3).div_ceil(2),
            waiters: AtomicUsize::new(0),
            starved: AtomicBool::new(false),
            searching: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            cells: Mutex::new(Cells::default()),
            scheduler: Mutex::new(Scheduler::new(slots, share(limits.connections_max))),
            timers: Timers::default(),
            limits: limits.clone(),
            dialer,
            spawner,
            metrics,
        });
        let timers = Arc::downgrade(&partition);
        partition.spawner.keep(move || timers::run(timers.clone()));
        partition
    }

    /// The cell of an origin, made on first use. Beyond the partition's share of `origins_max` the cell
    /// is not kept and refuses everything.
    pub(crate) fn cell(self: &Arc<Self>, origin: &Origin) -> Arc<Cell> {
        let mut cells = self.cells.lock();
        if let Some(at) = cells.index.get(origin) {
            return Arc::clone(&cells.list[*at]);
        }
        let cell = Arc::new(Cell::new(origin.clone(), Arc::clone(self), self.cell_limits.clone()));
        let kept = cells.list.len() < self.origins_max;
        if kept {
            let at = cells.list.len();
            cells.index.insert(origin.clone(), at);
            cells.list.push(Arc::clone(&cell));
        }
        drop(cells);
        if !kept || self.draining.load(Ordering::Acquire) {
            cell.apply(Event::Drain);
        }
        cell
    }

    /// Drops an origin: idle connections close now, busy ones after their request.
    pub(crate) fn forget(&self, origin: &Origin) {
        let cell = self.cells.lock().remove(origin);
        if let Some(cell) = cell {
            cell.apply(Event::Drain);
        }
    }

    /// Refuses new requests, answers waiters, closes idle connections. Returns how many waited.
    pub(crate) fn begin_drain(&self) -> usize {
        self.draining.store(true, Ordering::Release);
        let cells = self.cells.lock().list.clone();
        let waiting = cells.iter().map(|cell| cell.counts().waiters).sum();
        cells.iter().for_each(|cell| cell.apply(Event::Drain));
        waiting
    }

    /// Breaks the cycle between partition and cells. Nothing works afterwards.
    pub(crate) fn shut_down(&self) {
        self.draining.store(true, Ordering::Release);
        let cells = std::mem::take(&mut *self.cells.lock());
        cells.list.iter().for_each(|cell| cell.apply(Event::Drain));
        let lines = self.scheduler.lock().clear();
        drop(lines);
        self.timers.clear();
    }

    /// Changes the partition's share of the lane's dials in flight.
    pub(crate) fn set_dials_max(&self, lane_dials_max: usize) {
        self.scheduler.lock().set_slots(lane_dials_max / self.limits.partitions);
        self.pump();
    }

    pub(crate) fn snapshot(&self) -> PartitionSnapshot {
        let cells = self.cells.lock().list.clone();
        let mut sum = PartitionSnapshot { origins: cells.len(), ..PartitionSnapshot::default() };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for cell in &cells {
            let counts = cell.counts();
            sum.waiters += counts.waiters;
            sum.dialling += counts.dialling;
            sum.live += counts.live;
            sum.idle += counts.idle;
            sum.in_use += counts.streams;
            sum.permits_off += count(counts.permits) - count(counts.live + counts.dialling);
        }
        sum.dial_queue = self.scheduler.lock().queued();
        sum
    }

    /// Connections and dials by the budget's own count.
    pub(crate) fn connections(&self) -> usize {
        self.scheduler.lock().connections()
    }

    pub(crate) fn limits(&self) -> &LaneLimits {
        &self.limits
    }

    /// Gives dial slots to whoever is in line until there is no slot, no room or nobody left.
    pub(crate) fn pump(&self) {
        loop {
            let turn = self.scheduler.lock().next();
            match turn {
                Turn::Granted(cell, class) => {
                    if !cell.take_slot(class) {
                        let mut scheduler = self.scheduler.lock();
                        scheduler.release_slot(class);
                        scheduler.release_connection();
                    }
                }
                Turn::NoSlot => return,
                Turn::NoRoom => {
                    self.starved.store(true, Ordering::Release);
                    if !self.make_room() && !self.searching.swap(true, Ordering::AcqRel) {
                        self.timers.arm_pump(Instant::now() + EVICT_RETRY);
                    }
                    return; // The end of the closed connection, or the timer, pumps again.
                }
            }
        }
    }

    /// A connection fell idle: if somebody starves, it may have to go.
    fn note_idle(&self) {
        if self.starved.load(Ordering::Acquire) && self.starved.swap(false, Ordering::AcqRel) {
            self.pump();
        }
    }

    /// Closes an idle connection of a random origin, if one is found soon. Coldest first would be worse
    /// than random: under cyclic access the coldest is the next one needed.
    fn make_room(&self) -> bool {
        let candidates: SmallVec<[Arc<Cell>; EVICT_TRIES]> = {
            let mut cells = self.cells.lock();
            let all = cells.list.len();
            if all == 0 {
                return false;
            }
            // A jump makes it random, walking on from there finds what is rare.
            let start = (cells.cursor + rand::rng().random_range(0..EVICT_TRIES)) % all;
            cells.cursor = (start + EVICT_TRIES) % all;
            cells.list.iter().cycle().skip(start).take(EVICT_TRIES.min(all)).cloned().collect()
        };
        let Some(cell) = candidates.iter().find(|cell| cell.counts().idle > 0) else { return false };
        self.metrics.evicted.inc();
        cell.apply(Event::EvictIdle);
        true
    }

    fn ring(&self, now: Instant) -> Option<Instant> {
        while let Some((at, cell)) = self.timers.pop_due(now) {
            match cell.and_then(|cell| cell.upgrade()) {
                Some(cell) => cell.apply(Event::Tick { at }),
                None => {
                    self.searching.store(false, Ordering::Release);
                    self.pump();
                }
            }
        }
        self.timers.next()
    }
}

// === impl Cells ===

impl Cells {
    fn remove(&mut self, origin: &Origin) -> Option<Arc<Cell>> {
        let at = self.index.remove(origin)?;
        let cell = self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            self.index.insert(moved.origin().clone(), at);
        }
        Some(cell)
    }
}
