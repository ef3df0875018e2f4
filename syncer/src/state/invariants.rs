//! What must hold between any two operations. Written once: the same functions run in property
//! tests, in simulation and, but for those that say so, in production, where a violation is counted instead of a panic.

use std::fmt;

use super::call_set::count_of;
use super::{Call, CallKey, Demand, Dirty, Place, Shard, ShardCounts};

/// Takes note of a violated invariant: a debug build panics, a release build counts and logs it.
///
/// `$count` is a counter to raise, `$found` an `Option` of what is violated, and the rest names what
/// it was found on.
macro_rules! check_invariant {
    ($count:expr, $found:expr, $($field:tt)+) => {
        if let Some(violation) = $found {
            $count += 1;
            tracing::error!(%violation, $($field)+, "invariant violated");
            debug_assert!(false, "{violation}");
        }
    };
}

pub(crate) use check_invariant;

/// A violated invariant, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// I3: the call's placement is older than what gateways were told.
    EpochWentDown,
    /// I5: the call is live without an endpoint and nobody will look at it again.
    Forgotten,
    /// I5: the call says it is in the dirty set, and the set does not have it.
    NotInSet,
    /// The index of calls by SFU, guild or gateway disagrees with the calls.
    Index,
    /// The counts disagree with the calls.
    Counts,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EpochWentDown => "I3 the epoch of a call went down",
            Self::Forgotten => "I5 a live call without an endpoint is not in the dirty set",
            Self::NotInSet => "I5 the dirty set does not hold a call that says it is there",
            Self::Index => "an index of calls is wrong",
            Self::Counts => "the counts of calls are wrong",
        })
    }
}

/// Checks whether a call is in the dirty set where it says. O(log n): looked up after every change in a debug
/// build, and so in tests and simulation; in production what moves within the set is checked as it does.
#[must_use]
pub fn of_place(key: CallKey, call: &Call, dirty: &Dirty) -> Option<Violation> {
    (!dirty.holds(key, call.class(), call.place())).then_some(Violation::NotInSet)
}

/// Checks one call by itself. O(1): cheap enough to run after every change.
#[must_use]
pub fn of_call(call: &Call) -> Option<Violation> {
    if call.is_awaiting() && matches!(call.place(), Place::Clean) {
        return Some(Violation::Forgotten);
    }
    if let (Some((told, _)), Some(epoch)) = (call.placement.announced(), call.placement.epoch())
        && epoch < told
    {
        return Some(Violation::EpochWentDown);
    }
    None
}

/// Checks a whole shard. O(calls): for tests and simulation.
#[must_use]
pub fn of_shard(shard: &Shard) -> Option<Violation> {
    let mut counts = ShardCounts::default();
    let (mut indexed, mut heard, mut demand) = (0, 0, Demand::default());
    for key in shard.keys() {
        let call = shard.get(key)?;
        if let Some(violation) = of_call(call).or_else(|| of_place(key, call, &shard.dirty)) {
            return Some(violation);
        }
        match (call.is_live(), call.placement.is_placed()) {
            (false, _) => counts.ending += 1,
            (true, true) => counts.placed += 1,
            (true, false) => counts.awaiting += 1,
        }
        counts.participants += call.participants.len() as u64;
        if let Some(class) = call.demand() {
            demand.add(call.region.as_ref(), class, 1);
        }
        for sfu in call.placement.sfus().into_iter().flatten() {
            indexed += 1;
            if !shard.by_sfu.get(&sfu).is_some_and(|calls| calls.contains(key.index)) {
                return Some(Violation::Index);
            }
        }
        for gateway in call.participants.gateways() {
            heard += 1;
            if !shard.gateways.is_in(gateway, key.index) {
                return Some(Violation::Index);
            }
        }
        if shard.find(&call.guild, &call.id) != Some(key) {
            return Some(Violation::Index);
        }
    }
    if !shard.gateways.is_tidy() {
        return Some(Violation::Index);
    }
    if shard.guilds.len() != shard.keys().len() {
        return Some(Violation::Index);
    }
    if shard.gateways.len() != heard || shard.by_sfu.values().map(count_of).sum::<usize>() != indexed {
        return Some(Violation::Index);
    }
    (counts != shard.counts() || demand != *shard.demand()).then_some(Violation::Counts)
}
