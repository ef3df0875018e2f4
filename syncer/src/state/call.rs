//! One call.

use std::sync::Arc;

use sfu_api::{CallId, CallKind, Epoch, GatewayId, GuildId, RegionId, SessionId, Slot};
use tokio::time::Instant;

use super::{Class, Place, Placement};

/// One session in a call.
#[derive(Clone, Debug)]
pub struct Participant {
    /// The session.
    pub session: SessionId,
    /// The gateway that holds its socket.
    pub gateway: GatewayId,
    /// The highest `seq` of the session's writes.
    pub seq: u64,
}

/// One call: the expensive child of a guild.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its guild.
    pub guild: GuildId,
    /// Its id within the guild.
    pub id: CallId,
    /// Slot of the guild.
    pub slot: Slot,
    /// Voice or stream.
    pub kind: CallKind,
    /// Region it asked for.
    pub region: Option<RegionId>,
    /// Who is in it, in the order of joining.
    pub participants: Vec<Participant>,
    /// Where it is.
    pub placement: Placement,
    /// Since when it has wanted an endpoint without having one.
    pub awaiting_since: Option<Instant>,
    /// When an empty call ends.
    pub ends_at: Option<Instant>,
    /// The last thing gateways were told: epoch and phase. Grows strictly (I7).
    pub announced: Option<(Epoch, u8)>,
    /// Attempts since the need arose.
    pub attempts: u32,
    /// The last decision in words, for `explain`.
    pub decision: Option<Arc<str>>,
    /// Where it is in the dirty set.
    pub(super) place: Place,
}

/// What a `seq` says of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqCheck {
    /// Newer than anything seen: apply it.
    New,
    /// Late or repeated: ignore it.
    Old,
}

// === impl Call ===

impl Call {
    pub(super) fn new(guild: GuildId, id: CallId, slot: Slot, kind: CallKind, region: Option<RegionId>) -> Self {
        Self {
            guild,
            id,
            slot,
            kind,
            region,
            participants: Vec::new(),
            placement: Placement::Unplaced,
            awaiting_since: None,
            ends_at: None,
            announced: None,
            attempts: 0,
            decision: None,
            place: Place::Clean,
        }
    }

    /// Whether anyone is in the call.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.participants.is_empty()
    }

    /// Whether the call is live and has no endpoint.
    #[must_use]
    pub fn is_awaiting(&self) -> bool {
        self.is_live() && !self.placement.is_placed()
    }

    /// Where the call is in the dirty set.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// The class of its next placement.
    #[must_use]
    pub fn class(&self) -> Class {
        match (self.announced.is_some(), self.kind) {
            (true, _) => Class::Repair,
            (false, CallKind::Voice) => Class::New,
            (false, CallKind::Stream) => Class::Stream,
        }
    }

    /// The session's entry, if it is in the call.
    #[must_use]
    pub fn participant(&self, session: &SessionId) -> Option<&Participant> {
        self.participants.iter().find(|p| p.session == *session)
    }

    /// Puts the session into the call, or moves it to another gateway. `None` as `seq` counts as
    /// the one after the last.
    pub(super) fn put(&mut self, session: SessionId, gateway: GatewayId, seq: Option<u64>) -> SeqCheck {
        if let Some(p) = self.participants.iter_mut().find(|p| p.session == session) {
            let seq = seq.unwrap_or_else(|| p.seq.saturating_add(1));
            if seq <= p.seq {
                return SeqCheck::Old;
            }
            p.seq = seq;
            p.gateway = gateway;
            return SeqCheck::New;
        }
        self.participants.push(Participant { session, gateway, seq: seq.unwrap_or(0) });
        SeqCheck::New
    }

    /// Takes the session out of the call. A leave that is older than the session's last write is
    /// ignored; one for the same `seq` is not (a leave follows its join). Without a `seq`, only the
    /// gateway that holds the session is believed: it may have moved.
    pub(super) fn remove(&mut self, session: &SessionId, gateway: &GatewayId, seq: Option<u64>) -> bool {
        let Some(at) = self.participants.iter().position(|p| p.session == *session) else { return false };
        let participant = &self.participants[at];
        let stale = seq.map_or(participant.gateway != *gateway, |seq| seq < participant.seq);
        if stale {
            return false;
        }
        self.participants.remove(at);
        true
    }

    /// The sessions by gateway, gateways in order of their first session.
    #[must_use]
    pub fn sessions_by_gateway(&self) -> Vec<(GatewayId, Vec<SessionId>)> {
        let mut by: Vec<(GatewayId, Vec<SessionId>)> = Vec::new();
        for p in &self.participants {
            match by.iter_mut().find(|(g, _)| *g == p.gateway) {
                Some((_, sessions)) => sessions.push(p.session.clone()),
                None => by.push((p.gateway.clone(), vec![p.session.clone()])),
            }
        }
        by
    }
}
