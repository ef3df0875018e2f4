//! Digests: what a syncer believes, compared with what is here.

use rustc_hash::FxHashMap;
use sfu_api::{DIGEST_ROOMS_MAX, Differences, Digest, DigestAnswer, ErrorCode, SlotTerm, room_set_hash};

use super::{Now, Refusal, Rooms};

impl Rooms {
    /// `POST /v1/digest`. The digest was validated.
    ///
    /// Takes all its terms or, when one of them is below the highest seen, none. Rooms it names are
    /// wanted from now on; a matching count and hash names all rooms of the syncer.
    pub(crate) fn digest(&mut self, digest: &Digest, now: Now) -> Result<DigestAnswer, Refusal> {
        self.check_boot(digest.boot_id.as_ref())?;
        let higher = |claim: &SlotTerm| self.holders.get(&claim.slot).filter(|holder| claim.term < holder.term);
        let fenced = digest.terms.iter().filter_map(|claim| Some(SlotTerm { term: higher(claim)?.term, ..*claim }));
        if let Some(refusal) = Refusal::fenced_among(fenced.collect()) {
            return Err(refusal);
        }
        let expected =
            digest.set_hash().ok_or_else(|| Refusal::new(ErrorCode::Invalid, "hash must be 1 to 16 hex digits"))?;
        for claim in &digest.terms {
            self.take_term(claim.slot, claim.term, &digest.syncer);
        }
        let mine = || self.rooms.iter().filter(|(_, room)| self.is_held_by(room.slot, &digest.syncer));
        let count = mine().count();
        let matches = u32::try_from(count) == Ok(digest.rooms)
            && room_set_hash(mine().map(|(id, room)| (id, room.epoch))) == expected;
        let differences = digest.named.as_ref().map(|named| {
            let named: FxHashMap<_, _> = named.iter().map(|r| (&r.room, r.epoch)).collect();
            let held_at = |room| self.epoch_of(room);
            let mut missing: Vec<_> =
                named.iter().filter(|&(&id, &epoch)| held_at(id) != Some(epoch)).map(|(&id, _)| id.clone()).collect();
            missing.sort_unstable();
            let unnamed = mine().filter(|(id, _)| !named.contains_key(id));
            let surplus = unnamed.map(|(id, room)| room.state(id)).take(DIGEST_ROOMS_MAX).collect();
            Differences { missing, surplus }
        });
        self.mark_wanted(digest, matches, now);
        Ok(DigestAnswer { matches, differences, boot_id: self.boot_id().clone(), load: self.load(now) })
    }

    fn mark_wanted(&mut self, digest: &Digest, matches: bool, now: Now) {
        let Self { rooms, holders, .. } = self;
        if matches {
            let mine = |slot| holders.get(&slot).is_some_and(|holder| holder.syncer == digest.syncer);
            for room in rooms.values_mut().filter(|room| mine(room.slot)) {
                room.wanted_at = now.instant;
            }
        }
        for named in digest.named.iter().flatten() {
            if let Some(room) = rooms.get_mut(&named.room) {
                room.wanted_at = now.instant;
            }
        }
    }
}
