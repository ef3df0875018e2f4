//! What can go wrong between a syncer and an SFU, told apart by what it proves.
//!
//! The distinctions are those that failure detection and the reconciler act on. Was it a *fresh*
//! refusal (evidence of death) or a shared old dial error (none)? Was the request sent before time
//! ran out (the room may exist) or not? Did the SFU say "later" (with a time) or "never"?

use std::fmt;
use std::time::Duration;

use sfu_api::{BootId, Epoch, Load, OwnerTerm, SlotTerm};

/// An operation on an SFU failed.
///
/// `Display` says what happened in one line for an operator; it never holds a secret.
#[derive(Debug, Clone)]
pub struct DriverError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    fresh: bool,
    sent: bool,
    retry_after: Option<Duration>,
    highest_term: Option<OwnerTerm>,
    fenced_slots: Vec<SlotTerm>,
    highest_epoch: Option<Epoch>,
    boot_id: Option<BootId>,
    load: Option<Load>,
    detail: String,
}

/// The kind of a [`DriverError`]; also a metrics label ([`ErrorKind::as_str`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The SFU's host refused the connection.
    Refused,
    /// The connection was reset or closed.
    Reset,
    /// The TLS handshake failed: wrong certificate, wrong name, not TLS.
    Tls,
    /// Time ran out before the request was written.
    TimedOutBeforeSend,
    /// Time ran out after the request was (perhaps partly) written: it may have been carried out.
    TimedOutAfterSend,
    /// The SFU asked for patience (429, 503).
    Overloaded,
    /// The SFU is draining and takes no new rooms.
    Draining,
    /// Somebody with a higher term or epoch has written.
    Fenced,
    /// The SFU is another incarnation than the one expected.
    Restarted,
    /// The SFU will not do this, now or later: do not retry.
    Rejected,
    /// The SFU failed by its own account (500 and the like).
    Internal,
    /// The SFU's answer makes no sense: garbage, wrong content type, too large, cut short.
    Protocol,
    /// A dial failed a moment ago and this request did not dial again: says nothing new.
    FailFast,
    /// Our own pool has no room for the request: says nothing of the SFU.
    Saturated,
    /// Time ran out while other requests to the same SFU held its connections, or just as one was had: says nothing new of
    /// it, and nothing of how many requests we may have under way. (That we are slow shows in how late our timers are.)
    Queued,
    /// Something else on our side of the connection.
    Local,
}

// === impl ErrorKind ===

impl ErrorKind {
    /// Every kind, for tables and metrics.
    pub const ALL: [Self; 16] = [
        Self::Refused,
        Self::Reset,
        Self::Tls,
        Self::TimedOutBeforeSend,
        Self::TimedOutAfterSend,
        Self::Overloaded,
        Self::Draining,
        Self::Fenced,
        Self::Restarted,
        Self::Rejected,
        Self::Internal,
        Self::Protocol,
        Self::FailFast,
        Self::Saturated,
        Self::Queued,
        Self::Local,
    ];

    /// The kind as a metrics label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Tls => "tls",
            Self::TimedOutBeforeSend => "timed_out_before_send",
            Self::TimedOutAfterSend => "timed_out_after_send",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Fenced => "fenced",
            Self::Restarted => "restarted",
            Self::Rejected => "rejected",
            Self::Internal => "internal",
            Self::Protocol => "protocol",
            Self::FailFast => "fail_fast",
            Self::Saturated => "saturated",
            Self::Queued => "queued",
            Self::Local => "local",
        }
    }
}

// === impl DriverError ===

