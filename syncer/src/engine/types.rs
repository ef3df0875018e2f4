//! What goes into and comes out of the engine.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sfu_api::{CallId, CallKind, Epoch, GuildId, Load, RegionId, RoomId, SfuId, ZoneId};

use crate::admission::{AdmissionView, Denied};
use crate::drivers::{Credential, DriverKind};
use crate::health::{FreezeView, Verdict};
use crate::select::{DrainState, Fate};
use crate::state::{CallKey, Care, Revision, Seed};

/// What a join is answered: where the call is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallAnswer {
    /// Epoch of the last announced placement.
    pub epoch: Option<Epoch>,
    /// Phase within the epoch: 1 endpoint announced, 2 endpoint gone.
    pub phase: Option<u8>,
    /// Where the client connects; `None` while the call awaits an endpoint.
    pub endpoint: Option<Arc<str>>,
    /// The session's credential for that endpoint.
    pub token: Option<Credential>,
    /// The write was late or repeated and changed nothing.
    pub ignored: bool,
}

/// Why a write was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another syncer owns the guild's slot.
    #[error("this syncer does not own the guild's slot")]
    NotOwner,
    /// It is not admitted now.
    #[error("{} is held back: {}", .0.class.name(), .0.reason.words())]
    Limited(Denied),
    /// A size limit is reached.
    #[error("too many {what}: the limit is {limit}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// When to come back: by then some may have gone.
        retry_after: Duration,
    },
    /// The syncer is draining and takes no new work.
    #[error("this syncer is draining")]
    Draining {
        /// When to come back, by then another syncer owns the guild.
        retry_after: Duration,
    },
}

/// Why a gateway's report of lost media does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// The call is not here.
    #[error("there is no such call")]
    NoCall,
    /// The gateway has not got the session in the call, or none if none was named.
    #[error("this gateway has no such session in this call; tell its join first, and name a session of your own")]
    NoSession,
}

/// Where a call stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// Placed on an SFU that is not known to be bad.
    Placed,
    /// Live without an endpoint.
    Awaiting,
    /// Without participants, kept for the empty grace.
    Ending,
}

/// A call, for operators.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CallView {
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// Kind of the call.
    pub kind: CallKind,
    /// Region the call asked for.
    pub region: Option<RegionId>,
    /// Sessions in the call.
    pub participants: u32,
    /// Where it stands.
    pub state: CallState,
    /// SFU of the placement.
    pub sfu: Option<SfuId>,
    /// Room on that SFU.
    pub room: Option<RoomId>,
    /// Where clients connect.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<Arc<str>>,
    /// Where it is about to be, if it is being moved as planned.
    pub moving_to: Option<SfuId>,
    /// Epoch of the placement or attempt.
    pub epoch: Option<Epoch>,
    /// How long the call has been awaiting an endpoint, in milliseconds.
    pub awaiting_ms: Option<u64>,
}

/// Which calls to list.
#[derive(Clone, Debug, Default)]
pub struct CallFilter {
    /// Only calls in this state.
    pub state: Option<CallState>,
    /// Only calls on this SFU.
    pub sfu: Option<SfuId>,
    /// Only calls of this guild.
    pub guild: Option<GuildId>,
    /// At most this many.
    pub limit: usize,
    /// Continue after this (guild, call).
    pub after: Option<(GuildId, CallId)>,
}

/// A page of calls, ordered by guild and call.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CallPage {
    /// The calls.
    pub calls: Vec<CallView>,
    /// Whether more follow the last one.
    pub more: bool,
    /// How many match in all.
    pub total: usize,
}

/// Where a page of a gateway's news begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewsCursor {
    pub(crate) shard: usize,
    pub(crate) after: Option<CallKey>,
}

