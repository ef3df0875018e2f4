//! Who is in which call.

use super::*;
use crate::state::SeqCheck;
use crate::state::call::leaves_from;

/// A session joins a call, or repeats that it is in it.
#[derive(Clone, Debug)]
pub struct Join {
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// The session that joins.
    pub session: SessionId,
    /// The gateway that holds the session's socket.
    pub gateway: GatewayId,
    /// Order of the session's writes; late and repeated ones are ignored. Absent: taken as new.
    pub seq: Option<u64>,
    /// Kind of the call; the first join decides.
    pub kind: CallKind,
    /// Region the call should be in; the first join decides. Absent: any.
    pub region: Option<RegionId>,
}

/// What a join adds, which has to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adds {
    /// A session to a call that exists.
    Session,
    /// A call whose room is there, with people in it.
    Found,
    /// A call.
    Call(CallKind),
}

/// What a join did.
#[derive(Clone, Copy, Debug)]
pub struct Joined {
    /// The call, unless the write was late and the call is gone.
    pub key: Option<CallKey>,
    /// Whether the write counted.
    pub seq: SeqCheck,
    /// Whether the reconciler has something to do.
    pub marked: bool,
}

/// A session leaves a call.
#[derive(Clone, Debug)]
pub struct Leave {
    /// Guild of the call.
    pub guild: GuildId,
    /// The call.
    pub call: CallId,
    /// The session that leaves.
    pub session: SessionId,
    /// The gateway that says so.
    pub gateway: GatewayId,
    /// As in [`Join::seq`].
    pub seq: Option<u64>,
}

/// What a leave did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The session was not there, or the write was late.
    Nothing,
    /// The session is gone.
    Removed,
}

/// What a write is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Slot of the guild.
    pub slot: Slot,
    /// The guild.
    pub guild: &'a GuildId,
    /// The call.
    pub call: &'a CallId,
    /// Who joins or leaves.
    pub session: &'a SessionId,
    /// The gateway that says so.
    pub gateway: &'a GatewayId,
}

/// Something for each of the writes of one shard that came together: of 256 lines a sixteenth, and some more.
pub type Row<T> = SmallVec<[T; 24]>;

