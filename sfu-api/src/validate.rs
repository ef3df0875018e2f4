//! Checks that types alone do not make: sizes, duplicates, the text of a hash.

use std::collections::HashSet;

use crate::{BATCH_OPERATIONS_MAX, Batch, DIGEST_ROOMS_MAX, Digest, SLOTS};

/// Largest request body an SFU must accept. The largest sensible one is a [`Digest`] that names
/// [`DIGEST_ROOMS_MAX`] rooms (at most ~300 bytes each with the longest ids) and a term for every
/// slot (~90 bytes each): 1.6 MB.
pub const REQUEST_BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Why a well-formed request still makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// A [`Batch`] without operations or with too many.
    #[error("operations must be 1 to {BATCH_OPERATIONS_MAX}, got {0}")]
    Operations(usize),
    /// A [`Digest`] that names too many rooms.
    #[error("named must be at most {DIGEST_ROOMS_MAX} rooms, got {0}")]
    Named(usize),
    /// A [`Digest`] that names one room twice.
    #[error("named holds {0} twice")]
    NamedTwice(String),
    /// A [`Digest`] with more terms than there are slots.
    #[error("terms must be at most {SLOTS}, got {0}")]
    Terms(usize),
    /// A [`Digest`] with two terms for one slot.
    #[error("terms hold slot {0} twice")]
    SlotTwice(u16),
    /// A [`Digest`] whose hash is not one.
    #[error("hash must be 1 to 16 hexadecimal digits, got {0:?}")]
    Hash(String),
}

/// A set hash as it is written in a [`Digest`]: 16 lower-case hexadecimal digits.
#[must_use]
pub fn room_set_hash_text(hash: u64) -> String {
    format!("{hash:016x}")
}

// === impl Batch ===

impl Batch {
    /// Checks the number of operations.
    ///
    /// # Errors
    ///
    /// When there are none or more than [`BATCH_OPERATIONS_MAX`].
    pub fn validate(&self) -> Result<(), ValidationError> {
        match self.operations.len() {
            1..=BATCH_OPERATIONS_MAX => Ok(()),
            n => Err(ValidationError::Operations(n)),
        }
    }
}

// === impl Digest ===

impl Digest {
    /// Checks sizes, duplicates and the hash.
    ///
    /// # Errors
    ///
    /// With the first thing that is wrong.
    pub fn validate(&self) -> Result<(), ValidationError> {
        if self.terms.len() > usize::from(SLOTS) {
            return Err(ValidationError::Terms(self.terms.len()));
        }
        let mut slots = HashSet::with_capacity(self.terms.len());
        if let Some(twice) = self.terms.iter().find(|claim| !slots.insert(claim.slot)) {
            return Err(ValidationError::SlotTwice(twice.slot.get()));
        }
        if self.set_hash().is_none() {
            return Err(ValidationError::Hash(self.hash.chars().take(32).collect()));
        }
        let named = self.named.as_deref().unwrap_or_default();
        if named.len() > DIGEST_ROOMS_MAX {
            return Err(ValidationError::Named(named.len()));
        }
        let mut rooms = HashSet::with_capacity(named.len());
        if let Some(twice) = named.iter().find(|r| !rooms.insert(&r.room)) {
            return Err(ValidationError::NamedTwice(twice.room.to_string()));
        }
        Ok(())
    }

    /// The hash as a number; `None` when its text is not 1 to 16 hexadecimal digits.
    #[must_use]
    pub fn set_hash(&self) -> Option<u64> {
        let digits = !self.hash.is_empty() && self.hash.len() <= 16 && self.hash.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(&self.hash, 16).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, OwnerTerm, RoomId, RoomRef, Slot, SlotTerm, SyncerId};

    fn digest() -> Digest {
        let syncer = SyncerId::new("s").expect("valid id");
        Digest { syncer, boot_id: None, terms: vec![], rooms: 0, hash: room_set_hash_text(0), named: None }
    }

    fn named(n: usize) -> Option<Vec<RoomRef>> {
        let room = |i| RoomRef { room: RoomId::new(format!("r{i}")).expect("valid id"), epoch: Epoch::default() };
        Some((0..n).map(room).collect())
    }

    #[test]
    fn hashes_are_hexadecimal() {
        for good in ["0", "00000000000000ff", "FFFFFFFFFFFFFFFF"] {
            assert_eq!(Digest { hash: good.into(), ..digest() }.validate(), Ok(()));
        }
        for bad in ["", "+1", "0x1", "g", "11112222333344445"] {
            assert!(Digest { hash: bad.into(), ..digest() }.validate().is_err(), "{bad}");
        }
        assert_eq!(Digest { hash: room_set_hash_text(u64::MAX), ..digest() }.set_hash(), Some(u64::MAX));
    }

    #[test]
    fn digests_are_bounded_and_free_of_duplicates() {
        assert_eq!(Digest { named: named(DIGEST_ROOMS_MAX), ..digest() }.validate(), Ok(()));
        let many = Digest { named: named(DIGEST_ROOMS_MAX + 1), ..digest() };
        assert_eq!(many.validate(), Err(ValidationError::Named(DIGEST_ROOMS_MAX + 1)));
        let mut twice = named(3).expect("some");
        twice.push(twice[1].clone());
        assert_eq!(Digest { named: Some(twice), ..digest() }.validate(), Err(ValidationError::NamedTwice("r1".into())));
        let claim = SlotTerm { slot: Slot::new(7).expect("below the limit"), term: OwnerTerm::default() };
        assert_eq!(Digest { terms: vec![claim, claim], ..digest() }.validate(), Err(ValidationError::SlotTwice(7)));
    }

    #[test]
    fn batches_have_one_to_256_operations() {
        assert_eq!(Batch { operations: vec![] }.validate(), Err(ValidationError::Operations(0)));
        let json = r#"{"do":"end","room":"r","slot":7,"owner_term":{"generation":1,"revision":2},
            "epoch":{"term":{"generation":1,"revision":2},"n":3},"op_id":"o","syncer":"s"}"#;
        let one: crate::BatchOperation = serde_json::from_str(json).expect("parses");
        assert_eq!(Batch { operations: vec![one.clone(); 256] }.validate(), Ok(()));
        assert_eq!(Batch { operations: vec![one; 257] }.validate(), Err(ValidationError::Operations(257)));
    }
}
