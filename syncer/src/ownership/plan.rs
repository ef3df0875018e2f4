//! What to claim, keep and let go: a pure function of the snapshot and the ranking.

use std::collections::BTreeMap;
use std::time::Duration;

use sfu_api::{OwnerTerm, SLOTS, Slot, SyncerId};
use tokio::time::Instant;

use super::Ranking;
use crate::registry::{Claim, Snapshot};

/// Terms that this process claimed itself. A record of an earlier process of the same name is not
/// enough to serve: what that one still has in flight must be fenced first.
pub type Held = BTreeMap<Slot, OwnerTerm>;

/// What to do about the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ours by rank, and free to take.
    pub claim: Vec<Claim>,
    /// Held by us, now ranked to a member that keeps its own registry and cannot ask for it.
    pub release: Vec<(Slot, OwnerTerm)>,
    /// Ours to serve.
    pub owned: Vec<(Slot, OwnerTerm)>,
}

// === impl Plan ===

impl Plan {
    /// Plans for `me`. A slot whose term is not above that of `fences` (an SFU has seen it) is claimed
    /// again; until then it is still served under the old one, so that its calls are not forgotten.
    #[must_use]
    pub fn make(snapshot: &Snapshot, ranking: &Ranking, me: &SyncerId, held: &Held, fences: &Held) -> Self {
        let mut plan = Self::default();
        if !snapshot.roster.contains_key(me) {
            return plan;
        }
        for slot in (0..SLOTS).filter_map(Slot::new) {
            let Some(first) = ranking.candidates(slot).next() else { continue };
            let elsewhere = snapshot.roster.get(first).is_some_and(|m| m.listed_only);
            match snapshot.slot(slot) {
                Some(record) if record.owner == *me => {
                    if first != me && elsewhere {
                        plan.release.push((slot, record.term));
                        continue;
                    }
                    let ours = held.get(&slot) == Some(&record.term);
                    if ours {
                        plan.owned.push((slot, record.term));
                    }
                    if !ours || fences.get(&slot).is_some_and(|seen| record.term <= *seen) {
                        plan.claim.push(Claim { slot, expected: Some(record.term) });
                    }
                }
                // Another's record stands while that one is in the roster, dead or alive.
                Some(record) if snapshot.roster.contains_key(&record.owner) => {}
                Some(record) if first == me => plan.claim.push(Claim { slot, expected: Some(record.term) }),
                None if first == me => plan.claim.push(Claim { slot, expected: None }),
                _ => {}
            }
        }
        plan
    }
}

/// How many members share the fleet's limits: more at once, fewer only when the missing one's
/// lease would have run out everywhere (R9). Views of different syncers differ for that long, and
/// meanwhile the sum of the shares must not exceed the limit.
#[derive(Clone, Copy, Debug)]
pub struct ReadyCount {
    shown: u32,
    fewer_since: Option<Instant>,
    settle: Duration,
}

// === impl ReadyCount ===

impl ReadyCount {
    /// Starts at one member; `settle` is the time a lower count must hold.
    #[must_use]
    pub const fn new(settle: Duration) -> Self {
        Self { shown: 1, fewer_since: None, settle }
    }

    /// Takes the present count and answers the one to use.
    pub fn update(&mut self, ready: u32, now: Instant) -> u32 {
        if ready >= self.shown {
            (self.shown, self.fewer_since) = (ready, None);
        } else {
            let since = *self.fewer_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= self.settle {
                (self.shown, self.fewer_since) = (ready, None);
            }
        }
        self.shown
    }
}
