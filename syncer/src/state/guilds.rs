//! Which calls a guild has, and which of them has a name.
//!
//! Tables hold numbers of calls and repeat no name: what a number is called is said by the call itself. With half a
//! million guilds their names would be most of a table. Almost every guild has a handful of calls, so a call is looked
//! for among those of its guild, and only guilds with many have a table of names: finding a call reads a few words and at
//! most four calls, whatever else its guild has.

use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use sfu_api::{CallId, GuildId, Slot};
use smallvec::SmallVec;

use super::Call;
use super::calls::Calls;

/// Calls of a guild that are looked through one by one. They stand in the table itself, where most guilds have one or
/// two.
const FEW_MAX: usize = 4;
/// A guild that shrank to this has few again; half of it, so that a guild on the edge does not flap.
const FEW_AGAIN: usize = FEW_MAX / 2;

/// The calls of a guild, in no order and never none. Many are kept elsewhere (it has spilled), and by name too.
type Numbers = SmallVec<[u32; FEW_MAX]>;

/// The calls of each guild. What is kept stands under a hash that it carries along: a table that grows would otherwise
/// read every call again.
#[derive(Debug, Default)]
pub(super) struct Guilds {
    guilds: HashTable<(Mark, Numbers)>,
    /// The calls of guilds with many, by name.
    names: HashTable<(Mark, u32)>,
    hasher: RandomState,
}

/// Half of a hash: enough to tell one in billions, and half as much to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u32);

/// A guild as its shard looks for it. Of use there alone, since every shard hashes by a seed of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    slot: Slot,
    pub(super) hash: u64,
}

// === impl Mark ===

impl Mark {
    pub(super) const fn of(hash: u64) -> Self {
        Self((hash >> 32) as u32) // truncates nothing: half is left
    }

    /// A whole hash again. Tables take the place of an entry from the lower bits and tell entries apart by
    /// the upper ones, so both halves are what is known.
    pub(super) const fn spread(self) -> u64 {
        (self.0 as u64) << 32 | self.0 as u64
    }
}

// === impl Named ===

impl Named {
    pub(super) const fn new(slot: Slot, hash: u64) -> Self {
        Self { slot, hash }
    }

    /// The guild's slot.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }
}

// === impl Guilds ===

impl Guilds {
    /// What a guild is found by.
    pub(super) fn hash(&self, guild: &GuildId) -> u64 {
        self.hasher.hash_one(guild)
    }

    /// The number of a call, and how many calls its guild has.
    pub(super) fn find(&self, calls: &Calls, hash: u64, guild: &GuildId, id: &CallId) -> (Option<u32>, usize) {
        let Some(numbers) = self.numbers(calls, hash, guild) else { return (None, 0) };
        let found = if numbers.spilled() {
            let mark = name(&self.hasher, hash, id);
            let is_it = |(kept, number): &(Mark, u32)| {
                *kept == mark && {
                    let call = of(calls, *number);
                    call.id == *id && call.guild == *guild
                }
            };
            self.names.find(mark.spread(), is_it).map(|(_, number)| *number)
        } else {
            numbers.iter().copied().find(|number| of(calls, *number).id == *id)
        };
        (found, numbers.len())
    }

    /// The numbers of the calls that will be read, but for one that says whose guild of many it is: probably, by hashes
    /// alone.
    pub(super) fn likely(&self, hash: u64, id: &CallId) -> &[u32] {
        let guild = Mark::of(hash);
        let Some((_, numbers)) = self.guilds.find(guild.spread(), |(kept, _)| *kept == guild) else { return &[] };
        if !numbers.spilled() {
            return numbers;
        }
        let mark = name(&self.hasher, hash, id);
        let found = self.names.find(mark.spread(), |(kept, _)| *kept == mark);
        found.map_or(&numbers[..1], |(_, number)| std::slice::from_ref(number))
    }

    /// The calls of a guild.
    pub(super) fn of(&self, calls: &Calls, hash: u64, guild: &GuildId) -> &[u32] {
        self.numbers(calls, hash, guild).map_or(&[], SmallVec::as_slice)
    }

    fn numbers(&self, calls: &Calls, hash: u64, guild: &GuildId) -> Option<&Numbers> {
        let mark = Mark::of(hash);
        self.guilds.find(mark.spread(), |entry| is_of(calls, entry, mark, guild)).map(|(_, numbers)| numbers)
    }

