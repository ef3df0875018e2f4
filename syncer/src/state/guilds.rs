//! Which calls a guild has, and which of them has a name.
//!
//! Tables hold numbers of calls and repeat no name: what a number is called is said by the call itself. With half a
//! million guilds their names would be most of a table. Almost every guild has a handful of calls, so a call is looked
//! for among those of its guild, and only guilds with many have a table of names: finding a call reads a few words and
//! mostly no other call, whatever else its guild has.

mod table;

use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use sfu_api::{CallId, GuildId, Slot};
use slab::Slab;
use smallvec::SmallVec;

use super::Call;
use super::calls::{Calls, NUMBER_BITS};

use self::table::Table;

/// Calls of a guild that are looked through one by one. They stand in the table itself, where most guilds have one or
/// two.
const FEW_MAX: usize = 3;
/// A guild that shrank to this has few again; less, so that a guild on the edge does not flap.
const FEW_AGAIN: usize = 2;
/// Stands where a number would be. No call has it.
const NONE: u32 = u32::MAX;
/// The bits of a number. Those above are for the tag.
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;

/// The calls of a guild, in no order: their numbers, each with the [tag](tag) of its name in the upper bits, and then
/// nothing; or first nothing and then where the many are. With its [`Mark`] that is 16 bytes of the table, where there may
/// be half a million guilds.
#[derive(Clone, Copy, Debug)]
struct Numbers([u32; FEW_MAX]);

/// The calls of each guild. What is kept stands under a hash that it carries along: a table that grows would otherwise
/// read every call again.
#[derive(Debug, Default)]
pub(super) struct Guilds {
    guilds: Table,
    /// The calls of guilds with many.
    many: Slab<Vec<u32>>,
    /// The same, by name.
    names: HashTable<(Mark, u32)>,
    hasher: RandomState,
}

/// Half of a hash: enough to tell one in billions, and half as much to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u32);

/// What is known of where a call is, before any call is read: by hashes alone, so only probably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likely {
    /// This is the call.
    Call(u32),
    /// It is not there, but this call of its guild is.
    Guild(u32),
    /// Nothing is there of its guild.
    Nothing,
}

/// A guild as its shard looks for it. Of use there alone, since every shard hashes by a seed of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    slot: Slot,
    pub(super) hash: u64,
}

// === impl Mark ===

