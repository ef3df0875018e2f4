//! The registry in memory: for one machine, or for syncers listed in a file.
//!
//! Several syncers of one process may share one (`trunkline dev`). Syncers in processes of their
//! own each keep one and list each other in a file; every slot has the same first candidate in all
//! of them, so no two claim the same slot.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use sfu_api::{OwnerTerm, Slot, SyncerId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::store::Store;
use super::{
    Answer, CLAIM_SLOTS_MAX, Claim, LEASE_TTL, MEMBERS_MAX, Member, Registry, RegistryError, SlotRecord, Snapshot,
    StoreError,
};
use crate::drivers::SfuSpec;

/// The registry in memory.
#[derive(Debug)]
pub struct Embedded {
    state: Mutex<State>,
    snapshot: watch::Sender<Arc<Snapshot>>,
}

#[derive(Debug)]
struct State {
    store: Store,
    changes: u64,
    members: BTreeMap<SyncerId, Entry>,
    slots: Vec<Option<SlotRecord>>,
    sfus: Arc<[SfuSpec]>,
}

#[derive(Debug)]
struct Entry {
    member: Member,
    /// Its weight in the list of static members, when it is in it: the operator's word on its share.
    listed: Option<u32>,
    /// When its lease runs out; `None` when it never announced itself here.
    lease_until: Option<Instant>,
}

// === impl Embedded ===

impl Embedded {
    /// A registry that is forgotten with the process.
    #[must_use]
    pub fn in_memory() -> Arc<Self> {
        Arc::new(Self::with(Store::forgetful()))
    }

    /// A registry whose terms continue above those of earlier runs.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written or its file is damaged.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new(Self::with(Store::open(dir)?)))
    }

    fn with(store: Store) -> Self {
        let first = Snapshot::default();
        let state = State {
            store,
            changes: 0,
            members: BTreeMap::new(),
            slots: first.slots.to_vec(),
            sfus: Arc::clone(&first.sfus),
        };
        Self { state: Mutex::new(state), snapshot: watch::Sender::new(Arc::new(first)) }
    }

    /// Applies a change; publishes the new snapshot when `change` says that something changed.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<(T, bool), RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut state = self.state.lock();
        let (value, changed) = change(&mut state)?;
        if changed {
            state.changes += 1;
            // Under the lock, so that snapshots are published in order.
            self.snapshot.send_replace(Arc::new(state.snapshot()));
        }
        Ok(value)
    }
}

