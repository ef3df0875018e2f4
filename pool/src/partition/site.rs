//! The shell around a cell: one mutex, and the hands that do what the state machine says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Grant, Holding, Partition};
use crate::cell::{
    Action, Actions, Back, BreakerState, CellCounts, CellState, CloseReason, ConnKey, Event, Intake, RING_LATE_MAX,
    Tuning, Verdict,
};
use crate::conn::{Driver, Lease, Link, Pulse, TaskExecutor};
use crate::debug::{self, OriginDebug, Rank};
use crate::dial::Progress;
use crate::dial::scheduler::Class;
use crate::error::Error;
use crate::fault::{self, Point};
use crate::origin::Origin;
use crate::spans;

/// One origin of a partition. The lock and what each wait changes begin a cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Cell {
    pub(super) state: Mutex<State>,
    origin: Origin,
    partition: Arc<Partition>,
    pub(super) progress: Arc<Progress>,
    /// The partition has no room for this origin, or has given this cell up: handles look again.
    surplus: AtomicBool,
    /// In the partition's list of those that may have an idle connection.
    pub(super) listed: AtomicBool,
    /// Somebody had to wait, and no connection has been free since. A hint that saves newcomers a useless look.
    pub(super) crowded: AtomicBool,
    /// Connections that have ended.
    pub(super) ended: AtomicU64,
    /// Ends the origin's dials and connections; made with the first dial.
    token: OnceLock<CancellationToken>,
}

/// A cell in the line for dial slots.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) cell: Arc<Cell>,
    /// Its life when it asked. A later one asks for itself.
    pub(super) life: u32,
}

/// The state of a cell whose connections are real.
pub(super) type State = CellState<Link, Waker, Error>;

// === impl Cell ===

impl Cell {
    pub(super) fn new(origin: Origin, partition: Arc<Partition>, tuning: Arc<Tuning>) -> Self {
        Self {
            origin,
            partition,
            state: Mutex::new(CellState::new(tuning)),
            progress: Arc::default(),
            surplus: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            ended: AtomicU64::new(0),
            token: OnceLock::new(),
        }
    }

    /// The partition does not keep this cell, which refuses everything.
    pub(super) fn refuse_as_surplus(self: &Arc<Self>) {
        self.surplus.store(true, Ordering::Relaxed);
        self.listed.store(true, Ordering::SeqCst); // Which keeps it off the list: see [`Room::forget`].
        self.apply(Event::Drain(Intake::Surplus));
    }