impl Shard {
    /// Reads what writes about these calls will read, and names them. Memory that is far away answers a row of
    /// questions in little more than the time of one, unless one has to wait for the answer to another; and a join
    /// asks several that do.
    pub fn warm<'a>(&self, writes: impl Iterator<Item = About<'a>>) -> Row<Named> {
        let asked: Row<(Named, About<'_>)> = writes.map(|write| (self.named(write.slot, write.guild), write)).collect();
        let named = asked.iter().map(|(named, _)| *named).collect();
        if asked.len() < 2 {
            return named; // nothing to ask meanwhile
        }
        let mut read = asked.iter().fold(0, |read, (named, _)| read ^ self.guilds.touch(named.hash));
        // Hashes first: questions have to stand close together to be asked at once.
        let left = asked.iter().filter(|_| !self.gone.is_empty());
        let left: Row<_> = left.map(|(named, write)| self.gone.who(named.hash, write.call, write.session)).collect();
        let left: Row<_> = left.into_iter().filter_map(|who| self.gone.likely(who)).collect();
        read ^= left.iter().fold(0, |read, left| read ^ u32::from(left.touch()));
        let likely: Row<Likely> =
            asked.iter().map(|(named, write)| self.guilds.likely(named.hash, write.call)).collect();
        let mut of = None; // mostly one gateway's
        for ((_, write), likely) in asked.iter().zip(&likely) {
            let number = match *likely {
                Likely::Call(number) => number,
                Likely::Guild(number) => {
                    read ^= u32::from(self.numbered(number).map_or(0, Call::touch_name));
                    continue;
                }
                Likely::Nothing => continue,
            };
            read ^= u32::from(self.numbered(number).map_or(0, Call::touch));
            if of.is_none_or(|(gateway, _)| gateway != write.gateway) {
                of = Some((write.gateway, self.gateways.now(write.gateway)));
            }
            read ^= u32::from(of.and_then(|(_, calls)| calls).map_or(0, |calls| calls.touch(number)));
        }
        for likely in likely {
            let call = if let Likely::Call(number) = likely { self.numbered(number) } else { None };
            read ^= u32::from(call.map_or(0, |call| call.participants.touch_elsewhere()));
        }
        std::hint::black_box(read); // or nothing would be read at all
        named
    }

    /// Takes a join. `admit` is asked before a call is created: that is where the cost is (R8). It is asked
    /// before a session is added if `limits` say so, and never for a session that repeats itself.
    ///
    /// # Errors
    ///
    /// What `admit` or `too_many(what, limit)` returns; nothing has changed then.
    pub fn join<E>(
        &mut self,
        named: Named,
        join: &Join,
        limits: &Limits,
        now: Instant,
        admit: impl FnOnce(&GuildId, Adds) -> Result<(), E>,
        too_many: impl FnOnce(&'static str, u64) -> E,
    ) -> Result<Joined, E> {
        if let Some(seq) = join.seq
            && !self.gone.is_empty()
            && self.gone.is_late(self.gone.who(named.hash, &join.call, &join.session), seq, now)
        {
            let key = self.find_named(named, &join.guild, &join.call);
            return Ok(Joined { key, seq: SeqCheck::Old, marked: false });
        }
        let (found, in_guild) = self.guilds.find(&self.calls, named.hash, &join.guild, &join.call);
        let found = found.and_then(|number| self.key(number));
        self.let_in((found, in_guild), join, limits, now, admit, too_many)?;
        let key = found.unwrap_or_else(|| {
            let room = self.found.take(&join.guild, &join.call, now);
            self.insert(named, Call::new(join, named.slot(), room))
        });
        let (gateway, earlier) = self.gateways.numbers(&join.gateway);
        let joined = self.edit(key, |call, dirty| {
            let put = call.put(&join.session, gateway, &earlier, join.seq);
            let left = put.from.filter(|from| !call.participants.is_on(*from));
            // A late write may be the only one of its gateway.
            let on = put.seq == SeqCheck::New || call.participants.is_on(gateway);
            let marked = wanted(key, call, dirty, put.is_new(), now);
            (Joined { key: Some(key), seq: put.seq, marked }, put.stays, on, left)
        });
        let (joined, stays, on, left) = joined.expect("the key was just found");
        if !on {
            self.gateways.leave(gateway, key.index);
        } else if !stays {
            self.gateways.enter(gateway, key.index);
        }
        if let Some(left) = left {
            self.gateways.leave(left, key.index);
        }
        Ok(joined)
    }

    /// Whether the session may join the call, which is to be created if it was not `found` beside those `in_guild`.
    fn let_in<E>(
        &self,
        (found, in_guild): (Option<CallKey>, usize),
        join: &Join,
        limits: &Limits,
        now: Instant,
        admit: impl FnOnce(&GuildId, Adds) -> Result<(), E>,
        too_many: impl FnOnce(&'static str, u64) -> E,
    ) -> Result<(), E> {
        let Some(call) = found.and_then(|key| self.get(key)) else {
            if in_guild as u64 >= limits.calls_per_guild_max {
                return Err(too_many("calls in the guild", limits.calls_per_guild_max));
            }
            // What is there already is not created.
            let there = self.found.has(&join.guild, &join.call, now);
            return admit(&join.guild, if there { Adds::Found } else { Adds::Call(join.kind) });
        };
        let full = call.participants.len() as u64 >= limits.participants_per_call_max;
        if !(full || limits.admit_sessions) || call.participants.get(&join.session).is_some() {
            return Ok(());
        }
        if full {
            return Err(too_many("sessions in the call", limits.participants_per_call_max));
        }
        admit(&join.guild, Adds::Session)
    }

    /// Whether the gateway has this session in the call, or any if none is named. What it told before its last round,
    /// and not yet again, is its own as well.
    #[must_use]
    pub fn has_session(&self, key: CallKey, gateway: &GatewayId, session: Option<&SessionId>) -> bool {
        let Some(call) = self.get(key) else { return false };
        match session {
            Some(session) => call.participants.get(session).is_some_and(|(on, _)| self.gateways.is_of(on, gateway)),
            None => self.gateways.of(gateway, None).any(|idx| self.gateways.is_in(idx, key.index)),
        }
    }

    /// Takes a leave. An empty call keeps its place for the empty grace, so that a reconnect storm
    /// finds it where it was.
    pub fn leave(&mut self, named: Named, leave: &Leave, limits: &Limits, now: Instant) -> Left {
        let found = self.find_named(named, &leave.guild, &leave.call);
        let present = found.and_then(|key| self.get(key)).and_then(|call| call.participants.get(&leave.session));
        if let Some(seq) = leave.seq.filter(|seq| present.is_none_or(|(_, last)| last <= *seq)) {
            // Also when it was not there: its join may still be under way.
            let who = self.gone.who(named.hash, &leave.call, &leave.session);
            self.gone.note(who, seq, limits.left_remembered_max, now);
        }
        let Some(key) = found else { return Left::Nothing };
        let same_gateway = present.is_some_and(|(on, _)| self.gateways.is_of(on, &leave.gateway));
        let on = leaves_from(present, same_gateway, leave.seq);
        if let Some(on) = on {
            let still_on = self.edit(key, |call, dirty| {
                call.participants.remove(&leave.session);
                if !call.is_live() {
                    empty(key, call, dirty, limits, now);
                }
                call.participants.is_on(on)
            });
            if still_on == Some(false) {
                self.gateways.leave(on, key.index);
            }
        }
        if self.get(key).is_some_and(|c| !c.is_live() && c.placement.sfu().is_none()) {
            self.forget(key);
        }
        if on.is_some() { Left::Removed } else { Left::Nothing }
    }
}

/// Somebody is in the call: it stays, and wants a place if it has none. Says whether it has only now begun to.
fn wanted(key: CallKey, call: &mut Call, dirty: &mut Dirty, grew: bool, now: Instant) -> bool {
    if call.placement.is_placed() {
        if matches!(call.place, Place::Waiting(_)) {
            call.put_into(dirty, key, Place::Clean);
        }
        return false;
    }
    call.awaiting_since.get_or_insert(now);
    let was = match call.place {
        // Waiting for its end, or not yet in the set: it has to be placed now.
        Place::Clean => None,
        // Larger than it was, so perhaps more urgent.
        Place::Ready(was) if grew && call.participants.len().is_power_of_two() => Some(was),
        _ => return false,
    };
    // By no more than that: what made it less urgent than others still does.
    let at = rank(call, dirty, now).max(was.map_or(Tick(0), Tick::twice_the_size));
    if was.is_none_or(|was| at < was) {
        call.put_into(dirty, key, Place::Ready(at));
    }
    was.is_none()
}

/// The call has lost its last session.
pub(super) fn empty(key: CallKey, call: &mut Call, dirty: &mut Dirty, limits: &Limits, now: Instant) {
    call.awaiting_since = None;
    if call.placement.is_placed() {
        call.put_into(dirty, key, Place::Waiting(now + limits.empty_grace));
    } else if !matches!(call.place, Place::InFlight) {
        call.put_into(dirty, key, Place::Clean);
    }
}
