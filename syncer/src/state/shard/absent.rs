//! Sessions whose gateway is gone, or that it did not tell again.

use super::people::empty;
use super::*;

/// What [`Shard::expire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Sessions taken out of their calls.
    pub sessions: usize,
    /// Whether some are left.
    pub more: bool,
}

impl Shard {
    /// The gateway begins to tell everything again: what it tells from now on is of this round.
    pub fn begin_round(&mut self, gateway: &GatewayId, round: Round) {
        self.gateways.begin(gateway, round);
    }

    /// Takes out at most `max` sessions of the gateway: all, or those told last before a round. An empty
    /// call keeps its place for the empty grace, as after a leave.
    pub fn expire(
        &mut self,
        gateway: &GatewayId,
        before: Option<Round>,
        max: usize,
        limits: &Limits,
        now: Instant,
    ) -> Expired {
        let mut sessions = 0;
        while let Some((idx, key)) = self.first_of(gateway, before) {
            if sessions >= max {
                return Expired { sessions, more: true };
            }
            sessions += self.expire_in(key, idx, max - sessions, limits, now);
        }
        Expired { sessions, more: false }
    }

    fn first_of(&self, gateway: &GatewayId, before: Option<Round>) -> Option<(GatewayIdx, CallKey)> {
        self.gateways.of(gateway, before).find_map(|idx| Some((idx, self.key(self.gateways.calls(idx, None).next()?)?)))
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
