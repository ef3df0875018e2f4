//! A partition: the owner of some origins' connections.
//!
//! Partitioned by *origin*, not by thread: an origin lives in one place, so its caps, its line and its
//! idle connections are one lock and exact. A partition shares nothing mutable with the next one on the
//! checkout path: it has its own cells, dial scheduler, timer, budgets and tasks. What is above it (the
//! lane) only looks up and adds up.

mod contain;
mod drain;
mod holding;
mod leaving;
mod rebuild;
mod room;
mod site;
mod tasks;
mod timers;
mod wait;
mod watchdog;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rate_limit::{Bucket, Quota};
use rustc_hash::FxBuildHasher;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::drain::ABORT_WAIT;
use self::holding::{Grant, HeldCounts, Holding};
use self::leaving::Leaving;
use self::rebuild::Budget;
use self::room::Room;
pub(crate) use self::site::Cell;
use self::site::Want;
pub(crate) use self::tasks::Spawner;
use self::timers::{Timers, Whom};
pub(crate) use self::wait::Acquire;
pub(crate) use self::watchdog::watch;
use crate::cell::{CellCounts, Event, Intake, Tuning};
use crate::debug::{Rank, busiest};
use crate::dial::Dialer;
use crate::dial::scheduler::{Scheduler, Turn};
use crate::limits::LaneLimits;
use crate::metrics::PartitionMetrics;
use crate::origin::Origin;

/// Pause of a partition's dials after one failed for want of file descriptors or memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Origins that are looked at when there is no room for another one: who comes in vain must not cost a search of all.
const RECLAIM_LOOKS: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Partition {
    tuning: Arc<Tuning>,
    origins_max: AtomicUsize,
    dial_rate: Bucket,
    room: Room,
    /// Who has asked for the line to be served since somebody began to.
    pumps: AtomicU64,
    /// The line is left alone until then, in milliseconds after `epoch`: it panicked.
    rests_until_ms: AtomicU64,
    /// The timer will try to dial again when the rate allows.
    paced: AtomicBool,
    /// No dial starts before this, in milliseconds after `epoch`: the machine ran out of something.
    held_until_ms: AtomicU64,
    draining: AtomicBool,
    cells: Mutex<Cells>,
    leaving: Mutex<Vec<Leaving>>,
    scheduler: Mutex<Scheduler<Want>>,
    held: HeldCounts,
    timers: Timers,
    /// Ends the timer that runs now.
    timer: Mutex<CancellationToken>,
    budget: Mutex<Budget>,
    dialer: Arc<Dialer>,
    spawner: Spawner,
    /// Ends the partition's dials and connections: at the deadline of its drain, or with the lane.
    token: CancellationToken,
    /// Rings whenever a connection or dial ends.
    ended: Notify,
    epoch: Instant,
    /// When the timer was last seen alive, in milliseconds after `epoch`.
    beat_ms: AtomicU64,
    /// The timer is about its work.
    ringing: AtomicBool,
    pub(crate) metrics: PartitionMetrics,
}

#[derive(Debug, Default)]
struct Cells {
    index: HashMap<Origin, usize, FxBuildHasher>,
    list: Vec<Arc<Cell>>,
    /// Where the search for one that can go went on last.
    hand: usize,
}

/// What a partition holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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
    /// Connections and dials that count against the budget: also those of origins that were forgotten and still have
    /// requests.
    pub connections: usize,
    /// Requests on connections.
    pub in_use: usize,
    /// Permits and dial slots that the budget has given and no connection or dial has; must be 0. One that is just being
    /// given or returned may be counted: what stays from look to look is lost.
    pub permits_off: i64,
    /// How long the caller who waits longest has been in line.
    pub waiters_oldest_ms: u64,
    /// How long the origin that waits longest has been in line for a dial slot.
    pub dial_queue_oldest_ms: u64,
    /// Time since the partition's timer was last seen alive: a second at most, unless it is stuck.
    pub heartbeat_age_ms: u64,
    /// Panics that began a cell's life anew.
    pub cell_panics: u64,
    /// How often the partition was rebuilt because its machinery panicked too often or hung.
    pub rebuilds: u64,
}

// === impl Partition ===

