//! A set of a shard's calls, thin or dense.
//!
//! Joins and leaves change the sets of their gateways. A few hundred numbers in a row are cheap to change, and a
//! [`RoaringBitmap`] keeps them so; but up to 4,096 of them, of which half is moved each time. A gateway that has people in
//! many of a shard's calls gets a bit for each call instead, where a change is one word.

use std::borrow::Cow;
use std::ops::Bound;

use roaring::RoaringBitmap;

use super::line::{bit, bits};

/// Fewer calls are kept in a row: 2 KiB, half of which is moved in some 20 ns. In tests of call state a few calls are many.
const MANY: usize = if cfg!(test) { 8 } else { 1_024 };
/// Words of bits for each call at most: 16 bytes, where a row takes two.
const WORDS_MAX: usize = 2;
/// Bits are made where so many words for each call are enough.
const WORDS_MAX_AT_FIRST: usize = WORDS_MAX / 2;
/// Room is made for so many words at a time, which is for 1,024 calls.
const ROOM_STEP: usize = 16;

/// A set of calls, by number.
#[derive(Clone, Debug)]
pub(super) struct CallSet(Kept);

#[derive(Clone, Debug)]
enum Kept {
    Thin(RoaringBitmap),
    /// The last word has a bit.
    Dense {
        words: Vec<u64>,
        len: usize,
    },
}

// === impl CallSet ===

impl CallSet {
    /// No calls.
    pub(super) fn new() -> Self {
        Self(Kept::Thin(RoaringBitmap::new()))
    }

    /// How many calls are in it.
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            Kept::Thin(set) => count_of(set),
            Kept::Dense { len, .. } => *len,
        }
    }

    /// Whether none is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the call is in it.
    pub(super) fn contains(&self, call: u32) -> bool {
        match &self.0 {
            Kept::Thin(set) => set.contains(call),
            Kept::Dense { words, .. } => words.get(word_of(call)).is_some_and(|word| word & bit(call) != 0),
        }
    }

    /// Reads where a call's bit is, so that it is at hand.
    pub(super) fn touch(&self, call: u32) -> u8 {
        match &self.0 {
            Kept::Thin(_) => 0,
            Kept::Dense { words, .. } => words.get(word_of(call)).map_or(0, |word| word.to_le_bytes()[0]),
        }
    }

    /// Puts a call in.
    pub(super) fn insert(&mut self, call: u32) {
        match &mut self.0 {
            Kept::Thin(set) => {
                if set.insert(call) && count_of(set) >= MANY {
                    self.thicken();
                }
            }
            Kept::Dense { words, len } => {
                let at = word_of(call);
                if at >= words.len() {
                    if at >= WORDS_MAX * (*len + 1) {
                        self.thin_out();
                        return self.insert(call);
                    }
                    words.reserve_exact((at + 1).next_multiple_of(ROOM_STEP) - words.len());
                    words.resize(at + 1, 0);
                }
                *len += usize::from(words[at] & bit(call) == 0);
                words[at] |= bit(call);
            }
        }
    }

    /// Takes a call out.
    pub(super) fn remove(&mut self, call: u32) {
        match &mut self.0 {
            Kept::Thin(set) => {
                set.remove(call);
            }
            Kept::Dense { words, len } => {
                let Some(word) = words.get_mut(word_of(call)) else { return };
                *len -= usize::from(*word & bit(call) != 0);
                *word &= !bit(call);
                words.truncate(words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1));
                words.shrink_to(words.len().next_multiple_of(ROOM_STEP));
                if *len < MANY / 2 || words.len() > WORDS_MAX * *len {
                    self.thin_out();
                }
            }
        }
    }

    /// The calls in order, behind `after`.
    pub(super) fn behind(&self, after: Option<u32>) -> impl Iterator<Item = u32> + '_ {
        let (thin, words): (_, &[u64]) = match &self.0 {
            Kept::Thin(set) => (Some(set), &[]),
            Kept::Dense { words, .. } => (None, words),
        };
        let first = after.map_or(0, word_of).min(words.len());
        let dense = words[first..].iter().zip(first as u32..); // numbers are 32 bits, and a word has 64 of them
        let dense = dense.flat_map(|(word, at)| bits(*word).map(move |bit| at * u64::BITS + bit));
        let dense = dense.skip_while(move |call| after.is_some_and(|after| *call <= after));
        thin.into_iter().flat_map(move |set| behind(set, after)).chain(dense)
    }

    /// The same as a set that others can be united with; of bits it is a copy.
    pub(super) fn thin(&self) -> Cow<'_, RoaringBitmap> {
        match &self.0 {
            Kept::Thin(set) => Cow::Borrowed(set),
            Kept::Dense { words, .. } => Cow::Owned(thinned(words)),
        }
    }

    /// Whether it has as many calls as it says (for the invariants).
    pub(super) fn is_counted(&self) -> bool {
        match &self.0 {
            Kept::Thin(_) => true,
            Kept::Dense { words, len } => words.iter().map(|word| word.count_ones() as usize).sum::<usize>() == *len,
        }
    }

    /// Takes bits from now on, if that is not too much room.
    fn thicken(&mut self) {
        let Kept::Thin(set) = &self.0 else { return };
        let (len, most) = (count_of(set), set.max().map_or(0, word_of));
        if most >= len * WORDS_MAX_AT_FIRST {
            return;
        }
        let mut words = Vec::with_capacity((most + 1).next_multiple_of(ROOM_STEP));
        words.resize(most + 1, 0);
        set.iter().for_each(|call| words[word_of(call)] |= bit(call));
        self.0 = Kept::Dense { words, len };
    }

    fn thin_out(&mut self) {
        if let Kept::Dense { words, .. } = &self.0 {
            self.0 = Kept::Thin(thinned(words));
        }
    }
}

