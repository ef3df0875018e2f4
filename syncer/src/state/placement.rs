//! Where a call is, and how it got there.
//!
//! ```text
//! Unplaced ──reserve──▶ Reserving ──commit──▶ Placed ──lost──▶ Lost ──reserve──▶ Reserving …
//!     ▲                     │ failed             ▲
//!     └─────────────────────┘ (back to Unplaced or Lost)
//!
//! Placed ──move──▶ Moving ──commit──▶ Placed elsewhere     (failed: back to Placed)
//! ```
//!
//! A planned move keeps the old place until the new one is made, so the gateways hear of one new
//! endpoint and of no null. If the old SFU dies meanwhile, the move under way is the repair.
//!
//! A commit counts only while the call still reserves at that epoch (compare-and-set); a late
//! answer leaves a room that nobody wants, which is released.

use serde::Serialize;
use sfu_api::{Epoch, RoomId};

use super::Seat;

/// Number of an SFU in this process: never given to another. One that was forgotten gets a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SfuIdx(pub u32);

/// Why a placement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The call got its first endpoint, or a new one after a loss.
    Placed,
    /// Its SFU is dead on hard evidence.
    SfuDead,
    /// Its SFU came back without its rooms.
    SfuRestarted,
    /// Its SFU gave no good sign for `suspect_max`.
    SfuSilent,
    /// An operator declared its SFU dead.
    Operator,
    /// The SFU no longer has the room.
    RoomForgotten,
    /// Moved as planned, away from an SFU that is drained.
    Drained,
}

impl Cause {
    /// The cause's name, as in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::SfuDead => "sfu_dead",
            Self::SfuRestarted => "sfu_restarted",
            Self::SfuSilent => "sfu_silent",
            Self::Operator => "operator",
            Self::RoomForgotten => "room_forgotten",
            Self::Drained => "drained",
        }
    }
}

/// Where a call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Nowhere yet, as far as anybody was told.
    Unplaced {
        /// Its room was found there with people in it: there, if at all possible.
        found: Option<Last>,
    },
    /// An attempt is under way.
    Reserving {
        /// On this SFU.
        sfu: SfuIdx,
        /// At this epoch.
        epoch: Epoch,
        /// What else there is of it, for the short while it takes.
        attempt: Box<Reserved>,
    },
    /// In a room on an SFU.
    Placed {
        /// The SFU.
        sfu: SfuIdx,
        /// The generation of this placement.
        epoch: Epoch,
        /// Room and endpoint.
        seat: Seat,
    },
    /// In a room, and about to be in another one elsewhere. Boxed: few calls move at once.
    Moving(Box<Move>),
    /// It had a place and lost it.
    Lost {
        /// Where it was.
        last: Last,
        /// Make the room again there (it restarted or forgot), instead of choosing.
        in_place: bool,
    },
}

/// An attempt under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The room to make.
    pub room: RoomId,
    /// Where the call was placed before.
    pub last: Option<Last>,
    /// The room is made again where it was.
    pub in_place: bool,
    /// The room is kept where it was found.
    pub found: Option<Last>,
}

/// A planned move under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The SFU the call is on until the move is done.
    pub from: SfuIdx,
    /// The generation of that placement.
    pub epoch: Epoch,
    /// Room and endpoint there.
    pub seat: Seat,
    /// The SFU it goes to.
    pub to: SfuIdx,
    /// The generation of the next placement.
    pub next: Epoch,
    /// The room to make there.
    pub room: RoomId,
}

/// Where a call was placed: the gateways were told that it no longer is, or it was in an earlier life of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// The SFU.
    pub sfu: SfuIdx,
    /// The generation of that placement.
    pub epoch: Epoch,
}

impl Placement {
    /// The SFU the call is on or about to be on; for a move under way, the one it is still on.
    #[must_use]
    pub fn sfu(&self) -> Option<SfuIdx> {
        match self {
            Self::Reserving { sfu, .. } | Self::Placed { sfu, .. } => Some(*sfu),
            Self::Moving(m) => Some(m.from),
            Self::Unplaced { .. } | Self::Lost { .. } => None,
        }
    }

    /// Every SFU that has, or is about to have, a room of the call.
    #[must_use]
    pub fn sfus(&self) -> [Option<SfuIdx>; 2] {
        let to = if let Self::Moving(m) = self { Some(m.to) } else { None };
        [self.sfu(), to]
    }

    /// SFU, epoch and seat that clients have now.
    #[must_use]
    pub fn seated(&self) -> Option<(SfuIdx, Epoch, &Seat)> {
        match self {
            Self::Placed { sfu, epoch, seat } => Some((*sfu, *epoch, seat)),
            Self::Moving(m) => Some((m.from, m.epoch, &m.seat)),
            Self::Unplaced { .. } | Self::Reserving { .. } | Self::Lost { .. } => None,
        }
    }

    /// The epoch of the placement or the attempt; for a move under way, that of the placement.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Reserving { epoch, .. } | Self::Placed { epoch, .. } => Some(*epoch),
            Self::Moving(m) => Some(m.epoch),
            Self::Unplaced { .. } | Self::Lost { .. } => None,
        }
    }

    /// The last thing the gateways were told: epoch and phase. Grows strictly (I7): a placement is told
    /// when it is committed, and its end when it is lost.
    #[must_use]
    pub fn announced(&self) -> Option<(Epoch, u8)> {
        match self {
            Self::Unplaced { .. } => None,
            Self::Placed { epoch, .. } => Some((*epoch, 1)),
            Self::Moving(m) => Some((m.epoch, 1)),
            Self::Lost { last, .. } => Some((last.epoch, 2)),
            Self::Reserving { attempt, .. } => attempt.last.map(|last| (last.epoch, 2)),
        }
    }

    /// Whether nobody was told of a place, and yet there are people in its room.
    #[must_use]
    pub fn is_found(&self) -> bool {
        match self {
            Self::Unplaced { found } => found.is_some(),
            Self::Reserving { attempt, .. } => attempt.found.is_some(),
            Self::Placed { .. } | Self::Moving(_) | Self::Lost { .. } => false,
        }
    }

    /// Whether clients have an endpoint.
    #[must_use]
    pub const fn is_placed(&self) -> bool {
        matches!(self, Self::Placed { .. } | Self::Moving(_))
    }
}