impl State {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.changes,
            roster: self.members.iter().map(|(id, e)| (id.clone(), e.member.clone())).collect(),
            slots: self.slots.as_slice().into(),
            sfus: Arc::clone(&self.sfus),
        }
    }

    /// Marks members whose lease ran out; says whether any changed.
    fn expire(&mut self, now: Instant) -> bool {
        let mut changed = false;
        for entry in self.members.values_mut() {
            let live = entry.lease_until.is_none_or(|until| now < until);
            changed |= live != entry.member.live;
            entry.member.live = live;
        }
        changed
    }

    fn record(&mut self, slot: Slot) -> &mut Option<SlotRecord> {
        &mut self.slots[usize::from(slot.get())]
    }

    fn announce(&mut self, mut member: Member, now: Instant) -> Result<bool, RegistryError> {
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&member.id) {
            return Err(RegistryError::TooMany { what: "members", limit: MEMBERS_MAX });
        }
        (member.live, member.listed_only) = (true, false);
        let id = member.id.clone();
        let listed = self.members.get(&id).and_then(|e| e.listed);
        // Otherwise slots would move, and calls with them, when the list is read again.
        member.weight = listed.unwrap_or(member.weight);
        let entry = Entry { member: member.clone(), listed, lease_until: Some(now + LEASE_TTL) };
        let before = self.members.insert(id, entry);
        Ok(self.expire(now) || before.is_none_or(|b| b.member != member))
    }

    /// Takes over the list; says whether any member changed.
    fn list(&mut self, members: Vec<Member>) -> Result<bool, RegistryError> {
        if members.len() > MEMBERS_MAX {
            return Err(RegistryError::TooMany { what: "members", limit: MEMBERS_MAX });
        }
        let roster = |s: &Self| s.members.values().map(|e| e.member.clone()).collect::<Vec<_>>();
        let before = roster(self);
        for entry in self.members.values_mut() {
            entry.listed = None;
        }
        for mut member in members {
            let entry = self.members.entry(member.id.clone()).or_insert_with(|| {
                (member.live, member.listed_only) = (true, true);
                Entry { member: member.clone(), listed: None, lease_until: None }
            });
            entry.listed = Some(member.weight);
            if entry.lease_until.is_none() {
                entry.member = Member { live: true, listed_only: true, ..member };
            } else {
                // What it announced of itself stands; its share is the operator's to set.
                entry.member.weight = member.weight;
            }
        }
        self.members.retain(|_, e| e.listed.is_some() || e.lease_until.is_some());
        Ok(before != roster(self))
    }

    fn claim(&mut self, owner: &SyncerId, claims: &[Claim]) -> Result<OwnerTerm, RegistryError> {
        if claims.len() > CLAIM_SLOTS_MAX {
            return Err(RegistryError::TooMany { what: "slots in a claim", limit: CLAIM_SLOTS_MAX });
        }
        if !self.members.contains_key(owner) {
            return Err(RegistryError::NotAMember(owner.clone()));
        }
        for claim in claims {
            let record = self.record(claim.slot);
            if record.as_ref().map(|r| r.term) != claim.expected {
                let Some(record) = record.clone() else {
                    // Expected a record, found none: expect none the next time.
                    let gone = SlotRecord { owner: owner.clone(), standby: None, term: OwnerTerm::default() };
                    return Err(RegistryError::Conflict { slot: claim.slot, record: Box::new(gone) });
                };
                return Err(RegistryError::Conflict { slot: claim.slot, record: Box::new(record) });
            }
        }
        let revision = self.store.next()?;
        let term = OwnerTerm { generation: self.store.generation, revision };
        for claim in claims {
            *self.record(claim.slot) = Some(SlotRecord { owner: owner.clone(), standby: None, term });
        }
        Ok(term)
    }

    fn release(&mut self, owner: &SyncerId, held: &[(Slot, OwnerTerm)]) -> bool {
        let mut changed = false;
        for (slot, term) in held {
            let record = self.record(*slot);
            if record.as_ref().is_some_and(|r| r.owner == *owner && r.term == *term) {
                *record = None;
                changed = true;
            }
        }
        changed
    }
}

/// In memory every answer is ready at once.
fn ready<'a, T: Send + 'a>(result: Result<T, RegistryError>) -> Answer<'a, T> {
    std::future::ready(result).boxed()
}

impl Registry for Embedded {
    fn announce(&self, member: Member, now: Instant) -> Answer<'_, ()> {
        ready(self.change(|s| Ok(((), s.announce(member, now)?))))
    }

    fn renew<'a>(&'a self, id: &'a SyncerId, now: Instant) -> Answer<'a, ()> {
        ready(self.change(|s| {
            let entry = s.members.get_mut(id).ok_or_else(|| RegistryError::NotAMember(id.clone()))?;
            entry.lease_until = Some(now + LEASE_TTL);
            Ok(((), s.expire(now)))
        }))
    }

    fn remove<'a>(&'a self, id: &'a SyncerId) -> Answer<'a, ()> {
        ready(self.change(|s| Ok(((), s.members.remove(id).is_some()))))
    }

    fn claim<'a>(&'a self, owner: &'a SyncerId, claims: &'a [Claim]) -> Answer<'a, OwnerTerm> {
        ready(self.change(|s| Ok((s.claim(owner, claims)?, true))))
    }

    fn release<'a>(&'a self, owner: &'a SyncerId, held: &'a [(Slot, OwnerTerm)]) -> Answer<'a, ()> {
        ready(self.change(|s| Ok(((), s.release(owner, held)))))
    }

    fn resume_above(&self, seen: OwnerTerm) -> Answer<'_, ()> {
        ready(self.change(|s| Ok((s.store.resume_above(seen.generation, seen.revision)?, false))))
    }

    fn list_members(&self, members: Vec<Member>) -> Answer<'_, ()> {
        ready(self.change(|s| Ok(((), s.list(members)?))))
    }

    fn put_sfus(&self, sfus: Vec<SfuSpec>) -> Answer<'_, ()> {
        ready(self.change(|s| {
            let changed = *s.sfus != *sfus;
            s.sfus = sfus.into();
            Ok(((), changed))
        }))
    }

    fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }
}
