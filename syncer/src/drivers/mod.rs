//! How to tell an SFU what to do.
//!
//! The reconciler speaks to every SFU through one trait, [`SfuDriver`], and never learns which
//! protocol is behind it. Two implementations:
//!
//! - [`native`](DriverKind::Native): the contract of `sfu-api`. The SFU fences, reports its load
//!   and names its incarnation in every answer.
//! - [`janus`](DriverKind::Janus): the admin API of a stock Janus. It can do none of the three, so
//!   the driver puts term and epoch into the room's name, derives load from the room list and
//!   recognises a restart by the absence of a sentinel room.
//!
//! Three rules hold for every driver. It **never retries**: the reconciler is the only retry layer,
//! so one call here is at most a handful of requests, each sent once. It **never trusts an answer**:
//! bodies are read up to a cap, types are checked, and anything unexpected is a
//! [`Protocol`](ErrorKind::Protocol) error of that SFU alone. And it **decides nothing**: an error
//! says what was seen (refused, timed out after the request was sent, another incarnation …);
//! what to believe of the SFU is `health`'s business.

mod build;
mod error;
mod http;
mod janus;
mod names;
mod native;
mod spec;
mod weight;

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use pool::OriginHandle;
use serde::Serialize;
use sfu_api::{
    BootId, CallId, CallKind, DigestAnswer, Epoch, GuildId, Load, OpId, OwnerTerm, RoomId, RoomRef, SessionId, Slot,
    SlotTerm,
};
use tokio::time::Instant;

pub use self::build::build;
pub use self::error::{DriverError, ErrorKind};
pub use self::spec::{DriverKind, JanusPlugin, JanusSpec, SfuSpec, SpecError};
pub use self::weight::{Weight, WeightError};

/// What an SFU of this kind can do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Refuses writers with a lower term or epoch. Without, the room's name carries both.
    pub fences: bool,
    /// Answers [`SfuDriver::digest`].
    pub digests: bool,
    /// Reports its load in (nearly) every answer. Without, only probes and lists bring it.
    pub load_in_answers: bool,
    /// Takes many operations in one request.
    pub batches: bool,
    /// Verifies credentials per session. Without, one credential admits to the room.
    pub credential_per_session: bool,
    /// Lets people into the rooms it has while it [drains](SfuDriver::set_draining). Without, it is told to drain
    /// only when no call is left there.
    pub drain_keeps_sessions: bool,
}

/// The room to have: what [`SfuDriver::ensure_room`] needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomSpec {
    /// The room, as named by [`SfuDriver::room_name`] of the same driver.
    pub room: RoomId,
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// Kind of the call.
    pub kind: CallKind,
    /// Slot of the guild.
    pub slot: Slot,
    /// Our term for the slot.
    pub owner_term: OwnerTerm,
    /// Epoch of the placement.
    pub epoch: Epoch,
    /// The same id gets the same answer.
    pub op_id: OpId,
    /// The incarnation we believe to talk to; `None` on first contact.
    pub boot_id: Option<BootId>,
    /// Participants to expect at most.
    pub capacity: u32,
}

/// The room to be rid of: what [`SfuDriver::end_room`] needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndSpec {
    /// The room.
    pub room: RoomId,
    /// Slot of the guild.
    pub slot: Slot,
    /// Our term for the slot.
    pub owner_term: OwnerTerm,
    /// Epoch of the placement that made the room.
    pub epoch: Epoch,
    /// The same id gets the same answer.
    pub op_id: OpId,
    /// The incarnation we believe to talk to, if it matters.
    pub boot_id: Option<BootId>,
}

/// The room exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomReady {
    /// Where clients connect.
    pub endpoint: Arc<str>,
    /// The incarnation that holds the room, where known.
    pub boot_id: Option<BootId>,
    /// The SFU's load, where the answer brought it.
    pub load: Option<Load>,
    /// Whether this request made the room.
    pub created: bool,
}

/// What became of a room that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The room was there and is gone.
    Destroyed,
    /// The room was not there.
    WasAbsent,
    /// The room has participants and `force` was not given: it is left alone.
    Occupied,
}

/// A positive sign from an SFU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The SFU's incarnation.
    pub boot_id: Option<BootId>,
    /// Whether it takes new rooms (false: draining).
    pub accepting: bool,
    /// Its load.
    pub load: Option<Load>,
}

/// A room found on an SFU. Only rooms that carry our names are ever listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRoom {
    /// The room.
    pub room: RoomId,
    /// Slot of its guild, where known.
    pub slot: Option<Slot>,
    /// Epoch of the placement that made it, where known.
    pub epoch: Option<Epoch>,
    /// Guild of its call, where known.
    pub guild: Option<GuildId>,
    /// Its call, where known (very long ids are hashed in the name).
    pub call: Option<CallId>,
    /// Participants in it now.
    pub participants: u32,
}

/// Every room of ours on an SFU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomList {
    /// The rooms.
    pub rooms: Vec<ListedRoom>,
    /// The SFU's incarnation.
    pub boot_id: Option<BootId>,
    /// The SFU's load.
    pub load: Option<Load>,
}

/// What we believe to have on an SFU: what [`SfuDriver::digest`] needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestSpec {
    /// The incarnation we believe to talk to.
    pub boot_id: Option<BootId>,
    /// Our terms for the slots of these rooms.
    pub terms: Vec<SlotTerm>,
    /// How many rooms we have there.
    pub rooms: u32,
    /// [`sfu_api::room_set_hash`] of them.
    pub hash: u64,
    /// The rooms themselves, once the hash is known to differ.
    pub named: Option<Vec<RoomRef>>,
}

