//! The one shape of every error answer.

use serde::{Deserialize, Serialize};

use crate::{BootId, Epoch, Load, OwnerTerm, SlotTerm};

/// Why an SFU refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is malformed; sending it again cannot help.
    Invalid,
    /// 404: no such route.
    NotFound,
    /// 409: a higher term or epoch was seen; `highest_term` or `highest_epoch` says which.
    Fenced,
    /// 409: the SFU is another incarnation than the one expected; its rooms are gone.
    Restarted,
    /// 409: the room has participants, so it is not ended without `force`.
    Occupied,
    /// 413: the body is too large.
    TooLarge,
    /// 422: the SFU will not do this, now or later: do not retry.
    Rejected,
    /// 429 or 503: too much at once; see `Retry-After`.
    Overloaded,
    /// 503: the SFU is draining and takes no new rooms.
    Draining,
    /// 500: a fault of the SFU.
    Internal,
    /// A code this build does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status this code is sent with.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Fenced | Self::Restarted | Self::Occupied => 409,
            Self::TooLarge => 413,
            Self::Rejected => 422,
            Self::Overloaded => 429,
            Self::Draining => 503,
            Self::Internal | Self::Unknown => 500,
        }
    }
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorAnswer {
    /// Identifies the request in the SFU's log.
    pub request_id: String,
    /// Machine-readable reason.
    pub error_code: ErrorCode,
    /// What happened and what to do, for a human.
    pub message: String,
    /// With `fenced`: the highest term seen for the slot; of a digest, for one of its slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_term: Option<OwnerTerm>,
    /// With `fenced`, of a digest: each of its slots for which a higher term was seen, once, and that term. What is sent
    /// again without these is not refused for the same reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_slots: Option<Vec<SlotTerm>>,
    /// With `fenced`: the highest epoch seen for the room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_epoch: Option<Epoch>,
    /// The SFU's incarnation.
    pub boot_id: BootId,
    /// The SFU's load, as in every answer.
    pub load: Load,
}