/// The calls of a set in order, behind `after`.
pub(super) fn behind(calls: &RoaringBitmap, after: Option<u32>) -> impl Iterator<Item = u32> + '_ {
    calls.range((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))
}

/// How many calls are in a set.
pub(super) fn count_of(calls: &RoaringBitmap) -> usize {
    calls.len() as usize
}

const fn word_of(call: u32) -> usize {
    (call / u64::BITS) as usize
}

fn thinned(words: &[u64]) -> RoaringBitmap {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    RoaringBitmap::from_lsb0_bytes(0, &bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Neighbours that come and go, and a few that are far away; from the first or from the last.
    fn steps() -> impl Strategy<Value = Vec<(bool, bool, u32, u32)>> {
        let from = prop_oneof![4 => 0u32..5_000, 1 => 60_000u32..200_000];
        prop::collection::vec((any::<bool>(), any::<bool>(), from, 1u32..2_000), 1..30)
    }

    proptest! {
        /// Thin or dense, it is a set in order, and takes no more than 16 bytes for a call and a little room.
        #[test]
        fn it_is_a_set_in_order(steps in steps(), after in prop::option::of(0u32..6_000)) {
            let (mut set, mut model) = (CallSet::new(), BTreeSet::new());
            for (put, backwards, from, calls) in steps {
                let mut grew = false;
                for nth in (0..calls).step_by(2) {
                    let call = from + if backwards { calls - nth } else { nth };
                    if put {
                        set.insert(call);
                        grew |= model.insert(call);
                    } else {
                        set.remove(call);
                        model.remove(&call);
                    }
                    prop_assert_eq!(set.contains(call), put);
                }
                prop_assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(set.thin().iter().eq(model.iter().copied()));
                let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
                prop_assert!(set.behind(after).eq(model.range(behind).copied()));
                match &set.0 {
                    Kept::Dense { words, len } => {
                        prop_assert!(*len >= MANY / 2 && words.len() <= WORDS_MAX * len);
                        prop_assert!(words.capacity() <= words.len().next_multiple_of(ROOM_STEP));
                        prop_assert!(words.last().is_some_and(|last| *last != 0) && set.is_counted());
                    }
                    // Whether they are near enough is asked as one more comes, not as those far away go.
                    Kept::Thin(_) => {
                        let words = model.last().map_or(0, |last| word_of(*last) + 1);
                        let far = words > model.len() * WORDS_MAX_AT_FIRST;
                        prop_assert!(!grew || model.len() < MANY || far, "many and near");
                    }
                }
            }
        }
    }
}
