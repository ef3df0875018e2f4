//! The shell around a cell: one mutex, and the hands that do what the state machine says.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Holding, Partition};
use crate::cell::{
    Action, Actions, Awaited, BreakerState, CellCounts, CellState, CloseReason, ConnKey, Event, Intake, Refusal,
    Ticket, Tuning, Verdict,
};
use crate::conn::{Driver, Lease, Link, Pulse, TaskExecutor};
use crate::debug::{self, OriginDebug, Rank};
use crate::dial::Progress;
use crate::dial::scheduler::Class;
use crate::error::{Error, Kind, Stage};
use crate::fault::{self, Point};
use crate::origin::Origin;

/// What a caller is told when a line is full: about the time in which a full line of 4,096 moves on at
/// the rate of a busy but healthy origin.
const SATURATED_RETRY_AFTER: Duration = Duration::from_millis(500);

/// Least time that is told to somebody whose deadline the line would have missed by less.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(10);

/// How late the ring for a caller's deadline may be before the caller gives up by itself.
const RING_LATE_MAX: Duration = Duration::from_secs(1);

/// One origin of a partition.
#[derive(Debug)]
pub(crate) struct Cell {
    origin: Origin,
    partition: Arc<Partition>,
    pub(super) state: Mutex<State>,
    progress: Arc<Progress>,
    /// The partition has no room for this origin, or has given this cell up: handles look again.
    surplus: AtomicBool,
    /// In the partition's list of those that may have an idle connection.
    pub(super) listed: AtomicBool,
    /// Connections that have ended.
    pub(super) ended: AtomicU64,
    /// Ends the origin's dials and connections; made with the first dial.
    token: OnceLock<CancellationToken>,
}

/// The state of a cell whose connections are real.
pub(super) type State = CellState<Link, Caller, Error>;

/// A caller in line.
#[derive(Debug)]
pub(crate) struct Caller {
    answer: oneshot::Sender<Result<Lease, Error>>,
    place: Place,
}

/// One of the partition's places for waiters.
#[derive(Debug)]
struct Place(Arc<Partition>);

/// What executing actions leaves to the one who caused them.
#[derive(Debug, Default)]
struct Left {
    ticket: Option<Ticket>,
    pump: bool,
}

