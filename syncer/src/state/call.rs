//! One call.

use sfu_api::{CallId, CallKind, GuildId, RegionId, SessionId, Slot};
use tokio::time::Instant;

use super::{CallKey, Class, Dirty, GatewayIdx, Join, Last, Members, Place, Placement, Why};

/// One call: the expensive child of a guild.
///
/// Two pairs of lines of 64 bytes, each of which a write may have to wait for when there are a million calls: who it is
/// and in which line it waits, who is in it; where it is, and what is read when it moves on. Who looks for another call
/// reads the first alone.
#[derive(Clone, Debug)]
#[repr(C, align(128))]
pub struct Call {
    /// Its guild.
    pub guild: GuildId,
    /// Its id within the guild.
    pub id: CallId,
    /// Where it is in the dirty set.
    pub(super) place: Place,
    /// Who is in it.
    pub participants: Members,
    /// Where it is.
    pub placement: Placement,
    /// Slot of the guild.
    pub slot: Slot,
    /// Voice or stream.
    pub kind: CallKind,
    /// Attempts since the need arose; 255 stands for more.
    pub attempts: u8,
    /// Tells it from calls that had its number before.
    pub(super) generation: u32,
    /// Since when it has wanted an endpoint without having one.
    pub awaiting_since: Option<Instant>,
    /// Region it asked for.
    pub region: Option<RegionId>,
    /// The last decision, for `explain`. Boxed: a call that waits for its first has none.
    pub decision: Option<Box<Why>>,
}

/// What putting a session into a call did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Put {
    /// Whether the write counted.
    pub(super) seq: SeqCheck,
    /// The number of its gateway under which it stood until now, if that was another.
    pub(super) from: Option<GatewayIdx>,
    /// It stood under this number before.
    pub(super) stays: bool,
}

// === impl Put ===

impl Put {
    /// Whether the session was not in the call before.
    pub(super) fn is_new(&self) -> bool {
        self.seq == SeqCheck::New && !self.stays && self.from.is_none()
    }
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
    /// The call that a first join asks for, whose room may have been found already.
    pub(super) fn new(join: &Join, slot: Slot, found: Option<Last>) -> Self {
        Self {
            guild: join.guild.clone(),
            id: join.call.clone(),
            participants: Members::new(),
            placement: Placement::Unplaced { found },
            slot,
            kind: join.kind,
            attempts: 0,
            generation: 0,
            place: Place::Clean,
            awaiting_since: None,
            region: join.region.clone(),
            decision: None,
        }
    }

    /// The call of that name, which nobody has joined.
    #[cfg(test)]
    pub(super) fn named(guild: &str, id: &str) -> Self {
        let join = Join {
            guild: GuildId::new(guild).expect("valid"),
            call: CallId::new(id).expect("valid"),
            session: SessionId::new("s").expect("valid"),
            gateway: sfu_api::GatewayId::new("w").expect("valid"),
            seq: None,
            kind: CallKind::Voice,
            region: None,
        };
        Self::new(&join, Slot::new(0).expect("the first"), None)
    }

    /// Whether this is its name.
    pub(super) fn is_called(&self, guild: &GuildId, id: &CallId) -> bool {
        self.id == *id && self.guild == *guild
    }

    /// Reads what it is called, so that it is at hand.
    pub(super) fn touch_name(&self) -> u8 {
        self.guild.as_bytes()[0] ^ self.id.as_bytes()[0]
    }

    /// Reads some of every part of it; of its sessions only where they are.
    pub(super) fn touch(&self) -> u8 {
        let [placed, waits] = [self.placement.is_placed(), self.awaiting_since.is_some()].map(u8::from);
        self.touch_name() ^ self.participants.touch() ^ placed ^ waits
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

    /// What it asks of the reconciler: a place, of this class.
    #[must_use]
    pub fn demand(&self) -> Option<Class> {
        self.is_awaiting().then(|| self.class())
    }

    /// Moves it within the dirty set.
    pub(super) fn put_into(&mut self, dirty: &mut Dirty, key: CallKey, to: Place) {
        let class = self.class();
        dirty.put(key, class, &mut self.place, to);
    }

    /// The class of its next placement.
    #[must_use]
    pub fn class(&self) -> Class {
        match (self.placement.announced().is_some() || self.placement.is_found(), self.kind) {
            (true, _) => Class::Repair,
            (false, CallKind::Voice) => Class::New,
            (false, CallKind::Stream) => Class::Stream,
        }
    }

    /// Puts the session into the call, or moves it to another gateway. `None` as `seq`
    /// counts as the one after the last. The last write again, by the gateway that made it (now or under one of its
    /// `earlier` numbers), changes nothing but under which of them the session stands.
    pub(super) fn put(
        &mut self,
        session: &SessionId,
        gateway: GatewayIdx,
        earlier: &[GatewayIdx],
        seq: Option<u64>,
    ) -> Put {
        let mut put = Put { seq: SeqCheck::New, from: None, stays: false };
        self.participants.update(session, |before| {
            let seq = match (before, seq) {
                (Some((on, last)), Some(seq)) if seq == last && (on == gateway || earlier.contains(&on)) => {
                    put.seq = SeqCheck::Old;
                    seq
                }
                (Some((_, last)), Some(seq)) if seq <= last => {
                    put.seq = SeqCheck::Old;
                    return None;
                }
                (_, Some(seq)) => seq,
                (Some((_, last)), None) => last.saturating_add(1),
                (None, None) => 0,
            };
            let on = before.map(|(on, _)| on);
            put.stays = on == Some(gateway);
            put.from = on.filter(|on| *on != gateway);
            Some((gateway, seq))
        });
        put
    }
}

/// From which gateway a session leaves that does so now; `present` is what is kept of it. A leave that is older than
/// the session's last write is ignored; one for the same `seq` is not (a leave follows its join). Without a `seq`,
/// only the gateway that holds the session (`same_gateway`) is believed: it may have moved.
pub(super) fn leaves_from(
    present: Option<(GatewayIdx, u64)>,
    same_gateway: bool,
    seq: Option<u64>,
) -> Option<GatewayIdx> {
    let (on, last) = present?;
    let stale = seq.map_or(!same_gateway, |seq| seq < last);
    (!stale).then_some(on)
}