impl DriverError {
    /// A failure of this kind; `detail` completes the sentence for an operator.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            fresh: false,
            sent: matches!(
                kind,
                ErrorKind::TimedOutAfterSend | ErrorKind::Protocol | ErrorKind::Internal | ErrorKind::Reset
            ),
            retry_after: None,
            highest_term: None,
            fenced_slots: Vec::new(),
            highest_epoch: None,
            boot_id: None,
            load: None,
            detail: detail.into(),
        }))
    }

    /// States whether the failure was seen on a connection made for this request.
    #[must_use]
    pub fn with_fresh(mut self, fresh: bool) -> Self {
        self.0.fresh = fresh;
        self
    }

    /// States whether the request, or part of it, may have reached the SFU.
    #[must_use]
    pub fn with_sent(mut self, sent: bool) -> Self {
        self.0.sent = sent;
        self
    }

    /// Adds when to come back.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.0.retry_after = retry_after;
        self
    }

    /// Adds what fenced us.
    #[must_use]
    pub fn with_fence(mut self, term: Option<OwnerTerm>, epoch: Option<Epoch>) -> Self {
        self.0.highest_term = term;
        self.0.highest_epoch = epoch;
        self
    }

    /// Adds which slots of a digest fenced us.
    #[must_use]
    pub fn with_fenced_slots(mut self, slots: Vec<SlotTerm>) -> Self {
        self.0.fenced_slots = slots;
        self
    }

    /// Adds what the answer said of the SFU itself.
    #[must_use]
    pub fn with_sfu(mut self, boot_id: Option<BootId>, load: Option<Load>) -> Self {
        self.0.boot_id = boot_id;
        self.0.load = load;
        self
    }

    /// What kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether this counts towards the SFU's death: refused or reset on a fresh connection.
    #[must_use]
    pub fn is_dead_evidence(&self) -> bool {
        self.0.fresh && matches!(self.0.kind, ErrorKind::Refused | ErrorKind::Reset)
    }

    /// Whether time ran out, before or after sending.
    #[must_use]
    pub fn is_time_out(&self) -> bool {
        matches!(self.0.kind, ErrorKind::TimedOutBeforeSend | ErrorKind::TimedOutAfterSend)
    }

    /// Whether the SFU itself asked for less (its window shrinks): overloaded or timed out after sending.
    #[must_use]
    pub fn is_overload(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Overloaded | ErrorKind::TimedOutAfterSend)
    }

    /// Whether the failure is ours and says nothing of the SFU.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Saturated | ErrorKind::Queued | ErrorKind::Local | ErrorKind::FailFast)
    }

    /// Whether an answer came back that made sense: the SFU is alive, whatever it said.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Overloaded
                | ErrorKind::Draining
                | ErrorKind::Fenced
                | ErrorKind::Restarted
                | ErrorKind::Rejected
                | ErrorKind::Internal
        )
    }

    /// After a failed [`ensure_room`](super::SfuDriver::ensure_room): whether the room may exist all the same.
    #[must_use]
    pub fn room_may_exist(&self) -> bool {
        self.0.sent
    }

    /// When the SFU asked us to come back: 0.1 to 30 s.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// With [`ErrorKind::Fenced`]: the highest term seen for the slot.
    #[must_use]
    pub fn highest_term(&self) -> Option<OwnerTerm> {
        self.0.highest_term
    }

    /// With [`ErrorKind::Fenced`], of a digest: the slots for which a higher term was seen, where the answer tells.
    #[must_use]
    pub fn fenced_slots(&self) -> &[SlotTerm] {
        &self.0.fenced_slots
    }

    /// With [`ErrorKind::Fenced`]: the highest epoch seen for the room.
    #[must_use]
    pub fn highest_epoch(&self) -> Option<Epoch> {
        self.0.highest_epoch
    }

    /// The SFU's incarnation, where the answer told it.
    #[must_use]
    pub fn boot_id(&self) -> Option<&BootId> {
        self.0.boot_id.as_ref()
    }

    /// The SFU's load, where the answer told it.
    #[must_use]
    pub fn load(&self) -> Option<Load> {
        self.0.load
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0.kind {
            ErrorKind::Refused => "the SFU refused the connection",
            ErrorKind::Reset => "the SFU closed the connection",
            ErrorKind::Tls => "the TLS handshake with the SFU failed",
            ErrorKind::TimedOutBeforeSend => "time ran out before the request was sent",
            ErrorKind::TimedOutAfterSend => "time ran out waiting for the SFU's answer",
            ErrorKind::Overloaded => "the SFU is overloaded",
            ErrorKind::Draining => "the SFU is draining",
            ErrorKind::Fenced => "the SFU has seen a newer owner or placement",
            ErrorKind::Restarted => "the SFU has restarted",
            ErrorKind::Rejected => "the SFU rejected the request",
            ErrorKind::Internal => "the SFU failed",
            ErrorKind::Protocol => "the SFU's answer makes no sense",
            ErrorKind::FailFast => "not dialled: a dial failed a moment ago",
            ErrorKind::Saturated => "our pool is full",
            ErrorKind::Queued => "time ran out behind other requests to the SFU",
            ErrorKind::Local => "the request could not be made",
        };
        f.write_str(what)?;
        if !self.0.detail.is_empty() {
            write!(f, ": {}", self.0.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for DriverError {}