    /// Takes in a call that is in `calls` by now.
    pub(super) fn insert(&mut self, calls: &Calls, hash: u64, number: u32) {
        let (call, mark) = (of(calls, number), Mark::of(hash));
        debug_assert_eq!(hash, self.hash(&call.guild), "hashed elsewhere");
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, entry, mark, &call.guild);
        let entry = self.guilds.entry(mark.spread(), is_its, |(kept, _)| kept.spread());
        let numbers = &mut entry.or_insert_with(|| (mark, Numbers::new())).into_mut().1;
        let had_few = !numbers.spilled();
        numbers.push(number);
        if numbers.spilled() {
            let nameless = if had_few { numbers.as_slice() } else { std::slice::from_ref(&number) };
            for number in nameless {
                let mark = name(&self.hasher, hash, &of(calls, *number).id);
                self.names.insert_unique(mark.spread(), (mark, *number), |(kept, _)| kept.spread());
            }
        }
    }

    /// Lets go of a call that is still in `calls`.
    pub(super) fn remove(&mut self, calls: &Calls, number: u32) {
        let call = of(calls, number);
        let hash = self.hash(&call.guild);
        let mark = Mark::of(hash);
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, entry, mark, &call.guild);
        let Ok(mut entry) = self.guilds.find_entry(mark.spread(), is_its) else { return };
        let numbers = &mut entry.get_mut().1;
        let mut unname = |number: u32| {
            let mark = name(&self.hasher, hash, &of(calls, number).id);
            if let Ok(found) = self.names.find_entry(mark.spread(), |(_, named)| *named == number) {
                found.remove();
            }
        };
        numbers.retain(|kept| *kept != number);
        if numbers.spilled() {
            unname(number);
            if numbers.len() <= FEW_AGAIN {
                numbers.iter().copied().for_each(unname);
                numbers.shrink_to_fit();
            }
        } else if numbers.is_empty() {
            entry.remove();
        }
    }
}

/// By what a call of a guild with many is found.
fn name(hasher: &RandomState, guild: u64, id: &CallId) -> Mark {
    Mark::of(hasher.hash_one((guild, id)))
}

fn is_of(calls: &Calls, (kept, numbers): &(Mark, Numbers), mark: Mark, guild: &GuildId) -> bool {
    let first = numbers.first().expect("a guild without calls has no entry");
    *kept == mark && of(calls, *first).guild == *guild
}

fn of(calls: &Calls, number: u32) -> &Call {
    calls.get(number).expect("the index names calls that exist")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn call((guild, id): &(u8, u8)) -> Call {
        Call::named(&guild.to_string(), &id.to_string())
    }

    proptest! {
        /// Few or many, they are a map from names to numbers; names are kept of guilds with many alone.
        #[test]
        fn calls_are_found_by_name(steps in prop::collection::vec((any::<bool>(), 0u8..3, 0u8..9), 1..200)) {
            let (mut calls, mut guilds, mut model) = (Calls::default(), Guilds::default(), BTreeMap::new());
            for (put, guild, id) in steps {
                let wanted = call(&(guild, id));
                let hash = guilds.hash(&wanted.guild);
                match model.remove(&(guild, id)) {
                    Some(number) if !put => {
                        guilds.remove(&calls, number);
                        calls.remove(number);
                    }
                    Some(number) => {
                        model.insert((guild, id), number);
                    }
                    None if put => {
                        let number = calls.insert(wanted);
                        guilds.insert(&calls, hash, number);
                        model.insert((guild, id), number);
                    }
                    None => {}
                }
                for name @ (guild, _) in (0..3).flat_map(|guild| (0..9).map(move |id| (guild, id))) {
                    let wanted = call(&name);
                    let hash = guilds.hash(&wanted.guild);
                    let known = model.get(&name).copied();
                    let in_guild = model.keys().filter(|(of, _)| *of == guild).count();
                    prop_assert_eq!(guilds.find(&calls, hash, &wanted.guild, &wanted.id), (known, in_guild));
                    prop_assert_eq!(guilds.of(&calls, hash, &wanted.guild).len(), in_guild);
                    prop_assert!(known.is_none_or(|number| guilds.likely(hash, &wanted.id).contains(&number)));
                }
                let all = || guilds.guilds.iter().map(|(_, numbers)| numbers);
                let many: usize = all().filter(|numbers| numbers.spilled()).map(SmallVec::len).sum();
                prop_assert_eq!(guilds.names.len(), many);
                prop_assert!(all().all(|numbers| (1 + FEW_AGAIN * usize::from(numbers.spilled())..).contains(&numbers.len())));
            }
        }
    }
}
