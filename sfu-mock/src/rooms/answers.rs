//! Refusals and batches.

use sfu_api::{
    Batch, BatchAnswer, BatchOperation, BatchResult, BootId, Epoch, ErrorAnswer, ErrorCode, OwnerTerm, RoomId, Slot,
    SlotTerm,
};

use super::{Now, Rooms};

/// What one request did, for the counts that outlive the incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Rooms made; not those that were there already, nor repeated answers.
    pub(crate) creates: u32,
    pub(crate) ends: u32,
    /// Refused for any other reason than fencing.
    pub(crate) refused: u32,
    pub(crate) fenced: u32,
    pub(crate) attaches: u32,
}

/// Why the SFU does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) highest_term: Option<OwnerTerm>,
    pub(crate) fenced_slots: Option<Vec<SlotTerm>>,
    pub(crate) highest_epoch: Option<Epoch>,
    pub(crate) retry_after_s: Option<u32>,
}

// === impl Refusal ===

impl Refusal {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            highest_term: None,
            fenced_slots: None,
            highest_epoch: None,
            retry_after_s: None,
        }
    }

    pub(super) fn with_epoch(self, highest: Epoch) -> Self {
        Self { highest_epoch: Some(highest), ..self }
    }

    pub(super) fn fenced_term(slot: Slot, highest: OwnerTerm) -> Self {
        let message = format!("slot {} has an owner of term {highest}", slot.get());
        Self { highest_term: Some(highest), ..Self::new(ErrorCode::Fenced, message) }
    }

    /// Of a digest: these of its slots have owners of higher terms, if there are any.
    pub(super) fn fenced_among(slots: Vec<SlotTerm>) -> Option<Self> {
        let SlotTerm { slot, term } = *slots.first()?;
        Some(Self { fenced_slots: Some(slots), ..Self::fenced_term(slot, term) })
    }

    pub(super) fn fenced_epoch(room: &RoomId, highest: Epoch) -> Self {
        Self::new(ErrorCode::Fenced, format!("room {room} was placed at epoch {highest}")).with_epoch(highest)
    }

    pub(super) fn restarted(expected: &BootId, current: &BootId) -> Self {
        Self::new(ErrorCode::Restarted, format!("incarnation {expected} is gone, this is {current}"))
    }

    pub(super) fn occupied(room: &RoomId, sessions: usize) -> Self {
        let message = format!("room {room} has {sessions} participants: pass \"force\": true to end it with them");
        Self::new(ErrorCode::Occupied, message)
    }

    pub(super) fn draining() -> Self {
        Self { retry_after_s: Some(30), ..Self::new(ErrorCode::Draining, "draining: no new rooms") }
    }

    pub(super) fn full(capacity: u32) -> Self {
        let message = format!("all {capacity} calls of the capacity are in use");
        Self { retry_after_s: Some(1), ..Self::new(ErrorCode::Overloaded, message) }
    }

    pub(super) fn crowded(sessions_max: usize) -> Self {
        Self::new(ErrorCode::Rejected, format!("the room has {sessions_max} sessions, the most it takes"))
    }

    /// Counts this refusal.
    pub(crate) fn count(&self, tally: &mut Tally) {
        match self.code {
            ErrorCode::Fenced => tally.fenced += 1,
            _ => tally.refused += 1,
        }
    }
}

// === impl Rooms ===

impl Rooms {
    /// `POST /v1/rooms:batch`: in order, each on its own. The batch was validated.
    pub(crate) fn batch(&mut self, batch: &Batch, request_id: &str, now: Now, tally: &mut Tally) -> BatchAnswer {
        let mut one = |operation: &BatchOperation| {
            let done = match operation {
                BatchOperation::Ensure { room, ensure } => {
                    self.ensure(room, ensure, now, tally).map(BatchResult::Ready)
                }
                BatchOperation::End { room, end } => self.end(room, end, now, tally).map(BatchResult::Ended),
            };
            done.unwrap_or_else(|refusal| {
                refusal.count(tally);
                BatchResult::Error(self.error(&refusal, request_id, now))
            })
        };
        BatchAnswer { results: batch.operations.iter().map(&mut one).collect() }
    }

    /// The body that tells a refusal.
    pub(crate) fn error(&self, refusal: &Refusal, request_id: &str, now: Now) -> ErrorAnswer {
        ErrorAnswer {
            request_id: request_id.to_owned(),
            error_code: refusal.code,
            message: refusal.message.clone(),
            highest_term: refusal.highest_term,
            fenced_slots: refusal.fenced_slots.clone(),
            highest_epoch: refusal.highest_epoch,
            boot_id: self.boot_id().clone(),
            load: self.load(now),
        }
    }
}
