//! The native SFU control contract: what a syncer says to an SFU, and what the SFU answers.
//!
//! Only wire types and their validation live here; no I/O. Any SFU that serves these routes over
//! HTTPS can be placed on by Trunkline (`openapi.json` is generated from the same types):
//!
//! | route | request | answer |
//! |---|---|---|
//! | `PUT /v1/rooms/{room}` | [`EnsureRoom`] | [`RoomReady`] |
//! | `DELETE /v1/rooms/{room}` | [`EndRoom`] | [`RoomEnded`] |
//! | `POST /v1/rooms:batch` | [`Batch`] | [`BatchAnswer`] |
//! | `GET /v1/rooms?owner=&cursor=` | | [`RoomPage`] |
//! | `POST /v1/digest` | [`Digest`] | [`DigestAnswer`] |
//! | `GET /v1/health` | | [`Health`] |
//! | `POST`, `DELETE /v1/drain` | | [`Health`] |
//!
//! Three rules make it safe to retry and safe against a syncer that was replaced:
//!
//! 1. **Fencing.** The SFU keeps the highest [`OwnerTerm`] seen per slot and the highest [`Epoch`]
//!    seen per room. A mutation or digest below either is refused with [`ErrorCode::Fenced`].
//! 2. **Incarnation.** Every answer names the SFU's `boot_id`; a mutation may name the one it
//!    expects, and another incarnation refuses it with [`ErrorCode::Restarted`].
//! 3. **Idempotence.** The same `op_id` gets the same answer; ending an absent room is a success.
//!    Only successes are remembered, by an incarnation, for as long as a retry may take. Rules 1 and
//!    2 come first: a deposed owner that repeats itself is told `fenced`.
//!
//! A slot's *holder* is the syncer that showed its highest term; digests and `?owner=` go by it.

mod error;
mod fence;
mod hash;
mod ids;
mod openapi;
mod rooms;
mod validate;

pub use self::error::{ErrorAnswer, ErrorCode};
pub use self::fence::{Epoch, Fence, OwnerTerm, SLOTS, Slot};
pub use self::hash::stable_hash;
pub use self::ids::{
    BootId, CallId, GatewayId, GuildId, ID_BYTES_MAX, IdError, OpId, RegionId, RoomId, SessionId, SfuId, SyncerId,
    ZoneId,
};
pub use self::openapi::openapi;
pub use self::rooms::{
    BATCH_OPERATIONS_MAX, Batch, BatchAnswer, BatchOperation, BatchResult, CallKind, DIGEST_ROOMS_MAX, Differences,
    Digest, DigestAnswer, EndRoom, Ended, EnsureRoom, Health, Load, ROOM_PAGE_MAX, RoomEnded, RoomPage, RoomReady,
    RoomRef, RoomState, SlotTerm, room_set_hash,
};
pub use self::validate::{REQUEST_BODY_BYTES_MAX, ValidationError, room_set_hash_text};