impl Partition {
    pub(crate) fn new(
        limits: &LaneLimits,
        dialer: Arc<Dialer>,
        spawner: Spawner,
        metrics: PartitionMetrics,
    ) -> Arc<Self> {
        let slots = limits.share(limits.dials_max);
        let partition = Arc::new(Self {
            tuning: Arc::new(Tuning::new(limits, slots)),
            origins_max: AtomicUsize::new(origins_share(limits)),
            dial_rate: Bucket::new(limits.dial_quota().unwrap_or(Quota::CLOSED), Instant::now()),
            room: Room::default(),
            pumps: AtomicU64::new(0),
            rests_until_ms: AtomicU64::new(0),
            paced: AtomicBool::new(false),
            held_until_ms: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            cells: Mutex::new(Cells::default()),
            leaving: Mutex::default(),
            scheduler: Mutex::new(Scheduler::new(slots, limits.share(limits.connections_max))),
            held: HeldCounts::default(),
            timers: Timers::default(),
            timer: Mutex::new(spawner.token()),
            budget: Mutex::default(),
            token: spawner.token(),
            ended: Notify::new(),
            epoch: Instant::now(),
            beat_ms: AtomicU64::new(0),
            ringing: AtomicBool::new(false),
            dialer,
            spawner,
            metrics,
        });
        partition.start_timer();
        partition
    }

    /// The cell of an origin, made on first use. Beyond the partition's share of `origins_max` it takes the place of one
    /// that nobody uses. If there is none in sight it is not kept and refuses everything, as a full line does.
    pub(crate) fn cell(self: &Arc<Self>, origin: &Origin) -> Arc<Cell> {
        let mut cells = self.cells.lock();
        if let Some(at) = cells.index.get(origin) {
            return Arc::clone(&cells.list[*at]);
        }
        let origins_max = self.origins_max.load(Ordering::Relaxed);
        let unused = if cells.list.len() < origins_max { None } else { cells.take_unused(Instant::now()) };
        let kept = cells.list.len() < origins_max;
        let make = || Arc::new(Cell::new(origin.clone(), Arc::clone(self), Arc::clone(&self.tuning)));
        if !kept {
            drop(cells);
            unused.iter().for_each(|unused| self.room.forget(unused));
            let cell = make();
            cell.refuse_as_surplus();
            return cell;
        }
        let cell = make();
        let at = cells.list.len();
        cells.index.insert(origin.clone(), at);
        cells.list.push(Arc::clone(&cell));
        drop(cells);
        unused.iter().for_each(|unused| self.room.forget(unused));
        if self.draining.load(Ordering::Acquire) {
            cell.apply(Event::Drain(Intake::Refuse));
        }
        cell
    }

    /// The timer is alive.
    fn beat(&self, now: Instant) {
        self.beat_ms.store(self.since_epoch_ms(now), Ordering::Relaxed);
    }

    fn since_epoch_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn last_beat_ms(&self) -> u64 {
        self.beat_ms.load(Ordering::Relaxed)
    }

    /// Looks after cells whose ring was lost.
    fn sweep(&self, now: Instant) {
        let cells = self.cells.lock().list.clone();
        cells.iter().for_each(|cell| cell.sweep(now));
        self.sweep_leaving(now);
    }

    /// The busiest `top` origins.
    pub(crate) fn busiest(&self, top: usize) -> Vec<(Rank, Arc<Cell>)> {
        let cells = self.cells.lock().list.clone();
        busiest(cells.into_iter().map(|cell| (cell.rank(), cell)), top)
    }

    /// Breaks the cycle between partition and cells. Nothing works afterwards.
    pub(crate) fn shut_down(&self) {
        self.draining.store(true, Ordering::Release);
        let cells = std::mem::take(&mut *self.cells.lock());
        cells.list.iter().for_each(|cell| cell.apply(Event::Drain(Intake::Refuse)));
        let lines = self.scheduler.lock().clear();
        drop(lines);
        drop(self.timers.clear());
        let leaving = std::mem::take(&mut *self.leaving.lock());
        drop(leaving);
        self.room.close();
    }

    /// Applies the partition's share of changed limits at once: whoever waits is looked at again.
    pub(crate) fn set_limits(self: &Arc<Self>, limits: &LaneLimits) {
        let slots = limits.share(limits.dials_max);
        self.tuning.set(limits, slots);
        self.origins_max.store(origins_share(limits), Ordering::Relaxed);
        self.dial_rate.set_quota(limits.dial_quota().unwrap_or(Quota::CLOSED), Instant::now());
        self.scheduler.lock().set_limits(slots, limits.share(limits.connections_max));
        let cells = self.cells.lock().list.clone();
        let concerned = |counts: CellCounts| counts.waiters > 0 || counts.live > limits.connections_per_origin_max;
        for cell in cells.iter().filter(|cell| concerned(cell.counts())) {
            cell.apply(Event::Retune);
        }
        self.shrink();
        // A ring that was set under the old rate may be a minute away.
        self.paced.store(false, Ordering::Release);
        self.pump();
    }

