//! Which guilds are ours, and who has the others.
//!
//! A guild hashes to one of 4,096 slots ([`slot_of`]); [`rank`] names three candidates per slot over
//! the *roster*, in which a dead member keeps its rank, so that its load never piles up on the few
//! that are left (R12). Today only the first candidate claims; claims by the standby, hand-off and
//! promises between candidates attach to [`Plan`] later without changing who calls it.
//!
//! [`View`] answers "who owns this guild" for the API, from the records where there are any and
//! from the ranking where the owner keeps a registry of its own.

mod claims;
mod fence;
mod lease;
mod plan;
mod rank;
#[cfg(test)]
mod tests;
mod view;

use sfu_api::{GuildId, OwnerTerm, SLOTS, Slot, stable_hash};
use tokio::time::Instant;

pub use self::claims::Ownership;
pub use self::fence::believed;
pub(crate) use self::lease::keep_lease;
pub use self::plan::{Held, Plan, ReadyCount};
pub use self::rank::{Candidates, Ranking, rank};
pub use self::view::{Owner, View};

/// Takes what ownership decides. The engine does; tests count.
pub trait SlotSink: Send + Sync + std::fmt::Debug {
    /// From now on exactly these slots may be served, under these terms.
    fn set_owned(&self, owned: &[(Slot, OwnerTerm)], now: Instant);
    /// Limits of the fleet are shared by this many members.
    fn set_ready_members(&self, ready: u32, now: Instant);
}

/// The slot a guild hashes to: [`stable_hash`] of the id's bytes, modulo 4,096. Fixed for ever: it is
/// part of every fence.
#[must_use]
pub fn slot_of(guild: &GuildId) -> Slot {
    let n = stable_hash(guild.as_bytes().iter().copied()) % u64::from(SLOTS);
    u16::try_from(n).ok().and_then(Slot::new).expect("a remainder below SLOTS is a slot")
}
