//! The contract as a pure state machine: what one incarnation of an SFU knows.
//!
//! No sockets, no clock, no randomness: every method takes the time, so that the same rules can be
//! tested exhaustively and served over HTTPS unchanged. A restart is a new value.
//!
//! Order of checks, the same for every mutation: incarnation, then term, then a remembered answer,
//! then epoch, then everything else. Fencing comes before idempotence on purpose: a deposed owner
//! that retries an old operation must learn that it was deposed, not that it once succeeded.
//!
//! A slot's *holder* is the syncer that showed its highest term. Digests and `?owner=` go by holder
//! and not by who ensured a room last, so that a successor that raised its term sees the rooms it
//! adopted and its predecessor no longer does.

mod answers;
mod digest;
mod recent;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use sfu_api::{
    BootId, CallKind, EndRoom, Ended, EnsureRoom, Epoch, ErrorCode, Fence, GuildId, Health, Load, OwnerTerm,
    ROOM_PAGE_MAX, RoomEnded, RoomId, RoomPage, RoomReady, RoomState, SessionId, Slot, SyncerId,
};
use tokio::time::Instant;

pub(crate) use self::answers::{Refusal, Tally};
use self::recent::Recent;

/// Answers remembered per incarnation: four full batches, more than a client has in flight to one
/// SFU, and a retry comes within seconds. About 0.3 MiB when full.
const ANSWERS_MAX: usize = 1024;
/// Epochs of ended rooms remembered, against an `ensure` that was overtaken by its `end`. An ended
/// room whose epoch was forgotten is still guarded by its slot's term.
const ENDED_MAX: usize = 4096;
/// Sessions in one room: more than any call has; bounds what attaching can make the mock hold.
const SESSIONS_PER_ROOM_MAX: usize = 10_000;

/// The time of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) unix_ms: u64,
}

/// What does not change during an incarnation.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) boot_id: BootId,
    /// Room ids are appended to this.
    pub(crate) media_url: String,
    pub(crate) capacity: u32,
    pub(crate) empty_room_ttl: Duration,
}

/// One incarnation of an SFU.
#[derive(Debug)]
pub(crate) struct Rooms {
    profile: Profile,
    rooms: BTreeMap<RoomId, Room>,
    holders: FxHashMap<Slot, Holder>,
    ended: Recent<RoomId, Epoch>,
    answers: Recent<sfu_api::OpId, Answered>,
    participants: u32,
    draining: bool,
    /// No empty room is due before this; saves looking at all of them on every request.
    expiry_earliest: Option<Instant>,
}

#[derive(Debug)]
struct Room {
    slot: Slot,
    epoch: Epoch,
    syncer: SyncerId,
    guild: GuildId,
    kind: CallKind,
    sessions: FxHashSet<SessionId>,
    /// When it was last named or last had a participant.
    wanted_at: Instant,
}

#[derive(Clone, Debug)]
struct Holder {
    term: OwnerTerm,
    syncer: SyncerId,
}

#[derive(Clone, Debug)]
enum Answered {
    Ready(RoomId, RoomReady),
    Ended(RoomId, RoomEnded),
}

// === impl Rooms ===

impl Rooms {
    pub(crate) fn new(profile: Profile) -> Self {
        Self {
            profile,
            rooms: BTreeMap::new(),
            holders: FxHashMap::default(),
            ended: Recent::new(ENDED_MAX),
            answers: Recent::new(ANSWERS_MAX),
            participants: 0,
            draining: false,
            expiry_earliest: None,
        }
    }

    pub(crate) fn boot_id(&self) -> &BootId {
        &self.profile.boot_id
    }

    pub(crate) fn load(&self, now: Now) -> Load {
        let calls = u32::try_from(self.rooms.len()).unwrap_or(u32::MAX);
        let Profile { capacity, .. } = self.profile;
        Load { calls, participants: self.participants, capacity, sampled_at: now.unix_ms }
    }

    pub(crate) fn health(&self, now: Now) -> Health {
        Health {
            accepting: !self.draining,
            draining: self.draining,
            boot_id: self.profile.boot_id.clone(),
            load: self.load(now),
        }
    }

    pub(crate) fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// `PUT /v1/rooms/{room}`.
    pub(crate) fn ensure(
        &mut self,
        room: &RoomId,
        request: &EnsureRoom,
        now: Now,
        tally: &mut Tally,
    ) -> Result<RoomReady, Refusal> {
        self.admit(&request.fence, &request.syncer)?;
        match self.answers.get(&request.op_id) {
            Some(Answered::Ready(of, answer)) if of == room => return Ok(answer.clone()),
            Some(_) => return Err(reused(&request.op_id)),
            None => {}
        }
        let epoch = request.fence.epoch;
        let created = match self.rooms.get_mut(room) {
            Some(held) => {
                held.raise(request, now)?;
                false
            }
            None => {
                self.create(room, request, now)?;
                true
            }
        };
        self.ended.remove(room);
        tally.creates += u32::from(created);
        let answer = RoomReady {
            endpoint: format!("{}{}", self.profile.media_url, path_segment(room)),
            created,
            boot_id: self.profile.boot_id.clone(),
            load: self.load(now),
        };
        debug_assert_eq!(self.rooms.get(room).map(|r| r.epoch), Some(epoch), "the room holds the epoch it was given");
        self.answers.insert(request.op_id.clone(), Answered::Ready(room.clone(), answer.clone()));
        Ok(answer)
    }