/// Answer to a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DigestOutcome {
    /// The SFU's answer.
    Answer(DigestAnswer),
    /// This kind of SFU has no digests: compare [`SfuDriver::list_rooms`] instead.
    Unsupported,
}

/// Who wants to enter which room.
#[derive(Clone, Copy, Debug)]
pub struct CredentialRequest<'a> {
    /// The participant's session.
    pub session: &'a SessionId,
    /// The room.
    pub room: &'a RoomId,
    /// Epoch of the placement.
    pub epoch: Epoch,
}

/// What a client shows to the SFU. Not shown by `Debug`; written as it is to whoever it was made for.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Credential(String);

/// One SFU, and how to tell it what to do.
///
/// Every future does nothing until polled and ends by its `deadline`.
///
/// # Cancel safety
///
/// Dropping a future stops waiting; a request that was sent may still be carried out. Every
/// operation is idempotent, so the same one (same `op_id`) may be sent again.
pub trait SfuDriver: Send + Sync + fmt::Debug {
    /// What this kind of SFU can do by itself.
    fn capabilities(&self) -> Capabilities;

    /// The name of a call's room at this epoch. Two calls never share a name.
    ///
    /// Stable per call where the SFU fences; a new one per epoch where it cannot.
    fn room_name(&self, guild: &GuildId, call: &CallId, slot: Slot, epoch: Epoch) -> RoomId;

    /// Guild and call of a room with such a name, where it tells them and the room may be kept for the call's next
    /// epoch: only where the SFU fences.
    fn call_of(&self, room: &RoomId) -> Option<(GuildId, CallId)> {
        let _ = room;
        None
    }

    /// Asks for a sign of life. With `fresh`, on a connection of its own, so that a refusal counts
    /// as evidence.
    fn probe(&self, fresh: bool, deadline: Instant) -> BoxFuture<'_, Result<Probe, DriverError>>;

    /// What it sends on, which the pool keeps until it is [forgotten](pool::Lane::forget). `None`: nothing is kept.
    fn handle(&self) -> Option<&OriginHandle> {
        None
    }

    /// How many connections to the SFU have ended so far. When it moves, the SFU may have died: the
    /// observer looks at once instead of at the next interval.
    fn connections_ended(&self) -> u64 {
        0
    }

    /// Makes the room exist.
    fn ensure_room(&self, spec: RoomSpec, deadline: Instant) -> BoxFuture<'_, Result<RoomReady, DriverError>>;

    /// Makes many rooms exist: an answer for each, in order, or the failure of the whole exchange. At
    /// most [`BATCH_OPERATIONS_MAX`](sfu_api::BATCH_OPERATIONS_MAX) where the SFU
    /// [batches](Capabilities::batches); elsewhere it is an exchange for each.
    fn ensure_rooms(
        &self,
        specs: Vec<RoomSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<RoomReady, DriverError>>, DriverError>> {
        async move { Ok(join_all(specs.into_iter().map(|spec| self.ensure_room(spec, deadline))).await) }.boxed()
    }

    /// Ends many rooms that are empty, as [`Self::ensure_rooms`] makes them.
    fn end_rooms(
        &self,
        ends: Vec<EndSpec>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Result<Ended, DriverError>>, DriverError>> {
        async move { Ok(join_all(ends.into_iter().map(|end| self.end_room(end, false, deadline))).await) }.boxed()
    }

    /// Ends the room; one with participants only by `force`.
    fn end_room(&self, end: EndSpec, force: bool, deadline: Instant) -> BoxFuture<'_, Result<Ended, DriverError>>;

    /// Lists our rooms, all pages (a bounded number of them).
    fn list_rooms(&self, deadline: Instant) -> BoxFuture<'_, Result<RoomList, DriverError>>;

    /// Compares what we believe to have with what the SFU has, and raises our terms there.
    fn digest(&self, digest: DigestSpec, deadline: Instant) -> BoxFuture<'_, Result<DigestOutcome, DriverError>>;

    /// Counts the participants in a room; `None` when there is no such room.
    fn participants(&self, room: RoomId, deadline: Instant) -> BoxFuture<'_, Result<Option<u32>, DriverError>>;

    /// Tells the SFU to take no new rooms, or to take them again.
    fn set_draining(&self, draining: bool, deadline: Instant) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Makes what a client needs to enter a room. No I/O.
    fn credential(&self, request: &CredentialRequest<'_>) -> Result<Credential, DriverError>;
}

// === impl EndSpec ===

impl EndSpec {
    /// To end the room that `spec` made. `op_id` is a new one: SFUs refuse an id that stood for another operation.
    #[must_use]
    pub fn of(spec: &RoomSpec, op_id: OpId) -> Self {
        Self {
            room: spec.room.clone(),
            slot: spec.slot,
            owner_term: spec.owner_term,
            epoch: spec.epoch,
            op_id,
            boot_id: spec.boot_id.clone(),
        }
    }
}

// === impl Credential ===

impl Credential {
    /// Wraps what the client is to show.
    #[must_use]
    pub fn new(token: String) -> Self {
        Self(token)
    }

    /// The text to hand to the client.
    #[must_use]
    pub fn into_token(self) -> String {
        self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(redacted)")
    }
}
