//! Which slots this syncer may serve.

use foldhash::HashMap;
use sfu_api::{OwnerTerm, Slot};

/// The slots that this syncer owns and its term for each. Every write asks, and whatever else is read meanwhile
/// must leave it at hand: so it holds those of the shard and no more, some kilobytes.
#[derive(Clone, Debug, Default)]
pub struct Terms(HashMap<Slot, OwnerTerm>);

// === impl Terms ===

impl Terms {
    /// Our term for `slot`, if we own it.
    #[must_use]
    pub fn of(&self, slot: Slot) -> Option<OwnerTerm> {
        self.0.get(&slot).copied()
    }
}

impl FromIterator<(Slot, OwnerTerm)> for Terms {
    fn from_iter<T: IntoIterator<Item = (Slot, OwnerTerm)>>(owned: T) -> Self {
        Self(owned.into_iter().collect())
    }
}
