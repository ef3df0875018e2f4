//! Which slots this syncer may serve.

use sfu_api::{OwnerTerm, SLOTS, Slot};

/// The slots that this syncer owns and its term for each. Every write asks, so it is one read: 24 bytes for
/// each slot there is.
#[derive(Clone, Debug, Default)]
pub struct Terms(Box<[Option<OwnerTerm>]>);

// === impl Terms ===

impl Terms {
    /// Our term for `slot`, if we own it.
    #[must_use]
    pub fn of(&self, slot: Slot) -> Option<OwnerTerm> {
        self.0.get(usize::from(slot.get())).copied().flatten()
    }
}

impl FromIterator<(Slot, OwnerTerm)> for Terms {
    fn from_iter<T: IntoIterator<Item = (Slot, OwnerTerm)>>(owned: T) -> Self {
        let mut terms = vec![None; usize::from(SLOTS)];
        for (slot, term) in owned {
            terms[usize::from(slot.get())] = Some(term);
        }
        Self(terms.into())
    }
}
