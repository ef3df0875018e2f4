//! The one place where what went wrong becomes an HTTP answer.
//!
//! Handlers return [`ApiError`]; it travels as a response extension until [`super::finish`] gives it
//! the request's id and writes the body, so that every error looks the same whoever made it.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{HeaderValue, LOCATION};
use rand::RngExt as _;
use rate_limit::LeverError;
use serde::Serialize;

use crate::admission::Denied;
use crate::engine::{Refusal, Unheard};
use crate::watch::CursorError;

/// Callers turned away without a better hint come back after this long at the earliest.
pub(crate) const RETRY_BASE: Duration = Duration::from_secs(1);

/// The one shape of every error answer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ErrorBody {
    /// Identifies the request in the syncer's log.
    pub(crate) request_id: String,
    /// Machine-readable reason.
    pub(crate) error_code: &'static str,
    /// What happened and what to do, for a human.
    pub(crate) message: String,
}

/// Why a request was not done.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) retry_after: Option<RetryAfter>,
    /// Where the owner is.
    pub(crate) owner: Option<Arc<str>>,
}

/// When to come back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RetryAfter {
    /// Then: the caller has a slot of its own.
    Slot(Duration),
    /// Not before; who is told so at one moment comes back spread.
    AtLeast(Duration),
}

// === impl ApiError ===

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None, owner: None }
    }

    /// 400: sending it again cannot help.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// 404.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// 401.
    pub(crate) fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "a known bearer token or certificate is needed")
    }

    /// 401: of a stream that outlived what was known of its caller.
    pub(crate) fn caller_changed() -> Self {
        let message = "the caller is no longer listed as it was when this stream was opened: open a new one";
        Self::new(StatusCode::UNAUTHORIZED, "caller_changed", message)
    }

    /// 403.
    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", format!("at most {limit} bytes are taken"))
    }

    /// 400: the line of a stream is longer than it may be.
    pub(crate) fn line_too_long(limit: usize) -> Self {
        Self { status: StatusCode::BAD_REQUEST, ..Self::too_large(limit) }
    }

    /// 503, come back somewhat later.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>, at_least: Duration) -> Self {
        Self::later(StatusCode::SERVICE_UNAVAILABLE, code, message, RetryAfter::AtLeast(at_least))
    }

    /// Come back then.
    fn later(status: StatusCode, code: &'static str, message: impl Into<String>, retry_after: RetryAfter) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(status, code, message) }
    }

    /// 421: another syncer owns it.
    pub(crate) fn not_owner(owner: Option<Arc<str>>) -> Self {
        let mut e = Self::new(StatusCode::MISDIRECTED_REQUEST, "not_owner", "another syncer owns this guild");
        e.owner = owner;
        e
    }

    /// 307: the owner serves it.
    pub(crate) fn redirect(owner: &str, path_and_query: &str) -> Self {
        let mut e = Self::new(StatusCode::TEMPORARY_REDIRECT, "redirect", "the owner serves it");
        e.owner = Some(format!("{owner}{path_and_query}").into());
        e
    }
}

// === impl RetryAfter ===

impl RetryAfter {
    /// How long to wait. Who has no slot waits at least as long as was said, and up to as much again, over a span of at
    /// least `span_min`: HTTP rounds to whole seconds, so a narrow one would be one or two of them.
    pub(crate) fn wait(self, span_min: Duration) -> Duration {
        match self {
            Self::Slot(wait) => wait,
            Self::AtLeast(base) => base + base.max(span_min).mul_f64(rand::rng().random::<f64>()),
        }
    }

    /// As a header.
    pub(super) fn header(self, span_min: Duration) -> HeaderValue {
        HeaderValue::from(seconds(self.wait(span_min)))
    }
}

/// Whole seconds, rounded up: HTTP knows no fractions.
fn seconds(d: Duration) -> u64 {
    (d.as_secs() + u64::from(d.subsec_nanos() > 0)).max(1)
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            // Ours by rank and not claimed yet, or just lost: soon one of us serves it.
            Refusal::NotOwner => Self::unavailable("not_ready", message, RETRY_BASE),
            Refusal::Limited(Denied { retry_after, .. }) => {
                Self::later(StatusCode::TOO_MANY_REQUESTS, "limited", message, RetryAfter::Slot(retry_after))
            }
            Refusal::TooMany { retry_after, .. } => {
                Self::later(StatusCode::TOO_MANY_REQUESTS, "too_many", message, RetryAfter::Slot(retry_after))
            }
            Refusal::Draining { retry_after } => {
                Self::later(StatusCode::SERVICE_UNAVAILABLE, "draining", message, RetryAfter::Slot(retry_after))
            }
        }
    }
}

impl From<Unheard> for ApiError {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::NoCall => Self::not_found("call"),
            Unheard::NoSession => Self::new(StatusCode::FORBIDDEN, "no_session", unheard.to_string()),
        }
    }
}

impl From<LeverError> for ApiError {
    fn from(e: LeverError) -> Self {
        let code = match &e {
            LeverError::Unknown { .. } => "lever_unknown",
            LeverError::OutOfRange { .. } => "lever_out_of_range",
            LeverError::WrongType { .. } => "lever_wrong_type",
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, e.to_string())
    }
}

impl From<CursorError> for ApiError {
    fn from(e: CursorError) -> Self {
        match e {
            CursorError::Invalid => Self::new(
                StatusCode::BAD_REQUEST,
                "cursor_invalid",
                "this syncer never gave out such an id; watch again without Last-Event-ID",
            ),
            CursorError::TooOld => Self::new(
                StatusCode::GONE,
                "cursor_too_old",
                "what follows this id was dropped; watch again without Last-Event-ID",
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::TEMPORARY_REDIRECT
            && let Some(Ok(at)) = self.owner.as_deref().map(HeaderValue::from_str)
        {
            headers.insert(LOCATION, at);
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_callers_without_a_slot_are_spread_over_whole_seconds() {
        for (base_ms, span_s) in [(1_000, 4), (1_300, 4), (5_000, 4), (10_000, 4), (1_000, 20)] {
            let (base, span_min) = (Duration::from_millis(base_ms), Duration::from_secs(span_s));
            let mut by_second = std::collections::BTreeMap::<u64, u32>::new();
            for _ in 0..10_000 {
                let wait = RetryAfter::AtLeast(base).wait(span_min);
                assert!(base <= wait && wait <= base + base.max(span_min), "{wait:?} for {base:?}");
                *by_second.entry(seconds(wait)).or_default() += 1;
            }
            let (first, last) = by_second.keys().next().zip(by_second.keys().next_back()).expect("some");
            let seconds = last - first + 1; // those without a caller too
            let (max, mean) = (by_second.values().max().expect("some"), 10_000.0 / seconds as f64);
            assert!(f64::from(*max) <= 1.5 * mean, "{base:?}: {by_second:?}");
            assert!(seconds >= span_s, "{base:?}: {by_second:?}");
        }
        assert_eq!((seconds(Duration::ZERO), seconds(Duration::from_millis(1_001))), (1, 2));
    }
}
