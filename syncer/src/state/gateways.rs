//! The gateways whose sessions are in calls of a shard, and in which.
//!
//! A session's entry names its gateway by number, so a gateway's id is kept once. The index answers a
//! watcher that comes back, and a gateway that is gone, without a look at every call.
//!
//! A gateway that begins to tell everything again gets a new number: what it tells from then on stands
//! under that one, and what it has not told again by the end still stands under the old ones. So no
//! session carries a mark or a timer of its own, and what is out of date is an index of calls.

use foldhash::HashMap;
use sfu_api::GatewayId;
use slab::Slab;
use smallvec::SmallVec;

use super::call_set::CallSet;

/// Number of a gateway in its shard, while sessions of it are in calls there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayIdx(pub(super) u32);

/// A time that a gateway tells everything again. A later one is greater, whichever gateway's it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Round(pub u64);

/// The numbers of one gateway: one, or a second while it tells everything again; four take no more room than two.
pub(super) type Numbers = SmallVec<[GatewayIdx; 4]>;

/// The gateways of a shard.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    entries: Slab<Entry>,
    /// The gateway's numbers, oldest first; new writes stand under the last. None but the last is
    /// without calls, and that one only while there are others.
    by_id: HashMap<GatewayId, Numbers>,
    /// Whose numbers were asked for last, and what they are: writes come in rows of one gateway.
    asked: Option<(GatewayId, Numbers)>,
    /// The last round that any gateway began.
    round: Round,
    /// Numbers that were given up, and may name other gateways since.
    given_up: u64,
}

#[derive(Debug)]
struct Entry {
    id: GatewayId,
    /// It began with this round or later.
    round: Round,
    /// Calls with sessions of it.
    calls: CallSet,
}

// === impl Gateways ===

