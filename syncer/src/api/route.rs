//! Whether we serve a guild's request, or who does.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::request::Parts;
use sfu_api::{GuildId, Slot};

use super::error::RETRY_BASE;
use super::{ApiError, App, Caller};
use crate::ownership::{Owner, slot_of};

const PREFER: HeaderName = HeaderName::from_static("prefer");
/// The preference of RFC 7240 for answers that say no more than they must.
pub(crate) const MINIMAL: &str = "return=minimal";

/// Who serves.
pub(crate) enum Route {
    /// We do; the guild's slot.
    Here(Slot),
    /// The owner does.
    There(Arc<Owner>),
}

/// Whether the caller would rather go to the owner itself.
pub(crate) fn prefers_redirect(parts: &Parts) -> bool {
    prefers(parts, "redirect")
}

/// Whether the caller would rather hear no more than it must.
pub(crate) fn prefers_minimal(parts: &Parts) -> bool {
    prefers(parts, MINIMAL)
}

fn prefers(parts: &Parts, what: &str) -> bool {
    let preferences = parts.headers.get_all(PREFER).iter().filter_map(|v| v.to_str().ok());
    preferences.flat_map(|v| v.split([',', ';'])).any(|p| p.trim().eq_ignore_ascii_case(what))
}

// === impl App ===

impl App {
    /// Decides who serves the guild, if the caller may speak of it; a forwarded request is never
    /// forwarded again.
    pub(crate) fn route(&self, guild: &GuildId, caller: &Caller) -> Result<Route, ApiError> {
        caller.must_be_allowed(guild)?;
        // Not cloned unless it is another: all threads would count on the one word of our own.
        let view = self.ownership.look();
        let slot = slot_of(guild);
        let owner = view
            .owner(slot)
            .ok_or_else(|| ApiError::unavailable("no_owner", "no syncer owns this guild yet", RETRY_BASE))?;
        if owner.me {
            Ok(Route::Here(slot))
        } else if caller.forwarded {
            Err(ApiError::not_owner(Some(Arc::clone(&owner.url))))
        } else {
            Ok(Route::There(Arc::clone(owner)))
        }
    }

    /// Forwards the request to the owner, or sends the caller there if that is preferred.
    pub(crate) async fn forward(
        &self,
        owner: &Owner,
        caller: &Caller,
        parts: &Parts,
        body: Bytes,
    ) -> Result<Response, ApiError> {
        let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        if prefers_redirect(parts) {
            return Err(ApiError::redirect(&owner.url, path));
        }
        let kind = parts.headers.get(CONTENT_TYPE);
        let answer = self.peers.forward(&owner.url, parts.method.clone(), path, &caller.on_behalf(), kind, body).await;
        let (head, bytes) = answer.map_err(|e| {
            tracing::debug!(owner = %owner.id, error = %e, "owner not reached");
            let wait = e.retry_after().unwrap_or(RETRY_BASE);
            ApiError::unavailable(
                "owner_unreachable",
                format!("syncer {} owns this guild and gives no answer", owner.id),
                wait,
            )
        })?;
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = head.status;
        for name in [CONTENT_TYPE, RETRY_AFTER] {
            if let Some(value) = head.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }
}
