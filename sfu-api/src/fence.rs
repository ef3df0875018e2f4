//! Fencing tokens: which owner may write, and which placement of a call is the newest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::BootId;

/// Number of ownership slots a guild hashes to. Fixed for ever: it is part of every fence.
pub const SLOTS: u16 = 4096;

/// One of the [`SLOTS`] ownership units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
#[schema(value_type = u16, maximum = 4095)]
pub struct Slot(u16);

impl Slot {
    /// The slot with this number, or `None` when it is not below [`SLOTS`].
    #[must_use]
    pub const fn new(n: u16) -> Option<Self> {
        if n < SLOTS { Some(Self(n)) } else { None }
    }

    /// The slot's number, below [`SLOTS`].
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Slot {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u16::deserialize(d)?;
        Self::new(n).ok_or_else(|| serde::de::Error::custom(format_args!("slot must be below {SLOTS}, got {n}")))
    }
}

/// The term of a slot's owner: grows with every change of owner, for ever.
///
/// `generation` is raised when the registry itself is replaced (restored from a backup, say);
/// `revision` is that of the registry transaction that made the claim.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct OwnerTerm {
    /// Generation of the registry.
    pub generation: u64,
    /// Revision of the claim within the generation.
    pub revision: u64,
}

impl fmt::Display for OwnerTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.revision)
    }
}

/// The generation of a placement: the term of the owner that made it, then a counter of that owner.
///
/// Ordered: a later placement of the same call has the higher epoch, whoever made it. Written
/// `generation.revision.n` where text is wanted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Term of the owner that made the placement.
    pub term: OwnerTerm,
    /// Placement counter of the call under that owner.
    pub n: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.n)
    }
}

impl FromStr for Epoch {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        let mut parts = s.splitn(3, '.').map(|p| p.parse::<u64>().map_err(|_| ()));
        let mut next = || parts.next().unwrap_or(Err(()));
        Ok(Self { term: OwnerTerm { generation: next()?, revision: next()? }, n: next()? })
    }
}

/// What every mutation carries so that a stale writer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Fence {
    /// Slot of the call's guild.
    pub slot: Slot,
    /// The writer's term for that slot.
    pub owner_term: OwnerTerm,
    /// Epoch of the placement this mutation belongs to.
    pub epoch: Epoch,
    /// The incarnation the writer believes it talks to; absent on first contact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<BootId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_order_by_term_then_counter() {
        let e = |g, r, n| Epoch { term: OwnerTerm { generation: g, revision: r }, n };
        assert!(e(1, 1, 9) < e(1, 2, 1));
        assert!(e(1, 9, 9) < e(2, 1, 1));
        assert!(e(1, 1, 1) < e(1, 1, 2));
    }

    #[test]
    fn epoch_text_round_trips() {
        let e = Epoch { term: OwnerTerm { generation: 3, revision: 41 }, n: 7 };
        assert_eq!(e.to_string().parse(), Ok(e));
        assert_eq!("1.2".parse::<Epoch>(), Err(()));
        assert_eq!("1.2.x".parse::<Epoch>(), Err(()));
    }

    #[test]
    fn slots_are_bounded() {
        assert!(serde_json::from_str::<Slot>("4095").is_ok());
        assert!(serde_json::from_str::<Slot>("4096").is_err());
    }
}