/// A caller's wait. Gives the place up when dropped.
struct Wait<'a> {
    cell: &'a Arc<Cell>,
    ticket: Option<Ticket>,
    answer: oneshot::Receiver<Result<Lease, Error>>,
}

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
            ended: AtomicU64::new(0),
            token: OnceLock::new(),
        }
    }

    /// The partition does not keep this cell, which refuses everything.
    pub(super) fn refuse_as_surplus(self: &Arc<Self>) {
        self.surplus.store(true, Ordering::Relaxed);
        self.apply(Event::Drain(Intake::Surplus));
    }

    /// The partition has put another cell in this one's place.
    pub(super) fn give_up(&self) {
        self.surplus.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_surplus(&self) -> bool {
        self.surplus.load(Ordering::Relaxed)
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

    /// A connection for one request: at once if one is free, else after a wait in line.
    ///
    /// # Cancel safety
    ///
    /// A dropped wait leaves the line; what was given in the same moment goes back.
    pub(crate) async fn acquire(self: &Arc<Self>, fresh: bool, deadline: Instant) -> Result<Lease, Error> {
        if !fresh && let Some(lease) = self.checkout() {
            return Ok(lease);
        }
        let now = Instant::now();
        let partition = &self.partition;
        if partition.waiters.fetch_add(1, Ordering::Relaxed) >= partition.waiters_max.load(Ordering::Relaxed) {
            partition.waiters.fetch_sub(1, Ordering::Relaxed);
            partition.metrics.shed(&Kind::Saturated);
            return Err(Error::saturated(Stage::Queue, SATURATED_RETRY_AFTER));
        }
        let (answer, receiver) = oneshot::channel();
        let waiter = Caller { answer, place: Place(Arc::clone(partition)) };
        let mut wait = Wait { cell: self, ticket: None, answer: receiver };
        wait.ticket = self.step(Event::Wait { waiter, deadline, fresh }, now).ticket;
        // The cell's timer rings at the deadline. Should it ever be lost, nobody waits for ever.
        let given = timeout_at(deadline + RING_LATE_MAX, wait).await;
        let given = given.unwrap_or_else(|_| Err(Error::new(Kind::Timeout, Stage::Queue)));
        partition.metrics.waited(Instant::now().saturating_duration_since(now));
        given
    }

    /// The fast path: one lock, no clock, no allocation.
    fn checkout(self: &Arc<Self>) -> Option<Lease> {
        let mut closed: SmallVec<[Link; 2]> = SmallVec::new();
        let taken = self.locked(|state| state.checkout(&mut |link| closed.push(link)));
        drop(closed);
        Some(Lease::new(Arc::clone(self), taken??))
    }

    /// Applies an event and does what it asks for.
    pub(crate) fn apply(self: &Arc<Self>, event: Event<Link, Caller, Error>) {
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
        if keep_alive.is_none()
            && (since.is_none() || verdict == Verdict::Unused)
            && self.put_back(key, &mut channel, verdict)
        {
            return self.partition.note_idle(self);
        }
        let now = Instant::now();
        let held = since.map(|since| now.saturating_duration_since(since));
        self.step(Event::Return { key, channel, verdict, keep_alive, held }, now);
        self.partition.note_idle(self);
    }

    /// The fast path back: one lock, no allocation, and no clock if the connection was not used.
    fn put_back(&self, key: ConnKey, channel: &mut Option<Link>, verdict: Verdict) -> bool {
        let now = match verdict {
            Verdict::Unused => None,
            Verdict::Answered => Some(Instant::now()),
            Verdict::Abandoned | Verdict::TimedOut => return false,
        };
        self.locked(|state| state.put_back(key, channel, now)).unwrap_or(false)
    }

    /// A dial worked; `None` if nobody knows of it any more. `opened` learns the connection's name before anybody can use the connection.
    pub(super) fn open(
        self: &Arc<Self>,
        event: Event<Link, Caller, Error>,
        opened: impl FnOnce(ConnKey),
    ) -> Option<ConnKey> {
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
    pub(super) fn take_slot(self: &Arc<Self>, class: Class) -> bool {
        let actions = self.decide(Event::Slot, Instant::now());
        let holding = actions.iter().find_map(|action| match action {
            Action::Dial { fresh, epoch } => Some(Holding::new(Arc::clone(self), class, *fresh, *epoch)),
            _ => None,
        });
        self.execute(actions);
        let Some(holding) = holding.map(Arc::new) else { return false };
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
        let result = Box::pin(partition.dialer.dial(&self.origin, &progress, &settings, executor, limit)).await;
        let took = Instant::now().saturating_duration_since(began);
        partition.metrics.dialled(took, &progress.stages(began + took), &result);
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

    fn step(self: &Arc<Self>, event: Event<Link, Caller, Error>, now: Instant) -> Left {
        let actions = self.decide(event, now);
        self.execute_and_pump(actions)
    }

    /// Closes the connection that has been idle longest; `false` if there is none. Pumping is left to the caller.
    pub(super) fn evict_idle(self: &Arc<Self>) -> bool {
        let actions = self.decide(Event::EvictIdle, Instant::now());
        let evicted = actions.iter().any(|action| matches!(action, Action::Evict(_)));
        self.execute(actions);
        evicted
    }

    /// What the cell says to an event; nothing if it panicked.
    fn decide(&self, event: Event<Link, Caller, Error>, now: Instant) -> Actions<Link, Caller, Error> {
        let mut actions = Actions::new();
        match self.locked(|state| state.apply(event, now, &mut actions)) {
            Some(()) => actions,
            None => Actions::new(),
        }
    }

    fn execute_and_pump(self: &Arc<Self>, actions: Actions<Link, Caller, Error>) -> Left {
        let left = self.execute(actions);
        if left.pump {
            self.partition.pump();
        }
        left
    }

    /// Runs after the lock is released. Pumping is left to the caller, who may be the pump.
    fn execute(self: &Arc<Self>, actions: Actions<Link, Caller, Error>) -> Left {
        let mut left = Left::default();
        // What the cell takes for done comes first: nobody's waker or destructor may come between.
        for action in &actions {
            match action {
                Action::WantSlot { proven, cost } => {
                    let now = Instant::now();
                    self.partition.scheduler.lock().enqueue(Arc::clone(self), *proven, *cost, now);
                    left.pump = true;
                }
                Action::Arm(at) => self.partition.timers.arm(*at, Arc::downgrade(self)),
                _ => {}
            }
        }
        for action in actions {
            match action {
                Action::Queued(ticket) => left.ticket = Some(ticket),
                Action::Give { waiter, taken } => waiter.answer(Ok(Lease::new(Arc::clone(self), taken))),
                Action::Refuse { waiter, why } => {
                    let error = self.explain(why);
                    waiter.answer(Err(error));
                }
                Action::Left(waiter) => drop(waiter),
                Action::SlotUnused => drop(self.partition.metrics.elided.inc()),
                Action::Dial { .. } | Action::Opened(_) | Action::WantSlot { .. } | Action::Arm(_) => {}
                Action::Close(link) | Action::Evict(link) => drop(link),
                Action::Ended(reason) => {
                    self.partition.metrics.closed(reason);
                    if reason == CloseReason::Spilled {
                        self.partition.room.closed();
                    }
                }
            }
        }
        left
    }

    fn explain(&self, why: Refusal<Error>) -> Error {
        let metrics = &self.partition.metrics;
        match why {
            Refusal::Expired(awaited) => {
                metrics.shed(&Kind::Timeout);
                let late = |stage| Error::new(Kind::Timeout, stage);
                match awaited {
                    Awaited::Turn => late(Stage::Queue),
                    Awaited::Slot => late(Stage::DialSlot),
                    Awaited::Dial => late(self.progress.stage()),
                    Awaited::SharedDial => late(self.progress.stage()).shared(),
                }
            }
            Refusal::Saturated => {
                metrics.shed(&Kind::Saturated);
                Error::saturated(Stage::Queue, SATURATED_RETRY_AFTER)
            }
            Refusal::WontMakeDeadline { excess } => {
                metrics.shed(&Kind::WontMakeDeadline);
                Error::new(Kind::WontMakeDeadline, Stage::Queue).with_retry_after(excess.max(RETRY_AFTER_MIN))
            }
            Refusal::Draining => {
                metrics.shed(&Kind::Draining);
                Error::new(Kind::Draining, Stage::Queue)
            }
            Refusal::Dial(error) => error,
            Refusal::Shared { error, retry_after } => {
                metrics.failed_fast.inc();
                error.shared().with_retry_after(retry_after)
            }
        }
    }
}

// === impl Caller ===

impl Caller {
    /// Answers the caller. If it just gave up, a lease goes back by being dropped.
    fn answer(self, answer: Result<Lease, Error>) {
        let Self { answer: sender, place } = self;
        drop(place);
        drop(sender.send(answer));
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Wait ===

impl Future for Wait<'_> {
    type Output = Result<Lease, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| {
            self.ticket = None;
            // A sender that vanished means that the cell was torn down around its waiters.
            answer.unwrap_or_else(|_| Err(Error::new(Kind::Aborted, Stage::Queue)))
        })
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.cell.partition.metrics.cancelled("queue");
            self.cell.apply(Event::Cancel(ticket));
        }
    }
}