    pub(crate) fn snapshot(&self) -> PartitionSnapshot {
        let origins = self.cells.lock().list.len();
        let cells = self.cells_with_callers();
        let mut sum = PartitionSnapshot { origins, ..PartitionSnapshot::default() };
        let (mut cells_off, count) = (0, |n: usize| i64::try_from(n).unwrap_or(i64::MAX));
        for cell in &cells {
            let counts = cell.counts();
            sum.waiters += counts.waiters;
            sum.dialling += counts.dialling;
            sum.live += counts.live;
            sum.idle += counts.idle;
            sum.in_use += counts.streams;
            cells_off += count(counts.permits) - count(counts.live + counts.dialling);
        }
        // A cell's counts are of one moment and never off, unless the cell is wrong.
        sum.permits_off = if cells_off == 0 { self.permits_off() } else { cells_off };
        let now = Instant::now();
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        sum.waiters_oldest_ms = cells.iter().map(|cell| ms(cell.oldest_wait(now))).max().unwrap_or(0);
        sum.heartbeat_age_ms = ms(now.saturating_duration_since(self.epoch)).saturating_sub(self.last_beat_ms());
        sum.cell_panics = self.metrics.cell_panics.get();
        sum.rebuilds = self.metrics.rebuilds.get();
        let scheduler = self.scheduler.lock();
        sum.connections = scheduler.connections();
        sum.dial_queue = scheduler.queued();
        sum.dial_queue_oldest_ms = ms(scheduler.oldest(now));
        sum
    }

    /// Connections and dials by the budget's own count.
    pub(crate) fn connections(&self) -> usize {
        self.scheduler.lock().connections()
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// See [`Partition::pump`].
    fn serve_line(self: &Arc<Self>) {
        loop {
            let now = Instant::now();
            let rate = || {
                let held_until = self.epoch + Duration::from_millis(self.held_until_ms.load(Ordering::Relaxed));
                if now < held_until {
                    return Err(held_until);
                }
                self.dial_rate.try_take(1, now).map_err(|not_yet| not_yet.ready_at)
            };
            let turn = {
                let mut scheduler = self.scheduler.lock();
                let turn = scheduler.next(now, rate);
                self.tuning.set_contended(scheduler.queued() > 0);
                turn
            };
            match turn {
                Turn::Granted { item: Want { cell, life }, class, waited } => {
                    let grant = Grant::new(self, class);
                    if cell.take_slot(life, grant) {
                        self.metrics.slot_given(waited);
                        tracing::debug!(target: "pool", origin = %cell.origin(), ?waited, stage = "dial_slot", "dial slot given");
                    } else {
                        self.dial_rate.give_back(1, now);
                    }
                }
                Turn::NotYet(at) => {
                    if !self.paced.swap(true, Ordering::AcqRel) {
                        self.timers.push(at, Whom::Pace);
                    }
                    return;
                }
                Turn::NoSlot => return,
                Turn::NoRoom => {
                    let wanted = self.scheduler.lock().wants_room();
                    return self.make_room(wanted);
                }
            }
        }
    }

    /// The machine has run out of something that every dial needs: an idle connection closes, and no dial
    /// starts for a moment. It says nothing about any host.
    fn hold_dials(&self) {
        let until = self.since_epoch_ms(Instant::now() + SHORTAGE_PAUSE);
        self.held_until_ms.store(until, Ordering::Relaxed);
        self.evict_one();
    }

    fn ring(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        while let Some((at, whom)) = self.timers.pop_due(now) {
            match whom {
                Whom::Cell(cell) => cell.upgrade().into_iter().for_each(|cell| cell.apply(Event::Tick { at })),
                Whom::Room => self.look_for_room(),
                Whom::Pace => {
                    self.paced.store(false, Ordering::Release);
                    self.pump();
                }
            }
        }
        self.timers.next()
    }
}

/// Hashing is even only on average: half as much again keeps the lane's total reachable.
fn origins_share(limits: &LaneLimits) -> usize {
    limits.share(limits.origins_max).saturating_mul(3).div_ceil(2)
}

// === impl Cells ===

impl Cells {
    /// Takes out a cell of which nobody knows but the partition, and which would be made anew just as it is.
    fn take_unused(&mut self, now: Instant) -> Option<Arc<Cell>> {
        for _ in 0..RECLAIM_LOOKS.min(self.list.len()) {
            self.hand = (self.hand + 1) % self.list.len();
            let cell = &self.list[self.hand];
            if cell.is_unused(now) {
                let origin = cell.origin().clone();
                return self.remove(&origin);
            }
        }
        None
    }

    fn remove(&mut self, origin: &Origin) -> Option<Arc<Cell>> {
        let at = self.index.remove(origin)?;
        let cell = self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            self.index.insert(moved.origin().clone(), at);
        }
        Some(cell)
    }
}
