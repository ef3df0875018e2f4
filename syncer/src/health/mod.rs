//! What we believe of an SFU, and why.
//!
//! A control path that times out says little: media may be flowing. So a time-out only stops new
//! placements, and calls move on hard evidence alone (R17). Hard means that the machine itself
//! said no: connections refused or reset, on several *fresh* connections, over some seconds; or
//! an operator's word; or, at the very end, `suspect_max` without a single good sign. A refusal that
//! only we see may be our own network's, so a peer has to see it too, if there is one to ask.
//! Unreachable and gone from the catalogue is hard as well, and so is unreachable while the clients of
//! two gateways have lost their media.
//!
//! [`Health::observe`] is a pure function of (state, evidence, now). One change of verdict is one
//! notice, whatever the number of calls and participants on the SFU (R13).

mod flaps;
mod freeze;
mod machine;
mod share;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Serialize;
use sfu_api::{BootId, GatewayId, SyncerId};
use tokio::time::Instant;

pub use self::flaps::{FlapRules, Flaps};
pub use self::freeze::{Freeze, FreezeView};
pub use self::machine::Health;
pub use self::share::{
    EVIDENCE_TTL, EvidenceAnswer, EvidenceMessage, GATEWAYS_NAMED_MAX, Outbox, SIGHTS_MAX, SfuSight, Sight, WIRE,
    Witnesses,
};

/// What we believe of an SFU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Verdict {
    /// In order.
    #[default]
    Healthy = 0,
    /// Answers late or not to the last request: no new placements.
    Slow = 1,
    /// Fails: no new placements, its calls stay.
    Suspect = 2,
    /// Same address, new incarnation, rooms gone: they are made again in place.
    Restarted = 3,
    /// Gone: its calls move.
    Dead = 4,
}

impl Verdict {
    /// All verdicts, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Healthy, Self::Slow, Self::Suspect, Self::Restarted, Self::Dead];

    /// Whether new calls may be placed on such an SFU.
    #[must_use]
    pub const fn takes_new(self) -> bool {
        matches!(self, Self::Healthy | Self::Restarted)
    }

    /// Whether such an SFU answers, though perhaps late: it can be asked which rooms it has.
    #[must_use]
    pub const fn answers(self) -> bool {
        matches!(self, Self::Healthy | Self::Slow | Self::Restarted)
    }

    /// Whether such an SFU fails, or has failed.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Suspect | Self::Dead)
    }

    /// The verdict's name, as in JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Suspect => "suspect",
            Self::Restarted => "restarted",
            Self::Dead => "dead",
        }
    }
}

/// How a request to an SFU failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The connection was refused or reset.
    Unreachable,
    /// The certificate or the handshake was wrong.
    Tls,
    /// No answer in time, before or after the request was sent.
    TimedOut,
    /// The SFU answered 5xx.
    ServerError,
    /// The SFU answered something that is not the contract.
    Garbage,
}

/// One sign of life or death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The SFU answered as it should, within `took`.
    Answered {
        /// Its incarnation, if it says.
        boot_id: Option<BootId>,
        /// When it was asked: an answer asked for before the present incarnation was first seen
        /// says nothing of now.
        asked: Instant,
        /// Time from sending to the whole answer.
        took: Duration,
    },
    /// A request failed.
    Failed {
        /// How.
        failure: Failure,
        /// Whether a connection was opened for this request alone, so that the failure is news
        /// and not one shared by many.
        fresh: bool,
    },
    /// An operator declared the SFU dead.
    DeclaredDead,
    /// A peer says what it sees. It counts for a while.
    Witnessed {
        /// Which peer.
        by: SyncerId,
        /// What it sees.
        sight: Sight,
    },
    /// A gateway says that its clients have lost their media. It counts for a while, and until the SFU
    /// answers.
    MediaFailed {
        /// Which gateway.
        gateway: GatewayId,
        /// It said so to us, not to a peer who told us.
        here: bool,
    },
    /// The catalogue has it, or no longer.
    Listed(bool),
    /// Time has passed.
    Tick {
        /// Whether silence proves anything now.
        silence_counts: bool,
    },
}

/// Why a verdict changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It answered.
    Answered,
    /// It answered late.
    Late,
    /// It refused or reset a connection.
    Unreachable,
    /// It refused or reset enough fresh connections for long enough.
    UnreachableConfirmed,
    /// Its certificate or handshake is wrong.
    Tls,
    /// It did not answer in time.
    TimedOut,
    /// It answers 5xx.
    ServerErrors,
    /// It answers what is not the contract.
    Garbage,
    /// No good sign for `suspect_max`.
    SuspectTooLong,
    /// Its incarnation changed.
    NewIncarnation,
    /// It cannot be reached and is gone from the catalogue.
    Unlisted,
    /// It cannot be reached, and clients of two gateways have lost their media.
    MediaFailed,
    /// An operator said so.
    Operator,
}

/// A change of verdict: the one notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: Verdict,
    /// After.
    pub to: Verdict,
    /// Why.
    pub reason: Reason,
}

/// The limits the verdicts follow, all of them levers.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Fresh connections that must have been refused or reset in a row.
    pub dead_failures: u32,
    /// Time the first and last of them must be apart.
    pub dead_window: Duration,
    /// Time without any good sign after which a suspect counts as dead; zero: never.
    pub suspect_max: Duration,
    /// An answer that takes longer is late.
    pub slow_after: Duration,
    /// Peers that could confirm what we see; with none, our own eyes have to do.
    pub witnesses: u32,
    /// How long an SFU that falls again and again is kept out of selection.
    pub flaps: FlapRules,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            dead_failures: 3,
            dead_window: Duration::from_secs(2),
            suspect_max: Duration::from_secs(600),
            slow_after: Duration::from_secs(1),
            witnesses: 0,
            flaps: FlapRules::default(),
        }
    }
}