impl Mark {
    pub(super) const fn of(hash: u64) -> Self {
        // Truncates nothing: half is left. In tests of call state many guilds share one of a few.
        Self((hash >> 32) as u32 & if cfg!(test) { 0xc000_0000 } else { u32::MAX })
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

    /// Reads where the calls of a guild stand, so that it is at hand.
    pub(super) fn touch(&self, hash: u64) -> u32 {
        self.guilds.touch(Mark::of(hash))
    }

    /// The number of a call, and how many calls its guild has.
    pub(super) fn find(&self, calls: &Calls, hash: u64, guild: &GuildId, id: &CallId) -> (Option<u32>, usize) {
        let (tag, mut found) = (tag(id), None);
        let numbers = self.guilds.find(Mark::of(hash), |numbers| {
            found = numbers.tagged(tag).find(|number| of(calls, *number).is_called(guild, id));
            found.is_some() || self.is_of(calls, numbers, guild)
        });
        let Some(numbers) = numbers else { return (None, 0) };
        let Some(at) = numbers.many_at() else { return (found, numbers.few().count()) };
        let mark = name(&self.hasher, hash, id);
        let is_it = |(kept, number): &(Mark, u32)| *kept == mark && of(calls, *number).is_called(guild, id);
        (self.names.find(mark.spread(), is_it).map(|(_, number)| *number), self.many[at].len())
    }

    /// Which call will be read by who looks for this one. Of two guilds with one mark it is only one's.
    pub(super) fn likely(&self, hash: u64, id: &CallId) -> Likely {
        let Some(numbers) = self.guilds.find(Mark::of(hash), |_| true) else { return Likely::Nothing };
        let (found, first) = match numbers.many_at() {
            Some(at) => {
                let mark = name(&self.hasher, hash, id);
                let found = self.names.find(mark.spread(), |(kept, _)| *kept == mark);
                (found.map(|(_, number)| *number), self.many[at].first().copied())
            }
            None => (numbers.tagged(tag(id)).next(), numbers.few().next()),
        };
        found.map(Likely::Call).or(first.map(Likely::Guild)).unwrap_or(Likely::Nothing)
    }

    /// The numbers of the calls of a guild.
    pub(super) fn of<'a>(&'a self, calls: &Calls, hash: u64, guild: &GuildId) -> impl Iterator<Item = u32> + use<'a> {
        let numbers = self.guilds.find(Mark::of(hash), |numbers| self.is_of(calls, numbers, guild));
        let many = numbers.and_then(Numbers::many_at).map(|at| &self.many[at]);
        numbers.into_iter().flat_map(Numbers::few).chain(many.into_iter().flatten().copied())
    }

    /// How many calls it has. O(guilds): for tests and simulation.
    pub(super) fn len(&self) -> usize {
        let many = self.many.iter().map(|(_, all)| all.len()).sum::<usize>();
        many + self.guilds.iter().map(|numbers| numbers.few().count()).sum::<usize>()
    }

    fn is_of(&self, calls: &Calls, numbers: &Numbers, guild: &GuildId) -> bool {
        is_of(calls, &self.many, numbers, guild)
    }

    /// Takes in a call that is in `calls` by now.
    pub(super) fn insert(&mut self, calls: &Calls, hash: u64, number: u32) {
        let (call, mark) = (of(calls, number), Mark::of(hash));
        debug_assert_eq!(hash, self.hash(&call.guild), "hashed elsewhere");
        let is_its = |numbers: &Numbers| is_of(calls, &self.many, numbers, &call.guild);
        let Some(numbers) = self.guilds.find_mut(mark, is_its) else {
            self.guilds.insert(mark, Numbers::some([tagged(call, number)]));
            return;
        };
        let nameless = match numbers.many_at() {
            Some(at) => {
                self.many[at].push(number);
                SmallVec::from_slice(&[number])
            }
            None => {
                if numbers.add(tagged(call, number)) {
                    return;
                }
                let all: SmallVec<[u32; FEW_MAX + 1]> = numbers.few().chain([number]).collect();
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
        let is_its = |numbers: &Numbers| is_of(calls, &self.many, numbers, &call.guild);
        let Some(numbers) = self.guilds.find_mut(mark, is_its) else { return };
        let Some(at) = numbers.many_at() else {
            let rest = numbers.without(number);
            if rest.is_none() {
                let known = self.guilds.remove(mark, |kept| kept.few().eq([number]));
                debug_assert!(known, "it was just found");
            } else {
                *numbers = rest;
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
            *numbers = Numbers::some(all.iter().map(|number| tagged(of(calls, *number), *number)));
            self.many.remove(at);
        }
    }
}

// === impl Numbers ===

impl Numbers {
    /// None at all.
    const NONE: Self = Self([NONE; FEW_MAX]);

    /// A few, with their tags.
    fn some(few: impl IntoIterator<Item = u32>) -> Self {
        let (mut numbers, mut few) = (Self::NONE, few.into_iter());
        numbers.0.iter_mut().for_each(|kept| *kept = few.next().unwrap_or(NONE));
        debug_assert!(few.next().is_none(), "more than a few");
        numbers
    }

    fn many(at: usize) -> Self {
        let at = u32::try_from(at).expect("guilds with many calls are fewer than calls");
        Self([NONE, at, NONE])
    }

    /// Whether there are none at all, neither few nor many.
    const fn is_none(&self) -> bool {
        self.0[0] == NONE && self.0[1] == NONE
    }

    /// Where they are, if they are many.
    fn many_at(&self) -> Option<usize> {
        (self.0[0] == NONE).then_some(self.0[1] as usize)
    }

    /// Those that stand here.
    fn few(&self) -> impl Iterator<Item = u32> + use<> {
        self.0.into_iter().take_while(|kept| *kept != NONE).map(|kept| kept & NUMBER)
    }

    /// Those of them with this tag.
    fn tagged(&self, tag: u32) -> impl Iterator<Item = u32> + use<> {
        let all = self.0.into_iter().take_while(|kept| *kept != NONE);
        all.filter(move |kept| kept & !NUMBER == tag).map(|kept| kept & NUMBER)
    }

    /// Adds one with its tag; says whether there was room.
    fn add(&mut self, number: u32) -> bool {
        let room = self.0.iter_mut().find(|kept| **kept == NONE);
        room.map(|room| *room = number).is_some()
    }

    /// The others of a few.
    fn without(&self, number: u32) -> Self {
        Self::some(self.0.into_iter().filter(|kept| *kept != NONE && kept & NUMBER != number))
    }
}

/// Some bits of a call's name, above its number: of a guild's few calls, mostly only the one that is meant has them. Made
/// of both ends of the name, where ids that are counted up differ; whoever makes calls of the same tag makes three reads
/// of one.
fn tag(id: &CallId) -> u32 {
    let id = id.as_bytes();
    let ends = match (id.first_chunk(), id.last_chunk()) {
        (Some(first), Some(last)) => u64::from_le_bytes(*first).rotate_left(29) ^ u64::from_le_bytes(*last),
        _ => id.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
    };
    ((ends ^ id.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & !NUMBER // truncates nothing: half is left
}

/// The number of a call with the tag of its name.
fn tagged(call: &Call, number: u32) -> u32 {
    tag(&call.id) | number
}

/// By what a call of a guild with many is found.
fn name(hasher: &RandomState, guild: u64, id: &CallId) -> Mark {
    Mark::of(hasher.hash_one((guild, id)))
}

fn is_of(calls: &Calls, many: &Slab<Vec<u32>>, numbers: &Numbers, guild: &GuildId) -> bool {
    let first = numbers.many_at().map_or_else(|| numbers.few().next(), |at| many[at].first().copied());
    of(calls, first.expect("a guild without calls has no entry")).guild == *guild
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
    fn of_a_guilds_calls_mostly_the_one_that_is_meant_is_likely() {
        let (mut calls, mut guilds) = (Calls::default(), Guilds::default());
        let styles: [fn(u32) -> String; 3] =
            [|n| format!("{n}-voice-call"), |n| format!("voice-call-{n}"), |n| format!("9{n:018}")];
        for style in styles {
            let guild = style(0);
            let hash = guilds.hash(&GuildId::new(&guild).expect("valid"));
            let mut wrong = 0;
            for n in 0..300 {
                let [here, other] = [n, n + 1].map(|n| Call::named(&guild, &style(n)));
                let id = here.id.clone();
                let number = calls.insert(here);
                assert_eq!(guilds.likely(hash, &id), Likely::Nothing);
                guilds.insert(&calls, hash, number);
                assert_eq!(guilds.likely(hash, &id), Likely::Call(number));
                wrong += usize::from(guilds.likely(hash, &other.id) != Likely::Guild(number));
                guilds.remove(&calls, number);
                calls.remove(number);
            }
            assert!(wrong < 30, "{wrong} of 300, as {}", style(1));
        }
    }

    proptest! {
        /// Few or many, of guilds that share a mark too, they are a map from names to numbers; names are kept of guilds with
        /// many alone.
        #[test]
        fn calls_are_found_by_name(steps in prop::collection::vec((any::<bool>(), 0u8..8, 0u8..20), 1..120)) {
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
                let both = [guild, (guild + 1) % 8].into_iter();
                for name @ (guild, _) in both.flat_map(|guild| (0..20).map(move |id| (guild, id))) {
                    let wanted = call(&name);
                    let hash = guilds.hash(&wanted.guild);
                    let in_guild = model.keys().filter(|(of, _)| *of == guild).count();
                    let found = guilds.find(&calls, hash, &wanted.guild, &wanted.id);
                    prop_assert_eq!(found, (model.get(&name).copied(), in_guild));
                    prop_assert_eq!(guilds.of(&calls, hash, &wanted.guild).count(), in_guild);
                    prop_assert!(in_guild == 0 || guilds.likely(hash, &wanted.id) != Likely::Nothing);
                }
                prop_assert_eq!(guilds.len(), model.len());
                let many: usize = guilds.many.iter().map(|(_, all)| all.len()).sum();
                prop_assert_eq!(guilds.names.len(), many);
                prop_assert!(guilds.many.iter().all(|(_, all)| all.len() > FEW_AGAIN));
                let with_many = guilds.guilds.iter().filter(|numbers| numbers.many_at().is_some()).count();
                prop_assert_eq!(guilds.many.len(), with_many);
            }
        }
    }
}
