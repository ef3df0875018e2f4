//! The calls of some slots, behind one lock that is held for microseconds.
//!
//! Five files, in the order a call lives: `people` (join, leave), `placing` (decide, commit, fail,
//! lose), `moving` (planned moves), `absent` (whose gateway is gone), `views` (what operators, digests and
//! watchers read); beside them `terms`, which slots are ours. Every change of a call goes through [`Shard::edit`],
//! which keeps the counts and checks the call's invariants.

mod absent;
mod found;
mod moving;
mod people;
mod placing;
mod terms;
mod views;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use roaring::RoaringBitmap;
use sfu_api::{CallId, CallKind, Epoch, GatewayId, GuildId, OwnerTerm, RegionId, RoomId, SessionId, Slot};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::call_set::behind;
use super::calls::Calls;
use super::dirty::smallness;
use super::gateways::Gateways;
use super::guilds::{Guilds, Likely};
use super::invariants::{self, Violation, check_invariant};
use super::{
    Call, Cause, Class, Dirty, GatewayIdx, Gone, Last, Move, Place, Placement, Reserved, Round, Seat, SfuIdx, Tick,
};

pub use super::guilds::Named;

pub use self::absent::{Absent, Expired, Walk};
use self::found::Found;
pub use self::moving::Moved;
pub use self::people::{About, Adds, Join, Joined, Leave, Left, Row};
pub use self::placing::{
    Care, Committed, Decision, Draw, How, Loss, Next, PlaceWork, Placer, Revision, Rung, Seed, Why,
};
pub use self::terms::Terms;
pub use self::views::{NewsPage, RoomOn};

/// Names a call within its shard. The generation tells a reused entry from the one meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Size limits, all of them levers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls of one guild.
    pub calls_per_guild_max: u64,
    /// Sessions in one call.
    pub participants_per_call_max: u64,
    /// Leaves that one shard remembers.
    pub left_remembered_max: usize,
    /// How long an empty call keeps its place.
    pub empty_grace: Duration,
    /// Whether sessions are admitted one by one.
    pub admit_sessions: bool,
}

/// A room that is no longer wanted.
#[derive(Clone, Debug)]
pub struct Release {
    /// The SFU it is on.
    pub sfu: SfuIdx,
    /// The room.
    pub room: RoomId,
    /// Slot of its guild.
    pub slot: Slot,
    /// Our term for that slot.
    pub term: OwnerTerm,
    /// Epoch of the placement that ends; the SFU refuses when it holds a higher one.
    pub epoch: Epoch,
}

/// Something the gateways of a call have to hear.
#[derive(Clone, Debug)]
pub struct News {
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// Epoch of the placement.
    pub epoch: Epoch,
    /// 1: here is the endpoint; 2: it went away.
    pub phase: u8,
    /// The endpoint, with phase 1.
    pub endpoint: Option<Arc<str>>,
    /// SFU and room, with phase 1.
    pub at: Option<(SfuIdx, RoomId)>,
    /// Why.
    pub cause: Cause,
    /// The call's sessions by gateway.
    pub sessions: Vec<(GatewayId, Vec<SessionId>)>,
}

/// How many calls stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// Live with an endpoint.
    pub placed: u64,
    /// Live without one.
    pub awaiting: u64,
    /// Without participants.
    pub ending: u64,
    /// Sessions in calls.
    pub participants: u64,
}

/// Calls that await an endpoint, by region and class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand(HashMap<Option<RegionId>, [u64; Class::ALL.len()]>);

/// The calls of some slots.
#[derive(Debug, Default)]
pub struct Shard {
    pub(super) calls: Calls,
    pub(super) guilds: Guilds,
    /// Numbers of the calls placed, reserving or moving, by SFU, so that one notice finds them in one pass.
    pub(super) by_sfu: HashMap<SfuIdx, RoaringBitmap>,
    pub(super) gateways: Gateways,
    /// What the endpoints of an SFU begin with, as seen last; one for each SFU of the catalogue.
    bases: HashMap<SfuIdx, Option<Arc<str>>>,
    terms: Terms,
    pub(super) dirty: Dirty,
    gone: Gone,
    /// Rooms with people in them whose calls nobody has told us of.
    found: Found,
    pub(super) counts: ShardCounts,
    pub(super) demand: Demand,
    generation: u32,
    /// Counter of placements; one for the shard, so that a call that comes again grows too.
    placements: u64,
    violations: u64,
}

/// A million placements a second for nine years.
const PLACEMENTS_MAX: u64 = 1 << 48;

// === impl Shard ===

impl Shard {
    /// Replaces the slots this shard may serve. Calls of slots that are gone are forgotten: their
    /// rooms and media stay, the new owner adopts them.
    pub fn set_terms(&mut self, terms: Terms) -> usize {
        let lost: Vec<CallKey> =
            self.keys().into_iter().filter(|k| self.get(*k).is_some_and(|c| !terms.has(c.slot))).collect();
        for key in &lost {
            self.forget(*key);
        }
        self.found.retain(&terms);
        self.terms = terms;
        lost.len()
    }

