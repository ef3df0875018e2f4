//! What happens to a cell, and what it asks its shell to do.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::conns::{ConnKey, Taken, Verdict};
use super::waiters::WaiterKey;
use crate::dial::scheduler::Class;

/// Names one waiter; given out when it joins the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    // Flat, for it is kept by every caller in line.
    generation: u64,
    index: u32,
    fresh: bool,
}

impl Ticket {
    pub(super) fn new(fresh: bool, key: WaiterKey) -> Self {
        let WaiterKey { index, generation } = key;
        Self { generation, index, fresh }
    }

    pub(super) fn is_fresh(self) -> bool {
        self.fresh
    }

    pub(super) fn key(self) -> WaiterKey {
        WaiterKey { index: self.index, generation: self.generation }
    }

    /// Counts the callers of this line, from 1 on in the low bits.
    pub(crate) fn number(self) -> u64 {
        self.generation
    }
}

/// When a dial began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// In which life of its cell: a cell that panicked begins another, and takes nothing from the one before.
    pub(super) life: u32,
    /// After how many changes of its breaker.
    pub(super) breaker: u32,
}

/// What becomes of those in line when a drain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// They are told to go elsewhere.
    Refuse,
    /// They are served; only newcomers are refused.
    ServeLine,
    /// There is no room for this origin: everybody is refused as when a line is full.
    Surplus,
}

/// What happens to a cell.
#[derive(Debug)]
pub(crate) enum Event<C, E> {
    /// The scheduler has a dial slot for this cell: one for a fresh dial, or an ordinary one.
    Slot { fresh: bool, life: u32 },
    /// A dial worked. `jitter` is drawn evenly from 0 to 1.
    Connected { fresh: bool, epoch: Epoch, channel: C, shared: bool, took: Duration, jitter: f64 },
    /// A dial failed.
    DialFailed { dial: FailedDial<E>, took: Duration },
    /// A request is done with its connection, which it held so long (if that was measured).
    Return { key: ConnKey, channel: Option<C>, verdict: Verdict, keep_alive: Option<Duration>, held: Option<Duration> },
    /// The exchange on an HTTP/1.1 connection is over; its return follows at once, or its end.
    Returning(ConnKey),
    /// A connection that was passed over because it was silent has been heard of.
    Heard,
    /// The connection is closed and its task has ended.
    Closed(ConnKey),
    /// The partition needs room: close the connection that has been idle longest.
    EvictIdle,
    /// The timer rang that was armed for this time.
    Tick { at: Instant },
    /// Something happened on a short way that had no time to see to the rest.
    Settle,
    /// A limit has changed.
    Retune,
    /// No more requests; close what is idle.
    Drain(Intake),
}

/// A dial that failed.
#[derive(Debug)]
pub(crate) struct FailedDial<E> {
    pub(crate) fresh: bool,
    /// The epoch it began in, from [`Action::Dial`].
    pub(crate) epoch: Epoch,
    pub(crate) error: E,
    pub(crate) blame: Blame,
    /// Drawn evenly from 0 to 1.
    pub(crate) jitter: f64,
}

/// Whom a failed dial speaks against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The host.
    Host,
    /// Us: something is missing that a dial needs. Somebody is told.
    Us,
    /// Us: there was no time for it. Those in line wait for the next dial, as long as their deadlines allow.
    Haste,
}

/// What a caller waited for when its deadline came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// A connection in use.
    Turn,
    /// A slot to dial.
    Slot,
    /// A dial, and this is the first caller who is told of it.
    Dial,
    /// A dial of which somebody else has been told.
    SharedDial,
}

/// Why a waiter gets no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal<E> {
    /// Its deadline came.
    Expired(Awaited),
    /// The line is full.
    Saturated,
    /// The line would take longer than its deadline allows, by so much.
    WontMakeDeadline { excess: Duration },
    /// The cell is being drained.
    Draining,
    /// The dial that was made for it failed.
    Dial(E),
    /// A dial failed that was made for somebody else.
    Shared { error: E, retry_after: Duration },
}

/// What a caller is told.
#[derive(Debug)]
pub(crate) enum Answer<C, E> {
    Given(Taken<C>),
    Refused(Refusal<E>),
}

/// What becomes of a caller that asks for a connection.
#[derive(Debug)]
pub(crate) enum Joined<C, E> {
    /// It is in line under this ticket.
    Queued(Ticket),
    /// It need not wait.
    Answered(Answer<C, E>),
}

/// What a short way back comes to.
#[derive(Debug)]
pub(crate) enum Back<W> {
    /// The connection is idle.
    Idle,
    /// It was passed on to this waiter.
    PassedOn(W),
    /// This is not so simple; nothing has changed.
    Not,
}

/// Why a connection was not used any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CloseReason {
    /// The peer closed it, or it broke.
    Peer,
    /// Nobody used it for its time.
    Idle,
    /// It reached its age.
    Age,
    /// Its peer said that it takes no more requests, or closed it, before we used it again.
    Draining,
    /// Its exchange was given up half-way.
    Abandoned,
    /// Too many requests in a row timed out on it.
    Suspect,
    /// Another origin needed the room.
    Spilled,
    /// It was beyond the cap of its origin.
    Surplus,
    /// Its origin was drained or forgotten.
    Drained,
}

/// What the shell has to do after it released the lock.
#[derive(Debug)]
pub(crate) enum Action<C, W, E> {
    /// There is an answer for this waiter.
    Wake(W),
    /// Answer to [`Event::Slot`]: dial.
    Dial { fresh: bool, epoch: Epoch },
    /// Answer to [`Event::Slot`]: nobody needs it any more.
    SlotUnused,
    /// Answer to [`Event::Connected`]: the new connection's name.
    Opened(ConnKey),
    /// Put the cell in line for dial slots. The cost is in units of slot time.
    WantSlot { class: Class, cost: u32, life: u32 },
    /// Drop this handle to a connection.
    Close(C),
    /// Answer to [`Event::EvictIdle`]: drop this handle to a connection that was idle.
    Evict(C),
    /// Drop this error, of which nobody is told (any longer).
    Discard(E),
    /// A connection has ended, for this reason.
    Ended(CloseReason),
    /// Ring at this time.
    Arm(Instant),
}

pub(crate) type Actions<C, W, E> = SmallVec<[Action<C, W, E>; 4]>;

/// Numbers for snapshots and checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CellCounts {
    pub(crate) waiters: usize,
    pub(crate) dialling: usize,
    pub(crate) live: usize,
    pub(crate) idle: usize,
    pub(crate) streams: usize,
    pub(crate) permits: usize,
}

/// What a cell has learnt, for snapshots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CellLearnt {
    pub(crate) hold: Option<Duration>,
    pub(crate) dial: Option<Duration>,
    /// Whether the origin speaks HTTP/2, if known.
    pub(crate) h2: Option<bool>,
    pub(crate) proven: bool,
    pub(crate) draining: bool,
}

// === impl CloseReason ===

impl CloseReason {
    /// The name used in metric labels.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Draining => "draining",
            Self::Abandoned => "abandoned",
            Self::Suspect => "suspect",
            Self::Spilled => "spilled",
            Self::Surplus => "surplus",
            Self::Drained => "drained",
        }
    }
}
