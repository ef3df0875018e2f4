//! Weighted rendezvous: every syncer ranks the members of each slot alike, without talking.
//!
//! Each (slot, member) pair draws `u` in (0, 1) from their hash and scores `-weight / ln(u)`; the
//! highest scores are the candidates. A member that joins or leaves moves only its own share, and a
//! weight is a share exactly. (Thaler & Ravishankar 1998; weights after Schindelhauer & Schomaker
//! 2005.) Alternatives: a ring needs hundreds of points per member to be as even, and jump hash
//! cannot take out a member in the middle.

use std::collections::BTreeMap;

use sfu_api::{SLOTS, Slot, SyncerId};

use crate::registry::Member;
use sfu_api::stable_hash;

/// The members that may claim a slot, as indices into [`Ranking::members`].
pub type Candidates = [Option<u16>; 3];

/// The candidates of every slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranking {
    /// What the ranking was made of: id, zone, weight.
    pub members: Vec<(SyncerId, String, u32)>,
    slots: Vec<Candidates>,
}

/// Ranks the roster for every slot.
#[must_use]
pub fn rank(roster: &BTreeMap<SyncerId, Member>) -> Ranking {
    let members: Vec<_> = roster.values().map(|m| (m.id.clone(), m.zone.clone(), m.weight)).collect();
    let slots = (0..SLOTS).map(|slot| candidates(slot, &members)).collect();
    Ranking { members, slots }
}

// === impl Ranking ===

impl Ranking {
    /// Whether the ranking of this roster would be the same.
    #[must_use]
    pub fn is_of(&self, roster: &BTreeMap<SyncerId, Member>) -> bool {
        self.members.len() == roster.len()
            && self
                .members
                .iter()
                .zip(roster.values())
                .all(|((id, zone, weight), m)| *id == m.id && *zone == m.zone && *weight == m.weight)
    }

    /// The candidates of a slot, best first.
    pub fn candidates(&self, slot: Slot) -> impl Iterator<Item = &SyncerId> {
        let row = self.slots.get(usize::from(slot.get())).copied().unwrap_or_default();
        row.into_iter().flatten().filter_map(|i| self.members.get(usize::from(i)).map(|m| &m.0))
    }
}

fn candidates(slot: u16, members: &[(SyncerId, String, u32)]) -> Candidates {
    let mut order: Vec<(f64, u16)> = members
        .iter()
        .enumerate()
        .filter(|(_, m)| m.2 > 0)
        .map(|(i, m)| (score(slot, &m.0, m.2), u16::try_from(i).unwrap_or(u16::MAX)))
        .collect();
    // The id decides a tie, so that all agree; the roster is ordered by id.
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut order: Vec<u16> = order.into_iter().map(|(_, i)| i).collect();
    if let Some(&first) = order.first() {
        let zone_of = |i: u16| members.get(usize::from(i)).map(|m| m.1.as_str());
        if let Some(other) = order.iter().position(|&i| zone_of(i) != zone_of(first)) {
            order[1..=other].rotate_right(1);
        }
    }
    let mut row = Candidates::default();
    for (place, member) in row.iter_mut().zip(order) {
        *place = Some(member);
    }
    row
}

fn score(slot: u16, member: &SyncerId, weight: u32) -> f64 {
    let h = stable_hash(slot.to_le_bytes().into_iter().chain(member.as_str().bytes()));
    // 52 bits and a half step: never 0 and never 1.
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit an f64 exactly")]
    let u = ((h >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    -f64::from(weight) / u.ln()
}