    /// Our term for `slot`, if we own it.
    #[must_use]
    pub fn term(&self, slot: Slot) -> Option<OwnerTerm> {
        self.terms.of(slot)
    }

    /// The slots we own, and our terms.
    #[must_use]
    pub fn terms(&self) -> Vec<(Slot, OwnerTerm)> {
        self.terms.all()
    }

    /// Whether we own `slot`.
    #[must_use]
    pub fn owns(&self, slot: Slot) -> bool {
        self.terms.has(slot)
    }

    /// Raises the placement counter above `seen`, the highest epoch an SFU has shown. One that no counter of ours can have
    /// come to is a lie, and would leave no number for those that follow.
    pub fn raise_placements(&mut self, seen: Epoch) {
        if seen.n < PLACEMENTS_MAX {
            self.placements = self.placements.max(seen.n);
        }
    }

    /// Counts, kept as calls change.
    #[must_use]
    pub const fn counts(&self) -> ShardCounts {
        self.counts
    }

    /// Calls that await an endpoint.
    #[must_use]
    pub const fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Leaves that were forgotten before their time, since the start.
    #[must_use]
    pub const fn leaves_forgotten(&self) -> u64 {
        self.gone.forgotten_early()
    }

    /// Invariants found violated since the start.
    #[must_use]
    pub const fn violations(&self) -> u64 {
        self.violations
    }

    /// The dirty set, to look at.
    #[must_use]
    pub const fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// The call, if the key still names one.
    #[must_use]
    pub fn get(&self, key: CallKey) -> Option<&Call> {
        self.calls.get(key.index).filter(|call| call.generation == key.generation)
    }

    /// The call with this number in the dirty set.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Option<&Call> {
        self.calls.get(number)
    }

    /// The key of a call.
    #[must_use]
    pub fn find(&self, guild: &GuildId, call: &CallId) -> Option<CallKey> {
        self.key(self.guilds.find(&self.calls, self.guilds.hash(guild), guild, call).0?)
    }

    /// A guild as this shard looks for it.
    #[must_use]
    pub fn named(&self, slot: Slot, guild: &GuildId) -> Named {
        Named::new(slot, self.guilds.hash(guild))
    }

    fn find_named(&self, named: Named, guild: &GuildId, call: &CallId) -> Option<CallKey> {
        self.key(self.guilds.find(&self.calls, named.hash, guild, call).0?)
    }

    pub(super) fn keys(&self) -> Vec<CallKey> {
        self.calls.iter().map(|(index, call)| CallKey { index, generation: call.generation }).collect()
    }

    /// The key of the call with this number.
    fn key(&self, index: u32) -> Option<CallKey> {
        self.calls.get(index).map(|call| CallKey { index, generation: call.generation })
    }

    /// The calls that have, or are about to have, a room on an SFU, in order of their keys, behind `after`.
    fn on(&self, sfu: SfuIdx, after: Option<CallKey>) -> impl Iterator<Item = (CallKey, &Call)> {
        let calls = self.by_sfu.get(&sfu).into_iter();
        let numbers = calls.flat_map(move |calls| behind(calls, after.map(|key| key.index)));
        numbers.filter_map(move |index| {
            let call = self.calls.get(index)?;
            Some((CallKey { index, generation: call.generation }, call))
        })
    }

    fn insert(&mut self, named: Named, mut call: Call) -> CallKey {
        self.generation = self.generation.wrapping_add(1);
        call.generation = self.generation;
        let key = CallKey { index: self.calls.insert(call), generation: self.generation };
        self.guilds.insert(&self.calls, named.hash, key.index);
        self.counts.ending += 1; // a call begins empty
        key
    }

    /// The one way to change a call: indexes, counts and invariants follow.
    fn edit<R>(&mut self, key: CallKey, f: impl FnOnce(&mut Call, &mut Dirty) -> R) -> Option<R> {
        let call = self.calls.get_mut(key.index).filter(|call| call.generation == key.generation)?;
        let (before, demand_before, astray) = (call.placement.sfus(), call.demand(), self.dirty.astray());
        uncount(&mut self.counts, call);
        let result = f(call, &mut self.dirty);
        count(&mut self.counts, call);
        self.demand.change(call, demand_before, call.demand());
        let after = call.placement.sfus();
        if before != after {
            for sfu in before.into_iter().flatten() {
                unindex(&mut self.by_sfu, sfu, key);
            }
            for sfu in after.into_iter().flatten() {
                self.by_sfu.entry(sfu).or_default().insert(key.index);
            }
        }
        let astray = self.dirty.astray() != astray;
        let found = invariants::of_call(call).or_else(|| astray.then_some(Violation::NotInSet));
        let looked_up = || cfg!(debug_assertions).then(|| invariants::of_place(key, call, &self.dirty)).flatten();
        let found = found.or_else(looked_up);
        check_invariant!(self.violations, found, guild = %call.guild, call = %call.id, placement = ?call.placement, place = ?call.place);
        Some(result)
    }

    /// Removes a call. Its room, if it has one, is the caller's to release.
    fn forget(&mut self, key: CallKey) -> Option<Call> {
        self.get(key)?;
        self.guilds.remove(&self.calls, key.index);
        let mut call = self.calls.remove(key.index)?;
        call.put_into(&mut self.dirty, key, Place::Clean);
        self.demand.change(&call, call.demand(), None);
        uncount(&mut self.counts, &call);
        for sfu in call.placement.sfus().into_iter().flatten() {
            unindex(&mut self.by_sfu, sfu, key);
        }
        for gateway in call.participants.gateways() {
            self.gateways.leave(gateway, key.index);
        }
        Some(call)
    }

    /// The call's sessions by gateway.
    fn sessions(&self, key: CallKey) -> Vec<(GatewayId, Vec<SessionId>)> {
        let mut by: BTreeMap<&GatewayId, Vec<SessionId>> = BTreeMap::new();
        for (gateway, session) in self.get(key).map(|c| c.participants.sessions(None)).unwrap_or_default() {
            if let Some(id) = self.gateways.id(gateway) {
                by.entry(id).or_default().push(session);
            }
        }
        by.into_iter().map(|(id, sessions)| (id.clone(), sessions)).collect()
    }

    fn next_epoch(&mut self, term: OwnerTerm) -> Epoch {
        self.placements += 1;
        Epoch { term, n: self.placements }
    }
}

