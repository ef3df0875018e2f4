//! Sessions whose gateway is gone, or that it did not tell again.

use std::collections::BTreeSet;

use super::people::empty;
use super::*;

/// Calls that keep their sessions that are walked under one lock: ~50 µs.
const KEPT_STEP_MAX: usize = 256;

/// What [`Shard::expire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Sessions taken out of their calls.
    pub sessions: usize,
    /// Whether others are left that were not looked at.
    pub more: bool,
}

/// A walk over the sessions of a gateway, in steps.
#[derive(Clone, Debug)]
pub struct Walk {
    gateway: GatewayId,
    before: Option<Round>,
    /// The last call that kept its sessions, and under which number.
    at: Option<(GatewayIdx, u32)>,
    /// Sessions left in calls that keep them.
    pub kept: usize,
}

/// The sessions of some gateways in a shard.
#[derive(Clone, Debug)]
pub struct Absent {
    gateways: Arc<[GatewayId]>,
    numbers: BTreeSet<GatewayIdx>,
    /// Calls with any of them.
    calls: RoaringBitmap,
    /// Numbers were given up so many times.
    given_up: u64,
}

// === impl Walk ===

impl Walk {
    /// Over all sessions of the gateway, or over those told last before a round.
    #[must_use]
    pub const fn over(gateway: GatewayId, before: Option<Round>) -> Self {
        Self { gateway, before, at: None, kept: 0 }
    }
}

impl Shard {
    /// The gateway begins to tell everything again: what it tells from now on is of this round.
    pub fn begin_round(&mut self, gateway: &GatewayId, round: Round) {
        self.gateways.begin(gateway, round);
    }

    /// The sessions of these gateways, to be looked at in steps. O(gateways), with some microseconds for one that has people in
    /// many calls.
    #[must_use]
    pub fn absent(&self, gateways: &Arc<[GatewayId]>) -> Absent {
        let numbers: BTreeSet<GatewayIdx> = gateways.iter().flat_map(|id| self.gateways.of(id, None)).collect();
        let mut calls = RoaringBitmap::new();
        numbers.iter().filter_map(|idx| self.gateways.set(*idx)).for_each(|of| calls |= &*of.thin());
        Absent { gateways: gateways.clone(), numbers, calls, given_up: self.gateways.given_up() }
    }

    /// The SFUs on which people of these gateways are, or are about to be.
    pub fn sfus_with(&self, gateways: &Arc<[GatewayId]>, sfus: &mut BTreeSet<SfuIdx>) {
        let of = self.absent(gateways).calls;
        sfus.extend(self.by_sfu.iter().filter(|(_, calls)| !calls.is_disjoint(&of)).map(|(sfu, _)| *sfu));
    }

    /// Shows `each` the calls placed on `sfu` with absent sessions, behind `after` and at most `max` of them: their rooms,
    /// and how many other sessions they have. Returns behind which to go on, if there are more.
    pub fn calls_with_absent(
        &self,
        sfu: SfuIdx,
        absent: &mut Absent,
        after: Option<CallKey>,
        max: usize,
        mut each: impl FnMut(CallKey, &RoomId, usize),
    ) -> Option<CallKey> {
        if absent.given_up != self.gateways.given_up() {
            *absent = self.absent(&absent.gateways); // a number may be another's by now
        }
        let both = self.by_sfu.get(&sfu)? & &absent.calls;
        let (mut numbers, mut last) = (behind(&both, after.map(|key| key.index)), None);
        for key in numbers.by_ref().take(max).filter_map(|number| self.key(number)) {
            last = Some(key);
            let Some(call) = self.get(key) else { continue };
            let Some((_, _, seat)) = call.placement.seated().filter(|(on, ..)| *on == sfu) else { continue };
            let gone = call.participants.count(|idx| absent.numbers.contains(&idx));
            if gone > 0 {
                each(key, &seat.room(&call.guild, &call.id), call.participants.len() - gone);
            }
        }
        last.filter(|_| numbers.next().is_some())
    }

    /// Takes the next sessions of the walk out, at most `max`, but none of the calls of which `keeps` says so. An empty
    /// call keeps its place for the empty grace, as after a leave.
    pub fn expire(
        &mut self,
        walk: &mut Walk,
        keeps: impl Fn(CallKey) -> bool,
        max: usize,
        limits: &Limits,
        now: Instant,
    ) -> Expired {
        let (mut expired, mut passed) = (Expired::default(), 0);
        let numbers: Vec<GatewayIdx> = self.gateways.of(&walk.gateway, walk.before).collect();
        if walk.at.is_some_and(|(on, _)| !numbers.contains(&on)) {
            (walk.at, walk.kept) = (None, 0); // whoever was kept there has left: it begins again
        }
        let from = walk.at.map(|(on, _)| on);
        for idx in numbers.into_iter().skip_while(|idx| from.is_some_and(|from| *idx != from)) {
            let mut after = walk.at.filter(|(on, _)| *on == idx).map(|(_, call)| call);
            loop {
                let next = self.gateways.calls(idx, after).find_map(|number| self.key(number));
                let Some(key) = next else { break };
                if expired.sessions >= max || passed >= KEPT_STEP_MAX {
                    expired.more = true;
                    return expired;
                }
                if keeps(key) {
                    walk.kept += self.get(key).map_or(0, |call| call.participants.count(|on| on == idx));
                    walk.at = Some((idx, key.index));
                    passed += 1;
                } else {
                    expired.sessions += self.expire_in(key, idx, max - expired.sessions, limits, now);
                    if expired.sessions == max {
                        continue; // some of them may still be in the call
                    }
                }
                after = Some(key.index);
            }
        }
        expired
    }

    fn expire_in(&mut self, key: CallKey, idx: GatewayIdx, max: usize, limits: &Limits, now: Instant) -> usize {
        let edited = self.edit(key, |call, dirty| {
            let mut sessions = call.participants.sessions(Some(idx));
            sessions.truncate(max);
            for (_, session) in &sessions {
                call.participants.remove(session);
            }
            if !call.is_live() {
                empty(key, call, dirty, limits, now);
            }
            (sessions.len(), call.participants.is_on(idx))
        });
        let (removed, on) = edited.unwrap_or_default();
        if !on {
            self.gateways.leave(idx, key.index);
        }
        if self.get(key).is_some_and(|c| !c.is_live() && c.placement.sfu().is_none()) {
            self.forget(key);
        }
        removed
    }
}