    fn create(&mut self, room: &RoomId, request: &EnsureRoom, now: Now) -> Result<(), Refusal> {
        let epoch = request.fence.epoch;
        if let Some(&highest) = self.ended.get(room)
            && epoch < highest
        {
            return Err(Refusal::fenced_epoch(room, highest));
        }
        if self.draining {
            return Err(Refusal::draining());
        }
        if self.load(now).calls >= self.profile.capacity {
            return Err(Refusal::full(self.profile.capacity));
        }
        let held = Room {
            slot: request.fence.slot,
            epoch,
            syncer: request.syncer.clone(),
            guild: request.guild.clone(),
            kind: request.kind,
            sessions: FxHashSet::default(),
            wanted_at: now.instant,
        };
        self.rooms.insert(room.clone(), held);
        self.may_expire_at(now.instant + self.profile.empty_room_ttl);
        Ok(())
    }

    /// `DELETE /v1/rooms/{room}`.
    pub(crate) fn end(
        &mut self,
        room: &RoomId,
        request: &EndRoom,
        now: Now,
        tally: &mut Tally,
    ) -> Result<RoomEnded, Refusal> {
        self.admit(&request.fence, &request.syncer)?;
        match self.answers.get(&request.op_id) {
            Some(Answered::Ended(of, answer)) if of == room => return Ok(answer.clone()),
            Some(_) => return Err(reused(&request.op_id)),
            None => {}
        }
        let epoch = request.fence.epoch;
        let mut ended = Ended::WasAbsent;
        if let Some(held) = self.rooms.get(room) {
            if epoch < held.epoch {
                return Err(Refusal::fenced_epoch(room, held.epoch));
            }
            held.check_slot(room, request.fence.slot)?;
            if !held.sessions.is_empty() && !request.force {
                return Err(Refusal::occupied(room, held.sessions.len()));
            }
            ended = Ended::Destroyed;
            tally.ends += 1;
            self.remove(room);
        }
        let highest = self.ended.get(room).map_or(epoch, |&seen| seen.max(epoch));
        self.ended.insert(room.clone(), highest);
        let answer = RoomEnded { ended, boot_id: self.profile.boot_id.clone(), load: self.load(now) };
        self.answers.insert(request.op_id.clone(), Answered::Ended(room.clone(), answer.clone()));
        Ok(answer)
    }

    /// `GET /v1/rooms?owner=&cursor=`: rooms after `cursor`, in order of id.
    pub(crate) fn page(&self, owner: Option<&SyncerId>, cursor: Option<&RoomId>, now: Now) -> RoomPage {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let of_owner = |room: &Room| owner.is_none_or(|o| self.is_held_by(room.slot, o));
        let mut found = self.rooms.range::<RoomId, _>((from, Bound::Unbounded)).filter(|(_, room)| of_owner(room));
        let rooms: Vec<_> = found.by_ref().take(ROOM_PAGE_MAX).map(|(id, room)| room.state(id)).collect();
        let next = found.next().and_then(|_| rooms.last().map(|last| last.room.clone()));
        RoomPage { rooms, next, boot_id: self.profile.boot_id.clone(), load: self.load(now) }
    }

    /// All rooms, for the control port.
    pub(crate) fn all(&self) -> Vec<RoomState> {
        self.rooms.iter().map(|(id, room)| room.state(id)).collect()
    }

    /// The epoch a room is held at.
    pub(crate) fn epoch_of(&self, room: &RoomId) -> Option<Epoch> {
        self.rooms.get(room).map(|held| held.epoch)
    }

    /// A client connects. `None` when there is no such room, else whether it was new there.
    pub(crate) fn attach(&mut self, room: &RoomId, session: SessionId, now: Now) -> Option<Result<bool, Refusal>> {
        let held = self.rooms.get_mut(room)?;
        if held.sessions.len() >= SESSIONS_PER_ROOM_MAX && !held.sessions.contains(&session) {
            return Some(Err(Refusal::crowded(SESSIONS_PER_ROOM_MAX)));
        }
        held.wanted_at = now.instant;
        let new = held.sessions.insert(session);
        self.participants += u32::from(new);
        Some(Ok(new))
    }

