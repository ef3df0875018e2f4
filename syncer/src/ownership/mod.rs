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
mod lease;
mod plan;
mod rank;
#[cfg(test)]
mod tests;
mod view;

use sfu_api::{GuildId, OwnerTerm, SLOTS, Slot};
use tokio::time::Instant;

pub use self::claims::Ownership;
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

/// The slot a guild hashes to: FNV-1a (64 bit) over the id's bytes, finished with MurmurHash3's
/// 64-bit finaliser, modulo 4,096. Fixed for ever: it is part of every fence.
///
/// FNV alone has weak high bits on short, similar ids such as snowflakes; the finaliser spreads them.
#[must_use]
pub fn slot_of(guild: &GuildId) -> Slot {
    let n = hash(guild.as_str().bytes()) % u64::from(SLOTS);
    u16::try_from(n).ok().and_then(Slot::new).expect("a remainder below SLOTS is a slot")
}

/// FNV-1a, finished with MurmurHash3's finaliser.
pub(crate) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut h = bytes.fold(OFFSET, |h, b| (h ^ u64::from(b)).wrapping_mul(PRIME));
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
