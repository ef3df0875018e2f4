//! Which calls a guild has, and which call has a name.
//!
//! Both tables hold numbers of calls and repeat no name: what a number is called is said by the call itself.
//! With half a million guilds their names would be most of a table. So finding a call reads a word of a small
//! table and then the call, whatever else its guild has.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;
use sfu_api::{CallId, GuildId};
use slab::Slab;
use smallvec::SmallVec;

use super::Call;

/// The calls of a shard, each with the generation of its entry.
pub(super) type Calls = Slab<(u32, Call)>;

/// The calls of a guild, in no order and never none. Most guilds have one or two: four stand in the table itself.
type Numbers = SmallVec<[u32; 4]>;

/// The calls by name, and those of each guild.
#[derive(Debug, Default)]
pub(super) struct Guilds {
    names: HashTable<u32>,
    guilds: HashTable<Numbers>,
    hasher: RandomState,
}

// === impl Guilds ===

impl Guilds {
    /// The number of a call.
    pub(super) fn find(&self, calls: &Calls, guild: &GuildId, id: &CallId) -> Option<u32> {
        let is_it = |number: &u32| {
            let call = of(calls, *number);
            call.id == *id && call.guild == *guild
        };
        self.names.find(self.hasher.hash_one((guild, id)), is_it).copied()
    }

    /// The calls of a guild.
    pub(super) fn of(&self, calls: &Calls, guild: &GuildId) -> &[u32] {
        let found = self.guilds.find(self.hasher.hash_one(guild), |numbers| guild_of(calls, numbers) == guild);
        found.map_or(&[], SmallVec::as_slice)
    }

    /// Takes in a call that is in `calls` by now.
    pub(super) fn insert(&mut self, calls: &Calls, number: u32) {
        let Self { names, guilds, hasher } = self;
        let call = of(calls, number);
        names.insert_unique(hasher.hash_one((&call.guild, &call.id)), number, |number| {
            let call = of(calls, *number);
            hasher.hash_one((&call.guild, &call.id))
        });
        let is_its = |numbers: &Numbers| *guild_of(calls, numbers) == call.guild;
        let hash = |numbers: &Numbers| hasher.hash_one(guild_of(calls, numbers));
        guilds.entry(hasher.hash_one(&call.guild), is_its, hash).or_insert(Numbers::new()).get_mut().push(number);
    }

    /// Lets go of a call that is still in `calls`.
    pub(super) fn remove(&mut self, calls: &Calls, number: u32) {
        let Self { names, guilds, hasher } = self;
        let call = of(calls, number);
        if let Ok(name) = names.find_entry(hasher.hash_one((&call.guild, &call.id)), |named| *named == number) {
            name.remove();
        }
        let is_its = |numbers: &Numbers| *guild_of(calls, numbers) == call.guild;
        if let Ok(mut guild) = guilds.find_entry(hasher.hash_one(&call.guild), is_its) {
            guild.get_mut().retain(|kept| *kept != number);
            if guild.get().is_empty() {
                guild.remove();
            }
        }
    }
}

fn guild_of<'a>(calls: &'a Calls, numbers: &[u32]) -> &'a GuildId {
    &of(calls, *numbers.first().expect("a guild without calls has no entry")).guild
}

fn of(calls: &Calls, number: u32) -> &Call {
    &calls.get(number as usize).expect("the index names calls that exist").1
}
