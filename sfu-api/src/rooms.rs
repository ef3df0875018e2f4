//! Rooms, digests and health.

use serde::{Deserialize, Serialize};

use crate::{BootId, Epoch, ErrorAnswer, Fence, GuildId, OpId, OwnerTerm, RoomId, Slot, SyncerId, stable_hash};

/// Most operations in one [`Batch`]: a body of at most ~64 KiB.
pub const BATCH_OPERATIONS_MAX: usize = 256;
/// Most rooms in one [`RoomPage`].
pub const ROOM_PAGE_MAX: usize = 1000;
/// Most rooms one [`Digest`] may name: ~100 times what a syncer of a large fleet keeps on one SFU.
pub const DIGEST_ROOMS_MAX: usize = 4096;

/// What kind of call a room carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// Everyone speaks and listens.
    #[default]
    Voice,
    /// One participant streams, the others watch.
    Stream,
}

/// How busy an SFU is. Part of every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Load {
    /// Rooms on the SFU.
    pub calls: u32,
    /// Participants connected to the SFU.
    pub participants: u32,
    /// Calls the SFU can carry.
    pub capacity: u32,
    /// When the SFU measured this, in Unix milliseconds.
    pub sampled_at: u64,
}

/// Body of `PUT /v1/rooms/{room}`: make the room exist at this epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnsureRoom {
    /// Who may write.
    #[serde(flatten)]
    pub fence: Fence,
    /// The same id gets the same answer.
    pub op_id: OpId,
    /// Who asks.
    pub syncer: SyncerId,
    /// Guild of the call.
    pub guild: GuildId,
    /// Kind of the call.
    pub kind: CallKind,
    /// Participants to expect at most.
    pub capacity: u32,
}

/// The room exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomReady {
    /// Where clients connect, for example `https://127.1.0.7:7443/media/g1.c1`.
    pub endpoint: String,
    /// Whether this request made the room (false: it was there already).
    pub created: bool,
    /// The SFU's incarnation.
    pub boot_id: BootId,
    /// The SFU's load after this request.
    pub load: Load,
}

/// Body of `DELETE /v1/rooms/{room}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EndRoom {
    /// Who may write. A room whose epoch is above the fence's is left alone (`fenced`).
    #[serde(flatten)]
    pub fence: Fence,
    /// The same id gets the same answer.
    pub op_id: OpId,
    /// Who asks.
    pub syncer: SyncerId,
    /// End the room even with participants in it; without, such a room is refused as `occupied`.
    #[serde(default)]
    pub force: bool,
}

/// What became of a room that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The room was there and is gone.
    Destroyed,
    /// The room was not there.
    WasAbsent,
}

/// The room is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomEnded {
    /// Whether it had been there.
    pub ended: Ended,
    /// The SFU's incarnation.
    pub boot_id: BootId,
    /// The SFU's load after this request.
    pub load: Load,
}

/// One operation of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum BatchOperation {
    /// As `PUT /v1/rooms/{room}`.
    Ensure {
        /// The room.
        room: RoomId,
        /// What to ensure.
        #[serde(flatten)]
        ensure: EnsureRoom,
    },
    /// As `DELETE /v1/rooms/{room}`.
    End {
        /// The room.
        room: RoomId,
        /// What to end.
        #[serde(flatten)]
        end: EndRoom,
    },
}

/// Body of `POST /v1/rooms:batch`: at most [`BATCH_OPERATIONS_MAX`] operations, done in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Batch {
    /// What to do.
    pub operations: Vec<BatchOperation>,
}

/// Result of one operation of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum BatchResult {
    /// The room exists.
    Ready(RoomReady),
    /// The room is gone.
    Ended(RoomEnded),
    /// The operation was refused; the others are not affected.
    Error(ErrorAnswer),
}

/// Answer to a [`Batch`]: one result per operation, in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchAnswer {
    /// The results.
    pub results: Vec<BatchResult>,
}

/// A room as the SFU holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomState {
    /// The room.
    pub room: RoomId,
    /// Slot of its guild.
    pub slot: Slot,
    /// The highest epoch it was ensured at.
    pub epoch: Epoch,
    /// The syncer that ensured it last.
    pub syncer: SyncerId,
    /// Guild of the call.
    pub guild: GuildId,
    /// Participants in it now.
    pub participants: u32,
}