/// Why a call is where it is.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Explanation {
    /// The call as it stands.
    pub call: CallView,
    /// The last decision about it, in words with its figures: the one that placed it, unless it says otherwise.
    pub decision: Option<String>,
    /// That decision made again, draw by draw; null where nothing was drawn: it has none, or its room is made again in place.
    pub replay: Option<ReplayView>,
    /// What the call waits for, when it awaits an endpoint.
    pub waiting_for: Option<String>,
    /// Seconds until the last call of its class that waits now is placed, when it awaits an endpoint; null:
    /// it does not, or never, as things are.
    pub eta_s: Option<f64>,
    /// Where it would go if it were placed anew now; null: nowhere.
    pub would_go: Option<String>,
    /// What would happen if its SFU died now.
    pub if_sfu_died: String,
    /// Candidates as they stand now, best score first (at most 10).
    pub candidates: Vec<CandidateView>,
}

/// A decision made again, from what is remembered of it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReplayView {
    /// It was made again, from its own seed and the catalogue as it was.
    Made {
        /// Which of the catalogue's lists it drew from; each change of the list is a revision.
        revision: Revision,
        /// What its draws came from.
        seed: Seed,
        /// Whom it took: `full`, those against whom nothing stood; `any_zone`, those of failing zones too, since nobody
        /// else was left; `at_last`, also those that fell often.
        care: Care,
        /// Those that were looked at, in order: at most 16 drawn, and of those looked at in turn the ones that were
        /// compared. The lower score won, and of equal ones the first.
        looks: Vec<LookView>,
        /// So many were looked at in turn, since the draws had not found two that were fit.
        in_turn: usize,
        /// Whether it came to what is recorded. If not, an SFU became fit, or ceased to be, in the midst of it.
        as_recorded: bool,
    },
    /// The catalogue has changed too often since: whom it drew is not known any more.
    Unknown {
        /// What it drew from.
        revision: Revision,
        /// What there is now.
        now: Revision,
    },
}

/// An SFU that a decision looked at.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct LookView {
    /// The SFU.
    pub sfu: SfuId,
    /// The chance with which a draw of it stood: its weight over the highest.
    pub chance: f64,
    /// `light`: its chance went against it; `unfit`: something stood against it; `again`: it was already the first of the two; `compared`.
    pub fate: Fate,
    /// Its score, if it was compared.
    pub score: Option<f32>,
    /// Whether it was taken.
    pub taken: bool,
}

/// An SFU as a candidate for a call.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct CandidateView {
    /// The SFU.
    pub sfu: SfuId,
    /// Its region.
    pub region: RegionId,
    /// (reported load + reservations since + in flight) ÷ capacity ÷ weight.
    pub score: f64,
    /// Why it cannot be chosen now, if so.
    pub excluded: Option<String>,
}

/// An SFU, for operators.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SfuView {
    /// The SFU.
    pub id: SfuId,
    /// Its region.
    pub region: RegionId,
    /// Its zone there, if the catalogue names one.
    pub zone: Option<ZoneId>,
    /// Whether so many SFUs of its zone fail that new calls go elsewhere if they can.
    pub zone_failing: bool,
    /// Where it is controlled.
    pub url: String,
    /// Which driver speaks to it.
    pub driver: DriverKind,
    /// What we believe of it.
    pub verdict: Verdict,
    /// Whether an operator took it out of selection.
    pub cordoned: bool,
    /// For how long it is still kept out of selection because it fell too often, in milliseconds.
    pub flapping_ms: Option<u64>,
    /// Whether it is out of service for debugging.
    pub quarantined: bool,
    /// The drain under way, or the last one.
    pub drain: Option<DrainView>,
    /// Whether it says that it takes new rooms.
    pub accepting: bool,
    /// Calls it can carry.
    pub capacity: u32,
    /// How much of the work it shall have, beside others of the same capacity.
    pub weight: f64,
    /// The load it last reported.
    pub load: Option<Load>,
    /// Calls this syncer has placed on it.
    pub calls: u32,
    /// The last evidence behind the verdict.
    pub evidence: String,
}

