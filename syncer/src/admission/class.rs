//! Classes of work, and why some of it was turned away.

use std::time::Duration;

use sfu_api::CallKind;

/// Classes of work, most urgent first (R10). Under pressure they are shed from the bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Renewal of a lease. It has a lane and a thread of its own and never comes here.
    Lease,
    /// A session leaves, a room ends: work that makes less work.
    Leave,
    /// A live call lost its place.
    Repair,
    /// A session joins a call that exists.
    Join,
    /// A voice call begins.
    NewCall,
    /// A stream begins.
    Stream,
    /// Comparing rooms with SFUs.
    Sweep,
}

/// What turned work away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// An operator blocked its class or its guild.
    Blocked,
    /// The global throttle is not fully open.
    Throttled,
    /// Its guild takes more than its share while others need theirs.
    Guild,
    /// Work that was taken earlier waits too long already.
    Queue,
    /// The process is late with everything.
    Lag,
    /// Resident memory is near its limit.
    Memory,
    /// The rate of new calls is used up.
    Rate,
    /// A size limit is reached.
    Size,
}

/// Work that was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Its class.
    pub class: Class,
    /// What turned it away.
    pub reason: Reason,
    /// When to come back: this caller's slot.
    pub retry_after: Duration,
}

// === impl Class ===

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Self; 7] =
        [Self::Lease, Self::Leave, Self::Repair, Self::Join, Self::NewCall, Self::Stream, Self::Sweep];

    /// Whether work of this class is ever turned away. Shedding the others would make the overload worse,
    /// or hurt calls that are live.
    #[must_use]
    pub const fn may_be_shed(self) -> bool {
        matches!(self, Self::Join | Self::NewCall | Self::Stream | Self::Sweep)
    }

    /// Whether its work makes a room on an SFU: the expensive child (R8).
    #[must_use]
    pub const fn is_child(self) -> bool {
        matches!(self, Self::NewCall | Self::Stream)
    }

    /// The class's name, as in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Leave => "leave",
            Self::Repair => "repair",
            Self::Join => "join",
            Self::NewCall => "new_call",
            Self::Stream => "stream",
            Self::Sweep => "sweep",
        }
    }
}

impl From<CallKind> for Class {
    fn from(kind: CallKind) -> Self {
        match kind {
            CallKind::Voice => Self::NewCall,
            CallKind::Stream => Self::Stream,
        }
    }
}

// === impl Reason ===

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 8] =
        [Self::Blocked, Self::Throttled, Self::Guild, Self::Queue, Self::Lag, Self::Memory, Self::Rate, Self::Size];

    /// The reason's name, as in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Throttled => "throttled",
            Self::Guild => "guild",
            Self::Queue => "queue",
            Self::Lag => "lag",
            Self::Memory => "memory",
            Self::Rate => "rate",
            Self::Size => "size",
        }
    }

    /// The reason as the rest of "… is held back: …".
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Blocked => "an operator blocked it",
            Self::Throttled => "the global throttle is not fully open",
            Self::Guild => "the guild has had its share for now",
            Self::Queue => "earlier work waits too long already",
            Self::Lag => "this syncer is late with everything",
            Self::Memory => "memory is near its limit",
            Self::Rate => "the rate of new calls is used up",
            Self::Size => "a size limit is reached",
        }
    }
}
