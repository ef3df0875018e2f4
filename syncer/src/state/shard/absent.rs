//! Sessions whose gateway is gone, or that it did not tell again.

use std::collections::{BTreeSet, HashSet};

use super::people::empty;
use super::*;

/// What [`Shard::expire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Sessions taken out of their calls.
    pub sessions: usize,
    /// Sessions left since their calls are among those that keep them.
    pub kept: usize,
    /// Whether others are left.
    pub more: bool,
}

impl Shard {
    /// The gateway begins to tell everything again: what it tells from now on is of this round.
    pub fn begin_round(&mut self, gateway: &GatewayId, round: Round) {
        self.gateways.begin(gateway, round);
    }

    /// The SFUs on which people of the gateway may be.
    pub fn sfus_of(&self, gateway: &GatewayId, sfus: &mut BTreeSet<SfuIdx>) {
        let calls = self.gateways.of(gateway, None).flat_map(|idx| self.gateways.calls(idx, None));
        let on = |number| Some(self.get(self.key(number)?)?.placement.seated()?.0);
        sfus.extend(calls.filter_map(on));
    }

    /// The calls on `sfu` with sessions of gateways that are `gone`, of which `keeps` says so of their room and how many
    /// sessions of other gateways they have. O(calls on it).
    pub fn calls_with_absent(
        &self,
        sfu: SfuIdx,
        gone: &[GatewayId],
        keeps: impl Fn(&RoomId, usize) -> bool,
    ) -> Vec<CallKey> {
        let gone: BTreeSet<GatewayIdx> = gone.iter().flat_map(|id| self.gateways.of(id, None)).collect();
        let keeps = |(key, call): (CallKey, &Call)| {
            let (_, _, seat) = call.placement.seated().filter(|(on, ..)| *on == sfu)?;
            let absent = call.participants.count(|idx| gone.contains(&idx));
            let here = call.participants.len() - absent;
            (absent > 0 && keeps(&seat.room(&call.guild, &call.id), here)).then_some(key)
        };
        if gone.is_empty() { Vec::new() } else { self.on(sfu, None).filter_map(keeps).collect() }
    }

    /// Takes out at most `max` sessions of the gateway: all, or those told last before a round, but none of the calls
    /// in `kept`. An empty call keeps its place for the empty grace, as after a leave.
    pub fn expire(
        &mut self,
        gateway: &GatewayId,
        before: Option<Round>,
        kept: &HashSet<CallKey>,
        max: usize,
        limits: &Limits,
        now: Instant,
    ) -> Expired {
        let mut expired = Expired::default();
        let numbers: Vec<GatewayIdx> = self.gateways.of(gateway, before).collect();
        for idx in numbers {
            let mut after = None;
            loop {
                let next = self.gateways.calls(idx, after).find_map(|number| self.key(number));
                let Some(key) = next else { break };
                if kept.contains(&key) {
                    expired.kept += self.get(key).map_or(0, |call| call.participants.count(|on| on == idx));
                    after = Some(key.index);
                    continue;
                }
                if expired.sessions >= max {
                    expired.more = true;
                    return expired;
                }
                expired.sessions += self.expire_in(key, idx, max - expired.sessions, limits, now);
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
