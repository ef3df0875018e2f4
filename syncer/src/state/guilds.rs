//! Which calls a guild has, and which of them has a name.
//!
//! Tables hold numbers of calls and repeat no name: what a number is called is said by the call itself. With half a
//! million guilds their names would be most of a table. Almost every guild has a handful of calls, so a call is looked
//! for among those of its guild, and only guilds with many have a table of names: finding a call reads a few words and at
//! most three calls, whatever else its guild has.

use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use sfu_api::{CallId, GuildId, Slot};
use slab::Slab;
use smallvec::SmallVec;

use super::Call;
use super::calls::Calls;

/// Calls of a guild that are looked through one by one. They stand in the table itself, where most guilds have one or
/// two.
const FEW_MAX: usize = 3;
/// A guild that shrank to this has few again; less, so that a guild on the edge does not flap.
const FEW_AGAIN: usize = 2;
/// Stands where a number would be. No call has it: memory ends before.
const NONE: u32 = u32::MAX;

/// The calls of a guild, in no order and never none: their numbers and then nothing, or first nothing and then where the
/// many are. With its [`Mark`] that is 16 bytes of the table, where there may be half a million guilds.
#[derive(Clone, Copy, Debug)]
struct Numbers([u32; FEW_MAX]);

/// The calls of each guild. What is kept stands under a hash that it carries along: a table that grows would otherwise
/// read every call again.
#[derive(Debug, Default)]
pub(super) struct Guilds {
    guilds: HashTable<(Mark, Numbers)>,
    /// The calls of guilds with many.
    many: Slab<Vec<u32>>,
    /// The same, by name.
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
        let all = numbers.all(&self.many);
        let found = if numbers.many_at().is_some() {
            let mark = name(&self.hasher, hash, id);
            let is_it = |(kept, number): &(Mark, u32)| {
                *kept == mark && {
                    let call = of(calls, *number);
                    call.id == *id && call.guild == *guild
                }
            };
            self.names.find(mark.spread(), is_it).map(|(_, number)| *number)
        } else {
            all.iter().copied().find(|number| of(calls, *number).id == *id)
        };
        (found, all.len())
    }

    /// The numbers of the calls that will be read, but for one that says whose guild of many it is: probably, by hashes
    /// alone.
    pub(super) fn likely(&self, hash: u64, id: &CallId) -> &[u32] {
        let guild = Mark::of(hash);
        let Some((_, numbers)) = self.guilds.find(guild.spread(), |(kept, _)| *kept == guild) else { return &[] };
        let Some(at) = numbers.many_at() else { return numbers.few() };
        let mark = name(&self.hasher, hash, id);
        let found = self.names.find(mark.spread(), |(kept, _)| *kept == mark);
        found.map_or(&self.many[at][..1], |(_, number)| std::slice::from_ref(number))
    }

    /// The calls of a guild.
    pub(super) fn of(&self, calls: &Calls, hash: u64, guild: &GuildId) -> &[u32] {
        self.numbers(calls, hash, guild).map_or(&[], |numbers| numbers.all(&self.many))
    }

    fn numbers(&self, calls: &Calls, hash: u64, guild: &GuildId) -> Option<&Numbers> {
        let mark = Mark::of(hash);
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, &self.many, entry, mark, guild);
        self.guilds.find(mark.spread(), is_its).map(|(_, numbers)| numbers)
    }

    /// Takes in a call that is in `calls` by now.
    pub(super) fn insert(&mut self, calls: &Calls, hash: u64, number: u32) {
        let (call, mark) = (of(calls, number), Mark::of(hash));
        debug_assert_eq!(hash, self.hash(&call.guild), "hashed elsewhere");
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, &self.many, entry, mark, &call.guild);
        let mut known = match self.guilds.entry(mark.spread(), is_its, |(kept, _)| kept.spread()) {
            Entry::Occupied(known) => known,
            Entry::Vacant(new) => {
                new.insert((mark, Numbers::some(&[number])));
                return;
            }
        };
        let numbers = &mut known.get_mut().1;
        let nameless = match numbers.many_at() {
            Some(at) => {
                self.many[at].push(number);
                SmallVec::from_slice(&[number])
            }
            None => {
                let all: SmallVec<[u32; FEW_MAX + 1]> = numbers.few().iter().copied().chain([number]).collect();
                if all.len() <= FEW_MAX {
                    *numbers = Numbers::some(&all);
                    return;
                }
                *numbers = Numbers::many(self.many.insert(all.to_vec()));
                all
            }
        };
        for number in nameless {
            let mark = name(&self.hasher, hash, &of(calls, number).id);
            self.names.insert_unique(mark.spread(), (mark, number), |(kept, _)| kept.spread());
        }
    }

    /// Lets go of a call that is still in `calls`.
    pub(super) fn remove(&mut self, calls: &Calls, number: u32) {
        let call = of(calls, number);
        let hash = self.hash(&call.guild);
        let mark = Mark::of(hash);
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, &self.many, entry, mark, &call.guild);
        let Ok(mut entry) = self.guilds.find_entry(mark.spread(), is_its) else { return };
        let numbers = &mut entry.get_mut().1;
        let Some(at) = numbers.many_at() else {
            let rest: SmallVec<[u32; FEW_MAX]> = numbers.few().iter().copied().filter(|kept| *kept != number).collect();
            if rest.is_empty() {
                entry.remove();
            } else {
                *numbers = Numbers::some(&rest);
            }
            return;
        };
        let mut unname = |number: u32| {
            let mark = name(&self.hasher, hash, &of(calls, number).id);
            if let Ok(found) = self.names.find_entry(mark.spread(), |(_, named)| *named == number) {
                found.remove();
            }
        };
        unname(number);
        let all = &mut self.many[at];
        all.retain(|kept| *kept != number);
        if all.len() <= FEW_AGAIN {
            all.iter().copied().for_each(unname);
            *numbers = Numbers::some(all);
            self.many.remove(at);
        }
    }
}

