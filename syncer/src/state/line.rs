//! Some of a shard's calls, in order of their ranks.
//!
//! Calls that begin in one moment are neighbours: a shard numbers them densely. So those of one [tick](Tick) are
//! bits, a word for 64 neighbours, and none where no call is. With one call to a word that takes what a set of
//! keys would, with many a fraction of it; and as tick and word are one number, looking for a word compares one.
//!
//! Only numbers are kept. A call that goes is taken out of every line before its number is given again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Ranks are told apart to this: a fiftieth of what twice the size is worth. Calls of one tick stand in the order of
/// their numbers.
pub(super) const TICK_MS: u64 = 8;

/// A rank, in ticks since a moment that the whole set has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub(super) u64);

/// Bits of a key that tell which word of a tick it is: the numbers are 32 bits, and six of them tell the bit. What is
/// left of the key counts ticks of ten years and more.
const WORD_BITS: u32 = u32::BITS - u64::BITS.ilog2();

/// Calls by rank.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// By tick, and by word within it.
    words: BTreeMap<u64, u64>,
    len: usize,
}

// === impl Line ===

impl Line {
    /// Puts a call in; says whether it was not there.
    pub(super) fn insert(&mut self, tick: Tick, call: u32) -> bool {
        let word = self.words.entry(key(tick, call)).or_default();
        let new = *word & bit(call) == 0;
        *word |= bit(call);
        self.len += usize::from(new);
        new
    }

    /// Takes a call out; says whether it was there.
    pub(super) fn remove(&mut self, tick: Tick, call: u32) -> bool {
        let Entry::Occupied(mut word) = self.words.entry(key(tick, call)) else { return false };
        let known = *word.get() & bit(call) != 0;
        *word.get_mut() &= !bit(call);
        if *word.get() == 0 {
            word.remove();
        }
        self.len -= usize::from(known);
        known
    }

    /// Whether the call is in it.
    pub(super) fn contains(&self, tick: Tick, call: u32) -> bool {
        self.words.get(&key(tick, call)).is_some_and(|word| word & bit(call) != 0)
    }

    /// How many calls are in it.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether none is in it.
    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The calls in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Tick, u32)> + '_ {
        self.words.iter().flat_map(|(key, word)| {
            let first = (key & ((1 << WORD_BITS) - 1)) as u32 * u64::BITS; // truncates nothing: 26 bits are left
            bits(*word).map(move |bit| (Tick(key >> WORD_BITS), first + bit))
        })
    }
}

fn key(Tick(tick): Tick, call: u32) -> u64 {
    tick << WORD_BITS | u64::from(call / u64::BITS)
}

/// The bit of a call in its word.
pub(super) const fn bit(call: u32) -> u64 {
    1 << (call % u64::BITS)
}

/// The bits that are set, from the lowest.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros());
        word &= word.wrapping_sub(1);
        bit
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The last ranks and numbers there are, and others.
    fn anywhere() -> impl Strategy<Value = (Tick, u32)> {
        const LAST: u64 = (1 << (u64::BITS - WORD_BITS)) - 1;
        let ticks = prop_oneof![0u64..3, (LAST - 1)..=LAST];
        (ticks.prop_map(Tick), prop_oneof![0u32..200, (u32::MAX - 70)..=u32::MAX])
    }

    proptest! {
        #[test]
        fn it_is_a_set_in_order(steps in prop::collection::vec((any::<bool>(), anywhere()), 0..200)) {
            let (mut line, mut model) = (Line::default(), BTreeSet::new());
            for (put, (tick, call)) in steps {
                if put {
                    prop_assert_eq!(line.insert(tick, call), model.insert((tick, call)));
                } else {
                    prop_assert_eq!(line.remove(tick, call), model.remove(&(tick, call)));
                }
                prop_assert_eq!((line.len(), line.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(line.contains(tick, call), put);
            }
            prop_assert!(line.iter().eq(model.iter().copied()));
            prop_assert!(line.words.values().all(|word| *word != 0));
        }
    }
}