/// A planned emptying of an SFU, as far as this syncer's calls go.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DrainView {
    /// How far it is.
    pub state: DrainState,
    /// Whether the SFU itself was told to take nothing new, from anybody.
    pub told: bool,
    /// Calls that were there when it began.
    pub at_start: u64,
    /// Calls that have moved.
    pub moved: u64,
    /// Calls that are still there.
    pub left: u64,
    /// How long it has been going on, in milliseconds.
    pub elapsed_ms: u64,
    /// Time to its deadline, in milliseconds; 0 when it has passed.
    pub remaining_ms: u64,
    /// The first hundred calls that are still there; only where one SFU is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_calls: Vec<CallName>,
}

/// Names a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct CallName {
    /// Its guild.
    pub guild: GuildId,
    /// Its id within the guild.
    pub call: CallId,
}

/// Numbers of the whole engine.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct EngineStatus {
    /// Live calls.
    pub calls: u64,
    /// Calls with an endpoint.
    pub placed: u64,
    /// Live calls without an endpoint.
    pub awaiting: u64,
    /// Calls kept for the empty grace.
    pub ending: u64,
    /// Sessions in calls.
    pub participants: u64,
    /// SFUs by verdict.
    pub sfus: SfuCounts,
    /// Zones of which so many SFUs fail that new calls go elsewhere if they can: see `placement.zone_failing_share`.
    pub zones_failing: Vec<ZoneView>,
    /// Placements committed.
    pub placements_total: u64,
    /// Attempts sent to SFUs.
    pub attempts_total: u64,
    /// Attempts that were the first of their call's need.
    pub first_attempts_total: u64,
    /// Attempts under way.
    pub attempts_in_flight: u32,
    /// So many SFUs are suspect that silence proves nothing: see `health.freeze_share`.
    pub frozen: bool,
    /// What that is based on.
    pub freeze: FreezeView,
    /// Other syncers that could confirm what this one sees of an SFU.
    pub witnesses: u32,
    /// Placements that put a call on another SFU than before.
    pub moves_total: u64,
    /// Planned moves, of those.
    pub planned_moves_total: u64,
    /// Notices that an SFU is dead or has restarted.
    pub notices_total: u64,
    /// Rooms ended.
    pub releases_total: u64,
    /// Rooms waiting to be ended.
    pub releases_waiting: u64,
    /// Gateways by what is known of them.
    pub gateways: GatewayCounts,
    /// So many gateways are gone at once that no session expires: see `gateways.freeze_share`.
    pub expiry_frozen: bool,
    /// Sessions that expired.
    pub sessions_expired_total: u64,
    /// Leaves that were forgotten within a minute: see `calls.left_remembered_max`.
    pub leaves_forgotten_total: u64,
    /// Invariants found violated.
    pub invariant_violations: u64,
    /// Who may come in, and who was turned away.
    pub admission: AdmissionView,
}

/// A zone of a region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
pub struct ZoneView {
    /// Its region.
    pub region: RegionId,
    /// Its name there.
    pub zone: ZoneId,
}

/// Gateways by what is known of them.
#[derive(Clone, Copy, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct GatewayCounts {
    /// Heard of lately, or with a stream open.
    pub here: u32,
    /// Silent; their sessions are kept for `gateways.resume_window`.
    pub vanished: u32,
    /// In the middle of telling everything again.
    pub syncing: u32,
    /// Sessions of vanished ones that are kept for longer, since people may still talk in their calls, as of the last
    /// answers of SFUs.
    pub sessions_kept: u64,
}

/// SFUs by verdict.
#[derive(Clone, Copy, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct SfuCounts {
    /// In order.
    pub healthy: u32,
    /// Answering late.
    pub slow: u32,
    /// Failing; its calls stay.
    pub suspect: u32,
    /// Came back empty a moment ago.
    pub restarted: u32,
    /// Gone; its calls move.
    pub dead: u32,
    /// Cordoned by an operator, whatever the verdict.
    pub cordoned: u32,
    /// Being drained, or drained, whatever the verdict.
    pub draining: u32,
    /// In quarantine, whatever the verdict.
    pub quarantined: u32,
}

/// What a drain left behind.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct DrainReport {
    /// Rooms that were to be ended and were not.
    pub releases_left: u64,
    /// Attempts still in flight at the deadline.
    pub attempts_left: u64,
}