// === impl Numbers ===

impl Numbers {
    /// A few.
    fn some(few: &[u32]) -> Self {
        let mut numbers = [NONE; FEW_MAX];
        numbers[..few.len()].copy_from_slice(few);
        Self(numbers)
    }

    fn many(at: usize) -> Self {
        let mut numbers = [NONE; FEW_MAX];
        numbers[1] = u32::try_from(at).expect("guilds with many calls are fewer than calls");
        Self(numbers)
    }

    /// Where they are, if they are many.
    fn many_at(&self) -> Option<usize> {
        (self.0[0] == NONE).then_some(self.0[1] as usize)
    }

    /// Those that stand here.
    fn few(&self) -> &[u32] {
        let end = self.0.iter().position(|number| *number == NONE).unwrap_or(FEW_MAX);
        &self.0[..end]
    }

    fn all<'a>(&'a self, many: &'a Slab<Vec<u32>>) -> &'a [u32] {
        self.many_at().map_or_else(|| self.few(), |at| &many[at])
    }
}

/// By what a call of a guild with many is found.
fn name(hasher: &RandomState, guild: u64, id: &CallId) -> Mark {
    Mark::of(hasher.hash_one((guild, id)))
}

fn is_of(calls: &Calls, many: &Slab<Vec<u32>>, (kept, numbers): &(Mark, Numbers), mark: Mark, guild: &GuildId) -> bool {
    let first = || numbers.all(many).first().expect("a guild without calls has no entry");
    *kept == mark && of(calls, *first()).guild == *guild
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

    #[test]
    fn a_guild_takes_16_bytes_of_the_table() {
        assert_eq!(size_of::<(Mark, Numbers)>(), 16);
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
                let many: usize = guilds.many.iter().map(|(_, all)| all.len()).sum();
                prop_assert_eq!(guilds.names.len(), many);
                prop_assert!(guilds.many.iter().all(|(_, all)| all.len() > FEW_AGAIN));
                let with_many = guilds.guilds.iter().filter(|(_, numbers)| numbers.many_at().is_some()).count();
                prop_assert_eq!(guilds.many.len(), with_many);
                prop_assert!(guilds.guilds.iter().all(|(_, numbers)| !numbers.all(&guilds.many).is_empty()));
            }
        }
    }
}
