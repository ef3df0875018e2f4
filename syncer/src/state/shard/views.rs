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
                    Placement::Placed { room, epoch, .. } => Some((room.clone(), *epoch, call.slot, term, true)),
                    Placement::Reserving { room, epoch, .. } => Some((room.clone(), *epoch, call.slot, term, false)),
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

    /// Calls in order of guild and id, for one guild or all.
    #[must_use]
    pub fn list(&self, guild: Option<&GuildId>) -> Vec<&Call> {
        let one = |calls: &BTreeMap<CallId, CallKey>| calls.values().filter_map(|k| self.get(*k)).collect::<Vec<_>>();
        match guild {
            Some(guild) => self.guilds.get(guild).map(one).unwrap_or_default(),
            None => self.guilds.values().flat_map(one).collect(),
        }
    }

    /// The last news of every call in which `gateway` has sessions, with those sessions alone.
    #[must_use]
    pub fn news_for(&self, gateway: &GatewayId) -> Vec<News> {
        self.calls
            .iter()
            .filter_map(|(_, (_, call))| {
                let (epoch, phase) = call.announced?;
                let sessions: Vec<SessionId> =
                    call.participants.iter().filter(|p| p.gateway == *gateway).map(|p| p.session.clone()).collect();
                if sessions.is_empty() {
                    return None;
                }
                let (endpoint, at) = match &call.placement {
                    Placement::Placed { sfu, room, endpoint, .. } => {
                        (Some(endpoint.clone()), Some((*sfu, room.clone())))
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
