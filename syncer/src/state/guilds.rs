//! Which calls a guild has, and which call has a name.
//!
//! Both tables hold numbers of calls and repeat no name: what a number is called is said by the call itself.
//! With half a million guilds their names would be most of a table. So finding a call reads a word of a small
//! table and then the call, whatever else its guild has.

use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use sfu_api::{CallId, GuildId, Slot};
use smallvec::SmallVec;

use super::Call;
use super::calls::Calls;

/// The calls of a guild, in no order and never none. Most guilds have one or two: four stand in the table itself.
type Numbers = SmallVec<[u32; 4]>;

/// The calls by name, and those of each guild. What is kept stands under a hash that it carries along: a table
/// that grows would otherwise read every call again.
#[derive(Debug, Default)]
pub(super) struct Guilds {
    names: HashTable<(Mark, u32)>,
    guilds: HashTable<(Mark, Numbers)>,
    hasher: RandomState,
}

/// Half of a hash: enough to tell one in billions, and half as much to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u32);

/// A call's name as its shard looks for it. Of use there alone, since every shard hashes by a seed of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    slot: Slot,
    pub(super) call: Mark,
    pub(super) guild: Mark,
}

// === impl Mark ===

impl Mark {
    /// A whole hash again. Tables take the place of an entry from the lower bits and tell entries apart by
    /// the upper ones, so both halves are what is known.
    const fn spread(self) -> u64 {
        (self.0 as u64) << 32 | self.0 as u64
    }
}

// === impl Named ===

impl Named {
    /// The slot of the call's guild.
    #[must_use]
    pub const fn slot(&self) -> Slot {
        self.slot
    }
}

// === impl Guilds ===

impl Guilds {
    /// The mark of a guild.
    pub(super) fn mark(&self, guild: &GuildId) -> Mark {
        half(self.hasher.hash_one(guild))
    }

    /// The marks of a call and of its guild, whose name is hashed once for both.
    pub(super) fn marks(&self, guild: &GuildId, id: &CallId) -> (Mark, Mark) {
        let of_guild = self.hasher.hash_one(guild);
        (half(self.hasher.hash_one((of_guild, id))), half(of_guild))
    }

    /// The number of a call.
    pub(super) fn find(&self, calls: &Calls, mark: Mark, guild: &GuildId, id: &CallId) -> Option<u32> {
        let is_it = |(kept, number): &(Mark, u32)| {
            *kept == mark && {
                let call = of(calls, *number);
                call.id == *id && call.guild == *guild
            }
        };
        self.names.find(mark.spread(), is_it).map(|(_, number)| *number)
    }

    /// The number of what is probably the call, or else of what is probably a call of its guild: by their hashes
    /// alone.
    pub(super) fn likely(&self, Named { call, guild, .. }: Named) -> Option<u32> {
        let found = self.names.find(call.spread(), |(kept, _)| *kept == call).map(|(_, number)| *number);
        found.or_else(|| self.guilds.find(guild.spread(), |(kept, _)| *kept == guild)?.1.first().copied())
    }

    /// What the call is found by.
    pub(super) fn named(&self, slot: Slot, guild: &GuildId, id: &CallId) -> Named {
        let (call, guild) = self.marks(guild, id);
        Named { slot, call, guild }
    }

    /// The calls of a guild.
    pub(super) fn of(&self, calls: &Calls, mark: Mark, guild: &GuildId) -> &[u32] {
        let found = self.guilds.find(mark.spread(), |entry| is_of(calls, entry, mark, guild));
        found.map_or(&[], |(_, numbers)| numbers.as_slice())
    }

    /// Takes in a call that is in `calls` by now.
    pub(super) fn insert(&mut self, calls: &Calls, named: Named, number: u32) {
        let (call, Named { call: name, guild, .. }) = (of(calls, number), named);
        debug_assert_eq!(named, self.named(named.slot, &call.guild, &call.id), "named elsewhere");
        self.names.insert_unique(name.spread(), (name, number), |(kept, _)| kept.spread());
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, entry, guild, &call.guild);
        let entry = self.guilds.entry(guild.spread(), is_its, |(kept, _)| kept.spread());
        entry.or_insert_with(|| (guild, Numbers::new())).get_mut().1.push(number);
    }

    /// Lets go of a call that is still in `calls`.
    pub(super) fn remove(&mut self, calls: &Calls, number: u32) {
        let call = of(calls, number);
        let Named { call: name, guild, .. } = self.named(call.slot, &call.guild, &call.id);
        if let Ok(named) = self.names.find_entry(name.spread(), |(_, named)| *named == number) {
            named.remove();
        }
        let is_its = |entry: &(Mark, Numbers)| is_of(calls, entry, guild, &call.guild);
        if let Ok(mut entry) = self.guilds.find_entry(guild.spread(), is_its) {
            let (_, numbers) = entry.get_mut();
            numbers.retain(|kept| *kept != number);
            if numbers.is_empty() {
                entry.remove();
            }
        }
    }
}

const fn half(hash: u64) -> Mark {
    Mark((hash >> 32) as u32) // truncates nothing: half is left
}

fn is_of(calls: &Calls, (kept, numbers): &(Mark, Numbers), mark: Mark, guild: &GuildId) -> bool {
    let first = numbers.first().expect("a guild without calls has no entry");
    *kept == mark && of(calls, *first).guild == *guild
}

fn of(calls: &Calls, number: u32) -> &Call {
    &calls.get(number).expect("the index names calls that exist").1
}
