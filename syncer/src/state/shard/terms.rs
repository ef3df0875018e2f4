//! Which slots this syncer may serve.

use foldhash::HashMap;
use sfu_api::{OwnerTerm, SLOTS, Slot};

/// A bit for every slot.
const WORDS: usize = SLOTS as usize / u64::BITS as usize;

/// The slots that this syncer owns and its term for each. Every write asks whether a slot is among them, and what
/// else is read meanwhile must leave the answer at hand: so it is a bit, and half a kilobyte for all slots.
#[derive(Clone, Debug)]
pub struct Terms {
    owned: [u64; WORDS],
    terms: HashMap<Slot, OwnerTerm>,
}

// === impl Terms ===

impl Terms {
    /// Our term for `slot`, if we own it.
    #[must_use]
    pub fn of(&self, slot: Slot) -> Option<OwnerTerm> {
        self.terms.get(&slot).copied()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<(Slot, OwnerTerm)> {
        self.terms.iter().map(|(slot, term)| (*slot, *term)).collect()
    }

    /// Whether we own `slot`.
    #[must_use]
    pub fn has(&self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        self.owned[word] & bit != 0
    }
}

impl FromIterator<(Slot, OwnerTerm)> for Terms {
    fn from_iter<T: IntoIterator<Item = (Slot, OwnerTerm)>>(owned: T) -> Self {
        let mut all = Self { terms: owned.into_iter().collect(), ..Self::default() };
        for slot in all.terms.keys() {
            let (word, bit) = place(*slot);
            all.owned[word] |= bit;
        }
        all
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { owned: [0; WORDS], terms: HashMap::default() }
    }
}

fn place(slot: Slot) -> (usize, u64) {
    let n = usize::from(slot.get());
    (n / u64::BITS as usize, 1 << (n % u64::BITS as usize))
}