/// Answer to `GET /v1/rooms`: at most [`ROOM_PAGE_MAX`] rooms, ordered by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomPage {
    /// The rooms.
    pub rooms: Vec<RoomState>,
    /// Pass as `cursor` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<RoomId>,
    /// The SFU's incarnation.
    pub boot_id: BootId,
    /// The SFU's load.
    pub load: Load,
}

/// A room and the epoch its owner holds it at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomRef {
    /// The room.
    pub room: RoomId,
    /// Epoch of its placement.
    pub epoch: Epoch,
}

/// A syncer's term for one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SlotTerm {
    /// The slot.
    pub slot: Slot,
    /// The syncer's term for it.
    pub term: OwnerTerm,
}

/// Body of `POST /v1/digest`: what the syncer believes it has on this SFU.
///
/// Sent first with the count and hash alone; when the answer says they differ, sent again with
/// `named`, and answered with the differences. Also how a new owner raises its term on an SFU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Digest {
    /// Who asks.
    pub syncer: SyncerId,
    /// The incarnation the syncer believes it talks to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<BootId>,
    /// The syncer's terms for the slots of its rooms here, or for all of its slots: it becomes their holder here, and is
    /// shown their rooms. A lower one than seen is `fenced`.
    pub terms: Vec<SlotTerm>,
    /// How many rooms the syncer has here.
    pub rooms: u32,
    /// [`room_set_hash`] of them, in hexadecimal.
    pub hash: String,
    /// The rooms themselves, at most [`DIGEST_ROOMS_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<Vec<RoomRef>>,
}

/// What a syncer and an SFU disagree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Differences {
    /// Named by the syncer, not held at that epoch by the SFU.
    pub missing: Vec<RoomId>,
    /// Held by the SFU for this syncer, not named by it: at most [`DIGEST_ROOMS_MAX`]. Who expects more asks for the list.
    pub surplus: Vec<RoomState>,
}

/// Answer to a [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DigestAnswer {
    /// Whether count and hash are those of the syncer's rooms here.
    pub matches: bool,
    /// With `named`: the differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differences: Option<Differences>,
    /// The SFU's incarnation.
    pub boot_id: BootId,
    /// The SFU's load.
    pub load: Load,
}

/// Answer to `GET /v1/health` and to `POST` and `DELETE /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Health {
    /// Whether the SFU takes new rooms.
    pub accepting: bool,
    /// Whether the SFU is draining.
    pub draining: bool,
    /// The SFU's incarnation.
    pub boot_id: BootId,
    /// The SFU's load.
    pub load: Load,
}

/// Order-free hash of a set of rooms at their epochs: both sides keep it and compare.
///
/// [`stable_hash`] over the room's bytes, a zero byte and the epoch's text, all combined by exclusive
/// or. The empty set hashes to 0.
#[must_use]
pub fn room_set_hash<'a>(rooms: impl IntoIterator<Item = (&'a RoomId, Epoch)>) -> u64 {
    rooms.into_iter().fold(0, |set, (room, epoch)| set ^ room_hash(room, epoch))
}

fn room_hash(room: &RoomId, epoch: Epoch) -> u64 {
    let text = epoch.to_string();
    stable_hash(room.as_str().bytes().chain(std::iter::once(0)).chain(text.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(s: &str) -> RoomId {
        RoomId::new(s).expect("valid id")
    }

    #[test]
    fn set_hash_ignores_order_and_sees_epochs() {
        let (a, b) = (room("a"), room("b"));
        let e = |n| Epoch { term: OwnerTerm { generation: 1, revision: 1 }, n };
        let one = room_set_hash([(&a, e(1)), (&b, e(2))]);
        assert_eq!(one, room_set_hash([(&b, e(2)), (&a, e(1))]));
        assert_ne!(one, room_set_hash([(&a, e(2)), (&b, e(2))]));
        assert_eq!(room_set_hash([]), 0);
    }

    #[test]
    fn batch_operations_are_tagged_and_flat() {
        let json = r#"{"do":"end","room":"r","slot":7,"owner_term":{"generation":1,"revision":2},
            "epoch":{"term":{"generation":1,"revision":2},"n":3},"op_id":"o","syncer":"s"}"#;
        let op: BatchOperation = serde_json::from_str(json).expect("parses");
        let BatchOperation::End { end, .. } = op else { panic!("not an end") };
        assert!(!end.force);
        assert_eq!(end.fence.epoch.n, 3);
    }
}
