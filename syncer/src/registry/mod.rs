//! What the fleet agrees on: its members, who owns which slot, and which SFUs there are.
//!
//! [`Registry`] is the seam. [`Embedded`] keeps everything in memory and is enough for one machine
//! or for syncers listed in a file; a registry on etcd is the same transactions against another
//! store, and [`conformance`] is what both must pass. The rules that make ownership safe:
//!
//! - A slot's record `{owner, standby, term}` is claimed by one compare-and-set transaction over at
//!   most [`CLAIM_SLOTS_MAX`] slots and is never deleted by expiry. Liveness is each member's own
//!   lease.
//! - `term = (generation, revision of that transaction)`: terms only grow. After an SFU has shown a
//!   higher one (the registry lost its memory), [`Registry::resume_above`] continues above it.
//! - The registry holds identity and state only. Load in registry values is what made others leave
//!   etcd at 25,000 hosts.

pub mod conformance;
mod embedded;
mod files;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sfu_api::{OwnerTerm, SLOTS, Slot, SyncerId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::drivers::SfuSpec;

pub use self::embedded::Embedded;
pub(crate) use self::files::{read_members, read_sfus};
pub use self::store::StoreError;

/// Most slots one claim may take: etcd allows 128 operations in a transaction and each slot needs a
/// comparison and a write.
pub const CLAIM_SLOTS_MAX: usize = 64;
/// How long a member's lease lives without renewal. The incident lost leases of 60 s to a stalled
/// pool; a short one notices a dead member soon, and renewal has nothing in its way here.
pub const LEASE_TTL: Duration = Duration::from_secs(15);
/// Most members of a fleet: the incident's fleet had 30; rankings cost slots × members.
pub const MEMBERS_MAX: usize = 256;

/// What a member is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Not yet ready: its catalogue, pool or copies are cold.
    Warming,
    /// Serves.
    #[default]
    Ready,
    /// Hands its slots over and leaves.
    Draining,
}

/// A syncer as the fleet knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Member {
    /// Name, unique in the fleet.
    pub id: SyncerId,
    /// Where its API is.
    #[schema(value_type = String)]
    pub url: Arc<str>,
    /// Failure domain.
    pub zone: String,
    /// Share of the slots, relative to the others (0: none).
    pub weight: u32,
    /// What it is doing.
    pub state: MemberState,
    /// Its process; absent for a member that is only listed in a file.
    pub boot_id: Option<String>,
    /// Range of wire versions it speaks, lowest and highest.
    pub wire: (u16, u16),
    /// Whether its lease is fresh. A member that is only listed in a file counts as live: nobody
    /// but the network can tell, and too small a share of a limit is the safe error.
    pub live: bool,
    /// Listed in a file and never announced here: it keeps its own registry.
    pub listed_only: bool,
}

/// Who owns a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotRecord {
    /// The owner.
    pub owner: SyncerId,
    /// The syncer with an in-sync copy.
    pub standby: Option<SyncerId>,
    /// Term of the claim.
    pub term: OwnerTerm,
}

/// One slot of a claim: taken only if its record still has the expected term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The slot.
    pub slot: Slot,
    /// Term of the record the claimer saw; `None` when it saw none.
    pub expected: Option<OwnerTerm>,
}

/// Everything at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows with every change.
    pub revision: u64,
    /// Who joined and was not removed, by id. A dead member stays: it keeps its rank.
    pub roster: BTreeMap<SyncerId, Member>,
    /// The slots' records, by slot number.
    pub slots: Arc<[Option<SlotRecord>]>,
    /// The SFUs.
    pub sfus: Arc<[SfuSpec]>,
}

/// Why the registry did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A record is not what the claimer expected; nothing was changed.
    #[error("slot {} was claimed by {} meanwhile", .slot.get(), .record.owner)]
    Conflict {
        /// The first slot that differs.
        slot: Slot,
        /// Its record.
        record: Box<SlotRecord>,
    },
    /// The claimer is not in the roster, or was removed from it.
    #[error("{0} is not in the roster")]
    NotAMember(SyncerId),
    /// Too much at once.
    #[error("at most {limit} {what} at once")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The registry cannot keep its promise to remember.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A future of a [`Registry`].
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RegistryError>>;

/// What the fleet agrees on.
///
/// # Cancel safety
///
/// A dropped future may or may not have had its effect; callers read the snapshot again.
pub trait Registry: Send + Sync + std::fmt::Debug + 'static {
    /// Joins the roster, or updates the member's entry, under a lease of [`LEASE_TTL`] from `now`.
    fn announce(&self, member: Member, now: Instant) -> Answer<'_, ()>;
    /// Renews the member's lease; `NotAMember` says that it was removed and must stop.
    fn renew<'a>(&'a self, id: &'a SyncerId, now: Instant) -> Answer<'a, ()>;
    /// Leaves the roster: drained, or removed by an operator. Its records stay until claimed.
    fn remove<'a>(&'a self, id: &'a SyncerId) -> Answer<'a, ()>;
    /// Claims slots for `owner` in one transaction, all or none, and answers their new term.
    fn claim<'a>(&'a self, owner: &'a SyncerId, claims: &'a [Claim]) -> Answer<'a, OwnerTerm>;
    /// Gives slots up: deletes those records that `owner` still holds at these terms.
    fn release<'a>(&'a self, owner: &'a SyncerId, held: &'a [(Slot, OwnerTerm)]) -> Answer<'a, ()>;
    /// Sees to it that every later term is above `seen`.
    fn resume_above(&self, seen: OwnerTerm) -> Answer<'_, ()>;
    /// Puts the static members; those of an earlier list that are neither listed nor announced go.
    fn list_members(&self, members: Vec<Member>) -> Answer<'_, ()>;
    /// Puts the SFU catalogue.
    fn put_sfus(&self, sfus: Vec<SfuSpec>) -> Answer<'_, ()>;
    /// The latest snapshot and every later one (intermediate ones may be skipped).
    fn watch(&self) -> watch::Receiver<Arc<Snapshot>>;
}

// === impl Member ===

impl Member {
    /// A member with defaults: weight 100, ready, live, the current wire version.
    #[must_use]
    pub fn new(id: SyncerId, url: impl Into<Arc<str>>, zone: impl Into<String>) -> Self {
        Self {
            id,
            url: url.into(),
            zone: zone.into(),
            weight: WEIGHT_DEFAULT,
            state: MemberState::Ready,
            boot_id: None,
            wire: WIRE_VERSIONS,
            live: true,
            listed_only: false,
        }
    }
}

/// Weight of a member that names none: leaves room to ramp from 1 % up.
pub const WEIGHT_DEFAULT: u32 = 100;
/// The wire versions this build speaks.
pub const WIRE_VERSIONS: (u16, u16) = (1, 1);

// === impl Snapshot ===

impl Default for Snapshot {
    fn default() -> Self {
        Self { revision: 0, roster: BTreeMap::new(), slots: vec![None; usize::from(SLOTS)].into(), sfus: Arc::from([]) }
    }
}

impl Snapshot {
    /// The record of a slot.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> Option<&SlotRecord> {
        self.slots.get(usize::from(slot.get())).and_then(Option::as_ref)
    }

    /// Members that are live and serve: what limits are divided by. At least 1.
    #[must_use]
    pub fn ready_members(&self) -> u32 {
        let ready = self.roster.values().filter(|m| m.live && m.state != MemberState::Draining).count();
        u32::try_from(ready).unwrap_or(u32::MAX).max(1)
    }
}
