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

/// Rooms found, by their calls.
#[derive(Debug, Default)]
pub(super) struct Found {
    rooms: HashMap<(GuildId, CallId), (SfuIdx, Instant)>,
    /// When the old ones were last taken out.
    swept: Option<Instant>,
}

// === impl Found ===

impl Found {
    fn note(&mut self, guild: &GuildId, call: &CallId, on: SfuIdx, now: Instant) {
        let due = |at: Instant| now.saturating_duration_since(at) >= FOUND_FOR / 4;
        if self.swept.is_none_or(due) {
            self.swept = Some(now);
            self.rooms.retain(|_, (_, until)| *until > now);
        }
        let key = (guild.clone(), call.clone());
        if self.rooms.len() < FOUND_MAX || self.rooms.contains_key(&key) {
            self.rooms.insert(key, (on, now + FOUND_FOR));
        }
    }

    /// Whether the call's room was found.
    pub(super) fn has(&self, guild: &GuildId, call: &CallId) -> bool {
        !self.rooms.is_empty() && self.rooms.contains_key(&(guild.clone(), call.clone()))
    }

    /// Where the call's room was found; it is not remembered any more.
    pub(super) fn take(&mut self, guild: &GuildId, call: &CallId) -> Option<SfuIdx> {
        if self.rooms.is_empty() {
            return None;
        }
        self.rooms.remove(&(guild.clone(), call.clone())).map(|(on, _)| on)
    }
}

// === impl Shard ===

impl Shard {
    /// A room with people in it was found on `sfu`, at `epoch`, that no call claims. If its call awaits its first place,
    /// it is to be placed there; if nobody has told us of the call, that is so when somebody does. Returns whether
    /// there is such a call or may be one.
    pub fn room_found(
        &mut self,
        slot: Slot,
        guild: &GuildId,
        call: &CallId,
        sfu: SfuIdx,
        epoch: Epoch,
        now: Instant,
    ) -> bool {
        let Some(term) = self.term(slot).filter(|term| epoch.term <= *term) else { return false };
        if epoch.term == term {
            self.raise_placements(epoch); // the SFU takes nothing that is not above it
        }
        let named = self.named(slot, guild);
        let Some(key) = self.find_named(named, guild, call) else {
            self.found.note(guild, call, sfu, now);
            return true;
        };
        let keeps = self.edit(key, |call, dirty| {
            let Placement::Unplaced { found: None } = call.placement else { return false };
            call.put_into(dirty, key, Place::Clean); // under its old class
            call.placement = Placement::Unplaced { found: Some(sfu) };
            if call.is_live() {
                let at = rank(call, dirty, now);
                call.put_into(dirty, key, Place::Ready(at));
            }
            true
        });
        keeps == Some(true)
    }
}
