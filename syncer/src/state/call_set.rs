//! Some of a shard's calls, packed.
//!
//! A gateway has sessions in every third call or in one of ten thousand, an SFU has its calls strewn over the
//! shard, and calls that begin in one moment are neighbours. A shard numbers its calls densely, so a set of
//! them is bits: a word for 32 neighbours, and none where no call is. With one call to a word that takes what
//! a set of keys would, with ten a tenth of it.
//!
//! Only numbers are kept. A call that goes is taken out of every set before its number is given again.

use std::collections::BTreeMap;

/// A set of calls by their numbers; with a `K`, in order of that first.
#[derive(Debug)]
pub(super) struct CallSet<K = ()> {
    words: BTreeMap<(K, u32), u32>,
    len: usize,
}

// === impl CallSet ===

impl<K: Ord + Copy> CallSet<K> {
    /// Puts a call in; says whether it was not there.
    pub(super) fn insert(&mut self, under: K, call: u32) -> bool {
        let word = self.words.entry((under, call / u32::BITS)).or_default();
        let new = *word & bit(call) == 0;
        *word |= bit(call);
        self.len += usize::from(new);
        new
    }

    /// Takes a call out; says whether it was there.
    pub(super) fn remove(&mut self, under: K, call: u32) -> bool {
        let at = (under, call / u32::BITS);
        let Some(word) = self.words.get_mut(&at) else { return false };
        let known = *word & bit(call) != 0;
        *word &= !bit(call);
        if *word == 0 {
            self.words.remove(&at);
        }
        self.len -= usize::from(known);
        known
    }

    /// Whether the call is in it.
    pub(super) fn contains(&self, under: K, call: u32) -> bool {
        self.words.get(&(under, call / u32::BITS)).is_some_and(|word| word & bit(call) != 0)
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
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        all(self.words.iter())
    }
}

impl CallSet {
    /// The calls in order, behind `after`.
    pub(super) fn behind(&self, after: Option<u32>) -> impl Iterator<Item = u32> + '_ {
        let from = after.map_or(0, |after| after / u32::BITS);
        let calls = all(self.words.range(((), from)..)).map(|(_, call)| call);
        calls.skip_while(move |call| after.is_some_and(|after| *call <= after))
    }
}

impl<K> Default for CallSet<K> {
    fn default() -> Self {
        Self { words: BTreeMap::new(), len: 0 }
    }
}

fn all<'a, K: Copy + 'a>(words: impl Iterator<Item = (&'a (K, u32), &'a u32)>) -> impl Iterator<Item = (K, u32)> {
    words.flat_map(|((under, number), word)| bits(*word).map(move |bit| (*under, number * u32::BITS + bit)))
}

const fn bit(call: u32) -> u32 {
    1 << (call % u32::BITS)
}

/// The bits that are set, from the lowest.
fn bits(mut word: u32) -> impl Iterator<Item = u32> {
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

    proptest! {
        #[test]
        fn it_is_a_set_in_order(
            steps in prop::collection::vec((any::<bool>(), 0u8..3, 0u32..200), 0..200),
            after in 0u32..200,
        ) {
            let (mut set, mut model) = (CallSet::default(), BTreeSet::new());
            for (put, under, call) in steps {
                if put {
                    prop_assert_eq!(set.insert(under, call), model.insert((under, call)));
                } else {
                    prop_assert_eq!(set.remove(under, call), model.remove(&(under, call)));
                }
                prop_assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(set.contains(under, call), put);
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert!(set.words.values().all(|word| *word != 0));
            let (mut alone, calls) = (CallSet::default(), model.iter().map(|(_, call)| *call).collect::<BTreeSet<_>>());
            for call in &calls {
                alone.insert((), *call);
            }
            prop_assert!(alone.behind(Some(after)).eq(calls.range(after + 1..).copied()));
        }
    }
}