    /// The partition has put another cell in this one's place.
    pub(super) fn give_up(&self) {
        self.surplus.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_surplus(&self) -> bool {
        self.surplus.load(Ordering::Relaxed)
    }

    /// Whether only the partition's own lists know of this cell, and there is nothing in it to remember.
    pub(super) fn is_unused(self: &Arc<Self>, now: Instant) -> bool {
        let lists = 1 + usize::from(self.listed.load(Ordering::SeqCst));
        Arc::strong_count(self) <= lists && self.state.try_lock().is_some_and(|state| state.is_blank(now))
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    pub(crate) fn breaker(&self, now: Instant) -> BreakerState {
        self.state.lock().breaker(now)
    }

    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn counts(&self) -> CellCounts {
        self.state.lock().counts()
    }

    pub(super) fn oldest_wait(&self, now: Instant) -> Duration {
        self.state.lock().oldest_wait(now)
    }

    /// Counts those who gave up, and makes up for a ring that should have come by now, and long ago.
    pub(super) fn sweep(self: &Arc<Self>, now: Instant) {
        let then = now.checked_sub(RING_LATE_MAX);
        let looked = self.locked(|state| (state.uncounted(), then.is_some_and(|then| state.is_overdue(then))));
        let Some((gave_up, overdue)) = looked else { return };
        self.count_gave_up(gave_up);
        if overdue {
            tracing::warn!(origin = %self.origin, "a ring is overdue");
            self.apply(Event::Tick { at: now });
        }
    }

    pub(super) fn count_gave_up(&self, gave_up: u64) {
        if gave_up > 0 {
            self.partition.metrics.gave_up.inc_by(gave_up);
        }
    }

    pub(super) fn rank(&self) -> Rank {
        let counts = self.counts();
        (counts.waiters, counts.dialling, counts.streams, counts.live)
    }

    /// The origin as an operator sees it.
    pub(crate) fn debug(&self, partition: usize, now: Instant) -> OriginDebug {
        let (counts, learnt, breaker) = {
            let state = self.state.lock();
            (state.counts(), state.learnt(), state.breaker(now))
        };
        let left = match breaker {
            BreakerState::Open { until } => Some(until.saturating_duration_since(now)),
            BreakerState::Closed | BreakerState::HalfOpen => None,
        };
        OriginDebug {
            origin: self.origin.to_string(),
            partition,
            breaker: debug::word(breaker),
            backoff_left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            proven: learnt.proven,
            draining: learnt.draining,
            protocol: learnt.h2.map(|h2| if h2 { "h2" } else { "http/1.1" }),
            waiters: counts.waiters,
            dialling: counts.dialling,
            live: counts.live,
            idle: counts.idle,
            in_use: counts.streams,
            ended: self.ended(),
            hold_ms: debug::ms(learnt.hold),
            dial_ms: debug::ms(learnt.dial),
        }
    }

    /// The fast path: one lock, no clock, no allocation.
    pub(super) fn checkout(self: &Arc<Self>) -> Option<Lease> {
        let mut closed: SmallVec<[Link; 2]> = SmallVec::new();
        let mut taken = None;
        self.locked(|state| taken = state.checkout(&mut |link| closed.push(link)));
        drop(closed);
        taken.map(|taken| Lease::new(self, taken))
    }

    pub(super) fn note_crowded(&self, crowded: bool) {
        if self.crowded.load(Ordering::Relaxed) != crowded {
            self.crowded.store(crowded, Ordering::Relaxed);
        }
    }

    /// Applies an event and does what it asks for.
    pub(crate) fn apply(self: &Arc<Self>, event: Event<Link, Error>) {
        self.step(event, Instant::now());
    }

    /// A request is done with its connection.
    pub(crate) fn give_back(
        self: &Arc<Self>,
        key: ConnKey,
        mut channel: Option<Link>,
        verdict: Verdict,
        keep_alive: Option<Duration>,
        since: Option<Instant>,
    ) {
        if since.is_none() || verdict == Verdict::Unused {
            match self.put_back(key, &mut channel, verdict, keep_alive) {
                Back::Idle => {
                    self.note_crowded(false);
                    return self.partition.note_idle(self);
                }
                Back::PassedOn(waker) => return wake(waker),
                Back::Not => {}
            }
        }
        let now = Instant::now();
        let held = since.map(|since| now.saturating_duration_since(since));
        self.step(Event::Return { key, channel, verdict, keep_alive, held }, now);
        self.partition.note_idle(self);
    }

    /// The fast path back, to the idle ones or to the first in line: one lock, no allocation, and no clock if
    /// the connection was not used.
    fn put_back(
        &self,
        key: ConnKey,
        channel: &mut Option<Link>,
        verdict: Verdict,
        keep_alive: Option<Duration>,
    ) -> Back<Waker> {
        let now = match verdict {
            Verdict::Unused => None,
            Verdict::Answered => Some(Instant::now()),
            Verdict::Abandoned | Verdict::TimedOut => return Back::Not,
        };
        self.locked(|state| state.put_back(key, channel, now, keep_alive)).unwrap_or(Back::Not)
    }

    /// A dial worked; `None` if nobody knows of it any more. `opened` learns the connection's name before anybody can use the connection.
    pub(super) fn open(self: &Arc<Self>, event: Event<Link, Error>, opened: impl FnOnce(ConnKey)) -> Option<ConnKey> {
        let actions = self.decide(event, Instant::now());
        let key = actions.iter().find_map(|action| match action {
            Action::Opened(key) => Some(*key),
            _ => None,
        });
        if let Some(key) = key {
            opened(key);
        }
        self.execute_and_pump(actions);
        self.partition.note_idle(self); // Perhaps those it was dialled for have gone.
        key
    }

    /// The scheduler's turn: dials if that is still wanted.
    pub(super) fn take_slot(self: &Arc<Self>, life: u32, grant: Grant) -> bool {
        let actions = self.decide(Event::Slot { fresh: grant.class() == Class::Fresh, life }, Instant::now());
        let dial = actions.iter().find_map(|action| match action {
            Action::Dial { fresh, epoch } => Some((*fresh, *epoch)),
            _ => None,
        });
        let holding = dial.map(|(fresh, epoch)| Arc::new(Holding::new(Arc::clone(self), grant, fresh, epoch)));
        fault::point(Point::SlotTaken);
        self.execute(actions);
        let Some(holding) = holding else { return false };
        let cell = Arc::clone(self);
        self.partition.spawner.spawn_under(self.token(), async move { cell.dial(holding).await });
        true
    }

    async fn dial(self: &Arc<Self>, holding: Arc<Holding>) {
        fault::point(Point::DialBegins);
        let partition = &self.partition;
        let progress = Progress::of_dial(Arc::clone(&self.progress));
        let permit: Arc<dyn Send + Sync> = Arc::<Holding>::clone(&holding);
        let executor = TaskExecutor::new(partition.spawner.clone(), self.token().clone(), permit);
        let began = Instant::now();
        let settings = partition.tuning.conn_settings();
        let limit = partition.tuning.dial_timeout.get();
        // Apart, because a dial's future is large and the connection's task outlives it.
        let span = spans::dial(partition.metrics.lane(), &self.origin);
        let dial = Box::pin(partition.dialer.dial(&self.origin, &progress, &settings, executor, limit));
        let result = dial.instrument(span.clone()).await;
        let took = Instant::now().saturating_duration_since(began);
        partition.metrics.dialled(took, &progress.stages(began + took), &result);
        span.record("outcome", result.as_ref().map_or_else(Error::cause, |_| "connected"));
        drop((progress, span)); // The connection is not part of the dial.
        match result {
            Ok(dialled) => {
                let pulse = dialled.link.pulse();
                fault::point(Point::DialConnected);
                holding.connected(dialled.link, took);
                self.drive(dialled.driver, pulse).await;
            }
            Err(error) => holding.failed(error, took),
        }
    }

    /// Moves the connection's bytes until it ends.
    async fn drive(self: &Arc<Self>, driver: Driver, pulse: Option<Arc<Pulse>>) {
        fault::point(Point::DriverBegins);
        let mut driver = pin!(driver);
        let Some(pulse) = pulse else {
            driver.await;
            return fault::point(Point::DriverEnds);
        };
        loop {
            tokio::select! {
                () = &mut driver => return fault::point(Point::DriverEnds),
                () = pulse.revived() => self.apply(Event::Heard),
            }
        }
    }

    /// Ends every dial and connection now.
    pub(super) fn cut(&self) {
        self.token().cancel();
    }

    fn token(&self) -> &CancellationToken {
        self.token.get_or_init(|| self.partition.token.child_token())
    }

    fn step(self: &Arc<Self>, event: Event<Link, Error>, now: Instant) {
        let actions = self.decide(event, now);
        self.execute_and_pump(actions);
    }

    /// Closes the connection that has been idle longest; `false` if there is none. Pumping is left to the caller.
    pub(super) fn evict_idle(self: &Arc<Self>) -> bool {
        let actions = self.decide(Event::EvictIdle, Instant::now());
        let evicted = actions.iter().any(|action| matches!(action, Action::Evict(_)));
        self.execute(actions);
        evicted
    }

    /// What the cell says to an event. If it panicked, those to whom it was about to speak are woken only.
    fn decide(&self, event: Event<Link, Error>, now: Instant) -> Actions<Link, Waker, Error> {
        let (mut event, mut actions) = (Some(event), Actions::new());
        if self.locked(|state| state.apply(&mut event, now, &mut actions)).is_none() {
            actions.retain(|action| matches!(action, Action::Wake(_)));
        }
        actions
    }

    pub(super) fn execute_and_pump(self: &Arc<Self>, actions: Actions<Link, Waker, Error>) {
        fault::point(Point::Executes);
        if self.execute(actions) {
            self.partition.pump();
        }
    }

    /// Runs after the lock is released. Pumping, if `true`, is left to the caller, who may be the pump.
    fn execute(self: &Arc<Self>, actions: Actions<Link, Waker, Error>) -> bool {
        let mut pump = false;
        // What the cell takes for done comes first: nobody's waker or destructor may come between.
        for action in &actions {
            match action {
                Action::WantSlot { class, cost, life } => {
                    let now = Instant::now();
                    self.partition.scheduler.lock().enqueue(
                        Want { cell: Arc::clone(self), life: *life },
                        *class,
                        *cost,
                        now,
                    );
                    pump = true;
                }
                Action::Arm(at) => self.partition.timers.arm(*at, Arc::downgrade(self)),
                _ => {}
            }
        }
        for action in actions {
            match action {
                Action::Wake(waker) => wake(waker),
                Action::SlotUnused => drop(self.partition.metrics.elided.inc()),
                Action::Dial { .. } | Action::Opened(_) | Action::WantSlot { .. } | Action::Arm(_) => {}
                Action::Close(link) => drop(link),
                Action::Evict(link) => {
                    self.partition.room.closing();
                    drop(link);
                }
                Action::Discard(error) => drop(error),
                Action::Ended(reason) => {
                    self.partition.metrics.closed(reason);
                    if reason == CloseReason::Spilled {
                        self.partition.room.closed();
                    }
                }
            }
        }
        pump
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let gave_up = self.state.get_mut().uncounted();
        self.count_gave_up(gave_up);
    }
}

/// Wakes a caller. A waker is somebody else's code; should it panic, the next in line must not suffer for it.
pub(super) fn wake(waker: Waker) {
    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
        tracing::error!("a caller's waker panicked");
    }
}
