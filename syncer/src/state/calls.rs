//! The calls of a shard by number, in blocks.
//!
//! In one row, all calls of a shard would be copied under its lock each time the row is full: tens of megabytes at
//! once, and all pages of the copy new. So room is added a block at a time, and a call stays where it is.

use slab::Slab;

use super::Call;

/// Calls of a block: 64 KiB, which is nothing for a syncer with few calls and as much as is worth asking for at once.
const BLOCK: u32 = 256;
/// Bits of a number: 134 million calls of a shard would take 34 GB. What is above them is the index's, for which all bits of
/// 32 mean that there is none: the last block is never begun, so no number has all of its own.
pub(super) const NUMBER_BITS: u32 = 27;

/// The calls of a shard. Numbers are dense: one that was given back is given
/// again before there is a new one.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// None has, or will have, more than [`BLOCK`] calls.
    blocks: Vec<Slab<Call>>,
    /// The blocks with fewer; the last is filled first.
    open: Vec<u32>,
}

// === impl Calls ===

impl Calls {
    /// Takes a call in; returns its number.
    pub(super) fn insert(&mut self, call: Call) -> u32 {
        let at = self.open.last().copied().unwrap_or_else(|| {
            let new = u32::try_from(self.blocks.len()).ok().filter(|new| *new < (1 << NUMBER_BITS) / BLOCK - 1);
            let new = new.expect("a shard holds fewer than 2^27 calls: memory ends before");
            self.blocks.push(Slab::with_capacity(BLOCK as usize));
            self.open.push(new);
            new
        });
        let block = &mut self.blocks[at as usize];
        let within = block.insert(call);
        if block.len() == BLOCK as usize {
            self.open.pop();
        }
        at * BLOCK + u32::try_from(within).expect("below the length of a block")
    }

    /// The call with this number.
    pub(super) fn get(&self, number: u32) -> Option<&Call> {
        self.blocks.get((number / BLOCK) as usize)?.get((number % BLOCK) as usize)
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Call> {
        self.blocks.get_mut((number / BLOCK) as usize)?.get_mut((number % BLOCK) as usize)
    }

    /// Takes a call out.
    pub(super) fn remove(&mut self, number: u32) -> Option<Call> {
        let block = self.blocks.get_mut((number / BLOCK) as usize)?;
        let was_full = block.len() == BLOCK as usize;
        let removed = block.try_remove((number % BLOCK) as usize)?;
        if was_full {
            self.open.push(number / BLOCK);
        }
        Some(removed)
    }

    /// All calls with their numbers, lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Call)> {
        let first = (0u32..).step_by(BLOCK as usize);
        first.zip(&self.blocks).flat_map(|(first, block)| block.iter().map(move |(at, call)| (first + at as u32, call)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::mem::offset_of;

    use proptest::prelude::*;

    use super::*;

    /// What a slab keeps: a call, or where the next room is.
    #[expect(clippy::large_enum_variant, reason = "it is there for its size")]
    enum Entry {
        #[expect(dead_code, reason = "it is there for its size")]
        Free(usize),
        #[expect(dead_code, reason = "it is there for its size")]
        Taken(Call),
    }

    /// With its guild's entry and the indexes, the 2.6 participants of the largest service's calls stay below 200 bytes
    /// each.
    #[test]
    fn a_call_has_four_lines_of_the_cache_in_its_block_too() {
        assert_eq!((size_of::<Call>(), align_of::<Call>(), size_of::<Entry>()), (256, 128, 256));
        assert_eq!(
            [offset_of!(Call, participants), offset_of!(Call, placement), offset_of!(Call, awaiting_since)],
            [64, 128, 192]
        );
    }

    proptest! {
        /// They are a map from numbers, and no number is new while one of an earlier call is free.
        #[test]
        fn numbers_are_given_again(steps in prop::collection::vec((0u32..1_000, 0u32..700), 1..20)) {
            let (mut calls, mut model, mut generation, mut most) = (Calls::default(), BTreeMap::new(), 0, 0);
            for (in_all, remove) in steps {
                for _ in 0..in_all {
                    generation += 1;
                    let call = Call { generation, ..Call::named("g", "c") };
                    prop_assert_eq!(model.insert(calls.insert(call), generation), None);
                }
                most = most.max(model.len());
                let numbers: Vec<u32> = model.keys().copied().step_by(3).take(remove as usize).collect();
                for number in numbers {
                    prop_assert_eq!(calls.remove(number).map(|call| call.generation), model.remove(&number));
                    prop_assert!(calls.remove(number).is_none() && calls.get(number).is_none());
                }
                let kept = calls.iter().map(|(number, call)| (number, call.generation));
                prop_assert!(kept.eq(model.iter().map(|(number, generation)| (*number, *generation))));
                for (number, generation) in &model {
                    prop_assert_eq!(calls.get(*number).map(|call| call.generation), Some(*generation));
                    prop_assert_eq!(calls.get_mut(*number).map(|call| call.generation), Some(*generation));
                }
                prop_assert!(model.keys().all(|number| (*number as usize) < most));
            }
        }
    }
}