// === impl Demand ===

impl Demand {
    /// Calls by class, of each region that has any.
    pub fn regions(&self) -> impl Iterator<Item = (Option<&RegionId>, [u64; Class::ALL.len()])> {
        self.0.iter().map(|(region, calls)| (region.as_ref(), *calls))
    }

    /// Adds `calls` of a class that ask for `region`.
    pub fn add(&mut self, region: Option<&RegionId>, class: Class, calls: u64) {
        if calls > 0 {
            self.0.entry(region.cloned()).or_default()[class as usize] += calls;
        }
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: &Self) {
        for (region, calls) in other.regions() {
            for (class, n) in Class::ALL.into_iter().zip(calls) {
                self.add(region, class, n);
            }
        }
    }

    /// What it would be with one class alone.
    #[must_use]
    pub fn only(&self, class: Class) -> Self {
        let mut only = Self::default();
        for (region, calls) in self.regions() {
            only.add(region, class, calls[class as usize]);
        }
        only
    }

    /// Calls of a class.
    #[must_use]
    pub fn of(&self, class: Class) -> u64 {
        self.0.values().map(|calls| calls[class as usize]).sum()
    }

    /// Calls of all classes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().flatten().sum()
    }

    /// What one call asks for has changed.
    fn change(&mut self, call: &Call, before: Option<Class>, after: Option<Class>) {
        if before == after {
            return;
        }
        if let Some(class) = after {
            match self.0.get_mut(&call.region) {
                Some(calls) => calls[class as usize] += 1,
                None => self.add(call.region.as_ref(), class, 1),
            }
        }
        if let Some(class) = before
            && let Some(calls) = self.0.get_mut(&call.region)
        {
            calls[class as usize] = calls[class as usize].saturating_sub(1);
            if *calls == [0; Class::ALL.len()] {
                self.0.remove(&call.region);
            }
        }
    }
}

/// When a call that needs a place became urgent: its age, less the head start of better classes and
/// larger calls.
fn rank(call: &Call, dirty: &mut Dirty, now: Instant) -> Tick {
    let since = dirty.tick(call.awaiting_since.unwrap_or(now));
    since.later(call.class().handicap()).later(smallness(call.participants.len()))
}

fn unindex(by_sfu: &mut HashMap<SfuIdx, RoaringBitmap>, sfu: SfuIdx, key: CallKey) {
    if let Some(calls) = by_sfu.get_mut(&sfu) {
        calls.remove(key.index);
        if calls.is_empty() {
            by_sfu.remove(&sfu);
        }
    }
}

fn bucket<'a>(counts: &'a mut ShardCounts, call: &Call) -> &'a mut u64 {
    match (call.is_live(), call.placement.is_placed()) {
        (false, _) => &mut counts.ending,
        (true, true) => &mut counts.placed,
        (true, false) => &mut counts.awaiting,
    }
}

fn count(counts: &mut ShardCounts, call: &Call) {
    *bucket(counts, call) += 1;
    counts.participants += call.participants.len() as u64;
}

fn uncount(counts: &mut ShardCounts, call: &Call) {
    let n = bucket(counts, call);
    *n = n.saturating_sub(1);
    counts.participants = counts.participants.saturating_sub(call.participants.len() as u64);
}
