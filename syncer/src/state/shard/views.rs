//! What operators, digests and watchers read.

use super::*;
use crate::state::call_set::count_of;

/// Calls looked at in each line for the age of the oldest: ten times a second in each shard, ~2 µs.
const LOOKED_AT: usize = 8;

/// Some of a gateway's news.
#[derive(Clone, Debug)]
pub struct NewsPage {
    /// The news.
    pub news: Vec<News>,
    /// Where the next page begins, if there may be one.
    pub next: Option<CallKey>,
}

/// A room that a call has, or is about to have, on some SFU.
#[derive(Clone, Debug)]
pub struct RoomOn {
    /// The call.
    pub key: CallKey,
    /// The room.
    pub room: RoomId,
    /// Epoch of the placement, or of the attempt.
    pub epoch: Epoch,
    /// Slot of the call's guild.
    pub slot: Slot,
    /// Our term for it.
    pub term: OwnerTerm,
    /// Whether the SFU has confirmed the room.
    pub confirmed: bool,
}

impl Shard {
    /// The rooms this shard has or is making on `sfu`.
    #[must_use]
    pub fn rooms_on(&self, sfu: SfuIdx) -> Vec<RoomOn> {
        self.on(sfu, None)
            .filter_map(|(key, call)| {
                let term = self.term(call.slot)?;
                let (room, epoch, confirmed) = match &call.placement {
                    Placement::Reserving { epoch, attempt, .. } => (attempt.room.clone(), *epoch, false),
                    Placement::Moving(m) if m.to == sfu => (m.room.clone(), m.next, false),
                    placement => {
                        let (_, epoch, seat) = placement.seated()?;
                        (seat.room(&call.guild, &call.id), epoch, true)
                    }
                };
                Some(RoomOn { key, room, epoch, slot: call.slot, term, confirmed })
            })
            .collect()
    }

    /// The SFUs that calls are on.
    #[must_use]
    pub fn sfus_in_use(&self) -> Vec<SfuIdx> {
        self.by_sfu.keys().copied().collect()
    }

    /// How many calls of each class wait for nothing but their turn, and since when the oldest does. Larger
    /// calls stand before older ones, by a few seconds at most, so the heads of the lines tell.
    #[must_use]
    pub fn backlog(&self) -> ([usize; Class::ALL.len()], [Option<Instant>; Class::ALL.len()]) {
        let mut oldest = [None; Class::ALL.len()];
        let (queued, heads) = self.dirty.queue(LOOKED_AT);
        for call in heads.filter_map(|number| self.numbered(number)) {
            let of_class = &mut oldest[call.class() as usize];
            *of_class = [*of_class, call.awaiting_since].into_iter().flatten().min();
        }
        (queued, oldest)
    }

    /// Calls placed or being placed on `sfu`, those that are moving away included.
    #[must_use]
    pub fn calls_on(&self, sfu: SfuIdx) -> usize {
        self.by_sfu.get(&sfu).map_or(0, count_of)
    }

    /// What the calls on `sfu` would ask for if it lost them. O(calls on it).
    #[must_use]
    pub fn demand_of(&self, sfu: SfuIdx) -> Demand {
        let mut demand = Demand::default();
        for (_, call) in self.on(sfu, None) {
            if call.is_live() && call.placement.seated().is_some_and(|(on, ..)| on == sfu) {
                demand.add(call.region.as_ref(), Class::Repair, 1);
            }
        }
        demand
    }

    /// The calls of one guild, or all calls, in no order.
    pub fn list(&self, guild: Option<&GuildId>) -> impl Iterator<Item = &Call> {
        let of_one =
            guild.map(|guild| self.guilds.of(&self.calls, self.guilds.hash(guild), guild)).into_iter().flatten();
        let of_all = guild.is_none().then(|| self.calls.iter().map(|(_, call)| call)).into_iter().flatten();
        of_one.filter_map(|number| self.numbered(number)).chain(of_all)
    }

    /// The last news of the calls in which `gateway` has sessions, with those sessions alone: at most `max`
    /// calls are looked at, so that the lock is not held for long. Begin with `None`, go on with
    /// [`NewsPage::next`]; calls that come or go meanwhile may be on a page or not.
    #[must_use]
    pub fn news_for(&self, gateway: &GatewayId, after: Option<CallKey>, max: usize) -> NewsPage {
        // A gateway has more than one number only while it tells everything again.
        let numbers: SmallVec<[GatewayIdx; 2]> = self.gateways.of(gateway, None).collect();
        let after = after.map(|key| key.index);
        let mut calls: Vec<u32> = numbers.iter().flat_map(|idx| self.gateways.calls(*idx, after).take(max)).collect();
        calls.sort_unstable();
        calls.dedup();
        calls.truncate(max);
        let keys: Vec<CallKey> = calls.into_iter().filter_map(|call| self.key(call)).collect();
        let next = keys.last().copied().filter(|_| keys.len() == max);
        NewsPage { news: keys.into_iter().filter_map(|key| self.news_of(key, gateway, &numbers)).collect(), next }
    }

    /// The last news of one call, if `gateway` has sessions in it, with those alone.
    #[must_use]
    pub fn news_about(&self, gateway: &GatewayId, guild: &GuildId, call: &CallId) -> Option<News> {
        let numbers: SmallVec<[GatewayIdx; 2]> = self.gateways.of(gateway, None).collect();
        let news = self.news_of(self.find(guild, call)?, gateway, &numbers)?;
        news.sessions.iter().any(|(_, sessions)| !sessions.is_empty()).then_some(news)
    }

    fn news_of(&self, key: CallKey, gateway: &GatewayId, numbers: &[GatewayIdx]) -> Option<News> {
        let call = self.get(key)?;
        let (epoch, phase) = call.placement.announced()?;
        let of = |idx: &GatewayIdx| call.participants.sessions(Some(*idx)).into_iter().map(|(_, s)| s);
        let sessions = numbers.iter().flat_map(of).collect();
        let seated = call.placement.seated();
        let (endpoint, at) = seated
            .map(|(sfu, _, seat)| (seat.endpoint(&call.guild, &call.id), (sfu, seat.room(&call.guild, &call.id))))
            .unzip();
        Some(News {
            guild: call.guild.clone(),
            call: call.id.clone(),
            epoch,
            phase,
            endpoint,
            at,
            cause: Cause::Placed,
            sessions: vec![(gateway.clone(), sessions)],
        })
    }
}
