//! Planned moves: away from an SFU that is drained, without a moment without an endpoint.
//!
//! Nothing is kept of the moves that are still to come: which calls those are follows from the index
//! of calls by SFU. So a drain of a hundred thousand calls costs no memory, and undoing it leaves
//! nothing to take back.

use super::placing::release_of;
use super::*;

/// What [`Shard::move_next`] did.
#[derive(Clone, Debug)]
pub enum Moved {
    /// No call after the given one is left to be moved.
    Nothing,
    /// This call cannot go anywhere now.
    Aside(CallKey),
    /// This call is on its way.
    Reserved {
        /// The call.
        work: PlaceWork,
        /// Epoch of the attempt.
        epoch: Epoch,
        /// Room to make.
        room: RoomId,
    },
}

impl Shard {
    /// Lets `placer` find another place for the first live call that is placed on `from`, in the order
    /// of keys, behind `after`.
    pub fn move_next(&mut self, from: SfuIdx, after: Option<CallKey>, placer: &mut impl Placer) -> Moved {
        let stays = |(key, call): (CallKey, &Call)| {
            let stays = call.is_live() && matches!(call.placement, Placement::Placed { .. });
            stays.then(|| self.work_on(key, call)).flatten()
        };
        let Some(work) = self.on(from, after).find_map(stays) else { return Moved::Nothing };
        let key = work.key;
        let Decision::Reserve { sfu: to, why } = placer.decide(&work) else { return Moved::Aside(key) };
        if to == from {
            return Moved::Aside(key);
        }
        let epoch = self.next_epoch(work.term);
        let room = placer.room(to, &work, epoch);
        self.edit(key, |call, _| {
            let Placement::Placed { sfu, epoch: stands, seat } = &call.placement else { return };
            let (from, seat) = (*sfu, seat.clone());
            let planned = Move { from, epoch: *stands, seat, to, next: epoch, room: room.clone() };
            call.placement = Placement::Moving(Box::new(planned));
            call.decision = Some(Box::new(why));
        });
        Moved::Reserved { work, epoch, room }
    }

    /// The SFU that a call moves to has made the room: the gateways hear of it, and the old room is to
    /// be released.
    pub(super) fn commit_move(&mut self, key: CallKey, epoch: Epoch, endpoint: &Arc<str>) -> Committed {
        let sessions = self.sessions(key);
        let term = self.get(key).and_then(|call| self.term(call.slot));
        let to = self.get(key).and_then(|call| call.placement.sfus()[1]);
        let mut base = to.and_then(|to| self.bases.get(&to).cloned()).flatten();
        let committed = self.edit(key, |call, _| {
            let Placement::Moving(m) = &call.placement else { return None };
            if m.next != epoch {
                return None;
            }
            let left = term.and_then(|term| release_of(call, term)).map(Box::new);
            let (to, room) = (m.to, m.room.clone());
            let seat = Seat::new(&call.guild, &call.id, &room, endpoint, &mut base);
            call.placement = Placement::Placed { sfu: to, epoch, seat };
            let news = call.is_live().then(|| News {
                guild: call.guild.clone(),
                call: call.id.clone(),
                epoch,
                phase: 1,
                endpoint: Some(endpoint.clone()),
                at: Some((to, room)),
                cause: Cause::Drained,
                sessions,
            });
            Some(Committed::Placed { news, moved: true, awaited: None, class: call.class(), left })
        });
        if let Some(to) = to {
            self.bases.insert(to, base);
        }
        committed.flatten().unwrap_or(Committed::Stale)
    }
}

/// A move that failed at `epoch`: the call stays where it is.
pub(super) fn stay(call: &mut Call, epoch: Epoch) {
    let Placement::Moving(m) = &call.placement else { return };
    if m.next == epoch {
        call.placement = Placement::Placed { sfu: m.from, epoch: m.epoch, seat: m.seat.clone() };
    }
}

/// The attempt that a move becomes when the place it leaves is lost before it ends: the repair.
pub(super) fn repairing(placement: &Placement) -> Option<Placement> {
    let Placement::Moving(m) = placement else { return None };
    let last = Some(Last { sfu: m.from, epoch: m.epoch });
    let attempt = Box::new(Reserved { room: m.room.clone(), last, in_place: false, found: None });
    Some(Placement::Reserving { sfu: m.to, epoch: m.next, attempt })
}