impl Gateways {
    /// The gateway's numbers, oldest first; with `before`, only those that began before that round.
    pub(super) fn of(&self, id: &GatewayId, before: Option<Round>) -> impl Iterator<Item = GatewayIdx> + '_ {
        let all = self.by_id.get(id).into_iter().flatten().copied();
        all.filter(move |idx| before.is_none_or(|before| self.entry(*idx).is_some_and(|e| e.round < before)))
    }

    /// Whether the number is one of the gateway's.
    pub(super) fn is_of(&self, idx: GatewayIdx, id: &GatewayId) -> bool {
        self.id(idx) == Some(id)
    }

    /// The number for what the gateway tells now, and its earlier ones. One that enters no call has to be left at once.
    pub(super) fn numbers(&mut self, id: &GatewayId) -> (GatewayIdx, Numbers) {
        if self.asked.as_ref().is_none_or(|(asked, _)| asked != id) {
            if !self.by_id.contains_key(id) {
                self.add(id.clone());
            }
            self.asked = self.by_id.get(id).map(|all| (id.clone(), all.clone()));
        }
        let (_, all) = self.asked.as_ref().expect("it has one since it asked");
        let (last, earlier) = all.split_last().expect("nobody is kept without a number");
        (*last, if earlier.is_empty() { Numbers::new() } else { Numbers::from_slice(earlier) })
    }

    /// The calls that the gateway tells of now.
    pub(super) fn now(&self, id: &GatewayId) -> Option<&CallSet> {
        let asked = self.asked.as_ref().filter(|(asked, _)| asked == id).map(|(_, all)| all);
        let last = asked.or_else(|| self.by_id.get(id))?.last()?;
        self.entry(*last).map(|entry| &entry.calls)
    }

    fn add(&mut self, id: GatewayId) {
        let at = self.entries.insert(Entry { id: id.clone(), round: self.round, calls: CallSet::new() });
        let idx = GatewayIdx(u32::try_from(at).expect("gateways are few"));
        self.by_id.entry(id).or_default().push(idx);
        self.asked = None;
    }

    /// The gateway begins to tell everything again.
    pub(super) fn begin(&mut self, id: &GatewayId, round: Round) {
        self.round = self.round.max(round);
        let Some(last) = self.by_id.get(id).and_then(|all| all.last()).copied() else { return };
        match self.entries.get_mut(last.0 as usize).filter(|e| e.calls.is_empty()) {
            Some(unused) => unused.round = self.round,
            None => self.add(id.clone()),
        }
    }

    /// The gateway with this number.
    pub(super) fn id(&self, idx: GatewayIdx) -> Option<&GatewayId> {
        self.entry(idx).map(|e| &e.id)
    }

    fn entry(&self, idx: GatewayIdx) -> Option<&Entry> {
        self.entries.get(idx.0 as usize)
    }

    /// The calls with sessions under this number, behind that one.
    pub(super) fn calls(&self, idx: GatewayIdx, after: Option<u32>) -> impl Iterator<Item = u32> + '_ {
        self.entry(idx).into_iter().flat_map(move |e| e.calls.behind(after))
    }

    /// Whether sessions under this number are in the call.
    pub(super) fn is_in(&self, idx: GatewayIdx, call: u32) -> bool {
        self.entry(idx).is_some_and(|e| e.calls.contains(call))
    }

    /// A session under this number is in the call.
    pub(super) fn enter(&mut self, idx: GatewayIdx, call: u32) {
        if let Some(entry) = self.entries.get_mut(idx.0 as usize) {
            entry.calls.insert(call);
        }
    }

    /// No session under this number is in the call. Without calls, the gateway loses the number.
    pub(super) fn leave(&mut self, idx: GatewayIdx, call: u32) {
        let Some(entry) = self.entries.get_mut(idx.0 as usize) else { return };
        entry.calls.remove(call);
        if !entry.calls.is_empty() {
            return;
        }
        self.asked = None;
        let Some(all) = self.by_id.get_mut(&entry.id) else { return };
        let entries = &mut self.entries;
        let used = all.iter().any(|idx| entries.get(idx.0 as usize).is_some_and(|e| !e.calls.is_empty()));
        let last = all.last().copied().filter(|_| used);
        let mut id = None;
        all.retain(|idx| {
            let keep = last == Some(*idx) || entries.get(idx.0 as usize).is_some_and(|e| !e.calls.is_empty());
            if !keep {
                self.given_up += 1;
                id = entries.try_remove(idx.0 as usize).map(|e| e.id);
            }
            keep
        });
        if all.is_empty()
            && let Some(id) = id
        {
            self.by_id.remove(&id);
        }
    }

    /// How many numbers were given up: while it stays the same, each names whom it named.
    pub(super) const fn given_up(&self) -> u64 {
        self.given_up
    }

    /// The set of calls with sessions under this number.
    pub(super) fn set(&self, idx: GatewayIdx) -> Option<&CallSet> {
        self.entry(idx).map(|e| &e.calls)
    }

    /// How many calls are indexed, once for each of their gateways' numbers.
    pub(super) fn len(&self) -> usize {
        self.entries.iter().map(|(_, e)| e.calls.len()).sum()
    }

    /// Whether numbers and ids agree, and no number is kept for nothing (for the invariants).
    pub(super) fn is_tidy(&self) -> bool {
        let named = self.by_id.values().map(SmallVec::len).sum::<usize>();
        named == self.entries.len()
            && self.entries.iter().all(|(_, e)| e.calls.is_counted())
            && self.asked.as_ref().is_none_or(|(id, all)| self.by_id.get(id) == Some(all))
            && self.by_id.iter().all(|(id, all)| {
                let of_it = |idx: &GatewayIdx| self.is_of(*idx, id);
                let empty = |idx: &GatewayIdx| self.entry(*idx).is_some_and(|e| e.calls.is_empty());
                let rounds = all.iter().filter_map(|idx| self.entry(*idx)).map(|e| e.round);
                let some_used = all.iter().any(|idx| !empty(idx));
                let earlier = all.split_last().map_or(&[][..], |(_, earlier)| earlier);
                all.iter().all(of_it) && some_used && !earlier.iter().any(empty) && rounds.is_sorted()
            })
    }
}
