//! Who owns which slot, as far as this syncer knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use sfu_api::{GuildId, SLOTS, Slot, SyncerId};

use super::{Ranking, slot_of};
use crate::registry::Snapshot;

/// A slot's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub id: SyncerId,
    /// Where its API is.
    pub url: Arc<str>,
    /// Whether it is this syncer.
    pub me: bool,
}

/// Who owns which slot, as far as this syncer knows.
#[derive(Clone, Debug, Default)]
pub struct View {
    owners: Vec<Arc<Owner>>,
    slots: Vec<Option<u16>>,
}

// === impl View ===

impl View {
    /// From the records; where there is none, whoever is ranked first.
    #[must_use]
    pub fn new(snapshot: &Snapshot, ranking: &Ranking, me: &SyncerId) -> Self {
        let owners: Vec<_> = snapshot
            .roster
            .values()
            .map(|m| Arc::new(Owner { id: m.id.clone(), url: Arc::clone(&m.url), me: m.id == *me }))
            .collect();
        let index = |id: &SyncerId| {
            let at = owners.binary_search_by(|o| o.id.cmp(id)).ok()?;
            u16::try_from(at).ok()
        };
        let slots = (0..SLOTS)
            .map(|n| {
                let slot = Slot::new(n)?;
                let recorded = snapshot.slot(slot).and_then(|r| index(&r.owner));
                recorded.or_else(|| ranking.candidates(slot).next().and_then(&index))
            })
            .collect();
        Self { owners, slots }
    }

    /// The owner of a slot; `None` while the roster is empty.
    #[must_use]
    pub fn owner(&self, slot: Slot) -> Option<&Arc<Owner>> {
        let at = (*self.slots.get(usize::from(slot.get()))?)?;
        self.owners.get(usize::from(at))
    }

    /// The owner of a guild.
    #[must_use]
    pub fn owner_of(&self, guild: &GuildId) -> Option<&Arc<Owner>> {
        self.owner(slot_of(guild))
    }

    /// How many slots each member has.
    #[must_use]
    pub fn slot_counts(&self) -> BTreeMap<SyncerId, u32> {
        let mut counts = BTreeMap::new();
        for owner in self.slots.iter().flatten().filter_map(|at| self.owners.get(usize::from(*at))) {
            *counts.entry(owner.id.clone()).or_default() += 1;
        }
        counts
    }

    /// All other members.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Owner>> {
        self.owners.iter().filter(|o| !o.me)
    }
}
