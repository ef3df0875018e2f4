//! What operators, digests and watchers read.

use super::*;

impl Shard {
    /// The rooms this shard has or is making on `sfu`, with slot and our term; `true` where the
    /// SFU has confirmed the room.
    #[must_use]
    pub fn rooms_on(&self, sfu: SfuIdx) -> Vec<(RoomId, Epoch, Slot, OwnerTerm, bool)> {
        let Some(keys) = self.by_sfu.get(&sfu) else { return Vec::new() };
        keys.iter()
            .filter_map(|key| {
                let call = self.get(*key)?;
                let term = self.term(call.slot)?;
                match &call.placement {
                    Placement::Placed { epoch, seat, .. } => {
                        Some((seat.room(&call.guild, &call.id), *epoch, call.slot, term, true))
                    }
                    Placement::Reserving { epoch, attempt, .. } => {
                        Some((attempt.room.clone(), *epoch, call.slot, term, false))
                    }
                    Placement::Unplaced | Placement::Lost { .. } => None,
                }
            })
            .collect()
    }

    /// The SFUs that calls are on.
    #[must_use]
    pub fn sfus_in_use(&self) -> Vec<SfuIdx> {
        self.by_sfu.keys().copied().collect()
    }

    /// Calls placed or being placed on `sfu`.
    #[must_use]
    pub fn calls_on(&self, sfu: SfuIdx) -> usize {
        self.by_sfu.get(&sfu).map_or(0, BTreeSet::len)
    }

    /// The calls of one guild, in order of their ids, or all calls in no order.
    pub fn list(&self, guild: Option<&GuildId>) -> impl Iterator<Item = &Call> {
        let of_one = guild.and_then(|guild| self.guilds.get(guild)).into_iter().flatten();
        let of_all = guild.is_none().then(|| self.calls.iter().map(|(_, (_, call))| call)).into_iter().flatten();
        of_one.filter_map(|key| self.get(*key)).chain(of_all)
    }

    /// The last news of every call in which `gateway` has sessions, with those sessions alone.
    #[must_use]
    pub fn news_for(&self, gateway: &GatewayId) -> Vec<News> {
        let Some(idx) = self.gateways.find(gateway) else { return Vec::new() };
        self.gateways
            .calls(idx)
            .filter_map(|key| {
                let call = self.get(key)?;
                let (epoch, phase) = call.placement.announced()?;
                let sessions = call.participants.sessions(Some(idx)).into_iter().map(|(_, s)| s).collect();
                let (endpoint, at) = match &call.placement {
                    Placement::Placed { sfu, seat, .. } => {
                        (Some(seat.endpoint(&call.guild, &call.id)), Some((*sfu, seat.room(&call.guild, &call.id))))
                    }
                    _ => (None, None),
                };
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
            })
            .collect()
    }
}