    /// A client leaves. `None` when there is no such room, else whether it had been there.
    pub(crate) fn detach(&mut self, room: &RoomId, session: &SessionId, now: Now) -> Option<bool> {
        let held = self.rooms.get_mut(room)?;
        let was = held.sessions.remove(session);
        if was {
            self.participants -= 1;
            held.wanted_at = now.instant;
            self.may_expire_at(now.instant + self.profile.empty_room_ttl);
        }
        Some(was)
    }

    /// Removes empty rooms that nobody named for too long. Called before every request instead of
    /// by a timer: nobody can tell the difference, and a thousand idle nodes cost nothing.
    pub(crate) fn expire(&mut self, now: Now) {
        if self.expiry_earliest.is_none_or(|at| now.instant < at) {
            return;
        }
        let ttl = self.profile.empty_room_ttl;
        let mut earliest: Option<Instant> = None;
        let mut gone = Vec::new();
        for (id, room) in self.rooms.iter().filter(|(_, room)| room.sessions.is_empty()) {
            let at = room.wanted_at + ttl;
            if at <= now.instant {
                gone.push(id.clone());
            } else {
                earliest = Some(earliest.map_or(at, |e| e.min(at)));
            }
        }
        for id in &gone {
            if let Some(epoch) = self.remove(id) {
                self.ended.insert(id.clone(), epoch);
            }
        }
        self.expiry_earliest = earliest;
    }

    fn may_expire_at(&mut self, at: Instant) {
        self.expiry_earliest = Some(self.expiry_earliest.map_or(at, |e| e.min(at)));
    }

    fn remove(&mut self, room: &RoomId) -> Option<Epoch> {
        let held = self.rooms.remove(room)?;
        self.participants -= u32::try_from(held.sessions.len()).unwrap_or(0);
        Some(held.epoch)
    }

    fn is_held_by(&self, slot: Slot, syncer: &SyncerId) -> bool {
        self.holders.get(&slot).is_some_and(|holder| holder.syncer == *syncer)
    }

    /// Checks incarnation and term, and takes a higher term.
    fn admit(&mut self, fence: &Fence, syncer: &SyncerId) -> Result<(), Refusal> {
        self.check_boot(fence.boot_id.as_ref())?;
        self.check_term(fence.slot, fence.owner_term)?;
        if fence.epoch.term > fence.owner_term {
            return Err(Refusal::new(
                ErrorCode::Invalid,
                format!("epoch {} is of a higher term than the owner's {}", fence.epoch, fence.owner_term),
            ));
        }
        self.take_term(fence.slot, fence.owner_term, syncer);
        Ok(())
    }

    fn check_boot(&self, expected: Option<&BootId>) -> Result<(), Refusal> {
        match expected {
            Some(boot) if *boot != self.profile.boot_id => Err(Refusal::restarted(boot, &self.profile.boot_id)),
            _ => Ok(()),
        }
    }

    fn check_term(&self, slot: Slot, term: OwnerTerm) -> Result<(), Refusal> {
        match self.holders.get(&slot) {
            Some(holder) if term < holder.term => Err(Refusal::fenced_term(slot, holder.term)),
            _ => Ok(()),
        }
    }

    fn take_term(&mut self, slot: Slot, term: OwnerTerm, syncer: &SyncerId) {
        self.holders.insert(slot, Holder { term, syncer: syncer.clone() });
    }
}

// === impl Room ===

impl Room {
    fn raise(&mut self, request: &EnsureRoom, now: Now) -> Result<(), Refusal> {
        let epoch = request.fence.epoch;
        if epoch < self.epoch {
            return Err(Refusal::new(ErrorCode::Fenced, "a higher epoch of this room was seen").with_epoch(self.epoch));
        }
        if self.slot != request.fence.slot || self.guild != request.guild {
            return Err(Refusal::new(
                ErrorCode::Invalid,
                format!("the room is of guild {} in slot {}", self.guild, self.slot.get()),
            ));
        }
        self.epoch = epoch;
        self.syncer = request.syncer.clone();
        self.kind = request.kind;
        self.wanted_at = now.instant;
        Ok(())
    }

    fn check_slot(&self, room: &RoomId, slot: Slot) -> Result<(), Refusal> {
        if self.slot == slot {
            return Ok(());
        }
        Err(Refusal::new(ErrorCode::Invalid, format!("room {room} is in slot {}", self.slot.get())))
    }

    fn state(&self, id: &RoomId) -> RoomState {
        RoomState {
            room: id.clone(),
            slot: self.slot,
            epoch: self.epoch,
            syncer: self.syncer.clone(),
            guild: self.guild.clone(),
            participants: u32::try_from(self.sessions.len()).unwrap_or(u32::MAX),
        }
    }
}

fn reused(op: &sfu_api::OpId) -> Refusal {
    Refusal::new(ErrorCode::Invalid, format!("op_id {op} was used for another operation"))
}

/// A room id as one segment of a path.
fn path_segment(room: &RoomId) -> impl std::fmt::Display {
    const KEEP: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');
    percent_encoding::utf8_percent_encode(room.as_str(), KEEP)
}
