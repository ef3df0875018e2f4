//! Rooms with people in them that no call of ours claims.
//!
//! A syncer that comes back knows nothing, and the SFUs still carry every call. Their digests name these rooms; when a
//! gateway tells of such a call, it is placed where its people are, and their media never stops.

use std::time::Duration;

use super::*;

/// How long a room is remembered for a call that nobody tells of: every digest that finds it says so again.
const FOUND_FOR: Duration = Duration::from_secs(600);
/// Rooms remembered in a shard: those of a million calls in all. Of the others each call is placed anew.
const FOUND_MAX: usize = 65_536;
/// Rooms of one SFU among them: 262,144 in all shards, and so many that it takes four to leave none for the others.
const FOUND_ON_ONE_MAX: usize = FOUND_MAX / 4;

/// Rooms found, by their calls.
#[derive(Debug, Default)]
pub(super) struct Found {
    rooms: HashMap<(GuildId, CallId), Room>,
    /// How many are on each SFU.
    on: HashMap<SfuIdx, usize>,
    /// When the old ones were last taken out.
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Room {
    at: Last,
    slot: Slot,
    until: Instant,
}

// === impl Found ===

impl Found {
    /// Whether it is new.
    fn note(&mut self, slot: Slot, guild: &GuildId, call: &CallId, at: Last, now: Instant) -> bool {
        let due = |swept: Instant| now.saturating_duration_since(swept) >= FOUND_FOR / 4;
        if self.swept.is_none_or(due) {
            self.swept = Some(now);
            self.keep(|room| room.until > now);
        }
        let key = (guild.clone(), call.clone());
        let known = self.rooms.get(&key).map(|room| room.at);
        // Of two rooms of one call the later one is where its people were sent.
        if known.is_some_and(|known| known.epoch > at.epoch) {
            return false;
        }
        let of_it = self.on.get(&at.sfu).copied().unwrap_or_default();
        if known.is_none() && (self.rooms.len() >= FOUND_MAX || of_it >= FOUND_ON_ONE_MAX) {
            return false;
        }
        self.forget(&key);
        self.rooms.insert(key, Room { at, slot, until: now + FOUND_FOR });
        *self.on.entry(at.sfu).or_default() += 1;
        known.is_none()
    }

    fn forget(&mut self, key: &(GuildId, CallId)) -> Option<Room> {
        let room = self.rooms.remove(key)?;
        if let Some(n) = self.on.get_mut(&room.at.sfu) {
            *n -= 1;
        }
        Some(room)
    }

    fn keep(&mut self, keep: impl Fn(&Room) -> bool) {
        self.rooms.retain(|_, room| keep(room));
        self.on.clear();
        for room in self.rooms.values() {
            *self.on.entry(room.at.sfu).or_default() += 1;
        }
    }

    /// Those of slots that are not ours any more are another syncer's to place.
    pub(super) fn retain(&mut self, terms: &Terms) {
        if self.rooms.values().any(|room| !terms.has(room.slot)) {
            self.keep(|room| terms.has(room.slot));
        }
    }

    /// Whether the call's room was found.
    pub(super) fn has(&self, guild: &GuildId, call: &CallId, now: Instant) -> bool {
        let room = || self.rooms.get(&(guild.clone(), call.clone()));
        !self.rooms.is_empty() && room().is_some_and(|room| room.until > now)
    }

    /// Where the call's room was found; it is not remembered any more.
    pub(super) fn take(&mut self, guild: &GuildId, call: &CallId, now: Instant) -> Option<Last> {
        if self.rooms.is_empty() {
            return None;
        }
        self.forget(&(guild.clone(), call.clone())).filter(|room| room.until > now).map(|room| room.at)
    }
}

// === impl Shard ===

impl Shard {
    /// A room with people in it was found, that no call claims. If its call awaits its first place, it is to be placed
    /// there; if nobody has told us of the call, that is so when somebody does. Returns whether that is news.
    pub fn room_found(&mut self, slot: Slot, guild: &GuildId, call: &CallId, at: Last, now: Instant) -> bool {
        let Some(term) = self.term(slot).filter(|term| at.epoch.term <= *term) else { return false };
        if at.epoch.term == term {
            self.raise_placements(at.epoch); // the SFU takes nothing that is not above it
        }
        let named = self.named(slot, guild);
        let Some(key) = self.find_named(named, guild, call) else {
            return self.found.note(slot, guild, call, at, now);
        };
        let keeps = self.edit(key, |call, dirty| {
            let Placement::Unplaced { found } = call.placement else { return false };
            if found.is_some_and(|known| known.epoch >= at.epoch) {
                return false;
            }
            call.put_into(dirty, key, Place::Clean); // under its old class
            call.placement = Placement::Unplaced { found: Some(at) };
            if call.is_live() {
                let rank = rank(call, dirty, now);
                call.put_into(dirty, key, Place::Ready(rank));
            }
            true
        });
        keeps == Some(true)
    }
}
